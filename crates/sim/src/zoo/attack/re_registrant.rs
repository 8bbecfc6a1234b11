//! A new name for an old bucket.

use std::sync::{Arc, PoisonError};

use templar_node::pretrain::setup::Setup;
use templar_record::event::Role;
use templar_store::Store;

use crate::zoo::attack::absence;
use crate::zoo::attack::forged_payload::{self, Lie};
use crate::zoo::in_common::in_common;
use crate::zoo::kind::{Kind, Part};
use crate::zoo::layers::outer_steps;

pub const KIND: Kind = Kind {
    name: "re-registrant",
    role: Role::Miner,
    tries: "The first node of this kind signs a payload that is too large. The others, registered anew, share its bucket and are honest: they hope to be rid of its record. In processes of their own they have buckets of their own.",
    stopped_by: "An exclusion follows the hotkey and the bucket, whatever the registration. Open: a new hotkey with a new bucket is a newcomer, without pay or record.",
    wrap,
};

/// The bucket of the first one.
type Bucket = Option<Arc<dyn Store>>;

fn wrap(setup: Setup, part: Part) -> Setup {
    let bucket = in_common::<Bucket>(&setup, KIND.name);
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    let store = bucket.get_or_insert_with(|| setup.store.clone()).clone();
    if part.nth == 0 {
        return forged_payload::wrap(setup, |_| Some(Lie::Size));
    }
    // By turns with the first one: objects of one window have one name in one bucket.
    absence::wrap(Setup { store, ..setup }, |job| outer_steps(job) > 0)
}
