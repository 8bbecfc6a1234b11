//! Run states from strangers' checkpoints: an accepted state is canonical and belongs to the requested run. The first
//! 32 bytes are the run, so that most inputs belong to the right one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use templar_protocol::hash::Hash32;
use templar_protocol::run::RunId;
use templar_protocol::state::{RunState, StateError};

fuzz_target!(|bytes: &[u8]| {
    let Some(run) = bytes.first_chunk::<32>() else { return };
    let run = RunId(Hash32(*run));
    let Ok(state) = RunState::from_bytes(bytes, run) else { return };
    assert_eq!(state.to_bytes(), bytes);
    let _ = state.digest();
    for exclusion in &state.exclusions {
        let before = exclusion.until_window.saturating_sub(1);
        assert!(exclusion.until_window == 0 || state.is_excluded(&exclusion.entry, before));
    }
    let other = RunId(Hash32::of(&run.0.0));
    assert_eq!(RunState::from_bytes(bytes, other), Err(StateError::WrongRun { found: run, expected: other }));
});
