use templar_protocol::testing::spec;

use super::*;

fn told(node: &str, event: Event) -> NodeEvent {
    NodeEvent { node: node.to_owned(), event }
}

#[test]
fn a_diverged_node_that_reports_last_does_not_change_the_report() {
    let settled = |root: &[u8], accepted: Vec<Uid>, tokens| Event::Settled {
        window: 0,
        verdict: Verdict::Certified { accepted, excluded: vec![] },
        state_root: Hash32::of(root),
        payload_bytes: 10 * tokens,
        values: 1,
        tokens,
    };
    let validated = |loss| Event::Validated { window: 0, loss, bits_per_byte: loss };
    let mut recorder = Recorder::new(Vec::new());
    for event in [
        told("b", settled(b"one", vec![Uid(1)], 7)),
        told("c", settled(b"one", vec![Uid(1)], 7)),
        told("c", validated(2.0)),
        told("a", settled(b"other", vec![], 9)),
        told("a", validated(1.0)),
    ] {
        recorder.record(&event);
    }
    let window = recorder.window(0);
    assert_eq!((window.state_root, window.settled_by, window.agreed_by), (Hash32::of(b"one"), 3, 2));
    assert_eq!((window.accepted, window.tokens, window.payload_bytes), (vec![Uid(1)], 7, 70));
    assert_eq!(window.val_loss, Some(2.0));
}

#[test]
fn a_window_without_events_does_not_shift_the_others() {
    let mut recorder = Recorder::new(Vec::new());
    recorder.record(&told("a", Event::Weighed { window: 0, forgotten: Vec::new(), weights: Vec::new() }));
    recorder.record(&told("a", Event::Sealed { window: 3, payload_bytes: 1, comm_s: 2.0 }));
    recorder.record(&told("a", Event::Sealed { window: 9, payload_bytes: 1, comm_s: 2.0 }));
    let report = recorder.finish(&spec(), 1, 9, &[], (vec![], 0), Final::default());
    let numbers: Vec<u64> = report.windows.iter().map(|window| window.window).collect();
    assert_eq!((report.windows_planned, numbers), (9, vec![3]));
    assert_eq!((recorder.window(5).window, recorder.window(5).settled_by), (5, 0));
}

#[test]
fn a_long_run_keeps_what_its_report_says_and_no_more() {
    let mut recorder = Recorder::new(Vec::new());
    let settled = |window: u64| Event::Settled {
        window,
        verdict: Verdict::Certified { accepted: vec![Uid(0)], excluded: vec![] },
        state_root: Hash32::of(b"r"),
        payload_bytes: 2,
        values: 1,
        tokens: 1,
    };
    for window in 0..500 {
        recorder.record(&told("a", Event::Ended { window, outcome: Outcome::Counted }));
        recorder.record(&told("a", settled(window)));
    }
    // It comes too late to be of interest.
    recorder.record(&told("b", settled(3)));
    assert!(recorder.windows.len() as u64 <= OPEN_WINDOWS + 1);
    assert_eq!((recorder.settled(3), recorder.window(3).accepted), (1, vec![Uid(0)]));
    assert_eq!(recorder.outcomes("a", 499).get("counted"), Some(&500));
    let report = recorder.finish(&spec(), 1, 500, &[], (vec![], 0), Final::default());
    assert!(report.windows.iter().map(|window| window.window).eq(0..500) && report.last.tokens == 500);
}

#[test]
fn what_opened_and_found_no_seat_is_counted() {
    let started = |uid| Event::Started { uid: Uid(uid), role: Role::Miner, settled: 0, state_root: Hash32::default() };
    let mut recorder = Recorder::new(Vec::new());
    let verdict = Verdict::Certified { accepted: vec![Uid(0), Uid(9)], excluded: vec![] };
    for event in [
        told("a", started(0)),
        told("b", started(1)),
        told("a", Event::Opened { window: 0 }),
        told("b", Event::Opened { window: 0 }),
        told("b", Event::Ended { window: 0, outcome: Outcome::NoSeat { seats: 2 } }),
        told(
            "v",
            Event::Settled { window: 0, verdict, state_root: Hash32::of(b"r"), payload_bytes: 2, values: 1, tokens: 1 },
        ),
    ] {
        recorder.record(&event);
    }
    let window = recorder.window(0);
    // Nothing else is heard from uid 9.
    assert_eq!((window.opened, window.no_seat), (vec![Uid(0), Uid(1), Uid(9)], 1));
    assert_eq!((recorder.uid("b"), recorder.uid("v")), (Some(Uid(1)), None));
    assert_eq!(recorder.outcome(0, "b"), Some(&Outcome::NoSeat { seats: 2 }));
}
