//! One case of the proving ground: all that a simulation follows from, and the command that repeats it.

use std::any::Any;
use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use templar_protocol::hash::Hasher;
use templar_protocol::run::RunSpec;
use templar_record::event::Role;

use crate::plan::Plan;
use crate::r#virtual::engine::Engine;
use crate::r#virtual::scenario::{Outcome, Scenario};
use crate::r#virtual::weather::{self, Faults, Weather};
use crate::zoo::attack::KINDS;
use crate::zoo::kind::Kind;

/// What a simulation follows from.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub seed: u64,
    pub miners: usize,
    pub validators: usize,
    pub windows: u64,
    pub adversaries: Vec<Kind>,
    pub faults: Faults,
    pub engine: Engine,
    /// As [`Scenario::seats`].
    pub seats: Option<u32>,
    /// Whether the next window trains while one is judged.
    pub overlaps: bool,
}

impl Case {
    /// The case of a seed: a small network, at most a third of the miners and less than half of the stake hostile.
    pub fn draw(seed: u64, faults: Option<Faults>, engine: Engine) -> Self {
        let mut stream = Hasher::new("templar sim case").update_value(&seed).clone().into_stream();
        let mut below = |end: usize| stream.below(end as u64) as usize;
        let (miners, validators, windows) = (3 + below(6), 1 + below(5), 5 + below(4) as u64);
        let (bad_miners, bad_validators) = (below(miners / 3 + 1), below(validators.div_ceil(2)));
        let drawn = Faults::ALL[below(Faults::ALL.len())];
        let seats = (below(3) == 0).then(|| 2 + below(miners - 1) as u32);
        let overlaps = below(3) == 0;
        let mut adversaries = Vec::new();
        for (role, count) in [(Role::Miner, bad_miners), (Role::Validator, bad_validators)] {
            let kinds: Vec<Kind> = KINDS.iter().filter(|kind| kind.role == role).copied().collect();
            adversaries.extend((0..count).map(|_| kinds[below(kinds.len())]));
        }
        let faults = faults.unwrap_or(drawn);
        Self { seed, miners, validators, windows, adversaries, faults, engine, seats, overlaps }
    }

    /// The simulation, in which it is checked what must hold, and its weather.
    pub fn scenario(&self) -> (Scenario, Weather) {
        let mut scenario = Scenario::new(self.miners, self.validators, self.windows, self.seed);
        let (preset, adversaries) = (self.engine.preset(), self.adversaries.clone());
        scenario.plan = Plan { preset, adversaries, ..scenario.plan };
        (scenario.engine, scenario.seats, scenario.keep_log) = (self.engine, self.seats, false);
        if self.overlaps {
            scenario.adjust = overlap;
        }
        let weather = weather::befall(&mut scenario, self.faults);
        (scenario, weather)
    }

    /// Runs it in `folder`, which is gone afterwards. A panic is returned in words.
    pub fn run(&self, folder: &Path) -> Result<Outcome, String> {
        let result = catch_unwind(AssertUnwindSafe(|| self.scenario().0.run(folder)));
        // What is left of a case is of no use to the next one.
        let _ = fs::remove_dir_all(folder);
        result.map_err(|panic| said(&*panic))
    }

    /// The command that repeats it.
    pub fn command(&self) -> String {
        let Self { seed, miners, validators, windows, .. } = self;
        let mut command = format!(
            "templar sim --seed {seed} --miners {miners} --validators {validators} --windows {windows} --faults {}",
            self.faults
        );
        if self.engine != Engine::default() {
            let _ = write!(command, " --trainer {}", self.engine);
        }
        if let Some(seats) = self.seats {
            let _ = write!(command, " --seats {seats}");
        }
        if self.overlaps {
            command += " --overlap";
        }
        if !self.adversaries.is_empty() {
            let names: Vec<&str> = self.adversaries.iter().map(|kind| kind.name).collect();
            let _ = write!(command, " --adversary {}", names.join(","));
        }
        command
    }
}

/// The next window trains while one is judged.
fn overlap(spec: &mut RunSpec) {
    spec.windows.delay_windows = 1;
    spec.windows.vote_block = 26;
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without words"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_differ_by_seed_and_most_of_each_is_honest() {
        let cases: Vec<Case> = (0..200).map(|seed| Case::draw(seed, None, Engine::Surrogate)).collect();
        for case in &cases {
            let bad = |role| case.adversaries.iter().filter(|kind| kind.role == role).count();
            assert!(3 * bad(Role::Miner) <= case.miners && 2 * bad(Role::Validator) < case.validators, "{case:?}");
        }
        for level in Faults::ALL {
            assert!(cases.iter().filter(|case| case.faults == level).count() > 40, "{level}");
        }
        let hostile = cases.iter().filter(|case| !case.adversaries.is_empty()).count();
        assert!((80..200).contains(&hostile), "{hostile} of 200 have adversaries");
        assert!(cases.iter().any(|case| case.overlaps) && cases.iter().any(|case| case.seats.is_some()));
    }

    #[test]
    fn a_command_says_all_that_differs_from_the_defaults() {
        let case = Case::draw(1, Some(Faults::Light), Engine::Real);
        let case = Case { seats: Some(3), overlaps: true, adversaries: vec![KINDS[0], KINDS[0]], ..case };
        let (command, name) = (case.command(), KINDS[0].name);
        let end = format!("--faults light --trainer real --seats 3 --overlap --adversary {name},{name}");
        assert!(command.starts_with("templar sim --seed 1 ") && command.ends_with(&end), "{command}");
    }
}
