//! When the dev chain makes a block: at a fixed interval, or when every participant has done its part.

use std::time::Duration;

use templar_protocol::keys::Hotkey;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{chain::Head, dev::DevChain, error::ChainError};

/// The dev chain's clock.
#[derive(Clone, Debug)]
pub enum BlockTime {
    /// A block at a fixed interval, as on a real chain.
    Fixed(Duration),
    /// Block n + 1 as soon as every participant has said ([`crate::Pacer`]) that it has nothing to do before
    /// that block ends; at the latest `cap` after block n, so that nobody can stop the chain. Without participants,
    /// every `cap`.
    Paced { participants: Vec<Hotkey>, cap: Duration },
}

/// Makes blocks until `stop` becomes true or its sender is gone. Hotkeys for which a capped block did not wait are
/// remembered in [`DevChain::late`]. A block that [`DevChain::hold`] holds is not made. It fails only if the database
/// does.
pub async fn run_blocks(chain: DevChain, time: BlockTime, mut stop: watch::Receiver<bool>) -> Result<(), ChainError> {
    let mut due = Instant::now() + time.longest();
    loop {
        let number = chain.newest().number + 1;
        if chain.is_held(number) {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                () = chain.released(number) => {}
            }
            // Nobody is late because of the hold.
            due = Instant::now() + time.longest();
        }
        tokio::select! {
            biased;
            // A lost sender ends the wait too: nobody is left to ask for a stop.
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            () = all_ready(&chain, &time, number) => {}
            () = sleep_until(due) => report_late(&chain, &time, number),
        }
        let Head { number, .. } = chain.produce_block()?;
        tracing::trace!(block = number, "block made");
        due = time.after(due);
        // If every participant is far ahead, blocks come without a pause; other tasks must still run between them.
        tokio::task::yield_now().await;
    }
}

impl BlockTime {
    fn longest(&self) -> Duration {
        match self {
            Self::Fixed(interval) => *interval,
            Self::Paced { cap, .. } => *cap,
        }
    }

    /// The latest time for the next block. A fixed interval does not drift, but does not make up for blocks
    /// missed while the machine slept either.
    fn after(&self, due: Instant) -> Instant {
        let now = Instant::now();
        match self {
            Self::Fixed(interval) if due + *interval > now => due + *interval,
            Self::Fixed(interval) => now + *interval,
            Self::Paced { cap, .. } => now + *cap,
        }
    }
}

/// Ends when no participant has anything to do before block `number` ends; never, if blocks are made by time alone.
async fn all_ready(chain: &DevChain, time: &BlockTime, number: u64) {
    let BlockTime::Paced { participants, .. } = time else { return std::future::pending().await };
    if participants.is_empty() {
        return std::future::pending().await;
    }
    let mut paced = chain.watch_pace();
    while !chain.awaited(participants, number).is_empty() {
        if paced.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn report_late(chain: &DevChain, time: &BlockTime, number: u64) {
    let BlockTime::Paced { participants, cap } = time else { return };
    let late = chain.awaited(participants, number);
    for hotkey in &late {
        tracing::debug!(block = number, hotkey = %hotkey.short(), cap_s = cap.as_secs_f64(), "the block did not wait longer for this node");
    }
    chain.record_late(number, late);
}
