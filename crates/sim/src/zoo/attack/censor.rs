//! Validators that judge as suits them.

use templar_record::event::Role;

use crate::zoo::ballots::{When, rewrite_votes, rewrite_weights};
use crate::zoo::kind::Kind;
use crate::zoo::layers::listed_miners;

pub const CENSOR: Kind = Kind {
    name: "censor",
    role: Role::Validator,
    tries: "It votes on time, and accepts nobody.",
    stopped_by: "Majority: to reject takes half of all stake. With exactly half the run stands still, and with more it is the censor's.",
    wrap: |setup, _| rewrite_votes(setup, When::Now, |vote, _| vote.accept.fill(false)),
};

pub const FRIEND: Kind = Kind {
    name: "friend",
    tries: "It gives all of its weight to a miner that need not do anything: the one with the highest uid.",
    stopped_by: "The chain's stake-weighted median: weights of less than half of the stake pay nobody, and cost their validator its dividends. Open with half of it: then the friend is paid.",
    wrap: |setup, _| {
        rewrite_weights(setup, |weights, now| {
            let friend = listed_miners(now).map(|(entry, _)| entry.uid).last();
            *weights = friend.map(|friend| (friend, u16::MAX)).into_iter().collect();
        })
    },
    ..CENSOR
};
