//! What every engine behind [`Trainer`] must do, as one suite that its tests run.

use std::ops::ControlFlow;

use templar_cpu::oracle;
use templar_protocol::hash::Hasher;
use templar_protocol::layout::{Layout, ModelSpec};
use templar_protocol::run::{InnerSpec, Optimiser};

use crate::batch::TokenBatch;
use crate::schedule::learning_rate;
use crate::speed::flops_per_token;
use crate::trainer::{Moments, StepStats, TrainError, TrainJob, TrainOutcome, Trainer};

/// Deterministic batches for a model, derived from `label`: other labels give other tokens.
pub fn batches(model: &ModelSpec, count: usize, sequences: usize, label: &str) -> Vec<TokenBatch> {
    let mut stream = Hasher::new("templar conformance tokens").update_value(label).clone().into_stream();
    let seq_len = model.seq_len as usize;
    let mut batch = || {
        let tokens = (0..sequences * seq_len).map(|_| stream.below(u64::from(model.vocab_size)) as u32).collect();
        TokenBatch { sequences, seq_len, tokens }
    };
    (0..count).map(|_| batch()).collect()
}

/// Checks an engine that trains `model`. `make` returns a fresh one each time, all alike.
///
/// # Panics
/// At the first check that the engine fails.
pub fn check_trainer(model: &ModelSpec, make: impl Fn() -> Box<dyn Trainer>) {
    let suite = Suite {
        model,
        theta: Layout::llama(model).theta0(model, 11),
        batches: batches(model, 4, 3, "own"),
        held_out: batches(model, 1, 5, "held out").remove(0),
    };
    suite.outcome_has_its_shape(make().as_mut());
    suite.runs_are_repeatable(&make);
    suite.stops_early(&make);
    suite.evaluation_agrees_and_changes_nothing(&make);
    suite.learns_what_it_is_shown(make().as_mut());
    suite.state_survives_a_restart(&make);
    suite.fresh_moments_are_those_of_a_new_trainer(&make);
    suite.damaged_state_is_refused(make().as_mut());
    suite.hostile_inputs_are_errors(make().as_mut());
    suite.overflow_is_contained(make().as_mut());
}

/// Checks what the choice of an optimiser means to an engine of language models: `make` returns a fresh one for these
/// settings.
///
/// # Panics
/// At the first check that the engine fails.
pub fn check_optimisers(model: &ModelSpec, inner: &InnerSpec, make: impl Fn(&InnerSpec) -> Box<dyn Trainer>) {
    let [adamw, muon] = [Optimiser::Adamw, Optimiser::Muon].map(|optimiser| InnerSpec { optimiser, ..inner.clone() });
    let (theta, batches) = (Layout::llama(model).theta0(model, 11), batches(model, 3, 3, "optimisers"));
    let job = TrainJob { theta: &theta, batches: &batches, first_step: 0, moments: Moments::Carried };
    let train = |inner: &InnerSpec| {
        let mut trainer = make(inner);
        let outcome = trainer.train(&job, &mut |_| ControlFlow::Continue(())).expect("valid job");
        (trainer, outcome)
    };
    let ((mut with_adamw, by_adamw), (mut with_muon, by_muon)) = (train(&adamw), train(&muon));
    let faster = InnerSpec { muon_lr: 2.0 * muon.muon_lr, ..muon.clone() };
    let first_step = |inner: &InnerSpec| {
        let job = TrainJob { batches: &batches[..1], ..job };
        make(inner).train(&job, &mut |_| ControlFlow::Continue(())).expect("valid job").delta
    };
    let (first, faster_first) = (first_step(&muon), first_step(&faster));
    let faster = train(&faster).1;
    for tensor in Layout::llama(model).tensors() {
        let moved = |outcome: &TrainOutcome| {
            outcome.delta[tensor.range()].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
        };
        assert!(moved(&by_muon) > 0.0, "{} moves", tensor.name);
        // Muon's rate moves its matrices as far as it says. What is AdamW's it moves through the matrices alone, so not in
        // the first step.
        let is_matrix = tensor.shape.len() == 2 && tensor.name.starts_with("model.layers.");
        let ratio = moved(&faster) / moved(&by_muon);
        assert!(
            !is_matrix || (1.5..2.5).contains(&ratio),
            "twice Muon's rate moves {} {ratio} times as far",
            tensor.name
        );
        let is_same = bits(&first[tensor.range()]) == bits(&faster_first[tensor.range()]);
        assert_eq!(is_same, !is_matrix, "Muon's rate and the first step of {}", tensor.name);
    }
    assert_ne!(bits(&by_adamw.delta), bits(&by_muon.delta), "the optimiser is the run's");
    for (trainer, other) in [(&mut with_adamw, with_muon.export_state()), (&mut with_muon, make(&adamw).export_state())]
    {
        let own = trainer.export_state();
        let refused = trainer.import_state(&other).expect_err("the state of the other optimiser").to_string();
        assert!(refused.contains("`inner.optimiser`") && refused.contains("delete it"), "{refused}");
        assert_eq!(trainer.export_state(), own, "a refused state changes nothing");
    }
    // The warm-up after a reset: half of the rate, then all of it.
    let warm = InnerSpec { reset_warmup_steps: 2, ..muon };
    let steps = train(&warm).1.steps;
    let shares: Vec<f64> = steps.iter().zip(0..).map(|(step, nth)| step.lr / learning_rate(&warm, nth)).collect();
    assert!(shares.iter().zip([0.5, 1.0, 1.0]).all(|(share, expected)| (share - expected).abs() < 1e-9), "{shares:?}");
}

/// How far an engine is, or may be, from the plain reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// Largest relative error of a step's loss.
    pub loss: f64,
    /// Length of the difference between both Δ, as a share of the reference's length.
    pub delta: f64,
}

/// Checks that an engine's losses and Δ are those of the plain reference in f64, and returns the distance.
///
/// Only language models have this reference. `inner` must be what `make`'s engine trains with.
///
/// # Panics
/// If the engine is farther off than `tolerance`.
pub fn check_against_reference(
    model: &ModelSpec,
    inner: &InnerSpec,
    tolerance: Distance,
    make: impl Fn() -> Box<dyn Trainer>,
) -> Distance {
    const FIRST_STEP: u64 = 3;
    let theta = Layout::llama(model).theta0(model, 11);
    let batches = batches(model, 4, 3, "reference");
    let job = TrainJob { theta: &theta, batches: &batches, first_step: FIRST_STEP, moments: Moments::Carried };
    let outcome = make().train(&job, &mut |_| ControlFlow::Continue(())).expect("valid job");

    let sequences: Vec<Vec<&[u32]>> =
        batches.iter().map(|batch| batch.tokens.chunks_exact(batch.seq_len).collect()).collect();
    let rates: Vec<f64> = (FIRST_STEP..).take(batches.len()).map(|step| learning_rate(inner, step)).collect();
    let (losses, delta) = oracle::train(model, inner, &theta, &sequences, &rates);
    assert_eq!(outcome.steps.len(), losses.len(), "every step is done");
    let losses = outcome.steps.iter().zip(&losses).map(|(step, expected)| (step.loss - expected).abs() / expected);
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let found = outcome.delta.iter().map(|&x| f64::from(x));
    let difference = length(&mut found.zip(&delta).map(|(found, expected)| found - expected));
    let distance =
        Distance { loss: losses.fold(0.0, f64::max), delta: difference / length(&mut delta.iter().copied()) };
    let is_near = distance.loss < tolerance.loss && distance.delta < tolerance.delta;
    assert!(is_near, "{distance:?} from the reference, where {tolerance:?} is allowed");
    distance
}

struct Suite<'a> {
    model: &'a ModelSpec,
    theta: Vec<f32>,
    batches: Vec<TokenBatch>,
    held_out: TokenBatch,
}

/// The bits, so that −0 and 0 differ.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

impl Suite<'_> {
    fn job<'a>(&'a self, batches: &'a [TokenBatch], first_step: u64) -> TrainJob<'a> {
        TrainJob { theta: &self.theta, batches, first_step, moments: Moments::Carried }
    }

    fn train(&self, trainer: &mut dyn Trainer, batches: &[TokenBatch], first_step: u64) -> TrainOutcome {
        trainer.train(&self.job(batches, first_step), &mut |_| ControlFlow::Continue(())).expect("valid job")
    }

    fn outcome_has_its_shape(&self, trainer: &mut dyn Trainer) {
        let mut seen = vec![];
        let mut on_step = |stats: &StepStats| {
            seen.push(*stats);
            ControlFlow::Continue(())
        };
        let outcome = trainer.train(&self.job(&self.batches, 100), &mut on_step).expect("valid job");
        assert_eq!(outcome.delta.len(), self.theta.len(), "one Δ per parameter");
        assert!(outcome.delta.iter().all(|value| value.is_finite()), "Δ is finite");
        assert!(outcome.delta.iter().any(|&value| value != 0.0), "something was learned");
        assert_eq!(outcome.steps, seen, "on_step sees every step");
        let tokens = self.batches[0].tokens.len() as u64;
        assert_eq!(outcome.tokens, tokens * self.batches.len() as u64);
        for (stats, step) in seen.iter().zip(100..) {
            assert_eq!((stats.step, stats.tokens), (step, tokens), "steps count on from first_step");
            assert!(stats.loss.is_finite() && stats.grad_norm > 0.0 && stats.lr > 0.0, "{stats:?}");
        }
        if let Some(stats) = trainer.stats() {
            let rates = [stats.tokens_per_s, stats.model_flops_per_s, stats.matmul_flops_per_s];
            assert!(rates.into_iter().all(|rate| rate > 0.0 && rate.is_finite()), "{stats:?}");
            let per_token = stats.model_flops_per_s / stats.tokens_per_s;
            let expected = flops_per_token(self.model, self.batches[0].seq_len);
            assert!((per_token / expected - 1.0).abs() < 1e-9, "{per_token} FLOPs per token, not {expected}");
        }
        let nothing = self.train(trainer, &[], 0);
        assert!(nothing.steps.is_empty() && nothing.delta.iter().all(|&value| value == 0.0), "no batch, no step");
    }

    fn runs_are_repeatable(&self, make: &impl Fn() -> Box<dyn Trainer>) {
        let [one, two] = [(); 2].map(|()| self.train(make().as_mut(), &self.batches, 0));
        assert_eq!(bits(&one.delta), bits(&two.delta), "the same job gives the same bits");
        assert_eq!(one.steps, two.steps);
    }

    fn stops_early(&self, make: &impl Fn() -> Box<dyn Trainer>) {
        let mut stop_after_two =
            |stats: &StepStats| if stats.step == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let stopped = make().train(&self.job(&self.batches, 0), &mut stop_after_two).expect("valid job");
        assert_eq!(stopped, self.train(make().as_mut(), &self.batches[..2], 0), "what was done is the outcome");
    }

    fn evaluation_agrees_and_changes_nothing(&self, make: &impl Fn() -> Box<dyn Trainer>) {
        let mut trainer = make();
        let state = trainer.export_state();
        let losses = trainer.evaluate(&self.theta, &self.batches[0]).expect("valid batch");
        assert_eq!(losses.len(), self.batches[0].sequences, "one loss per sequence");
        assert_eq!(trainer.export_state(), state, "evaluation leaves the state alone");
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let trained = self.train(trainer.as_mut(), &self.batches, 0);
        let first = trained.steps[0].loss;
        assert!((mean - first).abs() < 1e-4 * mean.abs(), "evaluation says {mean}, the first step {first}");
        assert_eq!(trained, self.train(make().as_mut(), &self.batches, 0), "evaluation leaves training alone");
    }

    fn learns_what_it_is_shown(&self, trainer: &mut dyn Trainer) {
        let shown = vec![self.batches[0].clone(); 4];
        let outcome = self.train(trainer, &shown, 1000);
        let theta: Vec<f32> = self.theta.iter().zip(&outcome.delta).map(|(theta, delta)| theta - delta).collect();
        let mut mean = |theta: &[f32], batch| {
            let losses = trainer.evaluate(theta, batch).expect("valid batch");
            losses.iter().sum::<f64>() / losses.len() as f64
        };
        let own = mean(&self.theta, &self.batches[0]) - mean(&theta, &self.batches[0]);
        let other = mean(&self.theta, &self.held_out) - mean(&theta, &self.held_out);
        assert!(own > 0.0 && own > other, "loss fell by {own} on own data and by {other} on other data");
    }

    fn state_survives_a_restart(&self, make: &impl Fn() -> Box<dyn Trainer>) {
        let mut running = make();
        self.train(running.as_mut(), &self.batches, 0);
        let mut restarted = make();
        restarted.import_state(&running.export_state()).expect("own state");
        let [one, two] = [&mut running, &mut restarted].map(|trainer| self.train(trainer.as_mut(), &self.batches, 4));
        assert_eq!(bits(&one.delta), bits(&two.delta), "a restart changes nothing");
        let fresh = self.train(make().as_mut(), &self.batches, 4);
        assert_ne!(bits(&one.delta), bits(&fresh.delta), "moments survive from job to job");
    }

    fn fresh_moments_are_those_of_a_new_trainer(&self, make: &impl Fn() -> Box<dyn Trainer>) {
        let fresh = TrainJob { moments: Moments::Fresh, ..self.job(&self.batches, 4) };
        let mut old = make();
        self.train(old.as_mut(), &self.batches, 0);
        let state = old.export_state();
        let carried = self.train(old.as_mut(), &self.batches, 4);
        let [reset, new] = [&mut old, &mut make()]
            .map(|trainer| trainer.train(&fresh, &mut |_| ControlFlow::Continue(())).expect("valid job"));
        assert_eq!(bits(&reset.delta), bits(&new.delta), "a reset is a new trainer");
        assert_eq!(reset.steps, new.steps, "with the same rates");
        assert_ne!(bits(&carried.delta), bits(&reset.delta), "a reset is not what moments would have done");
        // What an imported state says is forgotten, too, and a new trainer starts from fresh moments unasked.
        old.import_state(&state).expect("own state");
        let [reset, new] = [
            old.train(&fresh, &mut |_| ControlFlow::Continue(())).expect("valid job"),
            self.train(make().as_mut(), &self.batches, 4),
        ];
        assert_eq!(bits(&reset.delta), bits(&new.delta), "a new trainer's moments are fresh");
    }

    fn damaged_state_is_refused(&self, trainer: &mut dyn Trainer) {
        self.train(trainer, &self.batches, 0);
        let state = trainer.export_state();
        let mut not_finite = state.clone();
        let end = not_finite.len();
        not_finite[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        for damaged in [&[][..], &state[..end - 1], &[&state[..], &[0; 4]].concat(), &not_finite] {
            let result = trainer.import_state(damaged);
            assert!(matches!(result, Err(TrainError::State { .. })), "{result:?}");
            assert_eq!(trainer.export_state(), state, "a refused state changes nothing");
        }
    }

    fn hostile_inputs_are_errors(&self, trainer: &mut dyn Trainer) {
        let state = trainer.export_state();
        let good = &self.batches[0];
        let mut outside = good.clone();
        outside.tokens[7] = self.model.vocab_size;
        let long = TokenBatch { seq_len: good.seq_len + 1, tokens: vec![0; 3 * good.seq_len + 3], ..good.clone() };
        let batches = [
            (outside, "outside the vocabulary"),
            (long, "too long"),
            (TokenBatch { tokens: vec![0; 5], ..good.clone() }, "not rectangular"),
            (TokenBatch { sequences: usize::MAX, ..good.clone() }, "overflowing"),
            (TokenBatch { sequences: 0, tokens: vec![], ..good.clone() }, "empty"),
            (TokenBatch { seq_len: 1, tokens: vec![0; 3], ..good.clone() }, "without a target"),
        ];
        let mut refuses = |theta: &[f32], batch: &TokenBatch, what: &str| {
            let batches = [good.clone(), batch.clone()];
            let job = TrainJob { theta, batches: &batches, first_step: 0, moments: Moments::Carried };
            assert!(trainer.train(&job, &mut |_| ControlFlow::Continue(())).is_err(), "training accepts {what}");
            assert!(trainer.evaluate(theta, batch).is_err(), "evaluation accepts {what}");
        };
        for (batch, what) in &batches {
            refuses(&self.theta, batch, what);
        }
        refuses(&self.theta[1..], good, "too few parameters");
        for value in [f32::NAN, f32::INFINITY] {
            let mut theta = self.theta.clone();
            theta[3] = value;
            refuses(&theta, good, "a parameter that is not finite");
        }
        assert_eq!(trainer.export_state(), state, "refused jobs leave the state alone");
    }

    /// Finite parameters whose products overflow must give a typed error or finite numbers.
    fn overflow_is_contained(&self, trainer: &mut dyn Trainer) {
        for size in [1e15, f32::MAX] {
            let theta = vec![size; self.theta.len()];
            match trainer.evaluate(&theta, &self.batches[0]) {
                Ok(losses) => assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}"),
                Err(error) => assert!(matches!(error, TrainError::NonFiniteLoss { .. }), "{error}"),
            }
            let job = TrainJob { theta: &theta, batches: &self.batches, first_step: 77, moments: Moments::Carried };
            match trainer.train(&job, &mut |_| ControlFlow::Continue(())) {
                Ok(outcome) => assert!(outcome.delta.iter().all(|value| value.is_finite()), "Δ is finite"),
                Err(error) => assert!(matches!(error, TrainError::NonFiniteStep { step: 77.., .. }), "{error}"),
            }
        }
    }
}
