use templar_protocol::fault::Party;
use templar_protocol::testing::{entry, spec};
use templar_record::judgement::{Decision, Evaluation, Judged, StakeVote};

use super::*;

fn scoring() -> ScoringSpec {
    ScoringSpec { budget_tokens: 300, burn_uid: 99, ..spec().scoring }
}

/// An honest validator's log of some windows.
fn log(windows: u64) -> Vec<Event> {
    let mut book = PayBook::default();
    let mut events = vec![opened(&book)];
    for window in 0..windows {
        let fault = (window % 3 == 1).then_some(FaultKind::NotOpened);
        let judged = |uid, fault: Option<FaultKind>| Judged {
            entry: entry(uid),
            vote: if fault.is_none() { StakeVote::Passed } else { StakeVote::Refused },
            tokens: 100,
            fault,
        };
        let judgement =
            Judgement { window, decision: Decision::Certified, miners: vec![judged(0, None), judged(1, fault)] };
        let faults = fault.map(|kind| Fault { entry: entry(1), kind, attributed_to: Party::Miner });
        let faults: Vec<Fault> = faults.into_iter().collect();
        events.push(Event::Voted { window, accept: vec![], faults, comm_s: 0.0 });
        book.settle(&judgement, &scoring());
        events.push(Event::Judged { judgement });
        let losses = |uid: u16| Evaluation {
            entry: entry(uid),
            own_before: 3.0,
            own_after: 2.5,
            unseen_before: 3.0,
            unseen_after: 2.7 + 0.01 * f64::from(uid) / (1.0 + window as f64),
        };
        let evaluations = vec![losses(0), losses(1)];
        book.evaluate(&evaluations, &scoring());
        events.push(Event::Evaluated { window, evaluations, scores: vec![] });
        events.push(Event::Weighed { window, forgotten: vec![], weights: book.weights(&scoring()) });
    }
    events
}

fn opened(book: &PayBook) -> Event {
    Event::BookOpened { scoring: scoring(), book: borsh::to_vec(book).unwrap() }
}

/// Replays the log after a passage through JSON.
fn replay(events: &[Event]) -> Replay {
    let mut replay = Replay::default();
    for event in events {
        let event = NodeEvent { node: "v".to_owned(), event: event.clone() };
        replay.take(&serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap());
    }
    replay
}

#[test]
fn a_log_gives_the_same_weights_again() {
    let replay = replay(&log(30));
    let account = &replay.accounts()["v"];
    assert_eq!(account.differences, []);
    assert_eq!((account.judged, account.evaluated, account.weighed, account.faults), (30, 30, 30, 10));
}

#[test]
fn a_log_that_begins_at_a_restart_is_replayed_from_there() {
    let events = log(30);
    let mut book = PayBook::default();
    for event in &events[..=4 * 20] {
        match event {
            Event::Judged { judgement } => book.settle(judgement, &scoring()),
            Event::Evaluated { evaluations, .. } => book.evaluate(evaluations, &scoring()),
            _ => {}
        }
    }
    let rest: Vec<Event> = [&[opened(&book)], &events[1 + 4 * 20..]].concat();
    let replay = replay(&rest);
    assert_eq!((replay.accounts()["v"].weighed, &replay.accounts()["v"].differences[..]), (10, &[][..]));
}

/// What is found in the log of `v`.
fn found(events: &[Event]) -> Vec<Difference> {
    replay(events).accounts()["v"].differences.clone()
}

#[test]
fn a_book_at_a_restart_must_be_what_the_log_leads_to() {
    let mut events = log(6);
    let mut book = PayBook::default();
    for event in &events {
        match event {
            Event::Judged { judgement } => book.settle(judgement, &scoring()),
            Event::Evaluated { evaluations, .. } => book.evaluate(evaluations, &scoring()),
            _ => {}
        }
    }
    assert_eq!(found(&[&events[..], &[opened(&book)]].concat()), []);
    // A friend's record that is better than it was.
    let mut friend = book.clone();
    friend.settle(&Judgement { window: 6, decision: Decision::Null, miners: vec![] }, &scoring());
    assert_eq!(found(&[&events[..], &[opened(&friend)]].concat()), [Difference::Restart]);
    events.push(Event::BookOpened {
        scoring: ScoringSpec { budget_tokens: 1, ..scoring() },
        book: borsh::to_vec(&book).unwrap(),
    });
    assert_eq!(found(&events), [Difference::Rules]);
}

#[test]
fn what_is_missing_from_a_log_is_found() {
    let events = log(6);
    let headless = replay(&events[1..]);
    assert_eq!((headless.accounts().len(), headless.unbooked()["v"]), (0, 18));
    let judged = |window: u64| {
        let is_it = |event: &Event| matches!(event, Event::Judged { judgement } if judgement.window == window);
        events.iter().position(is_it).unwrap()
    };
    // The last window whole, and without its judgement; and a window in the middle.
    assert_eq!(found(&events[..judged(5)]), []);
    let rest = [&events[..judged(5)], &events[judged(5) + 1..]].concat();
    assert!(found(&rest).contains(&Difference::Unjudged { window: 5 }));
    let rest = [&events[..judged(2)], &events[judged(3)..]].concat();
    assert!(found(&rest).contains(&Difference::Gap { from: 2, to: 2 }));
}

#[test]
fn every_change_of_a_log_is_found() {
    let events = log(6);
    let found = |change: &dyn Fn(&mut Event) -> bool| {
        let mut events = events.clone();
        let changed = events.iter_mut().rev().find_map(|event| change(event).then_some(()));
        assert!(changed.is_some(), "there is nothing to change");
        !replay(&events).accounts()["v"].differences.is_empty()
    };
    assert!(found(&|event| match event {
        Event::Weighed { weights, .. } => weights.first_mut().map(|(_, weight)| *weight -= 1).is_some(),
        _ => false,
    }));
    assert!(found(&|event| match event {
        Event::Evaluated { window: 4, evaluations, .. } => {
            evaluations[0].unseen_after = 3.1;
            true
        }
        _ => false,
    }));
    assert!(found(&|event| match event {
        Event::Judged { judgement } if judgement.window == 3 => {
            judgement.miners[0].tokens = 50;
            true
        }
        _ => false,
    }));
    assert!(found(&|event| match event {
        Event::Voted { faults, .. } if !faults.is_empty() => {
            faults[0].attributed_to = Party::Storage;
            true
        }
        _ => false,
    }));
    assert!(found(&|event| match event {
        Event::Judged { judgement } if judgement.miners[1].fault.is_some() => {
            judgement.miners[1].fault = Some(FaultKind::PayloadUnavailable);
            true
        }
        _ => false,
    }));
}

#[test]
fn a_log_of_more_names_than_validators_is_bounded_and_what_is_left_out_is_counted() {
    let mut replay = Replay::default();
    for nth in 0..2 * VALIDATORS_KEPT_MAX {
        let event = opened(&PayBook::default());
        replay.take(&NodeEvent { node: format!("v{nth}"), event });
    }
    let left_out: u64 = replay.unbooked().values().sum();
    assert_eq!((replay.accounts().len(), left_out), (VALIDATORS_KEPT_MAX, VALIDATORS_KEPT_MAX as u64));
    replay.take(&NodeEvent { node: "another".to_owned(), event: opened(&PayBook::default()) });
    assert_eq!(replay.unbooked().get("others"), Some(&1));
}
