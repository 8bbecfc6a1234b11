//! A contribution that its own bucket does not serve this node, from other validators: whoever votes for it serves a copy
//! before it votes.
//!
//! Nobody's contribution is called unavailable before a few of them were asked. A miner that serves nobody thus costs
//! every validator a bounded number of small requests per window, spread over all the others.

use std::sync::Arc;

use templar_protocol::hash::Hash32;

use crate::frame::context::Context;
use crate::pretrain::fetch::{self, Location, Opened, Wanted};
use crate::pretrain::window::Window;

/// How often copies of one contribution are asked for, in different blocks.
pub(super) const ROUNDS_MAX: usize = 2;
/// Validators that are asked in each round.
const HOLDERS_MAX: usize = 8;

/// One round.
pub(super) struct Rescue {
    ctx: Arc<Context>,
    nth: usize,
    wanted: Wanted,
    holders: Vec<Location>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Rescued {
    pub(super) nth: usize,
    pub(super) opened: Option<Arc<Opened>>,
}

impl Rescue {
    pub(super) fn new(ctx: &Arc<Context>, window: &Window, nth: usize, round: usize, wanted: Wanted) -> Self {
        let holders = holders(ctx, window, round, &wanted.committed);
        Self { ctx: ctx.clone(), nth, wanted, holders }
    }

    pub(super) async fn run(self) -> Rescued {
        let Self { ctx, nth, wanted, holders } = self;
        Rescued { nth, opened: fetch::first(&ctx, &holders, &wanted).await }
    }
}

/// Whom to ask in a round: later rounds begin where the one before ended.
fn holders(ctx: &Context, window: &Window, round: usize, committed: &Hash32) -> Vec<Location> {
    let mut others = fetch::holders(ctx, &window.roster.validators, committed);
    others.retain(|validator| validator.bucket != *ctx.store.own());
    if !others.is_empty() {
        let first = round * HOLDERS_MAX % others.len();
        others.rotate_left(first);
    }
    let location = |validator| Location::of_holder(ctx, validator, window.number, committed);
    others.into_iter().take(HOLDERS_MAX).map(location).collect()
}
