//! One attempt to fetch a contribution, in a task of its own.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::header::HeaderContext;
use tokio::sync::{Semaphore, watch};

use crate::frame::context::Context;
use crate::pretrain::fetch::{self, Location, Obstacle, Opened};
use crate::pretrain::intake::slot::{Fetched, Parts, Slot};

/// How long a fetch may keep others waiting for one of [`fetch::PARALLEL_FETCHES`] turns: after that it continues
/// beside them, so that slow buckets do not block turns. So all slots may be under way at once, which takes no more
/// memory than the intake needs anyway: every slot keeps its ciphertext to the end.
const TURN: Duration = Duration::from_secs(5);

/// One attempt to fetch a contribution, from what is known of it.
pub(super) struct Fetch {
    ctx: Arc<Context>,
    nth: usize,
    generation: u64,
    location: Location,
    context: Arc<HeaderContext>,
    committed: Hash32,
    parts: Parts,
    is_final: bool,
    /// The slot's obstacle: what this attempt waits for.
    obstacle: watch::Sender<Obstacle>,
}

impl Fetch {
    /// An attempt for slot number `nth`, if one is due at `head`.
    pub(super) fn new(ctx: &Arc<Context>, nth: usize, slot: &Slot, head: u64, is_final: bool) -> Option<Self> {
        let coming = slot.due(head, is_final)?;
        Some(Self {
            ctx: ctx.clone(),
            nth,
            generation: slot.generation(),
            location: slot.location.clone(),
            context: coming.context.clone(),
            committed: coming.committed,
            parts: coming.parts.clone(),
            is_final,
            obstacle: coming.obstacle.clone(),
        })
    }

    pub(super) async fn run(mut self, turns: Arc<Semaphore>) -> Fetched {
        let turn = turns.acquire_owned().await.ok();
        let result = {
            let mut advance = pin!(self.advance());
            if let Ok(result) = tokio::time::timeout(TURN, &mut advance).await {
                result
            } else {
                drop(turn);
                advance.await
            }
        };
        let Self { nth, generation, parts, is_final, .. } = self;
        Fetched { nth, generation, parts, is_final, result }
    }

    /// Fetches as much as is available now.
    async fn advance(&mut self) -> Result<Option<Arc<Opened>>, Obstacle> {
        let header = if let Some(header) = self.parts.header.take() {
            header
        } else {
            self.obstacle.send_replace(Obstacle::awaiting(FaultKind::HeaderUnavailable));
            fetch::header(&self.ctx, &self.location, &self.committed, Some(&self.context)).await?
        };
        let header = self.parts.header.insert(header).clone();
        let ciphertext = if let Some(ciphertext) = self.parts.ciphertext.take() {
            ciphertext
        } else {
            self.obstacle.send_replace(Obstacle::awaiting(FaultKind::PayloadUnavailable));
            fetch::ciphertext(&self.ctx, &self.location, &header).await?
        };
        let ciphertext = self.parts.ciphertext.insert(ciphertext).clone();
        if !self.is_final {
            return Ok(None);
        }
        // Up to the end: a key that comes too late to be used does not count.
        self.obstacle.send_replace(Obstacle::awaiting(FaultKind::NotOpened));
        let key = fetch::key(&self.ctx, &self.location).await?;
        Ok(Some(fetch::open(&self.ctx, header, ciphertext, key).await?))
    }
}
