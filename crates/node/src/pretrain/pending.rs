//! A sealed contribution from its commitment to its window's certificate, kept on disk so that a crash loses nothing.

use bytes::Bytes;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{Header, HeaderContext, SignedHeader};
use templar_protocol::seal::SealKey;
use templar_protocol::word::HeaderWord;

use crate::frame::context::Context;
use crate::frame::error::NodeError;
use crate::frame::local::Local;

/// A contribution in the database: its payload's file, its header, its key, and whether it is opened.
pub type Record = (String, SignedHeader, Vec<u8>, bool);

/// What a miner committed to and has not yet seen decided.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that become true one by one, of which the disk knows one")]
pub struct Pending {
    pub window: u64,
    pub header: SignedHeader,
    pub payload: Vec<u8>,
    pub key: SealKey,
    pub ciphertext: Bytes,
    /// Ciphertext and header are in the bucket. Not kept on disk: after a restart they are uploaded again.
    pub uploaded: bool,
    /// The chain had its header in time, so it may count: from here on its key is public or about to be.
    pub opened: bool,
    /// Its key is in the bucket. Not kept on disk: after a restart it is published again.
    pub published: bool,
    /// The chain did not have its header in time: its values go back into the error feedback.
    pub lost: bool,
}

impl Pending {
    /// Seals `payload` and signs its header, which says what `context` says that it must.
    pub fn new(ctx: &Context, context: &HeaderContext, payload: Vec<u8>, tokens: u64) -> Self {
        let HeaderContext { run, window, entry, base, sample_digest, possession, .. } = *context;
        let key = SealKey::derive(&ctx.keypair, run, window, &payload);
        let ciphertext = Bytes::from(key.seal(payload.clone()));
        let header = Header {
            run,
            window,
            entry,
            base,
            ciphertext_hash: Hash32::of(&ciphertext),
            ciphertext_bytes: ciphertext.len() as u64,
            key_commitment: key.commitment(),
            sample_digest,
            tokens,
            possession,
        };
        Self::sealed(header.sign(&ctx.keypair), payload, key, ciphertext)
    }

    fn sealed(header: SignedHeader, payload: Vec<u8>, key: SealKey, ciphertext: Bytes) -> Self {
        let window = header.header.window;
        let (uploaded, opened, published, lost) = (false, false, false, false);
        Self { window, header, payload, key, ciphertext, uploaded, opened, published, lost }
    }

    pub fn word(&self) -> HeaderWord {
        HeaderWord { window: self.window as u32, header_hash: self.header.header.hash() }
    }

    /// Writes the payloads to files; returns what the database has to keep, and the files' names.
    pub fn store(all: &[Self], local: &Local) -> Result<(Vec<Record>, Vec<String>), NodeError> {
        let mut names = Vec::new();
        let mut record = Vec::new();
        for pending in all {
            let name = local.put_file("payload", &pending.payload)?;
            record.push((name.clone(), pending.header.clone(), pending.key.as_bytes().to_vec(), pending.opened));
            names.push(name);
        }
        Ok((record, names))
    }

    /// Notes on disk how far they are, and nothing else.
    pub fn save(all: &[Self], local: &Local) -> Result<(), NodeError> {
        let (record, _) = Self::store(all, local)?;
        local.set("pending", &record)
    }

    /// What [`Pending::store`] kept. Records whose payload file is gone or changed are dropped: that contribution is
    /// lost.
    pub fn load(local: &Local) -> Result<Vec<Self>, NodeError> {
        let records: Vec<Record> = local.get("pending")?.unwrap_or_default();
        let restore = |(name, header, key, opened): Record| {
            let payload = local.file(&name)?;
            let key = SealKey::from_bytes(&key).ok()?;
            let ciphertext = Bytes::from(key.seal(payload.clone()));
            let intact = Hash32::of(&ciphertext) == header.header.ciphertext_hash;
            intact.then(|| Self { opened, ..Self::sealed(header, payload, key, ciphertext) })
        };
        Ok(records.into_iter().filter_map(restore).collect())
    }
}
