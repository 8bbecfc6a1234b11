//! Contributions that touch nothing.

use std::sync::Arc;

use templar_data::{Dataset, Split};
use templar_node::pretrain::setup::Setup;
use templar_protocol::layout::ModelSpec;
use templar_protocol::run::RunSpec;
use templar_record::event::Role;
use templar_train::{TrainJob, learning_rate};

use crate::zoo::kind::Kind;
use crate::zoo::layers::skip_training;

pub const KIND: Kind = Kind {
    name: "framer",
    role: Role::Miner,
    tries: "It sends only the embedding's rows that no text uses, weight decay in closed form, before others have trained: so that a comparison of contributions finds everybody else guilty.",
    stopped_by: "No statistic excludes or rejects: only an exact copy does not count. Scores: rows that no text uses lower no loss.",
    wrap: |setup, _| wrap(setup),
};

/// Samples that are looked at to find out which tokens texts use.
const SAMPLES_READ: u64 = 2048;
/// The weight decay of a run without any, so that there is something to send.
const WEIGHT_DECAY: f64 = 0.1;

fn wrap(setup: Setup) -> Setup {
    let (spec, dataset) = (setup.spec.clone(), setup.dataset.clone());
    let mut unused = None;
    skip_training(setup, move |job| {
        let unused: &Vec<usize> = unused.get_or_insert_with(|| unused_values(&spec.model, &dataset));
        let kept = kept_by_decay(&spec, job);
        let mut delta = vec![0.0; job.theta.len()];
        for &nth in unused {
            delta[nth] = job.theta[nth] * (1.0 - kept) as f32;
        }
        delta
    })
}

/// Places of the embedding's rows whose tokens the dataset does not use, as far as a look into it tells.
fn unused_values(model: &ModelSpec, dataset: &Arc<Dataset>) -> Vec<usize> {
    let mut is_used = vec![false; model.vocab_size as usize];
    let samples = dataset.samples(Split::Train);
    let read = samples.min(SAMPLES_READ);
    for nth in 0..read {
        for token in dataset.sample(Split::Train, nth * samples / read).unwrap_or_default() {
            is_used[token as usize] = true;
        }
    }
    // The embedding comes first in the layout, row by row.
    let row = model.hidden_size as usize;
    let unused = is_used.iter().enumerate().filter(|(_, is_used)| !**is_used);
    unused.flat_map(|(token, _)| token * row..(token + 1) * row).collect()
}

/// What AdamW's decay leaves of a value without a gradient after all steps of a job.
fn kept_by_decay(spec: &RunSpec, job: &TrainJob<'_>) -> f64 {
    let decay = if spec.inner.weight_decay > 0.0 { spec.inner.weight_decay } else { WEIGHT_DECAY };
    let steps = job.first_step..job.first_step + job.batches.len() as u64;
    steps.map(|step| 1.0 - decay * learning_rate(&spec.inner, step)).product()
}
