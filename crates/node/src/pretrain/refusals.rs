//! What the own bucket refuses again and again: told at the first refusal and at the end, with a count.

use templar_record::event::Event;

use crate::frame::context::Context;

/// Refusals since the bucket last took something.
#[derive(Debug, Default)]
pub(crate) struct Refusals(u64);

impl Refusals {
    /// Counts one, and returns whether it is the first, which is to be told.
    pub(crate) fn note(&mut self) -> bool {
        self.0 += 1;
        self.0 == 1
    }

    /// The bucket has taken something: says so if that is news.
    pub(crate) async fn end(&mut self, ctx: &Context) {
        let refused = std::mem::take(&mut self.0);
        if refused > 0 {
            ctx.emit(Event::BucketBack { refused }).await;
        }
    }
}
