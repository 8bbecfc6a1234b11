//! Manifests of data sets: what is accepted is canonical and consistent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use templar_data::Manifest;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::from_bytes(bytes) {
        assert_eq!(manifest.to_bytes(), bytes);
        assert!(manifest.validate().is_ok());
    }
});
