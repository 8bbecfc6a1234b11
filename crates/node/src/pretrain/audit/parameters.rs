//! θ of an audit: computed again from the payloads that counted as long as they are served, and taken up again at a
//! checkpoint where they are not.

use std::convert::Infallible;
use std::ops::ControlFlow;

use futures::StreamExt;
use templar_codec::{Codec, Contribution, outer_step};
use templar_protocol::audit::{Link, Replayed};
use templar_protocol::hash::Hash32;
use templar_protocol::header::{HEADER_BYTES_MAX, SignedHeader};
use templar_protocol::layout::{PART_VALUES, part_hash};
use templar_protocol::roster::EntryId;
use templar_protocol::run::{RunId, RunSpec, Theta0Source};
use templar_protocol::seal::{SEAL_OVERHEAD_BYTES, SealKey};
use templar_protocol::state::RunState;
use templar_store::keys;

use crate::frame::context::Compute;
use crate::frame::floats::from_bytes;
use crate::frame::weights::{Weights, WeightsError};
use crate::pretrain::audit::error::AuditError;
use crate::pretrain::audit::sources::Sources;
use crate::pretrain::fetch::PARALLEL_FETCHES;

/// θ of the newest state of the walk, if it is known.
pub(super) struct Parameters<'a> {
    spec: &'a RunSpec,
    run: RunId,
    codec: Codec,
    sources: &'a Sources,
    theta: Option<Vec<f32>>,
}

impl<'a> Parameters<'a> {
    /// θ₀, checked. Without the weights that a run starts from, θ is known from the first checkpoint on.
    pub(super) async fn new(
        spec: &'a RunSpec,
        codec: Codec,
        weights: Option<Weights>,
        sources: &'a Sources,
    ) -> Result<Self, AuditError> {
        if spec.theta0.source == Theta0Source::Weights && weights.is_none() {
            return Ok(Self { spec, run: spec.id(), codec, sources, theta: None });
        }
        let (work, model, seed) = (codec.clone(), spec.model.clone(), spec.theta0.seed);
        let make = move || -> Result<_, WeightsError> {
            let watch = |_| ControlFlow::<Infallible>::Continue(());
            let theta = match weights {
                None => work.layout().theta0(&model, seed),
                Some(weights) => {
                    let ControlFlow::Continue(theta) = weights.read(work.layout(), watch);
                    theta?
                }
            };
            Ok((work.layout().state_root(&theta), theta))
        };
        let (found, theta) = Compute::Threads.run(make).await?;
        let expected = spec.theta0.root;
        if found != expected {
            return Err(AuditError::WrongTheta0 { seed, found, expected });
        }
        Ok(Self { spec, run: spec.id(), codec, sources, theta: Some(theta) })
    }

    pub(super) fn are_known(&self) -> bool {
        self.theta.is_some()
    }

    /// Takes θ of `state` from a checkpoint, if it is not known and a checkpoint may be there.
    pub(super) async fn resume(&mut self, state: &RunState) {
        let is_due = state.settled.is_multiple_of(self.spec.windows.checkpoint_every_windows);
        if self.theta.is_none() && is_due {
            self.theta = self.checkpoint(&state.digest(), &state.theta_root).await;
        }
    }

    async fn checkpoint(&self, digest: &Hash32, root: &Hash32) -> Option<Vec<f32>> {
        let layout = self.codec.layout();
        let parts = |bytes: &[u8]| {
            let (hashes, rest) = bytes.as_chunks::<32>();
            let hashes: Vec<Hash32> = hashes.iter().map(|hash| Hash32(*hash)).collect();
            let fits = rest.is_empty() && hashes.len() == layout.parts() && layout.root_of_parts(&hashes) == *root;
            if fits { Ok(hashes) } else { Err("it is not the list of the parts of this θ".to_owned()) }
        };
        let key = keys::checkpoint_parts(self.run, digest);
        let hashes = self.sources.get(&key, 32 * layout.parts() as u64, parts).await?;
        let mut theta = Vec::with_capacity(layout.len());
        for (nth, expected) in hashes.iter().enumerate() {
            let bytes_max = 4 * PART_VALUES.min(layout.len() - nth * PART_VALUES) as u64;
            let part = |bytes: &[u8]| {
                let is_it = bytes.len() as u64 == bytes_max && part_hash(bytes) == *expected;
                if is_it { Ok(from_bytes(bytes)) } else { Err("it is not this part of θ".to_owned()) }
            };
            theta.extend(
                self.sources.get(&keys::checkpoint_theta(self.run, digest, nth as u32), bytes_max, part).await?,
            );
        }
        Some(theta)
    }

    /// Applies the contributions that count, and compares the root. False if θ is not known afterwards, because one of
    /// them is not served. Fails with what breaks the rules.
    pub(super) async fn step(
        &mut self,
        replayed: &Replayed,
        accepted: &[(EntryId, Hash32)],
        after: &Link,
    ) -> Result<bool, String> {
        let Some(mut theta) = self.theta.take() else { return Ok(false) };
        let fetch = |(entry, header): &'_ (EntryId, Hash32)| self.contribution(replayed, *entry, *header);
        let fetches: Vec<_> = accepted.iter().map(fetch).collect();
        let mut fetches = futures::stream::iter(fetches).buffered(PARALLEL_FETCHES);
        let mut contributions = Vec::new();
        while let Some(found) = fetches.next().await {
            let Some(contribution) = found? else { return Ok(false) };
            contributions.push(contribution);
        }
        drop(fetches);
        let (codec, outer) = (self.codec.clone(), self.spec.outer.clone());
        let work = move || {
            let parts: Vec<&Contribution> = contributions.iter().collect();
            outer_step(codec.layout(), &mut theta, &parts, &outer);
            (codec.layout().state_root(&theta), theta)
        };
        let (found, theta) = Compute::Threads.run(work).await;
        if found != after.theta_root {
            return Err(format!("its contributions lead to θ of root {found}, but {} is certified", after.theta_root));
        }
        self.theta = Some(theta);
        Ok(true)
    }

    /// A contribution that counted, from whoever still serves it.
    async fn contribution(
        &self,
        replayed: &Replayed,
        entry: EntryId,
        committed: Hash32,
    ) -> Result<Option<Contribution>, String> {
        let committed = &committed;
        let (window, uid) = (replayed.window, entry.uid);
        let read = |bytes: &[u8]| SignedHeader::from_bytes(bytes, committed).map_err(|fault| fault.to_string());
        let key = keys::held_header(self.run, window, committed);
        let Some(signed) = self.sources.get(&key, HEADER_BYTES_MAX, read).await else { return Ok(None) };
        let header = signed.header;
        let fits = header.run == self.run
            && header.window == window
            && header.entry == entry
            && header.base == replayed.base
            && header.ciphertext_bytes <= self.codec.max_payload_bytes() + SEAL_OVERHEAD_BYTES;
        if !fits {
            return Err(format!("the header of uid {uid}, which counts, is not one of this window"));
        }
        let opens = |bytes: &[u8]| match SealKey::from_bytes(bytes) {
            Ok(key) if key.commitment() == header.key_commitment => Ok(key),
            _ => Err("it is not the key that the header names".to_owned()),
        };
        let name = keys::held_key(self.run, window, committed);
        let Some(key) = self.sources.get(&name, 32, opens).await else { return Ok(None) };
        let is_whole = |bytes: &[u8]| {
            let fits = bytes.len() as u64 == header.ciphertext_bytes && Hash32::of(bytes) == header.ciphertext_hash;
            if fits { Ok(bytes.to_vec()) } else { Err("it is not the payload that the header names".to_owned()) }
        };
        let name = keys::held_payload(self.run, window, committed);
        let Some(sealed) = self.sources.get(&name, header.ciphertext_bytes, is_whole).await else { return Ok(None) };
        let payload = key.open(sealed, &header.key_commitment);
        let payload =
            payload.map_err(|error| format!("the payload of uid {uid}, which counts, is not sealed: {error}"))?;
        let contribution = self.codec.decode(payload);
        contribution
            .map(Some)
            .map_err(|error| format!("the payload of uid {uid}, which counts, does not decode: {error}"))
    }
}
