//! Histories that follow the rules, and what is found where one does not.

use super::*;
use crate::inputs::MinerInput;
use crate::testing::{bucket, entry, spec};
use crate::word::{Vote, fields};

const MINERS: u16 = 3;
const VALIDATORS: u16 = 3;
const SAMPLES: u64 = 10_000;

/// What the chain said of a window in which all validators stand on `base` and accept so many candidates.
fn inputs(window: u64, base: Hash32, accepted: usize) -> WindowInputs {
    let miner = |uid: u16| MinerInput {
        entry: entry(uid),
        incentive: 0,
        work_class: 0,
        bucket: bucket().identity(),
        header: Some(Hash32::of(&[uid as u8, window as u8])),
    };
    let accept = (0..usize::from(MINERS)).map(|nth| nth < accepted).collect();
    let (exclude, deny) = (vec![false; usize::from(MINERS)], vec![false; usize::from(VALIDATORS)]);
    let vote = Vote { window: window as u32, root: base, accept, exclude, deny, proof: [0; 16] };
    let ballot = fields(b"locator", None, Some(&vote)).remove(2);
    let validator = |uid: u16| ValidatorInput { entry: entry(MINERS + uid), stake_rao: 100, ballot: ballot.clone() };
    WindowInputs {
        window,
        snapshot_hash: Hash32::of(&[window as u8]),
        put_hash: Hash32::of(b"put"),
        miners: (0..MINERS).map(miner).collect(),
        validators: (0..VALIDATORS).map(validator).collect(),
    }
}

/// The states that an audit would go through, as long as the outer steps have these results.
fn history(spec: &RunSpec, steps: &[Option<OuterStep>]) -> Vec<(WindowInputs, RunState)> {
    let mut states = vec![RunState::genesis(spec)];
    let mut all = Vec::new();
    for (window, step) in steps.iter().enumerate() {
        let window = window as u64;
        let base = &states[Schedule::new(spec).settled_before(window) as usize];
        let inputs = inputs(window, base.digest(), if step.is_some() { 2 } else { 0 });
        let seed = window_seed(base.run, window, &inputs.snapshot_hash);
        let candidates = candidates::choose(window, inputs.contenders(), &base.standing, &spec.roster, &seed);
        let (roster, newest) = (roster(&inputs), states.last().unwrap());
        let ballots = read_ballots(window, &roster, candidates.len(), &inputs.at_vote());
        let certificate = certify(window, &roster, &candidates, &base.standing, spec.roster.gather, &ballots);
        let cursor = Assignment::new(spec, window, newest.cursor, &candidates, &seed, SAMPLES).next_cursor();
        let digest = inputs.digest();
        let settlement =
            Settlement { roster: &roster, candidates: &candidates, certificate: &certificate, cursor, inputs: digest };
        let next = newest.settle(spec, &settlement, step.unwrap_or(OuterStep::Withheld));
        all.push((inputs, next.clone()));
        states.push(next);
    }
    all
}

fn taken(name: &[u8]) -> OuterStep {
    OuterStep::Taken { theta_root: Hash32::of(name) }
}

fn audit(spec: &RunSpec, samples: Option<u64>, all: &[(WindowInputs, RunState)]) -> Result<Vec<Step>, Contradiction> {
    let mut audit = Audit::new(spec, samples);
    let step = |(inputs, state): &(WindowInputs, RunState)| {
        let replayed = audit.advance(inputs, &Link::of(state))?;
        assert_eq!(audit.state(), state);
        Ok(replayed.step)
    };
    all.iter().map(step).collect()
}

#[test]
fn a_history_by_the_rules_is_followed_to_its_end_with_and_without_a_delay() {
    for delay_windows in [0, 1] {
        let mut spec = spec();
        spec.windows.delay_windows = delay_windows;
        let all = history(&spec, &[Some(taken(b"a")), None, Some(OuterStep::Withheld), Some(taken(b"b"))]);
        for samples in [Some(SAMPLES), None] {
            let steps = audit(&spec, samples, &all).unwrap();
            assert!(matches!(&steps[0], Step::Taken(accepted) if accepted.len() == 2));
            assert_eq!(steps[1..3], [Step::None, Step::Withheld]);
            assert!(
                matches!(&steps[3], Step::Taken(accepted) if accepted[0].1 == Hash32::of(&[accepted[0].0.uid.0 as u8, 3]))
            );
        }
    }
}

#[test]
fn a_history_that_breaks_the_rules_is_refused_where_it_does() {
    let spec = spec();
    let honest = history(&spec, &[Some(taken(b"a")), None, Some(taken(b"b"))]);
    let refused = |change: &dyn Fn(&mut (WindowInputs, RunState))| {
        let mut all = honest.clone();
        change(&mut all[1]);
        audit(&spec, Some(SAMPLES), &all).unwrap_err()
    };
    let is_state = |error: Contradiction| matches!(error, Contradiction::State { .. });
    // A null window that moves θ, the clock of schedules, the data, or somebody's standing.
    assert!(is_state(refused(&|(_, state)| state.theta_root = Hash32::of(b"other"))));
    assert!(is_state(refused(&|(_, state)| state.outer_steps += 1)));
    assert!(is_state(refused(&|(_, state)| state.cursor += 1)));
    assert!(is_state(refused(&|(_, state)| state.standing.misses.clear())));
    assert!(is_state(refused(&|(_, state)| state.previous = Hash32::default())));
    // Inputs other than those that the state names, and inputs of another window.
    assert!(matches!(refused(&|(inputs, _)| inputs.validators[0].stake_rao += 1), Contradiction::Inputs { .. }));
    assert!(matches!(refused(&|(inputs, _)| inputs.window = 2), Contradiction::OtherWindow { found: 2 }));
    // Votes that stand on another state.
    let base = Hash32::of(b"elsewhere");
    let elsewhere = refused(&|(inputs, state)| {
        *inputs = self::inputs(1, base, 0);
        state.inputs = inputs.digest();
    });
    assert!(matches!(elsewhere, Contradiction::Base { certified, .. } if certified == base));
    // A contribution that counts without a commitment.
    let mut all = honest.clone();
    let (inputs, state) = &mut all[0];
    inputs.miners.iter_mut().for_each(|miner| miner.header = None);
    state.inputs = inputs.digest();
    assert!(matches!(audit(&spec, Some(SAMPLES), &all), Err(Contradiction::Uncommitted { .. })));
}
