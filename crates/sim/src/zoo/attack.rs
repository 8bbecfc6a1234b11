//! The attacks, and the one table of them: `--adversary`, `templar adversary` and the book's page read it.
//!
//! A new attack is a file below this one with a `KIND`, its `mod` line here, and its line in [`KINDS`]. Close relatives share a
//! file.

use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::zoo::kind::Kind;

pub mod absence;
pub mod accept_all;
pub mod censor;
pub mod equivocator;
pub mod false_checkpoint;
pub mod fewer_steps;
pub mod flood;
pub mod forged_payload;
pub mod framer;
pub mod garbled_object;
pub mod late;
pub mod late_vote;
pub mod lazy;
pub mod malformed_bucket;
pub mod malformed_vote;
pub mod malformed_word;
pub mod noise;
pub mod norms;
pub mod other_data;
pub mod partial_bucket;
pub mod past_steps;
pub mod re_registrant;
pub mod reversed;
pub mod shared_training;
pub mod stale_header;
pub mod twin;
pub mod unserver;
pub mod withhold;

/// Every kind that a rehearsal offers, by name.
pub const KINDS: &[Kind] = &[
    lazy::BLIND_VOTER,
    censor::CENSOR,
    shared_training::CLONES,
    norms::DILUTER,
    past_steps::ECHO,
    equivocator::KIND,
    absence::EVERY_THIRD,
    false_checkpoint::KIND,
    flood::KIND,
    forged_payload::KIND,
    framer::KIND,
    censor::FRIEND,
    garbled_object::KIND,
    fewer_steps::HALF_STEPS,
    absence::IDLE,
    late::KIND,
    late_vote::KIND,
    lazy::LAZY,
    malformed_bucket::KIND,
    malformed_vote::KIND,
    malformed_word::KIND,
    norms::MEDIAN_PULLER,
    past_steps::MOMENTUM,
    noise::KIND,
    fewer_steps::ONE_STEP,
    other_data::KIND,
    partial_bucket::KIND,
    absence::QUITTER,
    re_registrant::KIND,
    reversed::REVERSED,
    norms::SCALER,
    reversed::SLEEPER,
    shared_training::SPLITTER,
    stale_header::KIND,
    reversed::TENSOR_REVERSER,
    fewer_steps::TENTH,
    twin::KIND,
    fewer_steps::TWO_STEPS,
    unserver::KIND,
    withhold::KIND,
    withhold::PAYLOAD,
];

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = || KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        let found = KINDS.iter().find(|kind| kind.name == text).copied();
        found.ok_or_else(|| format!("there is no adversary {text:?}; give one of {}", known()))
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// So many nodes of a kind, as in `noise` or `noise=3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Several {
    pub kind: Kind,
    pub count: u16,
}

impl FromStr for Several {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, count) = text.split_once('=').unwrap_or((text, "1"));
        let count = count.parse().ok().filter(|&count| count > 0);
        let count = count.ok_or_else(|| format!("{text:?} has no count of 1 to {} behind its =", u16::MAX))?;
        Ok(Self { kind: kind.parse()?, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_sorted_and_lead_to_their_kinds() {
        assert!(KINDS.is_sorted_by(|a, b| a.name < b.name), "{KINDS:?}");
        for kind in KINDS {
            assert!(kind.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{kind}");
            assert_eq!(kind.name.parse(), Ok(*kind));
            assert!(kind.tries.ends_with('.') && kind.stopped_by.ends_with('.'), "{kind}");
        }
    }

    #[test]
    fn counts_stand_behind_names() {
        let noise = |count| Several { kind: noise::KIND, count };
        assert_eq!("noise".parse(), Ok(noise(1)));
        assert_eq!("noise=12".parse(), Ok(noise(12)));
        for wrong in ["noise=0", "noise=", "noise=-1", "noise=65536", "noise=1=1", "=1", "", "honest"] {
            assert!(wrong.parse::<Several>().is_err(), "{wrong}");
        }
    }
}
