//! What the nodes of one kind share, where they run in one process, as in `templar sim` and `templar demo`. A gang on the
//! internet would use a server of its own. In processes of their own, as in `templar localnet`, each has one for itself.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use templar_node::pretrain::setup::Setup;

type Anything = dyn Any + Send + Sync;

/// What is shared, by the folder of the dataset, of which each rehearsal has its own, and by kind.
static ALL: Mutex<BTreeMap<(PathBuf, &'static str), Weak<Anything>>> = Mutex::new(BTreeMap::new());

/// What all nodes of `kind` in this node's rehearsal have in common. It lives as long as one of them.
pub fn in_common<T: Default + Send + 'static>(setup: &Setup, kind: &'static str) -> Arc<Mutex<T>> {
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|_, shared| shared.strong_count() > 0);
    let name = (setup.dataset.dir().to_path_buf(), kind);
    if let Some(shared) = all.get(&name).and_then(Weak::upgrade).and_then(|shared| shared.downcast().ok()) {
        return shared;
    }
    let shared: Arc<Mutex<T>> = Arc::default();
    let anything: Arc<Anything> = shared.clone();
    all.insert(name, Arc::downgrade(&anything));
    shared
}
