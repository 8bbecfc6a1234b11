//! θ₀ of a run that starts from weights: parts of at most 64 MiB, in a folder and in a bucket, named by the root that
//! the run says. One part is in memory at a time but for θ itself. [`crate::frame::origin`] is how a node gets them.
//!
//! In the folder, `parts` has the digests of all parts one after the other, and `00000` and so on are the parts.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use templar_data::write_whole;
use templar_protocol::hash::Hash32;
use templar_protocol::layout::{Layout, PART_VALUES, part_hash};
use templar_store::{Store, StoreError, keys};

use crate::frame::floats::{from_bytes, to_bytes};

/// Name of the list in the folder.
pub(crate) const PARTS: &str = "parts";

/// Why weights cannot be read, written, fetched or published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    #[error("the run's weights cannot be read from or written to their bucket: {0}")]
    Store(#[from] StoreError),
    #[error("{path}: {source}; check the folder of the run's weights, and its disk")]
    Io { path: String, source: io::Error },
    #[error(
        "{at} does not have the weights with root {expected}, which the run starts from: `run init --from` makes them, and \
         `run publish` puts them into a bucket"
    )]
    WrongRoot { at: String, expected: Hash32 },
    #[error(
        "{path}: part {part} of the weights is damaged; copy the folder again from where it is whole, or make the run again \
         with `run init --from`"
    )]
    WrongPart { path: String, part: usize },
    #[error(
        "the bucket {bucket} serves something else as part {part} of the weights that the run starts from: name another \
         bucket, or have whoever owns it `run publish` again"
    )]
    WrongServed { bucket: String, part: usize },
    #[error(
        "value {index} of {tensor} in the weights is {value}, and nobody can train from that: the model was damaged or had \
         diverged; make another run from a sound one"
    )]
    NotFinite { tensor: String, index: usize, value: f32 },
}

/// A folder with θ₀. Its list of parts has the run's root; the parts are checked when they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    folder: PathBuf,
    root: Hash32,
    parts: Vec<Hash32>,
}

impl Weights {
    /// Whether [`Weights::write`] may write into a folder: it is not there, or has nothing but what was written before
    /// the disk was full.
    pub fn may_be_in(folder: &Path) -> bool {
        let Ok(entries) = fs::read_dir(folder) else { return !folder.exists() };
        entries.into_iter().all(|entry| entry.is_ok_and(|entry| is_unfinished(&entry.file_name().to_string_lossy())))
    }

    /// Writes θ₀ into `folder`, in place of what an attempt before may have left there.
    pub fn write(folder: &Path, layout: &Layout, theta: &[f32]) -> Result<Self, WeightsError> {
        finite(layout, 0, theta.iter().copied())?;
        let parts = layout.part_hashes(theta);
        let weights = Self { folder: folder.to_path_buf(), root: layout.root_of_parts(&parts), parts };
        weights.clear().map_err(failed(folder))?;
        for (nth, values) in theta.chunks(PART_VALUES).enumerate() {
            weights.keep_part(nth, &to_bytes(values))?;
        }
        // The list comes last: whoever finds it finds the whole of θ₀.
        weights.keep(PARTS, &weights.list())?;
        Ok(weights)
    }

    /// Opens a folder that has the weights with this root.
    pub fn open(folder: &Path, layout: &Layout, root: Hash32) -> Result<Self, WeightsError> {
        let path = folder.join(PARTS);
        let list = fs::read(&path).map_err(failed(&path))?;
        Self::listed(folder, layout, root, &list)
            .ok_or_else(|| WeightsError::WrongRoot { at: folder.display().to_string(), expected: root })
    }

    /// None if `list` does not lead to the root.
    pub(crate) fn listed(folder: &Path, layout: &Layout, root: Hash32, list: &[u8]) -> Option<Self> {
        let (hashes, rest) = list.as_chunks::<32>();
        let parts: Vec<Hash32> = hashes.iter().map(|hash| Hash32(*hash)).collect();
        let fits = rest.is_empty() && parts.len() == layout.parts() && layout.root_of_parts(&parts) == root;
        fits.then(|| Self { folder: folder.to_path_buf(), root, parts })
    }

    pub fn root(&self) -> Hash32 {
        self.root
    }

    /// θ₀, each part checked; `watch` is told how many parameters are read, and ends the work early.
    pub fn read<B>(
        &self,
        layout: &Layout,
        mut watch: impl FnMut(u64) -> ControlFlow<B>,
    ) -> ControlFlow<B, Result<Vec<f32>, WeightsError>> {
        let mut theta = Vec::with_capacity(layout.len());
        for nth in 0..self.parts.len() {
            match self.part(layout, nth) {
                Ok(bytes) => theta.extend(from_bytes(&bytes)),
                Err(error) => return ControlFlow::Continue(Err(error)),
            }
            watch(theta.len() as u64)?;
        }
        ControlFlow::Continue(Ok(theta))
    }

    /// Uploads the weights into the bucket of `store`. `progress` is told the bytes of each part.
    pub async fn publish(
        &self,
        store: &dyn Store,
        layout: &Layout,
        mut progress: impl FnMut(u64),
    ) -> Result<(), WeightsError> {
        for nth in 0..self.parts.len() {
            let bytes = self.part(layout, nth)?;
            let length = bytes.len() as u64;
            store.put(&keys::weights_part(&self.root, nth as u32), Bytes::from(bytes)).await?;
            progress(length);
        }
        Ok(store.put(&keys::weights_parts(&self.root), Bytes::from(self.list())).await?)
    }

    /// The bytes of a part in the folder, checked.
    pub(crate) fn part(&self, layout: &Layout, nth: usize) -> Result<Vec<u8>, WeightsError> {
        let path = self.folder.join(part_name(nth));
        let is_long = fs::metadata(&path).map_err(failed(&path))?.len() == part_bytes(layout, nth);
        let bytes = if is_long { fs::read(&path).map_err(failed(&path))? } else { Vec::new() };
        if self.is_part(layout, nth, &bytes)? {
            return Ok(bytes);
        }
        Err(WeightsError::WrongPart { path: path.display().to_string(), part: nth })
    }

    /// Whether these are the bytes of a part. Fails if they are, and nobody can train from them.
    pub(crate) fn is_part(&self, layout: &Layout, nth: usize, bytes: &[u8]) -> Result<bool, WeightsError> {
        // Whoever made the root chose the digest, which may be one of anything.
        if bytes.len() as u64 != part_bytes(layout, nth) || part_hash(bytes) != self.parts[nth] {
            return Ok(false);
        }
        let values = bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value));
        finite(layout, nth * PART_VALUES, values).map(|()| true)
    }

    fn list(&self) -> Vec<u8> {
        self.parts.iter().flat_map(|hash| *hash.as_bytes()).collect()
    }

    pub(crate) fn keep_part(&self, nth: usize, bytes: &[u8]) -> Result<(), WeightsError> {
        self.keep(&part_name(nth), bytes)
    }

    /// Writes a file whole or not at all, whoever else writes into the folder.
    pub(crate) fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), WeightsError> {
        let written = fs::create_dir_all(&self.folder).and_then(|()| write_whole(&self.folder, name, bytes));
        written.map_err(failed(&self.folder.join(name)))
    }

    /// Removes what an attempt left that was not finished.
    fn clear(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            if is_unfinished(&name.to_string_lossy()) {
                fs::remove_file(self.folder.join(name))?;
            }
        }
        Ok(())
    }
}

/// Whether a file of this name may be of weights that were not written to their end: a part, or a temporary file.
fn is_unfinished(name: &str) -> bool {
    let is_part = name.len() >= 5 && name.bytes().all(|byte| byte.is_ascii_digit());
    is_part || name.starts_with('.') && Path::new(name).extension().is_some_and(|ending| ending == "tmp")
}

/// Refuses values that are not numbers; the first of `values` is parameter `start`.
fn finite(layout: &Layout, start: usize, values: impl Iterator<Item = f32>) -> Result<(), WeightsError> {
    let Some((offset, value)) = values.enumerate().find(|(_, value)| !value.is_finite()) else { return Ok(()) };
    let at = start + offset;
    let tensor = layout.tensors().iter().find(|tensor| tensor.range().contains(&at));
    let tensor = tensor.expect("every parameter lies in a tensor");
    Err(WeightsError::NotFinite { tensor: tensor.name.clone(), index: at - tensor.range().start, value })
}

fn part_name(nth: usize) -> String {
    format!("{nth:05}")
}

pub(crate) fn part_bytes(layout: &Layout, nth: usize) -> u64 {
    4 * PART_VALUES.min(layout.len() - nth * PART_VALUES) as u64
}

fn failed(path: &Path) -> impl Fn(io::Error) -> WeightsError {
    let path = path.display().to_string();
    move |source| WeightsError::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use templar_protocol::testing::tiny_model;

    use super::*;

    fn read(weights: &Weights, layout: &Layout) -> Result<Vec<f32>, WeightsError> {
        let watch = |_| ControlFlow::<std::convert::Infallible>::Continue(());
        let ControlFlow::Continue(theta) = weights.read(layout, watch);
        theta
    }

    #[test]
    fn weights_are_what_was_written_and_a_wrong_bit_is_named() {
        let (folder, model) = (tempfile::tempdir().unwrap(), tiny_model());
        let layout = Layout::llama(&model);
        let theta = layout.theta0(&model, 5);
        let weights = Weights::write(folder.path(), &layout, &theta).unwrap();
        assert_eq!(weights.root(), layout.state_root(&theta));
        assert_eq!(Weights::open(folder.path(), &layout, weights.root()).unwrap(), weights);
        assert_eq!(read(&weights, &layout).unwrap(), theta);

        let part = folder.path().join("00000");
        let mut bytes = fs::read(&part).unwrap();
        bytes[7] ^= 1;
        fs::write(&part, &bytes).unwrap();
        assert!(matches!(read(&weights, &layout), Err(WeightsError::WrongPart { part: 0, .. })));
        let other = Weights::open(folder.path(), &layout, Hash32::default());
        assert!(matches!(other, Err(WeightsError::WrongRoot { .. })));
    }

    #[test]
    fn what_a_full_disk_left_is_written_over_and_nothing_else_is() {
        let (folder, model) = (tempfile::tempdir().unwrap(), tiny_model());
        let (layout, at) = (Layout::llama(&model), |name: &str| folder.path().join("weights").join(name));
        assert!(Weights::may_be_in(&at("")));
        fs::create_dir(at("")).unwrap();
        for name in ["00000", "00001", ".kx81.tmp"] {
            fs::write(at(name), "half of it").unwrap();
        }
        assert!(Weights::may_be_in(&at("")));
        let weights = Weights::write(&at(""), &layout, &layout.theta0(&model, 1)).unwrap();
        read(&weights, &layout).unwrap();
        assert_eq!(fs::read_dir(at("")).unwrap().count(), 2);
        assert!(!Weights::may_be_in(&at("")), "it is finished");
        fs::remove_file(at(PARTS)).unwrap();
        fs::write(at("letters"), "somebody's").unwrap();
        assert!(!Weights::may_be_in(&at("")) && !Weights::may_be_in(&at("letters")));
    }

    #[test]
    fn values_that_are_not_numbers_are_named_whoever_vouches_for_them() {
        let (folder, model) = (tempfile::tempdir().unwrap(), tiny_model());
        let layout = Layout::llama(&model);
        let tensor = &layout.tensors()[1];
        let mut theta = layout.theta0(&model, 5);
        theta[tensor.range().start + 3] = f32::INFINITY;
        let named = |error: WeightsError| {
            assert!(
                error.to_string().starts_with(&format!("value 3 of {} in the weights is inf", tensor.name)),
                "{error}"
            );
        };
        named(Weights::write(folder.path(), &layout, &theta).unwrap_err());
        // As another program would write them: with a root of their own.
        let parts = layout.part_hashes(&theta);
        let root = layout.root_of_parts(&parts);
        let weights = Weights { folder: folder.path().to_path_buf(), root, parts };
        weights.keep_part(0, &to_bytes(&theta)).unwrap();
        named(read(&weights, &layout).unwrap_err());
    }
}
