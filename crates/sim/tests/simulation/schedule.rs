//! What follows from a window's number: how many inner steps it has, which ones of the run, and from which moments.

use std::sync::{Arc, Mutex};

use templar_protocol::fault::FaultKind;
use templar_protocol::roster::Uid;
use templar_protocol::run::{Optimiser, RunSpec};
use templar_record::event::Event;
use templar_record::outcome::{Miss, Outcome as End};
use templar_sim::r#virtual::engine::Engine;
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_sim::zoo::layers::alter_training;
use templar_train::Moments;

use crate::crashes::overlapping;
use crate::{assert_one_history, certified, count, faults_of, kill, run, start};

const WINDOWS: u64 = 9;
/// Windows 4, 5 and 6 anneal; then the run has ended.
const FROM: u64 = 4;
const ANNEAL_WINDOWS: u64 = 3;

fn annealing(spec: &mut RunSpec) {
    let inner = &mut spec.inner;
    assert_eq!(inner.steps, 4);
    (inner.anneal_from_window, inner.anneal_windows, inner.anneal_steps) = (FROM, ANNEAL_WINDOWS, 2);
    (inner.reset_every_windows, inner.reset_warmup_steps) = (3, 2);
}

/// What a trainer was asked for: number of its first step, steps, moments, and the rate of the last step.
type Job = (u64, usize, Moments, f64);

/// A network with an anneal, and miner-0's jobs. Miner-1 is down in window 3, after a reset.
fn annealed(adjust: fn(&mut RunSpec)) -> (Outcome, Vec<Job>) {
    let mut scenario = Scenario::new(3, 2, WINDOWS, 170);
    scenario.adjust = adjust;
    scenario.incidents = vec![kill("miner-1", 2), start("miner-1", 4)];
    let jobs = Arc::<Mutex<Vec<Job>>>::default();
    let seen = jobs.clone();
    scenario.wrap("miner-0", move |setup| {
        let seen = seen.clone();
        alter_training(setup, move |job, outcome| {
            let rate = outcome.steps.last().unwrap().lr;
            seen.lock().unwrap().push((job.first_step, job.batches.len(), job.moments, rate));
        })
    });
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; WINDOWS as usize]);
    let jobs = jobs.lock().unwrap().clone();
    (outcome, jobs)
}

#[test]
fn a_run_ends_with_an_anneal() {
    for (delay, adjust) in [
        (0, annealing as fn(&mut RunSpec)),
        (1, |spec| {
            annealing(spec);
            overlapping(spec);
        }),
    ] {
        let (outcome, jobs) = annealed(adjust);
        for (window, (first_step, steps, moments, rate)) in (0..).zip(&jobs) {
            let expected = if window < FROM { 4 * window.saturating_sub(delay) } else { 16 + 2 * (window - FROM) };
            assert_eq!((*first_step, *steps), (expected, if window < FROM { 4 } else { 2 }), "window {window}");
            assert_eq!(*moments == Moments::Fresh, window % 3 == 0, "window {window}");
            assert!(*rate > 0.0, "window {window}: {rate}");
        }
        assert_eq!(jobs.len() as u64, FROM + ANNEAL_WINDOWS, "{jobs:?}");
        let (trained_in, after) = outcome.report.windows.split_at((FROM + ANNEAL_WINDOWS) as usize);
        for window in after {
            assert!(window.accepted.is_empty(), "{window:?}");
            assert!(window.faults.iter().all(|told| told.fault == FaultKind::NotCommitted), "{window:?}");
        }
        for window in trained_in {
            assert!(window.accepted.contains(&Uid(0)) && faults_of(window, 0).is_empty(), "{window:?}");
            assert!(window.accepted.contains(&Uid(1)) || (2..=5).contains(&window.window), "{window:?}");
        }
        let trained = |wanted: u64| {
            let tokens = outcome.log.iter().find_map(|logged| match logged.event {
                Event::Trained { window, tokens, .. } if window == wanted && logged.node == "miner-2" => Some(tokens),
                _ => None,
            });
            tokens.unwrap()
        };
        let has_ended =
            |event: &Event| matches!(event, Event::Ended { outcome: End::Missed { why: Miss::RunEnded }, .. });
        assert_eq!(count(&outcome, "miner-0", has_ended), after.len());
        assert_eq!(trained(FROM - 1), 2 * trained(FROM), "half of the steps");
        let loss = |nth: usize| outcome.report.windows[nth].val_loss.unwrap();
        assert!(loss(6) < loss(0), "{} {}", loss(0), loss(6));
    }
}

#[test]
fn steps_beyond_those_of_the_anneal_are_a_fault() {
    // The window after that excludes it.
    let mut scenario = Scenario::new(3, 2, FROM + 1, 171);
    scenario.adjust = annealing;
    scenario.wrap("miner-2", |setup| {
        alter_training(setup, |_, outcome| {
            let last = *outcome.steps.last().unwrap();
            outcome.steps.resize(4, last);
        })
    });
    let outcome = run(scenario);
    assert_one_history(&outcome);
    for window in &outcome.report.windows {
        let expected: &[FaultKind] = if window.window < FROM { &[] } else { &[FaultKind::StepCount] };
        assert_eq!(faults_of(window, 2), expected, "{window:?}");
        assert_eq!(window.accepted.contains(&Uid(2)), window.window < FROM);
    }
}

/// The language model of the built-in engine, with Muon and a reset before every window.
#[test]
fn a_network_with_muon_and_stateless_windows_learns() {
    let mut scenario = Scenario::new(3, 2, 4, 172);
    (scenario.engine, scenario.plan.preset) = (Engine::Real, Engine::Real.preset());
    scenario.adjust = |spec| {
        let inner = &mut spec.inner;
        inner.optimiser = Optimiser::Muon;
        (inner.reset_every_windows, inner.reset_warmup_steps) = (1, 2);
    };
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 4]);
    let loss = |nth: usize| outcome.report.windows[nth].val_loss.unwrap();
    assert!(loss(3) < loss(1) && loss(1) < loss(0), "{} {} {}", loss(0), loss(1), loss(3));
}
