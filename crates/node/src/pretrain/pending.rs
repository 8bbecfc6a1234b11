//! A sealed contribution from its commitment to its window's certificate, kept on disk so that a crash loses nothing.

use bytes::Bytes;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{Header, HeaderContext, SignedHeader};
use templar_protocol::seal::SealKey;
use templar_protocol::word::HeaderWord;
use templar_record::outcome::Miss;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::local::Local;
use crate::frame::records::{PendingRecord, SealedRecord};

/// How far a contribution is. The disk records only `Opened`: after a restart all earlier stages are done again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// On this node's disk, and nowhere else as far as this process knows.
    Sealed,
    /// Ciphertext and header are in the bucket.
    Uploaded,
    /// The header's hash was handed to the chain.
    Committed,
    /// The chain had its header in time, so it may count: from here on its key is public or about to be.
    Opened,
    /// Its key is in the bucket.
    Published,
    /// The chain did not have its header in time: it never was.
    Lost(Miss),
}

impl Stage {
    /// The only list of transitions.
    fn may_become(&self, next: &Self) -> bool {
        use Stage::{Committed, Lost, Opened, Published, Sealed, Uploaded};
        // Opened may follow all three: after a restart the chain may have what this process has not uploaded.
        matches!(
            (self, next),
            (Sealed, Uploaded)
                | (Uploaded, Committed)
                | (Opened, Published)
                | (Sealed | Uploaded | Committed, Opened | Lost(_))
        )
    }
}

/// A contribution that a miner has committed to, and whose window is not decided yet.
#[derive(Clone, Debug)]
pub struct Pending {
    pub window: u64,
    pub header: SignedHeader,
    pub payload: Vec<u8>,
    pub key: SealKey,
    stage: Stage,
}

/// What a miner says of its own work in a header.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Hash of its last header that the chain had in time; zeros if its error feedback began anew.
    pub previous: Hash32,
    pub steps: u32,
    pub tokens: u64,
    pub feedback_root: Hash32,
}

/// A payload that did not count.
#[derive(Clone, Debug)]
pub struct Owed {
    pub window: u64,
    pub payload: Vec<u8>,
}

/// What a restarted miner finds of its contributions.
#[derive(Debug, Default)]
pub struct Restored {
    /// Oldest first.
    pub whole: Vec<Pending>,
    pub owed: Vec<Owed>,
    /// Windows whose payload is gone or changed, and what is wrong with it.
    pub damaged: Vec<(u64, String)>,
}

impl Pending {
    /// Seals `payload` and signs its header, which says what `context` says that it must.
    pub fn new(ctx: &Context, context: &HeaderContext, work: Work, payload: Vec<u8>) -> Self {
        let HeaderContext { run, window, entry, base, sample_digest, possession, .. } = *context;
        let key = SealKey::derive(&ctx.keypair, run, window, &payload);
        let ciphertext = key.seal(payload.clone());
        let Work { previous, steps, tokens, feedback_root } = work;
        let header = Header {
            run,
            window,
            entry,
            base,
            previous,
            profile: 0,
            steps,
            tokens,
            sample_digest,
            possession,
            feedback_root,
            ciphertext_hash: Hash32::of(&ciphertext),
            ciphertext_bytes: ciphertext.len() as u64,
            key_commitment: key.commitment(),
        };
        Self { window, header: header.sign(&ctx.keypair), payload, key, stage: Stage::Sealed }
    }

    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Advances to the next stage.
    pub fn advance(&mut self, next: Stage) {
        assert!(self.stage.may_become(&next), "a contribution does not go from {:?} to {next:?}", self.stage);
        self.stage = next;
    }

    /// The chain had its header in time.
    pub fn is_opened(&self) -> bool {
        matches!(self.stage, Stage::Opened | Stage::Published)
    }

    /// The ciphertext for the bucket.
    pub fn ciphertext(&self) -> Bytes {
        Bytes::from(self.key.seal(self.payload.clone()))
    }

    pub fn word(&self) -> HeaderWord {
        HeaderWord { window: self.window as u32, header_hash: self.header.header.hash() }
    }

    /// Writes the payloads to files; returns what the database has to keep.
    pub fn store<'a>(
        all: impl IntoIterator<Item = &'a Self>,
        owed: &[Owed],
        local: &Local,
    ) -> Result<PendingRecord, NodeError> {
        let one = |pending: &Self| {
            Ok(SealedRecord {
                payload_file: local.put_file("payload", &pending.payload)?,
                header: pending.header.clone(),
                key: *pending.key.as_bytes(),
                is_opened: pending.is_opened(),
            })
        };
        let owed = owed.iter().map(|owed| Ok((owed.window, local.put_file("payload", &owed.payload)?)));
        Ok(PendingRecord {
            contributions: all.into_iter().map(one).collect::<Result<_, NodeError>>()?,
            owed: owed.collect::<Result<_, NodeError>>()?,
        })
    }

    /// Reads what [`Pending::store`] kept.
    pub fn load(local: &Local) -> Result<Restored, NodeError> {
        let mut restored = Restored::default();
        let PendingRecord { contributions, owed } = local.get::<PendingRecord>()?.unwrap_or_default();
        for (window, file) in owed {
            match local.file(&file) {
                Ok(payload) => restored.owed.push(Owed { window, payload }),
                Err(damage) => restored.damaged.push((window, damage.to_string())),
            }
        }
        for record in contributions {
            let window = record.header.header.window;
            match Self::restore(record, local) {
                Ok(pending) => restored.whole.push(pending),
                Err(cause) => restored.damaged.push((window, cause)),
            }
        }
        Ok(restored)
    }

    fn restore(record: SealedRecord, local: &Local) -> Result<Self, String> {
        let SealedRecord { payload_file, header, key, is_opened } = record;
        let payload = local.file(&payload_file).map_err(|damage| damage.to_string())?;
        let key = SealKey::from_bytes(&key).map_err(|error| error.to_string())?;
        let stage = if is_opened { Stage::Opened } else { Stage::Sealed };
        let pending = Self { window: header.header.window, header, payload, key, stage };
        if Hash32::of(&pending.ciphertext()) != pending.header.header.ciphertext_hash {
            return Err(format!("{payload_file} is not what the header names"));
        }
        Ok(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::Stage::{self, Committed, Lost, Opened, Published, Sealed, Uploaded};
    use super::*;

    #[test]
    fn stages_go_forward_and_nothing_is_lost_once_opened() {
        let lost = || Lost(Miss::CommittedTooLate);
        let all = || [Sealed, Uploaded, Committed, Opened, Published, lost()];
        let allowed: Vec<(Stage, Stage)> = all()
            .into_iter()
            .flat_map(|from| all().map(|to| (from.clone(), to)))
            .filter(|(from, to)| from.may_become(to))
            .collect();
        let expected = [
            (Sealed, Uploaded),
            (Sealed, Opened),
            (Sealed, lost()),
            (Uploaded, Committed),
            (Uploaded, Opened),
            (Uploaded, lost()),
            (Committed, Opened),
            (Committed, lost()),
            (Opened, Published),
        ];
        assert_eq!(allowed, expected);
    }
}
