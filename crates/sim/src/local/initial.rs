//! The model that a run starts from: a folder in Hugging Face's layout, or that of a network that was kept.

use std::path::{Path, PathBuf};

use templar_model::hf::{self, ImportError};
use templar_protocol::layout::ModelSpec;

use crate::local::export::{self, ExportError};
use crate::local::kept::{Definition, Kept, KeptError};
use crate::local::network::NoTheta;

/// Why a folder has no model to start from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitialError {
    #[error("the model to start from: {0}")]
    Import(#[from] ImportError),
    #[error("the network to start from: {0}")]
    Kept(#[from] KeptError),
    #[error("the network to start from: {0}")]
    Export(#[from] ExportError),
    #[error("the network to start from, in {}: {source}", folder.display())]
    NoTheta { folder: PathBuf, source: NoTheta },
}

/// The shape of the model in `from`, without its parameters.
pub fn shape(from: &Path) -> Result<ModelSpec, InitialError> {
    if Definition::is_in(from) {
        return Ok(Kept::read(from)?.1.model);
    }
    Ok(hf::import_shape(from)?)
}

/// Shape and parameters of the model in `from`: of a network, θ after its last window.
pub fn model(from: &Path) -> Result<(ModelSpec, Vec<f32>), InitialError> {
    if !Definition::is_in(from) {
        return Ok(hf::import(from)?);
    }
    let outcome = export::outcome(from)?;
    let theta = outcome.theta.map_err(|source| InitialError::NoTheta { folder: from.to_path_buf(), source })?;
    Ok((outcome.spec.model, theta))
}
