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
    tries: "Its nodes share one bucket, by turns. The first one signs a payload that is too large; the others are registered anew and honest, and hope to be rid of its record. In processes of their own they have buckets of their own.",
    stopped_by: "An exclusion follows the hotkey and the bucket, whatever the registration. Open: a new hotkey with a new bucket is a newcomer, without pay or record.",
    wrap,
};

/// The bucket of the first one.
type Bucket = Option<Arc<dyn Store>>;

fn wrap(setup: Setup, part: Part) -> Setup {
    let bucket = in_common::<Bucket>(&setup, KIND.name);
    let store = bucket.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(setup.store.clone()).clone();
    let mut setup = Setup { store, ..setup };
    if part.nth == 0 {
        setup = forged_payload::wrap(setup, |_| Some(Lie::Size));
    }
    absence::wrap(setup, move |job| {
        // What they have in common lives as long as one of them.
        let _shared = &bucket;
        // By turns: objects of one window have one name in one bucket.
        outer_steps(job) % part.of as u64 == part.nth as u64
    })
}
