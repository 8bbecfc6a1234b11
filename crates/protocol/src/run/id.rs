//! The canonical encoding of a run.

use crate::hash::Hasher;
use crate::run::keys::KEYS;
use crate::run::spec::{RunId, RunSpec};

impl RunSpec {
    /// BLAKE3 of the canonical encoding: name and value of every key in the order of [`KEYS`], without those of later
    /// releases that change nothing.
    pub fn id(&self) -> RunId {
        let mut hasher = Hasher::new("templar v2 run id");
        for key in KEYS.iter().filter(|key| !key.is_as_before.is_some_and(|is_as_before| is_as_before(self))) {
            hasher.update_value(key.key);
            key.absorb(self, &mut hasher);
        }
        RunId(hasher.finish())
    }
}
