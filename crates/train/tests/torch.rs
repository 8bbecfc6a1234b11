//! The engine on PyTorch, against the suite for every engine and against the built-in one.
//!
//! Ignored by default, because PyTorch is not installed everywhere:
//! `TEMPLAR_PYTHON=/path/to/python cargo test --release --workspace --test torch -- --ignored` runs it, in some minutes.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::{ops::ControlFlow, path::PathBuf};

use templar_model::presets;
use templar_protocol::{
    layout::{Layout, ModelSpec},
    run::InnerSpec,
};
use templar_train::{TokenBatch, TorchOptions, TorchTrainer, TrainJob, Trainer, conformance};

/// The package of this repository on an interpreter that has PyTorch.
fn options() -> TorchOptions {
    let python = std::env::var_os("TEMPLAR_PYTHON").expect("TEMPLAR_PYTHON names no Python that has torch");
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../python");
    let environment = vec![("PYTHONPATH".to_owned(), package.display().to_string())];
    let device = std::env::var("TEMPLAR_TORCH_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    TorchOptions { python: python.into(), device, threads: Some(1), environment, ..TorchOptions::default() }
}

fn tiny(tied_embeddings: bool) -> (ModelSpec, InnerSpec) {
    let preset = presets::preset("nano").unwrap();
    let model = ModelSpec {
        vocab_size: 32,
        hidden_size: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn_size: 24,
        seq_len: 8,
        tied_embeddings,
        ..preset.model
    };
    (model, InnerSpec { micro_batch_sequences: 2, warmup_steps: 2, ..preset.inner })
}

#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn torch_trainer_conforms() {
    let options = options();
    let (model, inner) = tiny(false);
    conformance::check_trainer(&model, || Box::new(TorchTrainer::new(&model, &inner, options.clone())));
}

#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn two_ranks_conform() {
    // One GPU each, or two processes with gloo.
    let options = TorchOptions { ranks: 2, ..options() };
    let (model, inner) = tiny(true);
    conformance::check_trainer(&model, || Box::new(TorchTrainer::new(&model, &inner, options.clone())));
}

/// Both engines from the same θ on the same batches: losses, gradient norms and Δ; and one takes up the other's moments.
#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn engines_agree_and_can_be_exchanged() {
    // In f32: other devices compute in bf16.
    let options = TorchOptions { device: "cpu".to_owned(), ..options() };
    for tied in [false, true] {
        let (model, inner) = tiny(tied);
        let theta = Layout::llama(&model).theta0(&model, 3);
        let batches = conformance::batches(&model, 3, 3, "agreement");
        let mut torch: Box<dyn Trainer> = Box::new(TorchTrainer::new(&model, &inner, options.clone()));
        let mut built_in: Box<dyn Trainer> = built_in(&model, &inner);
        for first_step in [0, 3] {
            compare(torch.as_mut(), built_in.as_mut(), &theta, &batches, first_step);
            // From the second job on, each has the moments of the other.
            let (one, two) = (torch.export_state(), built_in.export_state());
            torch.import_state(&two).unwrap();
            built_in.import_state(&one).unwrap();
        }
    }
}

fn built_in(model: &ModelSpec, inner: &InnerSpec) -> Box<dyn Trainer> {
    Box::new(templar_train::CpuTrainer::new(model, inner))
}

fn compare(one: &mut dyn Trainer, two: &mut dyn Trainer, theta: &[f32], batches: &[TokenBatch], first_step: u64) {
    let job = TrainJob { theta, batches, first_step };
    let evaluations = [one.evaluate(theta, &batches[0]).unwrap(), two.evaluate(theta, &batches[0]).unwrap()];
    for (one, two) in evaluations[0].iter().zip(&evaluations[1]) {
        assert!((one - two).abs() < 1e-5, "{evaluations:?}");
    }
    let train = |trainer: &mut dyn Trainer| trainer.train(&job, &mut |_| ControlFlow::Continue(())).unwrap();
    let (one, two) = (train(one), train(two));
    for (one, two) in one.steps.iter().zip(&two.steps) {
        assert!((one.loss - two.loss).abs() < 1e-4 && (one.grad_norm / two.grad_norm - 1.0).abs() < 1e-3);
        assert!((one.step, one.lr, one.tokens) == (two.step, two.lr, two.tokens), "{one:?} {two:?}");
    }
    // Adam's first steps divide a gradient by its own size: where that is all rounding, the engines may differ by twice
    // the learning rate; over all parameters they must not.
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = square(&mut one.delta.iter().zip(&two.delta).map(|(one, two)| f64::from(one - two)));
    let size = square(&mut two.delta.iter().map(|&value| f64::from(value)));
    assert!(difference < 1e-2 * size, "Δ differs by {difference} of {size}");
}
