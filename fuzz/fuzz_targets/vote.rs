//! On-chain records: votes and headers' hashes. A record that decodes encodes to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use templar_protocol::commitment::Commitment;
use templar_protocol::word::{HeaderWord, Vote, fields};

fuzz_target!(|bytes: &[u8]| {
    let Some((&[candidates, validators, window], field)) = bytes.split_first_chunk::<3>() else { return };
    let window = u32::from(window);
    for at in 0..3 {
        let mut all = vec![Vec::new(); 3];
        all[at] = field.to_vec();
        let commitment = Commitment { block: 1, fields: all };
        if let Ok(vote) = Vote::read(&commitment, window, usize::from(candidates), usize::from(validators)) {
            assert_eq!(fields(b"", None, Some(&vote))[at], field);
            assert_eq!(Vote::read_root(&commitment, window), Ok(vote.root));
        }
        if let Ok(word) = HeaderWord::read(&commitment, window) {
            assert_eq!(fields(b"", Some(&word), None)[at], field);
        }
        let _ = Vote::read_root(&commitment, window);
        let _ = Vote::read_proof(&commitment, window);
        let _ = Vote::read_window(&commitment);
    }
});
