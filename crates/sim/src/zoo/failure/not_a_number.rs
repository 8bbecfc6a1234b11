//! Training that diverges.

use templar_node::pretrain::setup::Setup;

use crate::zoo::layers::alter_training;

/// In the window after so many outer steps, the miner learns something that is not a number. It is not encoded: the miner
/// misses that window, starts its error feedback afresh, and goes on.
pub fn wrap(setup: Setup, outer_steps: u64) -> Setup {
    alter_training(setup, move |job, outcome| {
        if job.first_step == outer_steps * job.batches.len() as u64 {
            outcome.delta[5] = f32::NAN;
        }
    })
}
