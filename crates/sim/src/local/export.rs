//! The result of a network that ran, from its folder alone.

use std::path::Path;

use templar_chain::{ChainError, DevChain};
use templar_data::Grammar;
use templar_record::report::Final;

use crate::chain_record;
use crate::local::final_theta::final_theta;
use crate::local::kept::{Kept, KeptError, chain_of};
use crate::local::network::Outcome;

/// Why a folder has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    #[error(transparent)]
    Kept(#[from] KeptError),
    #[error("the development chain of the network in {folder}: {source}")]
    Chain { folder: String, source: ChainError },
}

/// The result of a network so far. Nothing in its folder changes; no other process may use it meanwhile.
pub fn outcome(folder: &Path) -> Result<Outcome, ExportError> {
    let (kept, spec) = Kept::read(folder)?;
    let definition = &kept.definition;
    let plan = definition.plan(&spec);
    let chain = DevChain::open(Some(&chain_of(folder)?), plan.chain_config());
    let chain = chain.map_err(|source| ExportError::Chain { folder: folder.display().to_string(), source })?;
    let floor = definition.has_built_in_text().then(|| Grammar::new(plan.seed).entropy_bits_per_byte());
    let last = Final { floor_bits_per_byte: floor, wall_s: definition.wall_s, ..Final::default() };
    let (neurons, late) = (chain_record::neurons(&chain), chain_record::late(&chain));
    let report = kept.recorder.finish(&spec, plan.seed, plan.windows, &neurons, late, last);
    let theta = final_theta(folder, &plan.members(), &spec, plan.windows);
    let stopped = !kept.recorder.validated(plan.windows - 1);
    Ok(Outcome { report, spec, theta, stopped, failures: Vec::new() })
}
