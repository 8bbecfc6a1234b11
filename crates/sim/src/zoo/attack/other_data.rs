//! Training on data of its own choice.

use std::sync::Arc;

use templar_data::{Dataset, Split};
use templar_node::pretrain::setup::Setup;
use templar_protocol::hash::{Hasher, Stream};
use templar_record::event::Role;
use templar_train::{TokenBatch, TrainJob};

use crate::zoo::kind::Kind;
use crate::zoo::layers::retrain;

pub const KIND: Kind = Kind {
    name: "other-data",
    role: Role::Miner,
    tries: "It trains on samples of its own choice instead of those that it was given.",
    stopped_by: "Open: a miner whose own samples gain no more than unseen ones is paid less, but chance decides much of that.",
    wrap: |setup, _| wrap(setup),
};

fn wrap(setup: Setup) -> Setup {
    let mut hasher = Hasher::new("templar adversary other data");
    let mut stream = hasher.update_value(&setup.keypair.hotkey()).clone().into_stream();
    let dataset = setup.dataset.clone();
    retrain(setup, move |honest, job, on_step| {
        let chosen: Vec<TokenBatch> = job.batches.iter().map(|batch| choose(batch, &dataset, &mut stream)).collect();
        honest.train(&TrainJob { batches: &chosen, ..*job }, on_step)
    })
}

/// As many samples, but others; the given ones where the dataset cannot be read.
fn choose(given: &TokenBatch, dataset: &Arc<Dataset>, stream: &mut Stream) -> TokenBatch {
    let samples = dataset.samples(Split::Train);
    let chosen = (0..given.sequences).map(|_| dataset.sample(Split::Train, stream.below(samples)));
    match chosen.collect::<Result<Vec<_>, _>>() {
        Ok(tokens) => TokenBatch { tokens: tokens.concat(), ..given.clone() },
        Err(_) => given.clone(),
    }
}
