//! How windows end for miners: each once, whatever happens in between.

use templar_protocol::roster::Uid;
use templar_record::event::{Event, Source};
use templar_record::outcome::{Miss, Outcome};
use templar_sim::r#virtual::scenario::{Outcome as Result, Scenario, What};
use templar_sim::zoo::attack::malformed_bucket;
use templar_sim::zoo::failure::disk::diverge;

use crate::crashes::overlapping;
use crate::{MID_WINDOW, any, at, ends, kill, run, start};

/// Every window from the first to the last that was settled, each once and in order; how they ended.
fn each_once(result: &Result, node: &str) -> Vec<Outcome> {
    let ends = ends(result, node);
    let settled = result.log.iter().filter_map(|logged| match logged.event {
        Event::Settled { window, .. } if logged.node == node => Some(window),
        _ => None,
    });
    let windows: Vec<u64> = ends.iter().map(|(window, _)| *window).collect();
    assert_eq!(windows, (0..=settled.max().unwrap()).collect::<Vec<_>>(), "{node}: {ends:?}");
    ends.into_iter().map(|(_, outcome)| outcome).collect()
}

#[test]
fn all_of_an_honest_network_s_windows_count() {
    let result = run(Scenario::new(3, 2, 4, 90));
    for (nth, node) in ["miner-0", "miner-1", "miner-2"].into_iter().enumerate() {
        assert_eq!(each_once(&result, node), vec![Outcome::Counted; 4], "{node}");
        assert_eq!(result.report.nodes[nth].outcomes, [("counted".to_owned(), 4)].into());
    }
}

#[test]
fn a_restarted_miner_tells_each_window_once() {
    let mut scenario = Scenario::new(3, 2, 10, 91);
    scenario.incidents = vec![kill("miner-2", 2), start("miner-2", 2), kill("miner-0", 3), start("miner-0", 5)];
    let result = run(scenario);
    assert_eq!(each_once(&result, "miner-2"), vec![Outcome::Counted; 10]);
    let missed = |why| Outcome::Missed { why };
    let ended = each_once(&result, "miner-0");
    assert_eq!(ended[..3], vec![Outcome::Counted; 3]);
    // Committed and not opened, then away. The former ranks below a bad contribution, so its seat goes to others.
    assert_eq!(ended[3..5], [missed(Miss::KeyTooLate), missed(Miss::NoTimeLeft)]);
}

#[test]
fn windows_jumped_over_are_skipped_and_those_gone_through_twice_are_told_once() {
    let mut jumping = Scenario::new(3, 2, 10, 92);
    jumping.adjust = overlapping;
    jumping.incidents = vec![kill("miner-1", 2), start("miner-1", 7)];
    let result = run(jumping);
    assert!(any(&result, "miner-1", |event| matches!(event, Event::Adopted { from: Source::Checkpoint, .. })));
    let ended = each_once(&result, "miner-1");
    assert!(ended.contains(&Outcome::Skipped) && ended[9] == Outcome::Counted, "{ended:?}");
    assert_eq!(each_once(&result, "miner-0"), vec![Outcome::Counted; 10]);

    let mut diverging = Scenario::new(3, 3, 8, 93);
    let disk = at(3, MID_WINDOW, What::Disk("miner-0".into(), diverge));
    diverging.incidents = vec![kill("miner-0", 3), disk, start("miner-0", 3)];
    let result = run(diverging);
    assert!(any(&result, "miner-0", |event| matches!(event, Event::Adopted { .. })));
    assert_eq!(each_once(&result, "miner-0").last(), Some(&Outcome::Counted));
}

#[test]
fn a_null_window_is_null_for_whoever_opened() {
    let mut scenario = Scenario::new(2, 1, 5, 94);
    scenario.incidents = vec![kill("validator-0", 2), start("validator-0", 3)];
    let result = run(scenario);
    for miner in ["miner-0", "miner-1"] {
        let ended = each_once(&result, miner);
        assert_eq!((&ended[1], &ended[2], &ended[4]), (&Outcome::Counted, &Outcome::Null, &Outcome::Counted));
    }
}

#[test]
fn whoever_gets_no_seat_is_told_so() {
    let mut scenario = Scenario::new(3, 2, 4, 95);
    scenario.adjust = |spec| (spec.roster.gather, spec.roster.reserve) = (1, 1);
    let result = run(scenario);
    let all: Vec<Vec<Outcome>> = (0..3).map(|nth| each_once(&result, &format!("miner-{nth}"))).collect();
    for (window, report) in result.report.windows.iter().enumerate() {
        let [Uid(counted)] = report.accepted[..] else { panic!("{report:?}") };
        for (nth, ended) in all.iter().enumerate() {
            match &ended[window] {
                Outcome::Counted => assert_eq!(nth, usize::from(counted)),
                Outcome::NoSeat { seats } => assert!((1..=2).contains(seats) && nth != usize::from(counted)),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn whoever_is_not_in_the_roster_is_told_so() {
    let mut scenario = Scenario::new(2, 2, 3, 96);
    scenario.plan.adversaries = vec![malformed_bucket::KIND];
    let result = run(scenario);
    assert_eq!(each_once(&result, "miner-1"), vec![Outcome::NotListed; 3]);
    assert_eq!(each_once(&result, "miner-0"), vec![Outcome::Counted; 3]);
}
