//! Error feedback, recomputed from what a miner committed and from what counted, as an auditor does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use templar_codec::Codec;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{HEADER_CONTEXT, Header, SignedHeader};
use templar_protocol::roster::Uid;
use templar_protocol::run::RunSpec;
use templar_protocol::seal::SealKey;
use templar_sim::r#virtual::scenario::Scenario;
use templar_sim::zoo::layers::{alter_training, forge_uploads, published, rewrite_commitments, window_of};

use crate::crashes::overlapping;
use crate::{assert_one_history, in_coefficients, run};

/// The chain never has miner-1's header of this window.
const LATE: u64 = 2;
/// It has the one of this window, whose key nobody gets.
const UNOPENED: u64 = 3;
const WINDOWS: u64 = 8;

type Objects = BTreeMap<(u64, String), Bytes>;

/// What miner-1 uploaded or wanted to, and what it learned, by window.
fn watched(adjust: fn(&mut RunSpec)) -> (RunSpec, Objects, Vec<Vec<f32>>) {
    let mut scenario = Scenario::new(3, 2, WINDOWS, 150);
    scenario.adjust = adjust;
    let (objects, deltas) = (Arc::<Mutex<Objects>>::default(), Arc::<Mutex<Vec<Vec<f32>>>>::default());
    let (puts, learned) = (objects.clone(), deltas.clone());
    scenario.wrap("miner-1", move |setup| {
        let (puts, learned) = (puts.clone(), learned.clone());
        let setup = alter_training(setup, move |_, outcome| learned.lock().unwrap().push(outcome.delta.clone()));
        let setup = rewrite_commitments(setup, |fields| {
            if let Some(word) = fields.get_mut(1).filter(|word| window_of(word) == Some(LATE)) {
                word.clear();
            }
        });
        forge_uploads(setup, move |key, bytes| {
            if let Some((window, object)) = published(key) {
                puts.lock().unwrap().insert((window, object.to_owned()), bytes.clone());
            }
            if published(key) == Some((UNOPENED, "key")) { Vec::new() } else { vec![(key.to_owned(), bytes)] }
        })
    });
    let outcome = run(scenario);
    assert_one_history(&outcome);
    let counted: Vec<bool> = outcome.report.windows.iter().map(|window| window.accepted.contains(&Uid(1))).collect();
    let expected: Vec<bool> = (0..WINDOWS).map(|window| window != LATE && window != UNOPENED).collect();
    assert_eq!(counted, expected);
    let (objects, deltas) = (objects.lock().unwrap().clone(), deltas.lock().unwrap().clone());
    (outcome.spec, objects, deltas)
}

fn header(objects: &Objects, window: u64) -> Header {
    let bytes = &objects[&(window, "header".to_owned())];
    let hash = Hash32::derive(HEADER_CONTEXT, &bytes[..bytes.len() - 64]);
    SignedHeader::from_bytes(bytes, &hash).unwrap().header
}

fn payload(objects: &Objects, window: u64) -> Vec<u8> {
    let key = SealKey::from_bytes(&objects[&(window, "key".to_owned())]).unwrap();
    let sealed = objects[&(window, "payload".to_owned())].to_vec();
    key.open(sealed, &header(objects, window).key_commitment).unwrap()
}

#[test]
fn it_follows_from_what_was_committed_in_time_and_from_what_counted() {
    for adjust in [|_: &mut RunSpec| {}, overlapping, in_coefficients] {
        let (spec, objects, deltas) = watched(adjust);
        let codec = Codec::new(Arc::new(spec.layout()), &spec.codec);
        let mut confirmed = (vec![0.0; codec.layout().len()], Hash32::default());
        for window in 0..WINDOWS {
            let mut values = confirmed.0.clone();
            // The first base that tells that it did not count.
            if window == UNOPENED + 1 + u64::from(spec.windows.delay_windows) {
                codec.decode(payload(&objects, UNOPENED)).unwrap().give_back(&mut values);
            }
            let sent = codec.encode(&mut values, &deltas[window as usize]).unwrap();
            let header = header(&objects, window);
            assert_eq!((header.previous, header.steps), (confirmed.1, spec.inner.steps), "window {window}");
            assert_eq!(header.feedback_root, codec.feedback_root(&values), "window {window}");
            if window != LATE {
                assert!(payload(&objects, window) == sent, "window {window}");
                confirmed = (values, header.hash());
            }
        }
    }
}
