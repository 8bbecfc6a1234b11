//! Every window ends once for every validator, whatever happens to its process, its disk and its state.

use templar_record::outcome::{Abstention, Outcome as End};
use templar_sim::r#virtual::scenario::{Incident, Outcome, Scenario, What};
use templar_sim::zoo::failure::disk::{diverge, wipe};

use crate::{at, ends, run};

fn assert_one_end_a_window(outcome: &Outcome, windows: u64, case: &str) {
    for node in outcome.report.nodes.iter().filter(|node| node.name.starts_with("validator")) {
        let told: Vec<u64> = ends(outcome, &node.name).into_iter().map(|(window, _)| window).collect();
        assert_eq!(told, (0..windows).collect::<Vec<_>>(), "{case}: {}", node.name);
    }
}

fn restart(node: &str, window: u64, killed: u64, started: u64) -> Vec<Incident> {
    vec![at(window, killed, What::Kill(node.into())), at(window, started, What::Start(node.into()))]
}

#[test]
fn in_a_quiet_network_every_validator_has_voted_in_every_window() {
    let outcome = run(Scenario::new(3, 2, 4, 90));
    assert_one_end_a_window(&outcome, 4, "quiet");
    assert!(ends(&outcome, "validator-0").iter().all(|(_, end)| *end == End::Voted));
}

#[test]
fn a_restart_at_any_block_tells_no_end_twice_and_leaves_none_out() {
    for killed in [1, 12, 13, 17, 18, 19] {
        let mut scenario = Scenario::new(3, 3, 5, 91);
        scenario.incidents = restart("validator-1", 2, killed, killed);
        let outcome = run(scenario);
        assert_one_end_a_window(&outcome, 5, &format!("killed at block {killed}"));
        assert!(ends(&outcome, "validator-1").iter().all(|(_, end)| *end == End::Voted), "killed at block {killed}");
    }
}

#[test]
fn a_validator_that_was_away_says_so_of_what_it_missed() {
    let mut scenario = Scenario::new(3, 3, 7, 92);
    scenario.incidents = vec![at(2, 5, What::Kill("validator-1".into())), at(4, 5, What::Start("validator-1".into()))];
    let outcome = run(scenario);
    assert_one_end_a_window(&outcome, 7, "away");
    let away = End::Abstained { why: Abstention::NoTimeLeft };
    let of: Vec<End> = ends(&outcome, "validator-1").into_iter().map(|(_, end)| end).collect();
    assert_eq!(of[1..5], [End::Voted, away.clone(), away, End::Voted]);
}

#[test]
fn windows_that_a_checkpoint_jumps_over_are_skipped_and_a_lost_disk_repeats_none() {
    let mut scenario = Scenario::new(3, 2, 9, 10);
    scenario.incidents = restart("validator-1", 6, 5, 5);
    scenario.incidents.insert(1, at(6, 5, What::Disk("validator-1".into(), wipe)));
    let outcome = run(scenario);
    assert_one_end_a_window(&outcome, 9, "lost disk");

    let mut scenario = Scenario::new(3, 3, 10, 93);
    scenario.incidents = vec![at(1, 5, What::Kill("validator-1".into())), at(7, 5, What::Start("validator-1".into()))];
    let outcome = run(scenario);
    assert_one_end_a_window(&outcome, 10, "jump");
    assert!(ends(&outcome, "validator-1").contains(&(1, End::Skipped)));
}

#[test]
fn a_minority_that_goes_back_tells_no_end_twice() {
    let mut scenario = Scenario::new(3, 3, 8, 7);
    let disk = at(3, 5, What::Disk("validator-2".into(), diverge));
    scenario.incidents = restart("validator-2", 3, 5, 5);
    scenario.incidents.insert(1, disk);
    assert_one_end_a_window(&run(scenario), 8, "diverged");
}

#[test]
fn a_null_window_ends_for_whoever_voted_in_it() {
    // Two of three are away: the third has voted, and it is not enough.
    let mut scenario = Scenario::new(3, 4, 5, 94);
    for node in ["validator-0", "validator-1", "validator-2"] {
        scenario.incidents.extend(restart(node, 2, 5, 19));
    }
    let outcome = run(scenario);
    assert!(!outcome.report.windows[2].certified && outcome.report.windows[3].certified);
    assert_one_end_a_window(&outcome, 5, "null");
    assert_eq!(ends(&outcome, "validator-3")[2], (2, End::Voted));
    assert_eq!(ends(&outcome, "validator-0")[2], (2, End::Abstained { why: Abstention::NoTimeLeft }));
}
