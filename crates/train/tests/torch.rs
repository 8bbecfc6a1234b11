//! The engine on PyTorch, against the suite for every engine, the plain reference and the built-in engine.
//!
//! These tests are ignored by default, because PyTorch is not installed everywhere: `TEMPLAR_PYTHON=/path/to/python
//! cargo test --release --workspace --test torch -- --ignored` runs them in a few minutes.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests panic and print as tests do")]

#[path = "common/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;

use templar_model::presets;
use templar_protocol::layout::{Layout, ModelSpec, TensorSpec};
use templar_protocol::run::{InnerSpec, Optimiser};
use templar_train::conformance::{self, Distance};
use templar_train::{Moments, TokenBatch, TorchOptions, TorchTrainer, TrainJob, Trainer};

use tiny::tiny;

/// Distance from the reference with products in f32. Found on a CPU: 1e-7 and 2e-6.
const F32: Distance = Distance { loss: 1e-5, delta: 1e-4 };
/// The same with products in bf16, as on GPUs; its eight bits are 0.004 of a value. Found on a CPU: 2e-4 and 0.04.
const BF16: Distance = Distance { loss: 1e-3, delta: 0.1 };

fn python() -> PathBuf {
    std::env::var_os("TEMPLAR_PYTHON").expect("TEMPLAR_PYTHON must name a Python that has torch").into()
}

/// The package of this repository on an interpreter that has PyTorch; other folders with Python modules come first.
fn options_with(folders: &[&str]) -> TorchOptions {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folders = folders.iter().chain(&["../../python"]).map(|folder| here.join(folder));
    let path = std::env::join_paths(folders).unwrap().into_string().unwrap();
    let device = std::env::var("TEMPLAR_TORCH_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let environment = vec![("PYTHONPATH".to_owned(), path)];
    TorchOptions {
        python: python(),
        device,
        threads: Some(1),
        deterministic: true,
        environment,
        ..TorchOptions::default()
    }
}

fn options() -> TorchOptions {
    options_with(&[])
}

#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn torch_trainer_conforms() {
    let options = options();
    let (model, inner) = tiny(false);
    conformance::check_optimisers(&model, &inner, |inner| Box::new(TorchTrainer::new(&model, inner, options.clone())));
    for model in [ModelSpec { qk_norm: true, ..model.clone() }, model] {
        conformance::check_trainer(&model, || Box::new(TorchTrainer::new(&model, &inner, options.clone())));
    }
}

#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn two_ranks_conform() {
    // One GPU each, or two processes with gloo.
    let options = TorchOptions { ranks: 2, ..options() };
    let (model, inner) = tiny(true);
    let inner = InnerSpec { optimiser: Optimiser::Muon, ..inner };
    conformance::check_trainer(&model, || Box::new(TorchTrainer::new(&model, &inner, options.clone())));
}

/// With one rank and with two, with tied embeddings and a penalty on log Z, with norms of queries and keys; in the precision of the device, and in bf16 on any
/// device.
#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn torch_trainer_agrees_with_the_reference() {
    let distance = |optimiser, (tied, qk_norm), ranks, options: &TorchOptions, tolerance| {
        let (model, inner) = tiny(tied);
        let model = ModelSpec { qk_norm, ..model };
        let inner = InnerSpec { optimiser, z_loss: if tied { 0.03 } else { 0.0 }, ..inner };
        let options = TorchOptions { ranks, ..options.clone() };
        let make = || -> Box<dyn Trainer> { Box::new(TorchTrainer::new(&model, &inner, options.clone())) };
        let distance = conformance::check_against_reference(&model, &inner, tolerance, make);
        eprintln!("{optimiser:?}, {ranks} ranks on {}, tied {tied}, qk_norm {qk_norm}: {distance:?}", options.device);
        distance
    };
    let (options, narrow) = (options(), options_with(&["tests/bf16"]));
    let own = if options.device.starts_with("cuda") { BF16 } else { F32 };
    let (adamw, muon) = (Optimiser::Adamw, Optimiser::Muon);
    let (plain, tied, normed) = ((false, false), (true, false), (false, true));
    for (optimiser, shape, ranks) in [
        (adamw, plain, 1),
        (adamw, tied, 1),
        (adamw, normed, 1),
        (adamw, plain, 2),
        (adamw, normed, 2),
        (muon, plain, 1),
        (muon, normed, 1),
        (muon, plain, 2),
    ] {
        distance(optimiser, shape, ranks, &options, own);
        let rounded = distance(optimiser, shape, ranks, &narrow, BF16);
        assert!(rounded.delta > F32.delta, "that was not bf16: {rounded:?}");
    }
}

/// A preset of `templar_torch.bench`, such as `1b`, is the preset of the same name in a run.
#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn presets_of_the_bench_have_the_shapes_of_the_runs() {
    let script = "import dataclasses, json\nfrom templar_torch.bench import PRESETS\n\
                  print(json.dumps({name: dataclasses.asdict(preset[0]) for name, preset in PRESETS.items()}))";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../python");
    let output = Command::new(python()).args(["-c", script]).env("PYTHONPATH", path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shapes: BTreeMap<String, ModelSpec> = serde_json::from_slice(&output.stdout).unwrap();
    for name in ["150m", "1b", "7b"] {
        assert_eq!(shapes[name], presets::preset(name).unwrap().model, "{name}");
    }
}

/// Both engines from the same θ on the same batches: losses, gradient norms and Δ. Each then adopts the other's
/// moments.
#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn engines_agree_and_can_be_exchanged() {
    // In f32: other devices compute in bf16.
    let options = TorchOptions { device: "cpu".to_owned(), ..options() };
    for (optimiser, tied, qk_norm) in [
        (Optimiser::Adamw, false, false),
        (Optimiser::Adamw, true, false),
        (Optimiser::Adamw, false, true),
        (Optimiser::Muon, false, false),
        (Optimiser::Muon, false, true),
    ] {
        let (model, inner) = tiny(tied);
        let (model, inner) = (ModelSpec { qk_norm, ..model }, InnerSpec { optimiser, ..inner });
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

/// Matrix by matrix, since the iteration magnifies what rounding leaves in a gradient's weak directions: up to 500 times.
#[test]
#[ignore = "needs a Python with torch in TEMPLAR_PYTHON"]
fn one_step_of_muon_is_the_same_in_both_engines() {
    let options = TorchOptions { device: "cpu".to_owned(), ..options() };
    let (model, inner) = tiny(false);
    let inner = InnerSpec { optimiser: Optimiser::Muon, ..inner };
    let layout = Layout::llama(&model);
    let (theta, batches) = (layout.theta0(&model, 3), conformance::batches(&model, 1, 3, "one step"));
    let job = TrainJob { theta: &theta, batches: &batches, first_step: 5, moments: Moments::Fresh };
    let train = |mut trainer: Box<dyn Trainer>| trainer.train(&job, &mut |_| ControlFlow::Continue(())).unwrap().delta;
    let (one, two) = (train(Box::new(TorchTrainer::new(&model, &inner, options))), train(built_in(&model, &inner)));
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let matrices = layout.tensors().iter().filter(|tensor| tensor.shape.len() == 2 && tensor.name.contains("layers"));
    let distance = |tensor: &TensorSpec| {
        let (one, two) = (&one[tensor.range()], &two[tensor.range()]);
        length(&mut one.iter().zip(two).map(|(one, two)| one - two)) / length(&mut two.iter().copied())
    };
    let farthest = matrices.map(distance).fold(0.0, f64::max);
    eprintln!("one step of Muon: the matrices' updates differ by {farthest:.1e} of their length at most");
    assert!(farthest > 0.0 && farthest < 1e-4, "{farthest}");
}

fn built_in(model: &ModelSpec, inner: &InnerSpec) -> Box<dyn Trainer> {
    Box::new(templar_train::CpuTrainer::new(model, inner))
}

fn compare(one: &mut dyn Trainer, two: &mut dyn Trainer, theta: &[f32], batches: &[TokenBatch], first_step: u64) {
    let job = TrainJob { theta, batches, first_step, moments: Moments::Carried };
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
    // Adam's first steps divide a gradient by its own size. Where the gradient is all rounding, the engines may differ
    // by twice the learning rate; over all parameters they must not.
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = square(&mut one.delta.iter().zip(&two.delta).map(|(one, two)| f64::from(one - two)));
    let size = square(&mut two.delta.iter().map(|&value| f64::from(value)));
    assert!(difference < 1e-2 * size, "Δ differs by {difference} of {size}");
}
