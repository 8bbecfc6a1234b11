//! The contributions that a validator serves: a vote for a payload is a promise to serve it.
//!
//! Copies go into the validator's own bucket beside everything else, each in its own task, which retries until it is
//! given up with its window's vote deadline. There are at most as many as candidates of the windows being judged, and
//! the intake holds their bytes in memory anyway.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use templar_protocol::hash::Hash32;
use templar_protocol::run::RunId;
use templar_store::{Store, StoreError, keys};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::frame::context::Context;
use crate::frame::records::HeldRecord;
use crate::pretrain::fetch::Opened;
use crate::pretrain::pauses::Pauses;

/// Incomplete copies that are remembered until they are removed; older ones wait for the sweep of the next start.
const GIVEN_UP_MAX: usize = 1024;

/// Most copies under way at a time.
const PARALLEL_PUTS: usize = 4;

/// Window, and hash of the header.
pub(super) type Name = (u64, Hash32);

/// The copies in the validator's own bucket, and those on their way there.
#[derive(Debug)]
pub(super) struct Held {
    /// Oldest first.
    served: VecDeque<Name>,
    copying: Vec<Copying>,
    /// Copies that were not complete in time, oldest first.
    given_up: VecDeque<Name>,
    tasks: JoinSet<Name>,
    turns: Arc<Semaphore>,
}

/// A copy on its way.
#[derive(Debug)]
struct Copying {
    name: Name,
    /// The block at which it began.
    since: u64,
    /// Why it is not complete yet.
    obstacle: watch::Receiver<String>,
    task: AbortHandle,
}

/// What keeps a contribution from being served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    /// The block at which its copy began; `None` if it did not.
    pub(super) since: Option<u64>,
    pub(super) cause: String,
}

impl Held {
    pub(super) fn new(served: Vec<Name>) -> Self {
        let turns = Arc::new(Semaphore::new(PARALLEL_PUTS));
        Self { served: served.into(), copying: Vec::new(), given_up: VecDeque::new(), tasks: JoinSet::new(), turns }
    }

    /// Begins to copy a contribution at block `head`, unless it is there or on its way.
    pub(super) fn copy(&mut self, ctx: &Context, window: u64, opened: &Arc<Opened>, head: u64) {
        let name = (window, opened.header.header.hash());
        if self.served.contains(&name) || self.copying.iter().any(|copying| copying.name == name) {
            return;
        }
        let (sender, obstacle) = watch::channel("this node's bucket has not answered so far".to_owned());
        let copy = Copy { store: ctx.store.clone(), run: ctx.run, name, opened: opened.clone(), obstacle: sender };
        let task = self.tasks.spawn(copy.run(self.turns.clone()));
        self.copying.push(Copying { name, since: head, obstacle, task });
    }

    /// Waits for the next copy that is complete. Waits for ever if none is under way.
    pub(super) async fn arrival(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(name)) => {
                self.copying.retain(|copying| copying.name != name);
                self.served.push_back(name);
            }
            Some(Err(error)) if error.is_cancelled() => {}
            Some(Err(error)) => tracing::error!(%error, "a copy broke its task"),
            None => std::future::pending().await,
        }
    }

    pub(super) fn is_copying(&self) -> bool {
        !self.copying.is_empty()
    }

    /// Why a contribution is not served, if it is not.
    pub(super) fn lack(&self, window: u64, opened: &Opened) -> Option<Lack> {
        let name = (window, opened.header.header.hash());
        if self.served.contains(&name) {
            return None;
        }
        let copying = self.copying.iter().find(|copying| copying.name == name);
        Some(copying.map_or_else(
            || Lack { since: None, cause: "its copy did not begin".to_owned() },
            |copying| Lack { since: Some(copying.since), cause: copying.obstacle.borrow().clone() },
        ))
    }

    /// Gives up incomplete copies of windows up to `window`.
    pub(super) fn give_up(&mut self, window: u64) {
        for late in self.copying.extract_if(.., |copying| copying.name.0 <= window) {
            late.task.abort();
            // A part of it may be in the bucket by now: the checkpoint that retires complete copies removes it, too.
            self.given_up.push_back(late.name);
            if self.given_up.len() > GIVEN_UP_MAX {
                self.given_up.pop_front();
            }
        }
    }

    pub(super) fn served(&self) -> &VecDeque<Name> {
        &self.served
    }

    /// Copies of windows before `keep_from`, complete or not: the bucket no longer needs them.
    pub(super) fn expired(&self, keep_from: u64) -> Vec<Name> {
        let all = self.served.iter().chain(&self.given_up);
        all.filter(|(window, _)| *window < keep_from).copied().collect()
    }

    /// Adds copies found in the bucket, and drops those that are no longer there.
    pub(super) fn correct(&mut self, found: Vec<Name>, gone: &[Name]) {
        self.served.retain(|name| !gone.contains(name));
        self.given_up.retain(|name| !gone.contains(name));
        for name in found {
            if !self.served.contains(&name) {
                self.served.push_back(name);
            }
        }
        self.served.make_contiguous().sort_by_key(|(window, _)| *window);
    }

    /// The record for the disk.
    pub(super) fn record(&self) -> HeldRecord {
        HeldRecord { contributions: self.served.iter().copied().collect() }
    }
}

/// One contribution to put into the validator's own bucket.
struct Copy {
    store: Arc<dyn Store>,
    run: RunId,
    name: Name,
    opened: Arc<Opened>,
    obstacle: watch::Sender<String>,
}

impl Copy {
    async fn run(self, turns: Arc<Semaphore>) -> Name {
        let _turn = turns.acquire_owned().await;
        let (window, header) = self.name;
        let key = Bytes::copy_from_slice(self.opened.key.as_bytes());
        self.put(keys::held_payload(self.run, window, &header), self.opened.ciphertext.clone()).await;
        self.put(keys::held_key(self.run, window, &header), key).await;
        // The payload is put last: whoever finds it finds the whole contribution.
        self.put(keys::held_header(self.run, window, &header), Bytes::from(self.opened.header.to_bytes())).await;
        self.name
    }

    /// Tries until it succeeds.
    async fn put(&self, key: String, bytes: Bytes) {
        let mut pauses = Pauses::default();
        loop {
            let put: Result<(), StoreError> = self.store.put(&key, bytes.clone()).await;
            let Err(error) = put else { return };
            self.obstacle.send_replace(error.to_string());
            pauses.pause().await;
        }
    }
}
