//! A sealed contribution from its commitment to its window's certificate, kept on disk so that a crash loses nothing.

use bytes::Bytes;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{Header, SignedHeader, possession_proof, sample_digest};
use templar_protocol::roster::EntryId;
use templar_protocol::seal::SealKey;
use templar_protocol::word::HeaderWord;

use crate::core::Core;
use crate::error::NodeError;
use crate::local::Local;
use crate::window::Window;

/// What a miner committed to and has not yet seen decided.
#[derive(Clone, Debug)]
pub struct Pending {
    pub window: u64,
    pub header: SignedHeader,
    pub payload: Vec<u8>,
    pub values: u64,
    pub key: SealKey,
    pub ciphertext: Bytes,
    /// Ciphertext and header are in the bucket. Not kept on disk: after a restart they are uploaded again.
    pub uploaded: bool,
    /// Its key is published.
    pub opened: bool,
    /// The chain did not have its header in time: its values stay in the error feedback.
    pub lost: bool,
}

impl Pending {
    /// Seals `payload` and signs its header.
    pub fn new(
        core: &Core,
        entry: &EntryId,
        window: &Window,
        theta: &[f32],
        payload: Vec<u8>,
        tokens: u64,
    ) -> Result<Self, NodeError> {
        let key = SealKey::derive(&core.keypair, core.run, window.number, &payload);
        let ciphertext = Bytes::from(key.seal(payload.clone()));
        let header = Header {
            run: core.run,
            window: window.number,
            entry: *entry,
            base: window.base_digest,
            ciphertext_hash: Hash32::of(&ciphertext),
            ciphertext_bytes: ciphertext.len() as u64,
            key_commitment: key.commitment(),
            sample_digest: sample_digest(&window.sample_hashes(core, entry)?),
            tokens,
            possession: possession_proof(theta, &entry.hotkey, &window.seed),
        };
        let values = core.codec.decode(payload.clone()).map_or(0, |contribution| contribution.values_sent());
        let header = header.sign(&core.keypair);
        Ok(Self {
            window: window.number,
            header,
            payload,
            values,
            key,
            ciphertext,
            uploaded: false,
            opened: false,
            lost: false,
        })
    }

    pub fn word(&self) -> HeaderWord {
        HeaderWord { window: self.window as u32, header_hash: self.header.header.hash() }
    }

    /// Writes the payloads to files; returns what the database has to keep, and the files' names.
    pub fn store(all: &[Self], local: &Local) -> Result<(Vec<u8>, Vec<String>), NodeError> {
        let mut names = Vec::new();
        let mut record = Vec::new();
        for pending in all {
            let name = local.put_file("payload", &pending.payload)?;
            record.push((name.clone(), pending.header.clone(), pending.key.as_bytes().to_vec(), pending.opened));
            names.push(name);
        }
        Ok((borsh::to_vec(&record).expect("plain values"), names))
    }

    /// What [`Pending::store`] kept. Records whose payload file is gone or changed are dropped: that contribution is
    /// lost, and its values are still in the error feedback.
    pub fn load(local: &Local) -> Result<Vec<Self>, NodeError> {
        type Record = (String, SignedHeader, Vec<u8>, bool);
        let Some(bytes) = local.value("pending")? else { return Ok(Vec::new()) };
        let records: Vec<Record> = borsh::from_slice(&bytes).unwrap_or_default();
        let restore = |(name, header, key, opened): Record| {
            let payload = local.file(&name)?;
            let key = SealKey::from_bytes(&key).ok()?;
            let ciphertext = Bytes::from(key.seal(payload.clone()));
            let intact = Hash32::of(&ciphertext) == header.header.ciphertext_hash;
            let window = header.header.window;
            intact.then_some(Self {
                window,
                header,
                payload,
                values: 0,
                key,
                ciphertext,
                uploaded: false,
                opened,
                lost: false,
            })
        };
        Ok(records.into_iter().filter_map(restore).collect())
    }
}
