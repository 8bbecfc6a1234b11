//! The suite for every engine of this crate.

#[path = "common/tiny.rs"]
mod tiny;

use std::ops::ControlFlow;

use templar_model::presets;
use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::{InnerSpec, Optimiser};
use templar_train::conformance::{self, Distance};
use templar_train::{CpuTrainer, Moments, SyntheticTrainer, TrainJob, Trainer, TrainerLayer};

use tiny::tiny;

#[test]
fn cpu_trainer_conforms() {
    for (tied, qk_norm) in [(false, false), (true, false), (false, true)] {
        let (model, inner) = tiny(tied);
        let model = ModelSpec { qk_norm, ..model };
        let tolerance = Distance { loss: 1e-4, delta: 1e-4 };
        for optimiser in [Optimiser::Adamw, Optimiser::Muon] {
            let inner = InnerSpec { optimiser, ..inner.clone() };
            let make = || -> Box<dyn Trainer> { Box::new(CpuTrainer::new(&model, &inner)) };
            conformance::check_against_reference(&model, &inner, tolerance, make);
            conformance::check_trainer(&model, make);
        }
        let inner = InnerSpec { z_loss: 0.03, ..inner };
        conformance::check_against_reference(&model, &inner, tolerance, || Box::new(CpuTrainer::new(&model, &inner)));
        conformance::check_optimisers(&model, &inner, |inner| Box::new(CpuTrainer::new(&model, inner)));
    }
}

#[test]
fn synthetic_trainer_conforms() {
    let (model, inner) = tiny(false);
    conformance::check_trainer(&model, || Box::new(SyntheticTrainer::new(&model, &inner)));
}

/// Changes nothing.
struct Clear(CpuTrainer);

impl TrainerLayer for Clear {
    fn inner(&self) -> &dyn Trainer {
        &self.0
    }

    fn inner_mut(&mut self) -> &mut dyn Trainer {
        &mut self.0
    }
}

#[test]
fn a_layer_that_overrides_nothing_is_the_trainer_below() {
    let (model, inner) = tiny(false);
    let clear = || Clear(CpuTrainer::new(&model, &inner));
    conformance::check_trainer(&model, || Box::new(clear()));
    let theta = Layout::llama(&model).theta0(&model, 1);
    let batches = conformance::batches(&model, 1, 2, "layer");
    let job = TrainJob { theta: &theta, batches: &batches, first_step: 0, moments: Moments::Carried };
    let mut trainer: Box<dyn Trainer> = Box::new(clear());
    trainer.train(&job, &mut |_| ControlFlow::Continue(())).unwrap();
    // The seam has a default for this one, which a layer must not fall back to.
    assert!(trainer.stats().is_some());
}

/// The seam does not promise this, but it holds on the CPU: matrices are split by rows and columns, never along a sum.
/// `nano` is large enough that products are split, alone (micro-batches of 8) and beside others (of 2).
#[test]
fn cpu_trainer_does_not_depend_on_the_thread_count() {
    let preset = presets::preset("nano").unwrap();
    let theta = Layout::llama(&preset.model).theta0(&preset.model, 1);
    let batches = conformance::batches(&preset.model, 2, 8, "threads");
    let train = |optimiser, micro_batch_sequences, threads| {
        let inner = InnerSpec { optimiser, micro_batch_sequences, ..preset.inner.clone() };
        let mut trainer = CpuTrainer::new(&preset.model, &inner);
        let job = TrainJob { theta: &theta, batches: &batches, first_step: 0, moments: Moments::Carried };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| trainer.train(&job, &mut |_| ControlFlow::Continue(()))).unwrap()
    };
    for (optimiser, micro_batch_sequences) in [(Optimiser::Adamw, 8), (Optimiser::Adamw, 2), (Optimiser::Muon, 8)] {
        let [alone, beside] = [1, 3].map(|threads| train(optimiser, micro_batch_sequences, threads));
        assert_eq!(alone, beside);
    }
}
