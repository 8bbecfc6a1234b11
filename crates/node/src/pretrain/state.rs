//! The replicated state: what a window leaves behind.

use std::sync::Arc;

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
    /// The state that the run starts from, checked against its specification.
    pub fn genesis(ctx: &Context) -> Result<Self, NodeError> {
        let seed = ctx.spec.theta0.seed;
        let layout = ctx.codec.layout();
        let theta = layout.theta0(&ctx.spec.model, seed);
        let (found, expected) = (layout.state_root(&theta), ctx.spec.theta0.root);
        if found != expected {
            return Err(NodeError::WrongTheta0 { seed, found, expected });
        }
        Ok(Self { run: RunState::genesis(&ctx.spec), theta: Arc::new(theta) })
    }
}
