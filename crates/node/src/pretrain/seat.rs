//! A node's seat in its run: its registration, its disk, its replica of the state, and its record on the chain. Miner
//! and validator share this.

use std::sync::Arc;

use templar_protocol::roster::EntryId;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::frame::publisher::Publisher;
use crate::frame::records::Stored;
use crate::pretrain::fetch::Opened;
use crate::pretrain::replica::{Advance, Replica, Settled};
use templar_record::event::{Event, Role};
use templar_record::trouble::Trouble;

/// What miner and validator have in common.
#[derive(Debug)]
pub struct Seat {
    pub ctx: Arc<Context>,
    /// This node's registration, read at each window: a hotkey that was registered again is another entry.
    pub entry: EntryId,
    pub local: Local,
    pub replica: Replica,
    pub publisher: Publisher,
    /// The window in which `entry` was last read.
    entry_read_in: Option<u64>,
    /// The block at which this node last looked for a certified state.
    resynchronised_at: Option<u64>,
    /// The block at which that failed. One attempt per block is enough, because only a new block can change the result.
    stuck_at: Option<u64>,
}

/// What [`Seat::advance`] did.
#[derive(Debug)]
pub enum Progress {
    /// Nothing is due, or nothing can be done before the next block.
    Nothing,
    Settled(Box<Settled>),
    /// A certified state replaced the replica's: everything based on the old one is void.
    Adopted,
}

impl Seat {
    /// Resumes from the local state.
    pub async fn open(ctx: Arc<Context>, mut local: Local, role: Role) -> Result<Self, NodeError> {
        let entry = ctx.own_entry().await?;
        let publisher = Publisher::new(&ctx, role)?;
        let replica = Replica::open(&ctx, &mut local).await?;
        let newest = &replica.newest().run;
        let (settled, state_root) = (newest.settled, newest.theta_root);
        ctx.emit(Event::Started { uid: entry.uid, role, settled, state_root }).await;
        publisher.check_quota(&ctx).await?;
        let (entry_read_in, resynchronised_at, stuck_at) = (None, None, None);
        Ok(Self { ctx, entry, local, replica, publisher, entry_read_in, resynchronised_at, stuck_at })
    }

    /// Reads this node's registration if a new window has begun.
    pub async fn renew_entry(&mut self, head: u64) -> Result<(), NodeError> {
        let window = self.ctx.schedule.window_at(head);
        if window.is_none() || window == self.entry_read_in {
            return Ok(());
        }
        let entry = self.ctx.own_entry().await?;
        self.entry_read_in = window;
        if entry != self.entry {
            self.entry = entry;
            self.publisher = Publisher::new(&self.ctx, self.publisher.role())?;
            self.ctx.emit(Event::Registered { uid: entry.uid }).await;
        }
        Ok(())
    }

    /// Publishes the bucket if need be; see [`Publisher::keep_listed`].
    pub async fn keep_listed(&mut self, head: u64) -> Result<(), NodeError> {
        self.publisher.keep_listed(&self.ctx, &self.entry, head).await
    }

    /// Settles the next window if it is due, or returns to a state that the network certified if this node cannot. Call
    /// it until it does nothing.
    pub async fn advance(&mut self, head: u64, opened: &[Arc<Opened>]) -> Result<Progress, NodeError> {
        if self.stuck_at == Some(head) {
            return Ok(Progress::Nothing);
        }
        let error = match self.replica.advance(&self.ctx, head, opened).await {
            // Without access to storage it goes on in the block in which that comes back: see [`crate::frame::access`].
            Ok(Advance::Nothing) | Err(NodeError::OwnStorage) => return Ok(Progress::Nothing),
            Ok(Advance::Settled(settled)) => return Ok(Progress::Settled(settled)),
            Ok(Advance::WentBack) => return Ok(Progress::Adopted),
            Err(error) if error.needs_resynchronisation() => error,
            Err(error) => return Err(error),
        };
        if self.ctx.access.broken().is_some() {
            return Ok(Progress::Nothing);
        }
        self.ctx.trouble(Trouble::Resynchronising { cause: error.to_string() }).await;
        self.stuck_at = Some(head);
        if self.resynchronised_at == Some(head) {
            return Ok(Progress::Nothing);
        }
        self.resynchronised_at = Some(head);
        match self.replica.resynchronise(&self.ctx, &mut self.local, head).await {
            Ok(()) => self.stuck_at = None,
            Err(NodeError::OwnStorage) => {
                (self.stuck_at, self.resynchronised_at) = (None, None);
                return Ok(Progress::Nothing);
            }
            Err(error) => return Err(error),
        }
        Ok(Progress::Adopted)
    }

    /// Puts the newest state on disk.
    pub fn save(&mut self, values: &[Stored]) -> Result<(), NodeError> {
        let newest = self.replica.newest();
        self.local.save(&newest.run, &newest.theta, values)
    }
}
