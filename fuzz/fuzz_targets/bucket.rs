//! Bucket locations on chain, as edits of a valid one and as any bytes. A location that decodes encodes to the same
//! bytes.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use templar_protocol::bucket::BucketLocator;
use templar_protocol::locator::{Locator, Role};

static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let bucket = BucketLocator {
        endpoint: "https://s3.example".into(),
        bucket: "miner-7".into(),
        region: "auto".into(),
        access_key_id: "0123456789abcdef".into(),
        secret_access_key: "Secret+/of+what+may+be+read".into(),
    };
    Locator::new(Role::Miner, bucket).encode().expect("valid")
});

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut edited = VALID.clone();
    for edit in bytes.chunks_exact(2) {
        let at = usize::from(edit[0]) % edited.len();
        edited[at] = edit[1];
    }
    check(&edited);
});

fn check(bytes: &[u8]) {
    if let Ok(locator) = Locator::decode(bytes) {
        assert_eq!(locator.encode().as_deref(), Ok(bytes));
    }
}
