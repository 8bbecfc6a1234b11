//! The clock of a run: windows and their deadlines as block numbers. Wall-clock time plays no part.

use crate::run::RunSpec;

/// Window and phase boundaries of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    start_block: u64,
    blocks: u64,
    snapshot_lag: u64,
    put: u64,
    vote: u64,
    delay: u64,
}

impl Schedule {
    pub fn new(spec: &RunSpec) -> Self {
        let windows = &spec.windows;
        Self {
            start_block: spec.chain.start_block,
            blocks: windows.blocks,
            snapshot_lag: windows.snapshot_lag_blocks,
            put: windows.put_block,
            vote: windows.vote_block,
            delay: u64::from(windows.delay_windows),
        }
    }

    /// The window that `block` lies in; `None` before the run starts.
    pub fn window_at(&self, block: u64) -> Option<u64> {
        block.checked_sub(self.start_block).map(|since| since / self.blocks)
    }

    pub fn first_block(&self, window: u64) -> u64 {
        self.start_block + window * self.blocks
    }

    /// S_w: roster, stakes, incentives and the seed are read as of this block.
    pub fn snapshot_block(&self, window: u64) -> u64 {
        self.first_block(window) - self.snapshot_lag
    }

    /// D_put: headers are read as of this block; keys are published after it.
    pub fn put_deadline(&self, window: u64) -> u64 {
        self.first_block(window) + self.put
    }

    /// D_vote: votes are read as of this block.
    pub fn vote_deadline(&self, window: u64) -> u64 {
        self.first_block(window) + self.vote
    }

    /// How many windows must be settled before `window` can start, because its θ builds on them.
    pub fn settled_before(&self, window: u64) -> u64 {
        window.saturating_sub(self.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_a_window_follow_each_other() {
        let clock = Schedule { start_block: 100, blocks: 20, snapshot_lag: 3, put: 12, vote: 18, delay: 0 };
        assert_eq!(clock.window_at(99), None);
        assert_eq!(clock.window_at(100), Some(0));
        assert_eq!(clock.window_at(139), Some(1));
        let phases = [clock.snapshot_block(1), clock.first_block(1), clock.put_deadline(1), clock.vote_deadline(1)];
        assert_eq!(phases, [117, 120, 132, 138]);
        assert!(clock.vote_deadline(1) < clock.first_block(2));
        assert_eq!(clock.settled_before(5), 5);
        assert_eq!(Schedule { delay: 1, ..clock }.settled_before(0), 0);
    }
}
