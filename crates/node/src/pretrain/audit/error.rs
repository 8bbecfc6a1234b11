//! Why an audit has no verdict.

use templar_chain::ChainError;
use templar_protocol::hash::Hash32;

use crate::frame::weights::WeightsError;

/// Why an audit has no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    #[error("the chain has genesis {found}, but the run lives on {expected}: check --chain and run.toml")]
    WrongChain { found: Hash32, expected: Hash32 },
    #[error("the chain does not say what is certified: {0}")]
    Chain(#[from] ChainError),
    #[error("the chain names no validator's bucket, so there is nothing to read from")]
    NoSources,
    #[error(
        "none of the last {windows} windows whose votes are in has a certificate: nothing is certified at the moment; try \
         again when the run goes on"
    )]
    NoCertificate { windows: u64 },
    #[error(
        "θ₀ of seed {seed} has root {found}, but the run says {expected}: this build does not speak the run's protocol"
    )]
    WrongTheta0 { seed: u64, found: Hash32, expected: Hash32 },
    #[error(transparent)]
    Weights(#[from] WeightsError),
}
