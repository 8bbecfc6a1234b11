//! Why a local network did not start or run.

use std::path::Path;

use templar_chain::ChainError;
use templar_data::{OpenError, PrepareError};
use templar_node::frame::dataset::DatasetError;
use templar_node::frame::weights::WeightsError;
use templar_protocol::run::{RunSpecError, SetError};
use templar_store::{ServerError, StoreError};

use crate::local::initial::InitialError;
use crate::local::kept::KeptError;

/// Why a local network did not start or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    #[error("the text cannot be prepared: {0}")]
    Prepare(#[from] PrepareError),
    #[error("the prepared dataset cannot be opened: {0}")]
    Open(#[from] OpenError),
    #[error("the dataset cannot be published: {0}")]
    Dataset(#[from] DatasetError),
    #[error("the S3 server: {0}")]
    Server(#[from] ServerError),
    #[error("storage: {0}")]
    Store(#[from] StoreError),
    #[error("the development chain: {0}")]
    Chain(#[from] ChainError),
    #[error("this network's settings do not make a valid run: {0}")]
    Spec(#[from] RunSpecError),
    #[error("{path}: {source}; check free space and permissions")]
    Io { path: String, source: std::io::Error },
    #[error("the development chain makes no more blocks: {0}")]
    Blocks(ChainError),
    #[error("`{key}`: {source}")]
    Set { key: String, source: SetError },
    #[error(transparent)]
    Initial(#[from] InitialError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Kept(#[from] KeptError),
}

impl NetworkError {
    /// Whether it happened before anything ran, so that there is nothing to look into.
    pub fn is_before_start(&self) -> bool {
        matches!(
            self,
            Self::Prepare(_) | Self::Spec(_) | Self::Set { .. } | Self::Initial(_) | Self::Weights(_) | Self::Kept(_)
        )
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.display().to_string(), source }
    }
}
