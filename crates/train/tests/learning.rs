//! The engines learn, and their loss curves do not change unnoticed.

use std::ops::ControlFlow;

use templar_model::presets;
use templar_protocol::hash::Hasher;
use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::{InnerSpec, Optimiser};
use templar_train::{
    CpuTrainer, Moments, SyntheticTrainer, TokenBatch, TrainError, TrainJob, TrainOutcome, Trainer, conformance,
};

fn tiny() -> (ModelSpec, InnerSpec) {
    let preset = presets::preset("nano").expect("a preset");
    let model = ModelSpec {
        vocab_size: 32,
        hidden_size: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn_size: 64,
        seq_len: 16,
        ..preset.model
    };
    let inner = InnerSpec { lr: 1e-2, warmup_steps: 4, micro_batch_sequences: 2, ..preset.inner };
    (model, inner)
}

fn train(trainer: &mut dyn Trainer, theta: &[f32], batches: &[TokenBatch]) -> TrainOutcome {
    trainer
        .train(&TrainJob { theta, batches, first_step: 0, moments: Moments::Carried }, &mut |_| {
            ControlFlow::Continue(())
        })
        .expect("a valid job")
}

fn moved(theta: &[f32], delta: &[f32]) -> Vec<f32> {
    theta.iter().zip(delta).map(|(theta, delta)| theta - delta).collect()
}

/// Sequences that count up, so that there is something to learn: token i is start + i · stride.
fn counting(model: &ModelSpec, count: u32) -> Vec<TokenBatch> {
    let row = |start: u32, stride: u32| (0..model.seq_len).map(move |at| (start + at * stride) % model.vocab_size);
    let batch = |at: u32| (0..4).flat_map(|sequence| row(5 * at + 3 * sequence, 1 + sequence % 2)).collect();
    (0..count).map(|at| TokenBatch::new(4, model.seq_len as usize, batch(at)).expect("a rectangle")).collect()
}

/// Golden values of one machine; the tolerance is for all others. Change them only together with a change of the model,
/// the optimiser or θ₀ that is meant to change them.
#[test]
fn loss_curve_is_golden() {
    const GOLDEN: [f64; 10] =
        [3.48293, 3.42221, 3.24583, 3.19952, 3.01737, 2.94338, 2.70843, 2.67809, 2.42077, 2.36945];
    let (model, inner) = tiny();
    assert_losses(&model, &inner, &GOLDEN);
}

#[test]
fn loss_curve_with_norms_of_queries_and_keys_is_golden() {
    const GOLDEN: [f64; 10] =
        [3.48262, 3.41671, 3.22902, 3.17547, 3.00513, 2.92733, 2.67341, 2.62677, 2.34125, 2.35662];
    let (model, inner) = tiny();
    assert_losses(&ModelSpec { qk_norm: true, ..model }, &inner, &GOLDEN);
}

#[test]
fn loss_curve_of_muon_is_golden() {
    const GOLDEN: [f64; 10] =
        [3.48293, 3.43581, 3.26513, 3.21822, 2.99494, 2.90436, 2.64096, 2.58061, 2.32715, 2.28116];
    let (model, inner) = tiny();
    assert_losses(&model, &InnerSpec { optimiser: Optimiser::Muon, ..inner }, &GOLDEN);
}

fn assert_losses(model: &ModelSpec, inner: &InnerSpec, golden: &[f64]) {
    let theta = Layout::llama(model).theta0(model, 1);
    let outcome = train(&mut CpuTrainer::new(model, inner), &theta, &counting(model, 10));
    let losses: Vec<f64> = outcome.steps.iter().map(|step| step.loss).collect();
    for (loss, golden) in losses.iter().zip(golden) {
        assert!((loss - golden).abs() < 1e-3, "{losses:.5?}");
    }
}

#[test]
fn one_batch_is_learned_by_heart() {
    let (model, inner) = tiny();
    let theta = Layout::llama(&model).theta0(&model, 1);
    let batch = conformance::batches(&model, 1, 4, "by heart").remove(0);
    let mut trainer = CpuTrainer::new(&model, &inner);
    let outcome = train(&mut trainer, &theta, &vec![batch.clone(); 150]);
    let first = outcome.steps[0].loss;
    assert!((first - 32f64.ln()).abs() < 0.1, "an untrained model guesses: {first}");
    let losses = trainer.evaluate(&moved(&theta, &outcome.delta), &batch).unwrap();
    assert!(losses.iter().all(|&loss| loss < 0.1), "{losses:?}");
}

/// Micro-batches change how a gradient is summed, not what it is.
#[test]
fn accumulated_gradient_is_that_of_the_whole_batch() {
    let (model, inner) = tiny();
    let theta = Layout::llama(&model).theta0(&model, 1);
    let batches = conformance::batches(&model, 1, 7, "accumulated");
    let [whole, parts] = [7, 2].map(|micro_batch_sequences| {
        let inner = InnerSpec { micro_batch_sequences, ..inner.clone() };
        train(&mut CpuTrainer::new(&model, &inner), &theta, &batches).steps[0]
    });
    assert!((whole.loss - parts.loss).abs() < 1e-6, "{whole:?} {parts:?}");
    assert!((whole.grad_norm / parts.grad_norm - 1.0).abs() < 1e-5, "{whole:?} {parts:?}");
}

#[test]
fn divergence_names_the_step() {
    let (model, inner) = tiny();
    let mut trainer = CpuTrainer::new(&model, &inner);
    let theta = vec![1e15; Layout::llama(&model).len()];
    let batches = conformance::batches(&model, 1, 2, "diverged");
    let job = TrainJob { theta: &theta, batches: &batches, first_step: 41, moments: Moments::Carried };
    let error = trainer.train(&job, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, TrainError::NonFiniteStep { step: 41, what: "loss" }), "{error:?}");
    let error = trainer.evaluate(&theta, &batches[0]).unwrap_err();
    assert!(matches!(error, TrainError::NonFiniteLoss { sequence: 0 }), "{error:?}");
}

/// What scoring relies on: an honest contribution helps on unseen data, and most on its own data; noise of the same
/// size does not.
#[test]
fn synthetic_contributions_can_be_told_apart() {
    let (model, inner) = tiny();
    let theta = Layout::llama(&model).theta0(&model, 1);
    let mut trainer = SyntheticTrainer::new(&model, &inner);
    let (own, unseen) = (conformance::batches(&model, 10, 8, "own"), conformance::batches(&model, 1, 32, "unseen"));
    let delta = train(&mut trainer, &theta, &own).delta;
    let mut improvement = |delta: &[f32], batches: &[TokenBatch]| {
        let mut mean = |theta: &[f32]| {
            let losses: Vec<f64> = batches.iter().flat_map(|batch| trainer.evaluate(theta, batch).unwrap()).collect();
            losses.iter().sum::<f64>() / losses.len() as f64
        };
        mean(&theta) - mean(&moved(&theta, delta))
    };
    let (on_own, on_unseen) = (improvement(&delta, &own), improvement(&delta, &unseen));
    assert!(on_own > on_unseen * 1.001 && on_unseen > 0.01, "{on_own} {on_unseen}");
    let mut stream = Hasher::new("noise").into_stream();
    let noise: Vec<f32> = delta.iter().map(|&size| if stream.below(2) == 0 { size } else { -size }).collect();
    assert!(improvement(&noise, &unseen) < 0.1 * on_unseen);
}
