//! Objects that are not what the chain or the header promised.

use templar_node::pretrain::setup::Setup;
use templar_protocol::fault::FaultKind;
use templar_protocol::hash::Hash32;
use templar_protocol::header::HEADER_CONTEXT;
use templar_protocol::keys::Keypair;
use templar_record::event::Role;

use crate::zoo::kind::Kind;
use crate::zoo::layers::{forge_uploads, published};

pub const KIND: Kind = Kind {
    name: "garbled-object",
    role: Role::Miner,
    tries: "It uploads a header, payload or key that is malformed or another than it promised, each window in another way.",
    stopped_by: "Hashes, signature and bounds: each way has a fault of its name, and costs its window alone, because its hotkey signed none of it.",
    wrap: |setup, _| wrap(setup, |window| Some(Garbled::ALL[window as usize % Garbled::ALL.len()])),
};

/// What is wrong with one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbled {
    OversizedPayload,
    TruncatedPayload,
    /// Too large to be a header.
    OversizedHeader,
    /// Somebody else signed the header.
    ForeignSignature,
    /// The header is about another window than the committed one.
    WindowOfHeader,
    /// The key does not open the payload.
    WrongKey,
    ShortKey,
    LongKey,
}

impl Garbled {
    pub const ALL: [Self; 8] = [
        Self::OversizedPayload,
        Self::TruncatedPayload,
        Self::OversizedHeader,
        Self::ForeignSignature,
        Self::WindowOfHeader,
        Self::WrongKey,
        Self::ShortKey,
        Self::LongKey,
    ];

    /// What validators call it.
    pub fn fault(self) -> FaultKind {
        match self {
            Self::OversizedPayload | Self::TruncatedPayload => FaultKind::PayloadMismatch,
            Self::OversizedHeader => FaultKind::HeaderMalformed,
            Self::ForeignSignature => FaultKind::BadSignature,
            Self::WindowOfHeader => FaultKind::HeaderMismatch,
            Self::WrongKey | Self::ShortKey | Self::LongKey => FaultKind::KeyMismatch,
        }
    }

    fn object(self) -> &'static str {
        match self {
            Self::OversizedPayload | Self::TruncatedPayload => "payload",
            Self::OversizedHeader | Self::ForeignSignature | Self::WindowOfHeader => "header",
            Self::WrongKey | Self::ShortKey | Self::LongKey => "key",
        }
    }

    fn garble(self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::OversizedPayload | Self::LongKey => bytes.push(0),
            Self::TruncatedPayload | Self::ShortKey => drop(bytes.pop()),
            Self::OversizedHeader => bytes = bytes.repeat(9),
            Self::ForeignSignature => {
                // The signature is the last 64 bytes; this one is somebody else's of the same bytes.
                let signed = bytes.len() - 64;
                let (signed, signature) = bytes.split_at_mut(signed);
                let hash = Hash32::derive(HEADER_CONTEXT, signed);
                signature.copy_from_slice(&Keypair::insecure_dev(0, "somebody else").sign(hash.as_bytes()).0);
            }
            // The window stands behind the run's 32 bytes.
            Self::WindowOfHeader => bytes[32] ^= 1,
            Self::WrongKey => bytes.reverse(),
        }
        bytes
    }
}

/// A miner that garbles an object in the windows for which `choose` says how.
pub fn wrap(setup: Setup, choose: impl Fn(u64) -> Option<Garbled> + Send + 'static) -> Setup {
    forge_uploads(setup, move |key, bytes| {
        let garbled = published(key).and_then(|(window, object)| Some((choose(window)?, object)));
        let bytes = match garbled {
            Some((garbled, object)) if garbled.object() == object => garbled.garble(bytes.to_vec()).into(),
            _ => bytes,
        };
        vec![(key.to_owned(), bytes)]
    })
}
