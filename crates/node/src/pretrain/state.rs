//! The replicated state: what a window leaves behind.

use std::ops::ControlFlow;
use std::sync::{Arc, Weak};

use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::state::RunState;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::weights::{Weights, WeightsError};

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
        let (codec, model, weights) = (ctx.codec.clone(), ctx.spec.model.clone(), ctx.weights.clone());
        let wanted = Arc::new(());
        let is_wanted = Arc::downgrade(&wanted);
        let work = move || {
            let theta = match theta0(codec.layout(), &model, seed, weights.as_ref(), &is_wanted)? {
                Ok(theta) => theta,
                Err(error) => return Some(Err(error)),
            };
            Some(Ok((codec.layout().state_root(&theta), theta)))
        };
        let made = ctx.compute.run(work).await;
        drop(wanted);
        let (found, theta) = made.ok_or(NodeError::Stopped)??;
        if found != expected {
            return Err(NodeError::WrongTheta0 { seed, found, expected });
        }
        Ok(Self { run: RunState::genesis(&ctx.spec), theta: Arc::new(theta) })
    }
}

/// θ₀; none if nobody wants it any more.
fn theta0(
    layout: &Layout,
    model: &ModelSpec,
    seed: u64,
    weights: Option<&Weights>,
    is_wanted: &Weak<()>,
) -> Option<Result<Vec<f32>, WeightsError>> {
    let watch = |_| if is_wanted.strong_count() > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
    match weights {
        Some(weights) => weights.read(layout, watch).continue_value(),
        None => layout.theta0_watched(model, seed, watch).continue_value().map(Ok),
    }
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
        let made = theta0(&layout, &model, 3, None, &is_wanted);
        assert_eq!(made.unwrap().unwrap(), layout.theta0(&model, 3));
        drop(wanted);
        assert!(theta0(&layout, &model, 3, None, &is_wanted).is_none());
    }
}
