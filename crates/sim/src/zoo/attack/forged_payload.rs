//! A contribution that is valid as far as hashes and signatures go, and hostile behind them: what the chain names, the
//! header signs and the key opens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use templar_codec::Codec;
use templar_node::pretrain::setup::Setup;
use templar_protocol::commitment::Commitment;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::header::{HEADER_CONTEXT, Header, SignedHeader};
use templar_protocol::keys::Keypair;
use templar_protocol::run::RunSpec;
use templar_protocol::seal::SealKey;
use templar_protocol::word::{self, HeaderWord};
use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::{forge_uploads, published, rewrite_commitments, window_of};

pub const KIND: Kind = Kind {
    name: "forged-payload",
    role: Role::Miner,
    tries: "It signs, commits and opens a payload that no encoder writes, each window in another way, to crash or split the others.",
    stopped_by: "Decoding is total: each way has a fault of its name, found before anything is voted for.",
    wrap: |setup, _| wrap(setup, |window| Some(Lie::ALL[window as usize % Lie::ALL.len()])),
};

/// What is wrong with the contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// The payload is of another kind than the run's.
    Kind,
    /// The payload ends within its last segment.
    Cut,
    /// Its last segment has no positions.
    NoPositions,
    /// The magnitude of its last chunk is above `codec.max_abs`, where that is not as large as bytes can say.
    Magnitude,
    /// A bit follows the last position.
    TrailingBits,
    /// The ciphertext's tag is not the key's.
    Tag,
    /// The payload is larger than any valid one, and the header says so.
    Size,
}

impl Lie {
    pub const ALL: [Self; 7] =
        [Self::Kind, Self::Cut, Self::NoPositions, Self::Magnitude, Self::TrailingBits, Self::Tag, Self::Size];

    /// What validators call it.
    pub fn fault(self) -> FaultKind {
        match self {
            Self::Tag => FaultKind::SealBroken,
            Self::Size => FaultKind::PayloadTooLarge,
            _ => FaultKind::PayloadMalformed,
        }
    }

    /// A payload that is wrong in this way and in no other, of a run whose codec is top-k.
    pub fn payload(self, codec: &Codec) -> Vec<u8> {
        let delta: Vec<f32> = (0..codec.layout().len()).map(|nth| (nth * 7919 % 1009) as f32 * 1e-6).collect();
        let mut payload = codec.encode(&mut vec![0.0; delta.len()], &delta).expect("small numbers can be encoded");
        // The last tensor is a norm, of which little is sent: a scale in one byte, and the positions behind it.
        let last = payload.len() - 1;
        match self {
            Self::Kind => payload[3] = 2,
            Self::Cut => drop(payload.pop()),
            Self::NoPositions => payload[last] = 0,
            Self::Magnitude => payload[last - 1] = 255,
            Self::TrailingBits => payload[last] |= 0x80,
            Self::Tag => {}
            Self::Size => payload.resize(codec.max_payload_bytes() as usize + 1, 0),
        }
        payload
    }
}

/// Hashes of forged headers, by those of the honest ones in whose place they are.
type Forged = Arc<Mutex<BTreeMap<Hash32, Hash32>>>;

/// A miner that forges its contribution to the windows for which `choose` says how.
pub fn wrap(setup: Setup, choose: impl Fn(u64) -> Option<Lie> + Send + 'static) -> Setup {
    let forged = Forged::default();
    let (spec, keypair, hashes) = (setup.spec.clone(), setup.keypair.clone(), forged.clone());
    let setup = forge_uploads(setup, move |key, bytes| {
        let lie = published(key).filter(|(_, object)| *object == "header").and_then(|(window, _)| choose(window));
        let objects = lie.and_then(|lie| {
            let objects = forge(lie, &spec, &keypair, &bytes)?;
            hashes.lock().unwrap_or_else(PoisonError::into_inner).insert(objects.honest, objects.forged);
            Some(objects.named_after(key))
        });
        objects.unwrap_or_else(|| vec![(key.to_owned(), bytes)])
    });
    rewrite_commitments(setup, move |fields| commit(&forged.lock().unwrap_or_else(PoisonError::into_inner), fields))
}

/// What stands in the place of an honest contribution.
struct Objects {
    honest: Hash32,
    forged: Hash32,
    ciphertext: Vec<u8>,
    key: Vec<u8>,
    header: Vec<u8>,
}

impl Objects {
    fn named_after(self, header: &str) -> Vec<(String, Bytes)> {
        let folder = header.trim_end_matches("header");
        let objects = [("payload", self.ciphertext), ("key", self.key), ("header", self.header)];
        objects.map(|(object, bytes)| (format!("{folder}{object}"), bytes.into())).into()
    }
}

/// Key, ciphertext and header in the place of an honest header.
fn forge(lie: Lie, spec: &RunSpec, keypair: &Keypair, honest: &[u8]) -> Option<Objects> {
    let codec = Codec::new(Arc::new(spec.layout()), &spec.codec);
    let key = SealKey::from_bytes(&[7; 32]).ok()?;
    let mut ciphertext = key.seal(lie.payload(&codec));
    if lie == Lie::Tag {
        *ciphertext.last_mut()? ^= 1;
    }
    // The signature is the last 64 bytes.
    let honest_hash = Hash32::derive(HEADER_CONTEXT, honest.get(..honest.len().checked_sub(64)?)?);
    let header = Header {
        ciphertext_hash: Hash32::of(&ciphertext),
        ciphertext_bytes: ciphertext.len() as u64,
        key_commitment: key.commitment(),
        ..SignedHeader::from_bytes(honest, &honest_hash).ok()?.header
    };
    let (forged, key) = (header.hash(), key.as_bytes().to_vec());
    Some(Objects { honest: honest_hash, forged, ciphertext, key, header: header.sign(keypair).to_bytes() })
}

/// The commitment's fields, with the hash of the forged header where that of an honest one stands.
fn commit(forged: &BTreeMap<Hash32, Hash32>, fields: &mut [Vec<u8>]) {
    let Some(window) = fields.get(1).and_then(|word| window_of(word)) else { return };
    let commitment = Commitment { block: 0, fields: fields.to_vec() };
    let Ok(honest) = HeaderWord::read(&commitment, window as u32) else { return };
    if let Some(&header_hash) = forged.get(&honest.header_hash) {
        let word = HeaderWord { header_hash, ..honest };
        fields[1].clone_from(&word::fields(&[], Some(&word), None)[1]);
    }
}

#[cfg(test)]
mod tests {
    use templar_codec::{ChunkError, DecodeError};
    use templar_protocol::seal::SEAL_OVERHEAD_BYTES;

    use crate::r#virtual::scenario::Scenario;

    use super::*;

    #[test]
    fn each_payload_is_wrong_in_its_way_and_in_no_other() {
        let mut spec = Scenario::new(1, 1, 1, 1).plan.spec(Hash32::of(b"genesis"), Hash32::of(b"manifest"));
        // A largest magnitude that a payload can exceed.
        spec.codec.max_abs = 1.0;
        let codec = Codec::new(Arc::new(spec.layout()), &spec.codec);
        for lie in Lie::ALL {
            let payload = lie.payload(&codec);
            assert_eq!(payload.len() as u64 > codec.max_payload_bytes(), lie == Lie::Size, "{lie:?}");
            let found = codec.decode(payload).err();
            let is_expected = match (lie, &found) {
                (Lie::Kind, Some(DecodeError::WrongKind { found: 2, .. }))
                | (Lie::Cut | Lie::Size, Some(DecodeError::WrongLength { .. } | DecodeError::WrongTotal { .. }))
                | (Lie::Tag, None) => true,
                (_, Some(DecodeError::Chunk { source, .. })) => match source {
                    ChunkError::Truncated => lie == Lie::NoPositions,
                    ChunkError::ScaleTooLarge { .. } => lie == Lie::Magnitude,
                    ChunkError::TrailingBits => lie == Lie::TrailingBits,
                    _ => false,
                },
                _ => false,
            };
            assert!(is_expected, "{lie:?}: {found:?}");
        }
        let sealed = SealKey::from_bytes(&[7; 32]).unwrap().seal(Lie::Size.payload(&codec));
        assert!(sealed.len() as u64 > codec.max_payload_bytes() + SEAL_OVERHEAD_BYTES);
    }
}
