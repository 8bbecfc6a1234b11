//! BLAKE3 digests, one per purpose, and the deterministic stream that replaces a random source.

use std::fmt;
use std::str::FromStr;

pub(crate) use blake3::OutputReader;
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A BLAKE3 digest of 32 bytes, shown and parsed as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct Hash32(pub [u8; 32]);

impl Hash32 {
    /// Plain BLAKE3 of `bytes`: for content addresses, which anybody may check with any BLAKE3 tool.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// BLAKE3 in key-derivation mode under `context`, so that no digest made for one purpose is valid for another.
    pub fn derive(context: &'static str, bytes: &[u8]) -> Self {
        Self(blake3::derive_key(context, bytes))
    }

    /// [`Hash32::derive`] over the canonical encoding of `value`.
    pub fn of_value<T: BorshSerialize>(context: &'static str, value: &T) -> Self {
        let mut hasher = Hasher::new(context);
        hasher.update_value(value);
        hasher.finish()
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight hexadecimal digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl fmt::Display for Hash32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash32({self})")
    }
}

/// A text that is not a 32-byte value in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hexadecimal digits, 0-9 and a-f (32 bytes), found {}", match .characters {
    64 => "64 characters, not all of them such digits".to_owned(),
    other => format!("{other} characters"),
})]
pub struct ParseHashError {
    /// The error does not repeat the text itself, which may be a secret in the wrong place.
    characters: usize,
}

impl FromStr for Hash32 {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0u8; 32];
        let canonical = text.bytes().all(|b| !b.is_ascii_uppercase());
        if !canonical || hex::decode_to_slice(text, &mut bytes).is_err() {
            return Err(ParseHashError { characters: text.chars().count() });
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Hash32 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash32 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An incremental [`Hash32::derive`].
#[derive(Debug, Clone)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    pub fn new(context: &'static str) -> Self {
        Self(blake3::Hasher::new_derive_key(context))
    }

    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// [`Hasher::update`] on all cores, for input of megabytes.
    pub(crate) fn update_parallel(&mut self, bytes: &[u8]) {
        // Several threads pay off from 128 KiB on (BLAKE3's own documentation of `update_rayon`).
        if bytes.len() < 128 << 10 {
            self.0.update(bytes);
        } else {
            self.0.update_rayon(bytes);
        }
    }

    /// Absorbs the canonical (Borsh) encoding of `value`.
    pub fn update_value<T: BorshSerialize + ?Sized>(&mut self, value: &T) -> &mut Self {
        value.serialize(&mut self.0).expect("a hasher accepts every byte");
        self
    }

    pub fn finish(&self) -> Hash32 {
        Hash32(*self.0.finalize().as_bytes())
    }

    /// The bytes that [`Hasher::into_stream`] draws from.
    pub(crate) fn into_output(self) -> OutputReader {
        self.0.finalize_xof()
    }

    /// An endless deterministic stream of integers, keyed by everything absorbed so far.
    pub fn into_stream(self) -> Stream {
        Stream { reader: self.into_output(), buffer: [0; 64], used: 64 }
    }
}

/// Deterministic integers from BLAKE3's extendable output: the only "randomness" in the rules.
#[derive(Clone)]
pub struct Stream {
    reader: OutputReader,
    buffer: [u8; 64],
    used: usize,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("position", &self.reader.position()).finish_non_exhaustive()
    }
}

impl Stream {
    /// The next little-endian u64.
    pub fn next_u64(&mut self) -> u64 {
        if self.used == self.buffer.len() {
            self.reader.fill(&mut self.buffer);
            self.used = 0;
        }
        let bytes = &self.buffer[self.used..self.used + 8];
        self.used += 8;
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// A uniform integer in `0..bound`, without modulo bias. `bound` must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no element to draw");
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let draw = self.next_u64();
            if draw < limit {
                return draw % bound;
            }
        }
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_the_same_on_every_platform() {
        // Computed by another implementation of BLAKE3; twelve draws reach past the first block of output.
        let mut stream = Hasher::new("templar test stream").into_stream();
        let drawn: Vec<u64> = (0..12).map(|_| stream.below(1000)).collect();
        assert_eq!(drawn, [672, 292, 571, 155, 174, 129, 826, 903, 922, 358, 82, 881]);
    }

    #[test]
    fn hex_is_strict() {
        let hash = Hash32::of(b"templar");
        assert_eq!(hash.to_string().parse::<Hash32>().unwrap(), hash);
        assert!(hash.to_string().to_uppercase().parse::<Hash32>().is_err());
        let error = |text: &str| text.parse::<Hash32>().unwrap_err().to_string();
        assert!(error("abcd").ends_with("found 4 characters"), "{}", error("abcd"));
        assert!(error(&"x".repeat(64)).ends_with("found 64 characters, not all of them such digits"));
    }
}
