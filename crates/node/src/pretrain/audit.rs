//! The whole history of a run once more, for whoever trusts nobody: from the newest certificate on the chain back to the
//! beginning through what validators have archived, and forward again by the rules.
//!
//! [`templar_protocol::audit`] has the rules; here is the I/O around them. Every object is checked by a digest that a
//! certified one names, so a bucket may lie: its object is named, and the next bucket is asked.

mod chain;
mod error;
mod parameters;
mod report;
mod sources;

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use templar_chain::{Chain, ChainError};
use templar_codec::Codec;
use templar_protocol::audit::{Audit, Link, Step};
use templar_protocol::clock::Schedule;
use templar_protocol::hash::Hash32;
use templar_protocol::inputs::{INPUTS_BYTES_MAX, WindowInputs};
use templar_protocol::run::RunSpec;
use templar_protocol::state::{RunState, STATE_BYTES_MAX};
use templar_store::{Store, keys};

use crate::frame::weights::Weights;
pub use crate::pretrain::audit::chain::Compared;
use crate::pretrain::audit::chain::Records;
pub use crate::pretrain::audit::error::AuditError;
use crate::pretrain::audit::parameters::Parameters;
pub use crate::pretrain::audit::report::{Audited, Spans, Verdict, Windows};
use crate::pretrain::audit::sources::Sources;
pub use crate::pretrain::audit::sources::{Source, Tally, Wrong};

/// Inputs fetched ahead of the rules.
const AHEAD: usize = 8;

/// An audit of a run: what it reads, and from whom.
#[expect(missing_debug_implementations, reason = "seams have nothing to show")]
pub struct Auditor {
    pub spec: RunSpec,
    pub chain: Arc<dyn Chain>,
    pub store: Arc<dyn Store>,
    /// The buckets of the run's validators, in the order in which they are asked.
    pub sources: Vec<Source>,
    /// Training samples of the dataset; without them the cursor is taken from the certified states.
    pub samples: Option<u64>,
    /// For a run that starts from weights; without them, θ is known from the first checkpoint on.
    pub weights: Option<Weights>,
}

/// How far an audit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// On the way back to the beginning: this many states of so many are here.
    Back { states: u64, all: u64 },
    /// On the way forward: this many windows of so many are recomputed.
    Forward { windows: u64, all: u64 },
}

/// An audit that has begun.
struct Walk<'a> {
    spec: &'a RunSpec,
    sources: &'a Sources,
    records: Records<'a>,
    parameters: Parameters<'a>,
    windows: Windows,
}

impl Auditor {
    /// Walks the whole history. Takes as long as the downloads and the outer steps of all windows.
    pub async fn run(self, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Audited, AuditError> {
        let began = Instant::now();
        let Self { spec, chain, store, sources, samples, weights } = self;
        let found = chain.genesis().await?;
        if found != spec.chain.genesis {
            return Err(AuditError::WrongChain { found, expected: spec.chain.genesis });
        }
        if sources.is_empty() {
            return Err(AuditError::NoSources);
        }
        let records = Records::new(&spec, &*chain);
        let (tip_window, tip) = records.newest_certified().await?;
        let all = Schedule::new(&spec).settled_before(tip_window);
        let sources = Sources::new(store, sources);
        let codec = Codec::new(Arc::new(spec.layout()), &spec.codec);
        let parameters = Parameters::new(&spec, codec, weights, &sources).await?;
        let mut walk = Walk { spec: &spec, sources: &sources, records, parameters, windows: Windows::default() };
        let verdict = match walk.back(tip, all, progress).await {
            Ok(links) => walk.forward(links, samples, progress).await.err().unwrap_or(Verdict::Verified),
            Err(verdict) => verdict,
        };
        let windows = walk.windows;
        let tally = sources.tally();
        Ok(Audited { verdict, settled: all, tip, windows, tally, wall_s: began.elapsed().as_secs_f64() })
    }
}

impl Walk<'_> {
    /// From the certified state back to the beginning. Returns what it certifies of every state, oldest first.
    async fn back(
        &self,
        tip: Hash32,
        all: u64,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Vec<Link>, Verdict> {
        let (run, mut links, mut digest) = (self.spec.id(), Vec::new(), tip);
        for settled in (1..=all).rev() {
            let check = |bytes: &[u8]| {
                let state = RunState::from_bytes(bytes, run).map_err(|error| error.to_string())?;
                let found = state.digest();
                if found == digest { Ok(state) } else { Err(format!("its digest is {found}")) }
            };
            let key = keys::archive_state(run, &digest);
            let window = settled - 1;
            let state = self.sources.get(&key, STATE_BYTES_MAX, check).await;
            let state = state.ok_or(Verdict::Missing { window, key })?;
            if state.settled != settled {
                let why = format!("the certified state after it says that {} windows are settled", state.settled);
                return Err(Verdict::Contradicted { window, why });
            }
            links.push(Link::of(&state));
            digest = state.previous;
            progress(Progress::Back { states: links.len() as u64, all });
        }
        let genesis = RunState::genesis(self.spec).digest();
        if digest != genesis {
            let why = format!("the history begins with the state {digest}, but the run with {genesis}");
            return Err(Verdict::Contradicted { window: 0, why });
        }
        links.reverse();
        Ok(links)
    }

    /// From the beginning to the certified state, by the rules.
    async fn forward(
        &mut self,
        links: Vec<Link>,
        samples: Option<u64>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), Verdict> {
        let (run, sources, all) = (self.spec.id(), self.sources, links.len() as u64);
        let fetch = |link: Link| async move {
            let key = keys::archive_inputs(run, &link.inputs);
            let check = |bytes: &[u8]| {
                let inputs = WindowInputs::from_bytes(bytes, &link.inputs);
                inputs.ok_or_else(|| "it is not the encoding of inputs with this digest".to_owned())
            };
            let inputs = sources.get(&key, INPUTS_BYTES_MAX, check).await;
            (link, inputs.ok_or(key))
        };
        let mut fetched = futures::stream::iter(links).map(fetch).buffered(AHEAD);
        let mut audit = Audit::new(self.spec, samples);
        while let Some((after, inputs)) = fetched.next().await {
            let window = audit.state().settled;
            let inputs = inputs.map_err(|key| Verdict::Missing { window, key })?;
            self.parameters.resume(audit.state()).await;
            let replayed = audit.advance(&inputs, &after);
            let replayed = replayed.map_err(|broken| Verdict::Contradicted { window, why: broken.to_string() })?;
            let compared = self.records.compare(&inputs).await;
            self.windows.compared(window, compared.map_err(|why| Verdict::Contradicted { window, why })?);
            let contradicted = |why| Verdict::Contradicted { window, why };
            let is_known = match &replayed.step {
                Step::None | Step::Withheld => self.parameters.are_known(),
                Step::Taken(accepted) => {
                    self.parameters.step(&replayed, accepted, &after).await.map_err(contradicted)?
                }
            };
            self.windows.replayed(&replayed, is_known);
            progress(Progress::Forward { windows: window + 1, all });
        }
        Ok(())
    }
}

/// The buckets of the run's validators, as the chain has them now: those of the most stake first.
pub async fn sources(chain: &dyn Chain, spec: &RunSpec) -> Result<Vec<Source>, ChainError> {
    chain::validators(chain, spec).await
}
