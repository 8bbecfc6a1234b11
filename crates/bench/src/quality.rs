//! What a format and an outer rule cost in loss: one small training run each, on the same data, seeds and steps.
//!
//! Formats are compared under one rule, rules under one format. The run is small (minutes on a laptop), so differences
//! below the spread of the seeds mean nothing, and what holds here need not hold at 72 B. The results settle defaults
//! and nothing more.

mod formats;
mod plot;
mod row;
mod rules;

use rayon::prelude::*;
use templar_codec::EncodeError;
use templar_model::presets::{self, Preset};
use templar_protocol::layout::ModelSpec;
use templar_protocol::run::{CodecKind, InnerSpec};
use templar_train::TrainError;

pub use formats::Format;
pub use plot::{PlotError, by_quarter, by_rate, plot};
pub use row::{Figures, Row};
pub use rules::Rule;

use crate::peers::{Peers, Text};
use crate::positions::{self, PositionCost};

/// Sequences of the evaluation at the end of a run.
const EVALUATION_SEQUENCES: usize = 128;

/// Size of every run.
#[derive(Debug, Clone)]
pub struct Options {
    pub preset: Preset,
    pub peers: usize,
    pub windows: usize,
    pub seeds: Vec<u64>,
}

/// A model of 134,464 parameters with H = 15: small enough for a hundred runs.
pub fn pico() -> Preset {
    let nano = presets::preset("nano").expect("a preset");
    let model =
        ModelSpec { hidden_size: 64, layers: 2, heads: 4, kv_heads: 2, ffn_size: 192, seq_len: 64, ..nano.model };
    let inner = InnerSpec { steps: 15, batch_sequences: 8, micro_batch_sequences: 8, ..nano.inner };
    Preset { name: "pico", model, inner }
}

/// One configuration to measure.
#[derive(Debug, Clone, Copy)]
pub struct Arm {
    pub format: Format,
    pub rule: Rule,
    pub rate: f64,
}

/// Formats under one rule.
pub fn format_arms(formats: &[Format]) -> Vec<Arm> {
    let rule = Rule::Senders { at_least: 2 };
    let arm = |&format| Arm { format, rule: if format == Format::Dense { Rule::Peers } else { rule }, rate: 1.0 };
    formats.iter().map(arm).collect()
}

/// All rules over outer rates with the one-bit format, and dense DiLoCo over the same rates.
pub fn rule_arms() -> Vec<Arm> {
    let rates = [0.4, 0.65, 1.0, 1.5, 2.0, 3.0, 4.0];
    let rules =
        [Rule::Peers, Rule::Senders { at_least: 1 }, Rule::Senders { at_least: 2 }, Rule::Senders { at_least: 3 }];
    let mut arms = Vec::new();
    for rule in rules {
        arms.extend(rates.map(|rate| Arm { format: Format::OneBit, rule, rate }));
    }
    arms.extend(rates.map(|rate| Arm { format: Format::Dense, rule: Rule::Peers, rate }));
    arms
}

/// Why a run has no loss; usually it diverged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Does all runs, as many at once as there are threads, and calls `done` after each. A run that fails does not affect
/// the others.
pub fn measure(arms: &[Arm], text: &Text, options: &Options, done: &(dyn Fn() + Sync)) -> Vec<Row> {
    let jobs: Vec<(&Arm, u64)> =
        arms.iter().flat_map(|arm| options.seeds.iter().map(move |&seed| (arm, seed))).collect();
    let outcomes: Vec<Result<Outcome, RunError>> = jobs
        .into_par_iter()
        .map(|(arm, seed)| {
            let outcome = run(arm, text, options, seed);
            done();
            outcome
        })
        .collect();
    arms.iter().zip(outcomes.chunks(options.seeds.len())).map(|(arm, outcomes)| row(arm, outcomes)).collect()
}

/// The result of one run with one seed.
struct Outcome {
    curve: Vec<f64>,
    relative_error: f64,
    bits_per_value: f64,
}

fn run(arm: &Arm, text: &Text, options: &Options, seed: u64) -> Result<Outcome, RunError> {
    let mut peers = Peers::new(&options.preset, text, options.peers, seed);
    let layout = peers.layout();
    let mut compressors: Vec<_> = (0..options.peers).map(|_| arm.format.compressor(&layout)).collect();
    let mut theta = peers.theta0(seed);
    let (mut curve, mut errors, mut bits) = (Vec::new(), Vec::new(), Vec::new());
    for window in 1..=options.windows {
        let deltas = peers.window(&theta)?;
        let sent = (compressors.iter_mut().zip(&deltas))
            .map(|(compressor, delta)| compressor.send(delta))
            .collect::<Result<Vec<_>, _>>()?;
        errors.extend(sent.iter().map(|sent| sent.relative_error));
        bits.extend(sent.iter().map(|sent| sent.bits_per_value));
        if arm.format.is_transformed() {
            compressors[0].take_step(&mut theta, &sent, &arm.rule.outer(arm.rate));
        } else {
            let values: Vec<&[f32]> = sent.iter().map(|sent| &sent.values[..]).collect();
            let step = arm.rule.aggregate(&layout, &values, arm.rate);
            theta.iter_mut().zip(step).for_each(|(theta, step)| *theta -= step);
        }
        if window % options.windows.div_ceil(4) == 0 || window == options.windows {
            curve.push(peers.held_out_loss(&theta, EVALUATION_SEQUENCES)?);
        }
    }
    Ok(Outcome { curve, relative_error: mean(&errors), bits_per_value: mean(&bits) })
}

fn row(arm: &Arm, outcomes: &[Result<Outcome, RunError>]) -> Row {
    let failures: Vec<String> =
        outcomes.iter().filter_map(|outcome| Some(outcome.as_ref().err()?.to_string())).collect();
    let figures = failures.is_empty().then(|| figures(&outcomes.iter().flatten().collect::<Vec<_>>()));
    Row { format: arm.format, rule: arm.rule, rate: arm.rate, figures, failures }
}

fn figures(outcomes: &[&Outcome]) -> Figures {
    let losses: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.curve.last().copied()).collect();
    let of_all = |get: &dyn Fn(&Outcome) -> f64| mean(&outcomes.iter().map(|outcome| get(outcome)).collect::<Vec<_>>());
    let largest = losses.iter().copied().fold(f64::MIN, f64::max);
    Figures {
        loss: mean(&losses),
        spread: largest - losses.iter().copied().fold(f64::MAX, f64::min),
        curve: (0..outcomes[0].curve.len()).map(|at| of_all(&|outcome| outcome.curve[at])).collect(),
        relative_error: of_all(&|outcome| outcome.relative_error),
        bits_per_value: of_all(&|outcome| outcome.bits_per_value),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// What the positions that two peers send with the one-bit format cost, window by window.
pub fn position_costs(
    preset: &Preset,
    text: &Text,
    windows: usize,
    done: &dyn Fn(),
) -> Result<Vec<PositionCost>, RunError> {
    let mut peers = Peers::new(preset, text, 2, 1);
    let layout = peers.layout();
    let mut compressors: Vec<_> = (0..2).map(|_| Format::OneBit.compressor(&layout)).collect();
    let mut theta = peers.theta0(1);
    let mut before = vec![false; layout.len()];
    let mut costs = Vec::new();
    for _ in 0..windows {
        let deltas = peers.window(&theta)?;
        let sent = (compressors.iter_mut().zip(&deltas))
            .map(|(peer, delta)| peer.send(delta))
            .collect::<Result<Vec<_>, _>>()?;
        let flags = |values: &[f32]| values.iter().map(|&value| value != 0.0).collect::<Vec<_>>();
        let (own, other) = (flags(&sent[0].values), flags(&sent[1].values));
        let chunk = crate::codec::spec(CodecKind::TopkSign).chunk as usize;
        let cost = positions::cost(&layout, chunk, &own, &before, &other);
        costs.push(PositionCost { payload_bits: sent[0].bits_per_value, ..cost });
        before = own;
        let step = Rule::Senders { at_least: 2 }.aggregate(&layout, &[&sent[0].values, &sent[1].values], 1.0);
        theta.iter_mut().zip(step).for_each(|(theta, step)| *theta -= step);
        done();
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_diverges_does_not_affect_the_others() {
        let mut preset = pico();
        (preset.inner.steps, preset.inner.batch_sequences, preset.inner.micro_batch_sequences) = (1, 1, 1);
        let options = Options { preset, peers: 2, windows: 2, seeds: vec![1, 2] };
        let arm = |rate| Arm { format: Format::OneBit, rule: Rule::Peers, rate };
        let rows = measure(&[arm(f64::INFINITY), arm(1.0)], &Text::built_in(20_000), &options, &|| ());
        assert!(rows[0].figures.is_none() && rows[0].failures.len() == 2, "{rows:?}");
        assert!(rows[1].figures.as_ref().unwrap().loss < 7.0 && rows[1].failures.is_empty(), "{rows:?}");
        assert_eq!(
            by_rate(&rows),
            [("topk-sign, peers".to_owned(), vec![(1.0, rows[1].figures.as_ref().unwrap().loss)])]
        );
    }
}
