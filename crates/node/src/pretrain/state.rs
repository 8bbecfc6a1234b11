//! The replicated state: what a window leaves behind.

use std::ops::ControlFlow;
use std::sync::{Arc, Weak};

use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::state::RunState;

use crate::frame::context::Context;
use crate::frame::error::NodeError;

/// A state with its θ.
#[derive(Clone, Debug)]
pub struct State {
    pub run: RunState,
    pub theta: Arc<Vec<f32>>,
}

impl State {
    /// The state that the run starts from, checked against its specification. For a large model this takes minutes: they
    /// pass beside the node, and whoever drops this ends them.
    pub async fn genesis(ctx: &Context) -> Result<Self, NodeError> {
        let (seed, expected) = (ctx.spec.theta0.seed, ctx.spec.theta0.root);
        let (codec, model) = (ctx.codec.clone(), ctx.spec.model.clone());
        let given = match &ctx.weights {
            Some(origin) => Some(origin.theta0(&*ctx.store, &Arc::new(ctx.spec.layout()), expected).await?),
            None => None,
        };
        let wanted = Arc::new(());
        let is_wanted = Arc::downgrade(&wanted);
        let work = move || {
            let theta = given.or_else(|| theta0(codec.layout(), &model, seed, &is_wanted))?;
            Some((codec.layout().state_root(&theta), theta))
        };
        let made = ctx.compute.run(work).await;
        drop(wanted);
        let (found, theta) = made.ok_or(NodeError::Stopped)?;
        if found != expected {
            return Err(NodeError::WrongTheta0 { seed, found, expected });
        }
        Ok(Self { run: RunState::genesis(&ctx.spec), theta: Arc::new(theta) })
    }
}

/// θ₀ of a seed; none if nobody wants it any more.
fn theta0(layout: &Layout, model: &ModelSpec, seed: u64, is_wanted: &Weak<()>) -> Option<Vec<f32>> {
    let watch = |_| if is_wanted.strong_count() > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
    layout.theta0_watched(model, seed, watch).continue_value()
}

#[cfg(test)]
mod tests {
    use templar_protocol::testing;

    use super::*;

    #[test]
    fn theta0_ends_early_if_nobody_wants_it() {
        let model = testing::tiny_model();
        let (layout, wanted) = (Layout::llama(&model), Arc::new(()));
        let is_wanted = Arc::downgrade(&wanted);
        let made = theta0(&layout, &model, 3, &is_wanted);
        assert_eq!(made.unwrap(), layout.theta0(&model, 3));
        drop(wanted);
        assert!(theta0(&layout, &model, 3, &is_wanted).is_none());
    }
}
