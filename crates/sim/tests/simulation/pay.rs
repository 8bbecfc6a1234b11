//! What the rules of pay do in a network.

use templar_chain::DevChain;
use templar_incentive::explain::{Explainer, Part};
use templar_incentive::replay::Replay;
use templar_protocol::keys::Keypair;
use templar_protocol::roster::Uid;
use templar_record::event::{Event, Role};
use templar_record::trouble::Trouble;
use templar_sim::plan::Member;
use templar_sim::r#virtual::scenario::{Outcome, Scenario, What};
use templar_sim::zoo::attack::{noise, withhold};
use templar_sim::zoo::failure::outage::during;
use templar_store::{Fault, MemoryCloud, OpKind};

use crate::{any, assert_one_history, at, certified, kill, run, start, time};

fn emission(outcome: &Outcome, name: &str) -> f64 {
    outcome.report.nodes.iter().find(|node| node.name == name).unwrap().emission
}

fn miners(outcome: &Outcome) -> Vec<f64> {
    outcome.report.nodes.iter().filter(|node| node.role == Role::Miner).map(|node| node.emission).collect()
}

/// Standard deviation over mean.
fn variation(pay: &[f64]) -> f64 {
    let mean = pay.iter().sum::<f64>() / pay.len() as f64;
    (pay.iter().map(|pay| (pay - mean).powi(2)).sum::<f64>() / pay.len() as f64).sqrt() / mean
}

fn replayed(outcome: &Outcome) -> Replay {
    let mut replay = Replay::default();
    outcome.log.iter().for_each(|event| replay.take(event));
    replay
}

#[test]
fn a_log_gives_the_same_faults_and_weights_again_even_over_restarts() {
    let mut scenario = Scenario::new(5, 3, 10, 160);
    scenario.plan.adversaries = vec![noise::KIND, withhold::KIND];
    scenario.incidents = vec![kill("validator-1", 4), start("validator-1", 5)];
    let outcome = run(scenario);
    let replay = replayed(&outcome);
    for (name, account) in replay.accounts() {
        assert_eq!(account.differences, [], "{name}");
        assert!(account.judged >= 8 && account.weighed >= 8 && account.faults > 0, "{name}: {account:?}");
    }
    assert_eq!(replay.accounts().len(), 3);
    assert_eq!(replay.accounts()["validator-1"].restarts, 1);
}

#[test]
fn weights_that_the_chain_refused_leave_the_record_as_it_was() {
    let mut scenario = Scenario::new(4, 2, 10, 165);
    // Every other attempt comes too early; and the subnet is full.
    scenario.adjust_chain = |config| {
        config.weights_rate_limit_blocks = 30;
        (config.max_uids, config.max_validators, config.immunity_blocks) = (7, 2, 0);
    };
    // Strangers take the places of two miners, whose records are forgotten with the next weights.
    let evict = |window, by: fn(&DevChain, &MemoryCloud, &[Member])| at(window, 13, What::Shared(by));
    scenario.incidents = vec![
        evict(5, |chain, _, _| _ = chain.register(Keypair::insecure_dev(0, "stranger").hotkey(), 0).unwrap()),
        evict(6, |chain, _, _| _ = chain.register(Keypair::insecure_dev(0, "another").hotkey(), 0).unwrap()),
    ];
    let outcome = run(scenario);
    let refused = |event: &Event| matches!(event, Event::Trouble { trouble: Trouble::Weights { .. } });
    let forgets = |event: &Event| matches!(event, Event::Weighed { forgotten, .. } if !forgotten.is_empty());
    assert!(any(&outcome, "validator-0", refused) && any(&outcome, "validator-0", forgets));
    for (name, account) in replayed(&outcome).accounts() {
        assert_eq!(account.differences, [], "{name}");
    }
}

#[test]
fn an_explanation_says_what_a_miner_did_and_what_would_raise_its_pay() {
    let mut scenario = Scenario::new(4, 2, 8, 161);
    scenario.plan.adversaries = vec![withhold::KIND];
    let outcome = run(scenario);
    let explain = |uid| {
        let mut explainer = Explainer::new(Uid(uid), None);
        outcome.log.iter().for_each(|event| explainer.take(event));
        explainer.explanations().remove(0)
    };
    let (honest, hides) = (explain(0), explain(3));
    assert!(honest.share > 0.2 && honest.weight > 0 && honest.windows.len() == 8, "{honest:?}");
    assert!(honest.windows.iter().all(|window| matches!(window.part, Part::Passed { .. })));
    assert_eq!((hides.share, hides.weight), (0.0, 0));
    assert!(hides.windows.iter().all(|window| matches!(window.part, Part::Faulted(..))), "{hides:?}");
    assert!(hides.advice.iter().any(|advice| advice.to_string().contains("keys were not in its bucket")), "{hides:?}");
}

#[test]
fn equally_honest_miners_are_paid_alike() {
    let outcome = run(Scenario::new(8, 3, 16, 162));
    let pay = miners(&outcome);
    assert!(variation(&pay) <= 0.15, "{pay:?}");
}

#[test]
fn an_unreadable_bucket_costs_its_miner_the_windows_in_which_it_was() {
    let mut scenario = Scenario::new(6, 3, 16, 163);
    // Nobody but its owner reads miner-2's bucket in window 5.
    scenario.cloud_fault = Some(during(time(5, 1)..time(6, 1), Fault::Unavailable, |op| {
        op.bucket == "miner-2" && op.actor != "miner-2" && op.kind == OpKind::Get
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 16]);
    let others: Vec<f64> = [0, 1, 3, 4, 5].map(|nth| emission(&outcome, &format!("miner-{nth}"))).into();
    let others = others.iter().sum::<f64>() / 5.0;
    let window = others / 16.0;
    let lost = (others - emission(&outcome, "miner-2")) / window;
    assert!(lost <= 2.0, "it lost {lost} windows' pay");
}

#[test]
fn while_nothing_is_trained_nobody_is_paid_and_the_run_heals() {
    let mut scenario = Scenario::new(3, 2, 16, 164);
    // One of two equal validators is away, so no window is certified until it has left the roster.
    scenario.incidents = vec![kill("validator-1", 4)];
    scenario.adjust = |spec| spec.roster.silent_windows = 100;
    let outcome = run(scenario);
    let null: Vec<u64> = (0..16).filter(|&window| !certified(&outcome)[window as usize]).collect();
    assert_eq!(null, (4..14).collect::<Vec<_>>());
    let weights = |wanted: u64| {
        let set = |event: &Event| match event {
            Event::Weighed { window, weights, .. } if *window == wanted => Some(weights.clone()),
            _ => None,
        };
        let told = outcome.log.iter().filter(|logged| logged.node == "validator-0");
        told.filter_map(|logged| set(&logged.event)).next_back().unwrap()
    };
    let burned = |window| weights(window).iter().find(|(uid, _)| *uid == Uid(5)).map(|(_, weight)| *weight);
    let paid = |window| weights(window).iter().find(|(uid, _)| *uid == Uid(0)).map(|(_, weight)| *weight);
    assert_eq!((burned(3), burned(13)), (None, Some(65535)));
    // A window's pay falls by a fifth in each null window.
    assert!(paid(13) < Some(65535 / 20), "{:?}", weights(13));
    assert!(paid(15) > paid(13), "{:?}", weights(15));
}

#[test]
fn a_bucket_that_falls_silent_before_the_key_is_read_costs_its_miner_the_window() {
    let mut scenario = Scenario::new(6, 3, 16, 166);
    scenario.cloud_fault = Some(during(time(5, 11)..time(6, 1), Fault::Unavailable, |op| {
        op.bucket == "miner-2" && op.actor != "miner-2" && op.kind == OpKind::Get
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 16]);
    let others: Vec<f64> = [0, 1, 3, 4, 5].map(|nth| emission(&outcome, &format!("miner-{nth}"))).into();
    let others = others.iter().sum::<f64>() / 5.0;
    let lost = (others - emission(&outcome, "miner-2")) / (others / 16.0);
    assert!(lost <= 2.0, "it lost {lost} windows' pay");
}
