//! The history of a network that ran, from its folder alone: its chain and its buckets are served once more, to an
//! audit.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use templar_chain::{ChainError, DevChain};
use templar_data::{Dataset, OpenError, Split};
use templar_node::frame::weights::{Weights, WeightsError};
use templar_node::pretrain::audit::{Auditor, Source};
use templar_protocol::run::Theta0Source;
use templar_record::event::Role;
use templar_store::{S3Options, S3Server, S3Store, ServerError, StoreError};

use crate::local::kept::{Kept, KeptError, chain_of};
use crate::local::services::{DATA_BUCKET, WEIGHTS, bucket};

/// A network's folder, open for an audit. No other process may use it meanwhile, and nothing in it changes.
#[derive(Debug)]
pub struct Served {
    s3: S3Server,
    _kept: Kept,
}

/// Why a folder cannot be audited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    #[error(transparent)]
    Kept(#[from] KeptError),
    #[error("the development chain of the network in {folder}: {source}")]
    Chain { folder: String, source: ChainError },
    #[error("the dataset of the network in {folder}: {source}")]
    Dataset { folder: String, source: OpenError },
    #[error("the S3 server: {0}")]
    Server(#[from] ServerError),
    #[error("storage: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Serves the network in `folder`, and sets up its audit, which reads from its validators' buckets.
pub async fn serve(folder: &Path) -> Result<(Served, Auditor), ServeError> {
    let (kept, spec) = Kept::read(folder)?;
    let name = || folder.display().to_string();
    let (plan, guests) = (kept.definition.plan(&spec), kept.definition.guests());
    let chain = DevChain::open(Some(&chain_of(folder)?), plan.chain_config());
    let chain = chain.map_err(|source| ServeError::Chain { folder: name(), source })?;
    let dataset = Dataset::open(&folder.join("dataset"));
    let samples = dataset.map_err(|source| ServeError::Dataset { folder: name(), source })?.samples(Split::Train);
    let members = plan.members();
    let members = members.iter().map(|member| (member.name.as_str(), member.role));
    let everybody: Vec<_> = members.chain(guests.iter().map(|guest| (guest.name.as_str(), guest.role))).collect();
    let names = everybody.iter().map(|(name, _)| *name).chain([DATA_BUCKET]);
    let buckets = names.map(|name| bucket(plan.seed, name)).collect();
    let s3 = S3Server::start(&folder.join("s3"), (Ipv4Addr::LOCALHOST, 0).into(), buckets).await?;
    let own = |name: &str| s3.own_bucket(name).expect("its bucket was asked for");
    let sources = everybody.iter().filter(|(_, role)| *role == Role::Validator);
    let sources = sources.map(|(name, _)| Source { owner: (*name).to_owned(), bucket: own(name).locator }).collect();
    let store = Arc::new(S3Store::new(own(DATA_BUCKET), S3Options::default())?);
    let weights = match spec.theta0.source {
        Theta0Source::Seed => None,
        Theta0Source::Weights => Some(Weights::open(&folder.join(WEIGHTS), &spec.layout(), spec.theta0.root)?),
    };
    let auditor = Auditor { spec, chain: Arc::new(chain), store, sources, samples: Some(samples), weights };
    Ok((Served { s3, _kept: kept }, auditor))
}

impl Served {
    /// Ends the server.
    pub async fn end(self) {
        self.s3.shutdown().await;
    }
}
