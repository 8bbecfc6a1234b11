//! Votes without the work that they stand for. The honest core of these nodes fetches and judges as always, because it
//! gives them their pace; what they put on the chain depends on none of it.

use templar_node::pretrain::setup::Setup;
use templar_protocol::word::Vote;
use templar_record::event::Role;

use crate::zoo::ballots::{When, rewrite_votes, rewrite_weights};
use crate::zoo::kind::Kind;

pub const LAZY: Kind = Kind {
    name: "lazy",
    role: Role::Validator,
    tries: "It fetches nothing: in the last block it copies the vote of the validator with the most stake, and its weights are the incentives that the chain shows.",
    stopped_by: "Proofs in votes: it cannot know the payloads that counted last, is denied by the others, and has no vote. Open: the chain goes on to pay it for its copied weights.",
    wrap: |setup, _| copy_weights(copy_votes(setup)),
};

pub const BLIND_VOTER: Kind = Kind {
    name: "blind-voter",
    tries: "It accepts every candidate, whatever was committed and whether or not it can be fetched; its weights are the incentives that the chain shows.",
    stopped_by: "Majority: what counts needs half of all stake. Proofs in votes: whoever holds nothing proves nothing, is denied, and has no vote. Open: the chain goes on to pay it for its copied weights.",
    wrap: |setup, _| copy_weights(accept_all(setup)),
    ..LAZY
};

fn copy_votes(setup: Setup) -> Setup {
    rewrite_votes(setup, When::Last, |vote, view| {
        match view.vote_of_another() {
            Some(another) => *vote = another,
            None => vote.accept.fill(false),
        }
        prove_nothing(vote);
    })
}

fn accept_all(setup: Setup) -> Setup {
    let seats = (setup.spec.roster.gather + setup.spec.roster.reserve) as usize;
    rewrite_votes(setup, When::Now, move |vote, view| {
        // As if nobody were excluded: who is stands in a state that it does not have. The root stands in others' votes.
        let candidates = view.roster.miners.len().min(seats);
        vote.accept.iter_mut().enumerate().for_each(|(nth, accept)| *accept = nth < candidates);
        vote.exclude.fill(false);
        prove_nothing(vote);
    })
}

/// Whoever holds no payload can neither prove that it does nor find out who else does not.
fn prove_nothing(vote: &mut Vote) {
    vote.deny.fill(false);
    vote.proof = [0; 16];
}

fn copy_weights(setup: Setup) -> Setup {
    rewrite_weights(setup, |weights, now| {
        let paid = now.neurons.iter().filter(|neuron| neuron.incentive > 0);
        *weights = paid.map(|neuron| (neuron.entry.uid, neuron.incentive)).collect();
    })
}
