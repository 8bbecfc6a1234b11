//! Cases that a campaign found, and what the proving ground itself must do.

use templar_record::event::Event;
use templar_sim::r#virtual::campaign::{Campaign, CampaignError};
use templar_sim::r#virtual::case::Case;
use templar_sim::r#virtual::engine::Engine;
use templar_sim::r#virtual::scenario::Scenario;
use templar_sim::r#virtual::weather::{self, Faults};

use crate::run;

/// A network without adversaries.
fn honest(seed: u64, miners: usize, validators: usize, windows: u64, faults: Faults) -> Case {
    let adversaries = Vec::new();
    Case {
        seed,
        miners,
        validators,
        windows,
        adversaries,
        faults,
        engine: Engine::Surrogate,
        seats: None,
        overlaps: false,
    }
}

fn assert_holds(case: &Case) {
    let folder = tempfile::tempdir().unwrap();
    let outcome = case.run(folder.path()).unwrap();
    assert!(outcome.violations.is_empty(), "{}: {:?}", case.command(), outcome.violations);
}

#[test]
fn a_validator_that_comes_back_at_the_last_call_blames_nobody() {
    // Its clock is right again, it has a network again, or the cloud is back, a block before its vote is due.
    assert_holds(&honest(56, 6, 2, 5, Faults::Light));
    assert_holds(&honest(59, 3, 2, 7, Faults::Heavy));
    assert_holds(&honest(1081, 8, 3, 6, Faults::Light));
    assert_holds(&honest(1162, 3, 2, 6, Faults::Light));
}

#[test]
fn weather_makes_the_same_trouble_each_time() {
    let stormy = || {
        let mut scenario = Scenario::new(4, 3, 6, 3);
        let weather = weather::befall(&mut scenario, Faults::Heavy);
        assert!(weather.spells.len() > 3);
        run(scenario)
    };
    let (first, second) = (stormy(), stormy());
    let troubles = first.log.iter().filter(|logged| matches!(logged.event, Event::Trouble { .. })).count();
    assert!(first.log == second.log && troubles > 0, "{troubles}");
    assert!(first.violations.is_empty(), "{:?}", first.violations);
}

#[test]
fn a_network_that_loses_its_quorum_without_a_reason_is_caught() {
    let mut scenario = Scenario::new(3, 2, 4, 5);
    weather::befall(&mut scenario, Faults::None);
    scenario.incidents = vec![crate::kill("validator-1", 1)];
    let outcome = run(scenario);
    let text = outcome.violations.first().unwrap().to_string();
    assert!(text.starts_with("seed 5, window 1, ") && text.contains("progress is violated"), "{text}");
}

#[test]
fn a_campaign_goes_on_where_it_was_interrupted_and_belongs_to_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let file = Some(folder.path().join("campaign.json"));
    let campaign = |first_seed, seeds| Campaign {
        faults: Some(Faults::Light),
        is_real: false,
        first_seed,
        seeds,
        jobs: 2,
        file: file.clone(),
    };
    let run = |campaign: &Campaign| {
        let ran = std::sync::Mutex::new(Vec::new());
        let done = campaign.run(folder.path(), &|_, seed| ran.lock().unwrap().push(seed), &|| false);
        let mut ran = ran.into_inner().unwrap();
        ran.sort_unstable();
        (done, ran)
    };
    let (done, ran) = run(&campaign(7, 2));
    assert!(ran == [7, 8] && done.unwrap().failed.is_empty());
    let (done, ran) = run(&campaign(7, 4));
    assert_eq!((done.unwrap().passed.len(), ran), (4, vec![9, 10]));
    assert!(matches!(run(&campaign(8, 1)).0, Err(CampaignError::Other { .. })));
}

#[test]
fn the_real_engine_learns_text_in_a_simulation() {
    let mut case = honest(4, 3, 2, 4, Faults::None);
    case.engine = Engine::Real;
    let folder = tempfile::tempdir().unwrap();
    let outcome = case.run(folder.path()).unwrap();
    let bits: Vec<f64> = outcome.report.windows.iter().filter_map(|window| window.val_bits_per_byte).collect();
    assert!(bits.len() == 4 && bits[3] < bits[0] - 0.5 && outcome.violations.is_empty(), "{bits:?}");
}
