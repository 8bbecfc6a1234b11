//! The weights that a run starts from, as verbs about runs use them.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::Path;

use color_eyre::eyre::Result;
use templar_node::frame::weights::Weights;
use templar_protocol::layout::Layout;
use templar_protocol::run::{RunSpec, Theta0Source};

use crate::progress::{Progress, Unit};

/// The weights that a run starts from, if it does and their folder is named.
pub(super) fn open(spec: &RunSpec, folder: Option<&Path>) -> Result<Option<Weights>> {
    let open = |folder| Ok(Weights::open(folder, &spec.layout(), spec.theta0.root)?);
    folder.filter(|_| spec.theta0.source == Theta0Source::Weights).map(open).transpose()
}

/// Checks all parts of the weights, with progress on standard error if it takes long.
pub(super) fn check(weights: &Weights, layout: &Layout) -> Result<()> {
    let (mut progress, all) = (Progress::new("checking the weights", Unit::Parameters), layout.len() as u64);
    let watch = |done| {
        progress.show(done, all);
        ControlFlow::<Infallible>::Continue(())
    };
    let ControlFlow::Continue(read) = weights.read(layout, watch);
    progress.finish();
    Ok(read.map(|_| ())?)
}
