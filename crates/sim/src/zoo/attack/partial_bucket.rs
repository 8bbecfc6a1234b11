//! A bucket that works for some.

use templar_record::event::Role;
use templar_store::{Fault, OpKind};

use crate::plan::Member;
use crate::zoo::failure::outage::CloudFault;
use crate::zoo::kind::Kind;

pub const KIND: Kind = Kind {
    name: "partial-bucket",
    role: Role::Miner,
    tries: "Its bucket answers every other reader that there is no such object, so that validators contradict each other. In `templar sim` only: elsewhere it takes a server of its own that tells readers apart by their addresses.",
    stopped_by: "Majority: what half of the stake has not seen does not count, and what more has seen is fetched from their copies.",
    // The node itself is honest: see `faults`.
    wrap: |setup, _| setup,
};

/// What goes wrong with operations on the cloud: what `other` says, and what the buckets of this kind do to readers whose
/// number is odd.
pub(crate) fn faults(members: &[Member], other: Option<CloudFault>) -> Option<CloudFault> {
    let is_partial = |member: &&Member| member.adversary.is_some_and(|adversary| adversary.kind == KIND);
    let owners: Vec<String> = members.iter().filter(is_partial).map(|member| member.name.clone()).collect();
    if owners.is_empty() {
        return other;
    }
    let mut other = other.unwrap_or_else(|| Box::new(|_| None));
    Some(Box::new(move |op| {
        let is_odd = op.actor.ends_with(['1', '3', '5', '7', '9']);
        let is_refused = op.kind == OpKind::Get && op.actor != op.bucket && is_odd && owners.contains(&op.bucket);
        other(op).or_else(|| is_refused.then_some(Fault::NotFound))
    }))
}
