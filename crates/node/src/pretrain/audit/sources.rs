//! The buckets that an audit reads. Each may lie or be silent: an object that is wrong is named, and the next bucket is
//! asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use templar_protocol::bucket::BucketLocator;
use templar_store::{Store, StoreError};
use tokio::time::Instant;

/// Longest time for one object: this long, and a second per this many bytes that it may have.
const PATIENCE: Duration = Duration::from_secs(10);
const BYTES_PER_S: u64 = 1 << 20;
/// To say that an object is not there, or to serve something else, takes no longer than this: who takes longer is as good as
/// silent.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);
/// Requests in a row without an answer after which a bucket is asked no more.
const SILENCES_MAX: u32 = 3;
/// Wrong objects that are named; more are counted.
const WRONG_MAX: usize = 1000;

/// A bucket to read from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Whose it is, for people.
    pub owner: String,
    pub bucket: BucketLocator,
}

/// An object that is not what its name promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub owner: String,
    pub key: String,
    pub what: String,
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Objects that were what they promised, and the bytes of all that were read.
    pub objects: u64,
    pub bytes: u64,
    pub wrong: Vec<Wrong>,
    /// All wrong ones, those that are not named included.
    pub wrong_count: u64,
    /// Who is silent, and how.
    pub silent: BTreeMap<String, String>,
}

/// The buckets, in the order in which they are asked.
pub(super) struct Sources {
    store: Arc<dyn Store>,
    buckets: Vec<Source>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tally: Tally,
    /// By bucket: requests in a row that it did not answer.
    silences: Vec<u32>,
}

impl Sources {
    pub(super) fn new(store: Arc<dyn Store>, buckets: Vec<Source>) -> Self {
        let silences = vec![0; buckets.len()];
        Self { store, buckets, state: Mutex::new(State { silences, tally: Tally::default() }) }
    }

    /// An object of at most so many bytes, from the first bucket whose copy passes `check`; that says what is wrong with
    /// a copy that does not.
    pub(super) async fn get<T>(
        &self,
        key: &str,
        bytes_max: u64,
        check: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Option<T> {
        let patience = PATIENCE + Duration::from_secs(bytes_max / BYTES_PER_S);
        for (nth, source) in self.buckets.iter().enumerate() {
            if self.lock().silences[nth] >= SILENCES_MAX {
                continue;
            }
            let asked = Instant::now();
            let answer = tokio::time::timeout(patience, self.store.get(&source.bucket, key, bytes_max)).await;
            let what = match answer {
                Ok(Ok(bytes)) => {
                    self.lock().tally.bytes += bytes.len() as u64;
                    match check(&bytes) {
                        Ok(value) => {
                            let mut state = self.lock();
                            (state.silences[nth], state.tally.objects) = (0, state.tally.objects + 1);
                            return Some(value);
                        }
                        Err(what) => {
                            if asked.elapsed() < REFUSAL_PATIENCE {
                                self.lock().silences[nth] = 0;
                            } else {
                                self.note_silence(nth, "it takes long to serve what is wrong".to_owned());
                            }
                            what
                        }
                    }
                }
                Ok(Err(error @ StoreError::TooLarge { .. })) => error.to_string(),
                // Most validators lack some windows, which is not worth a word.
                Ok(Err(StoreError::NotFound { .. } | StoreError::Denied { .. }))
                    if asked.elapsed() < REFUSAL_PATIENCE =>
                {
                    self.lock().silences[nth] = 0;
                    continue;
                }
                Ok(Err(error)) => {
                    self.note_silence(nth, error.to_string());
                    continue;
                }
                Err(_) => {
                    self.note_silence(nth, format!("no answer within {} s", patience.as_secs()));
                    continue;
                }
            };
            self.note_wrong(Wrong { owner: source.owner.clone(), key: key.to_owned(), what });
        }
        None
    }

    pub(super) fn tally(&self) -> Tally {
        self.lock().tally.clone()
    }

    fn note_wrong(&self, wrong: Wrong) {
        let tally = &mut self.lock().tally;
        tally.wrong_count += 1;
        if tally.wrong.len() < WRONG_MAX {
            tally.wrong.push(wrong);
        }
    }

    fn note_silence(&self, nth: usize, how: String) {
        let mut state = self.lock();
        state.silences[nth] += 1;
        state.tally.silent.insert(self.buckets[nth].owner.clone(), how);
    }

    /// Nothing is left half-changed under this lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use templar_store::{Fault, MemoryCloud, OpKind};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_that_takes_long_to_serve_what_is_wrong_is_asked_no_more() {
        let cloud: Arc<MemoryCloud> = MemoryCloud::new();
        let store = |name: &str| cloud.store(cloud.create_bucket(name));
        for (name, bytes) in [("slow", "wrong"), ("honest", "right")] {
            store(name).put("object", Bytes::from_static(bytes.as_bytes())).await.unwrap();
        }
        cloud.set_fault(|op| {
            (op.kind == OpKind::Get && op.bucket == "slow").then_some(Fault::Delay(Duration::from_secs(9)))
        });
        let bucket = |name: &str| Source { owner: name.to_owned(), bucket: store(name).own().clone() };
        let sources = Sources::new(Arc::new(store("auditor")), vec![bucket("slow"), bucket("honest")]);
        let began = Instant::now();
        for _ in 0..50 {
            let check = |bytes: &[u8]| if bytes == b"right" { Ok(()) } else { Err("wrong".to_owned()) };
            assert_eq!(sources.get("object", 5, check).await, Some(()));
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        let tally = sources.tally();
        assert_eq!((tally.wrong_count, tally.objects), (3, 50));
        assert!(tally.silent.contains_key("slow"));
    }
}
