//! What a node publishes must not write: whoever mixed up two credentials is told before anybody else can read of it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use templar_node::frame::error::NodeError;
use templar_node::pretrain::setup::Setup;
use templar_protocol::roster::Uid;
use templar_record::event::Event;
use templar_record::trouble::Trouble;
use templar_sim::r#virtual::scenario::{Outcome, Scenario};
use templar_store::{Fault, OpKind, Store, StoreError, StoreLayer, Stranger};

use crate::{any, assert_one_history, certified, count, run};

/// A bucket that a stranger may write.
struct Open {
    below: Arc<dyn Store>,
    to: Stranger,
}

#[async_trait]
impl StoreLayer for Open {
    fn inner(&self) -> &dyn Store {
        &*self.below
    }

    async fn put_as(&self, who: Stranger, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        if who == self.to { self.below.put(key, bytes).await } else { self.below.put_as(who, key, bytes).await }
    }
}

fn is_unproven(event: &Event) -> bool {
    matches!(event, Event::Trouble { trouble: Trouble::Unproven { .. } })
}

fn left(outcome: &Outcome, node: &str) -> Vec<String> {
    outcome.cloud.keys(node)
}

#[test]
fn a_node_whose_bucket_strangers_may_write_refuses_to_start_and_is_not_listed() {
    for (seed, to) in [(190, Stranger::Published), (191, Stranger::Nobody)] {
        for node in ["miner-2", "validator-2"] {
            let mut scenario = Scenario::new(3, 3, 3, seed);
            let open = move |setup: Setup| Setup { store: Arc::new(Open { below: setup.store.clone(), to }), ..setup };
            scenario.wrap(node, open);
            let folder = tempfile::tempdir().unwrap();
            let outcome = scenario.run(folder.path());
            let [(name, error)] = &outcome.failures[..] else { panic!("{:?}", outcome.failures) };
            assert_eq!(name, node);
            let said = error.to_string();
            match (to, error) {
                (Stranger::Published, NodeError::PublishedKeyWrites { .. }) => {
                    assert!(said.contains("[public]"), "{said}");
                }
                (Stranger::Nobody, NodeError::AnybodyWrites { .. }) => {
                    assert!(said.contains("no credential"), "{said}");
                }
                _ => panic!("{to:?}: {error:?}"),
            }
            assert!(error.is_fatal() && said.contains("anybody could overwrite"), "{said}");
            // The probe is deleted, and nothing else was put.
            assert_eq!(left(&outcome, node), Vec::<String>::new(), "{node}");
            assert!(!any(&outcome, node, |event| matches!(event, Event::Started { .. })), "{node}");
            assert!(
                outcome.report.windows.iter().all(|window| !window.accepted.contains(&Uid(2)) || node != "miner-2")
            );
        }
    }
}

#[test]
fn a_bucket_that_gives_no_answer_is_tried_again_and_published_when_it_does() {
    let mut scenario = Scenario::new(3, 2, 5, 192);
    let mut refusals = 12;
    scenario.cloud_fault = Some(Box::new(move |op| {
        let is_probe = op.kind == OpKind::Put && op.actor == "miner-1" && op.key.ends_with("/probe");
        if !is_probe || refusals == 0 {
            return None;
        }
        refusals -= 1;
        Some(Fault::Unavailable)
    }));
    let outcome = run(scenario);
    assert_one_history(&outcome);
    assert_eq!(certified(&outcome), [true; 5]);
    assert_eq!(count(&outcome, "miner-1", is_unproven), 1, "it is told once");
    for node in ["miner-0", "miner-2", "validator-0"] {
        assert_eq!(count(&outcome, node, is_unproven), 0, "{node}");
    }
    assert!(!outcome.report.windows[0].accepted.contains(&Uid(1)), "it was not listed in time for the first window");
    assert!(outcome.report.windows[2..].iter().all(|window| window.accepted.contains(&Uid(1))), "and it is now");
}
