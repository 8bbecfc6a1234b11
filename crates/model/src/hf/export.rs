//! Writing a folder that `transformers` loads.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensorError, View};
use serde_json::{Value, json};
use templar_cpu::Engine;
use templar_protocol::layout::{Layout, ModelSpec, TensorSpec};

use super::{CONFIG, GENERATION_CONFIG, INDEX, LOGITS, WEIGHTS, config};

/// Files above this size are split, as `transformers` does.
const SHARD_BYTES: u64 = 4 << 30;

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    #[error("the model has {expected} parameters, but {found} were given; are they of this run?")]
    WrongLength { expected: usize, found: usize },
    #[error("cannot write {}: {source}; check the folder's rights and free space", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}; check the folder's rights and free space", path.display())]
    Safetensors { path: PathBuf, source: SafeTensorError },
}

/// Writes the model into `dir`, which is created where it is missing; earlier files of these names are replaced.
///
/// Parameters are written as f32, one tensor at a time, so no second copy of them all exists; above 4 GiB they go into
/// several files with an index. `end_of_text` is the token that ends generation.
pub fn export(dir: &Path, spec: &ModelSpec, theta: &[f32], end_of_text: Option<u32>) -> Result<(), ExportError> {
    export_in_shards(dir, spec, theta, end_of_text, SHARD_BYTES)
}

/// Writes `logits.json` beside an exported model: our logits for some sequences, so that another implementation can
/// be compared with ours (`tools/check_hf.py`).
///
/// # Panics
/// If `theta` does not fit the model, or `tokens` is not `sequences` rows of equal, non-zero length.
pub fn export_logits(
    dir: &Path,
    spec: &ModelSpec,
    theta: &[f32],
    tokens: &[u32],
    sequences: usize,
) -> Result<(), ExportError> {
    let positions = tokens.len() / sequences;
    let vocabulary = spec.vocab_size as usize;
    let logits = Engine::new(spec).logits(theta, tokens, sequences);
    let rows: Vec<&[f32]> = logits.chunks_exact(vocabulary).collect();
    let value = json!({
        "tokens": tokens.chunks_exact(positions).collect::<Vec<_>>(),
        "logits": rows.chunks_exact(positions).collect::<Vec<_>>(),
    });
    write(&dir.join(LOGITS), &value)
}

pub(super) fn export_in_shards(
    dir: &Path,
    spec: &ModelSpec,
    theta: &[f32],
    end_of_text: Option<u32>,
    shard_bytes: u64,
) -> Result<(), ExportError> {
    let layout = Layout::llama(spec);
    if layout.len() != theta.len() {
        return Err(ExportError::WrongLength { expected: layout.len(), found: theta.len() });
    }
    fs::create_dir_all(dir).map_err(|source| ExportError::Io { path: dir.to_owned(), source })?;
    let shards = shards(&layout, shard_bytes);
    let mut places = BTreeMap::new();
    for (number, tensors) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => WEIGHTS.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        write_shard(&dir.join(&name), tensors, theta)?;
        places.extend(tensors.iter().map(|tensor| (&tensor.name, name.clone())));
    }
    // The other form of an earlier export would be loaded instead of, or beside, this one.
    if shards.len() == 1 {
        remove(&dir.join(INDEX))?;
    } else {
        remove(&dir.join(WEIGHTS))?;
        let index = json!({ "metadata": { "total_size": 4 * layout.len() }, "weight_map": places });
        write(&dir.join(INDEX), &index)?;
    }
    write(&dir.join(GENERATION_CONFIG), &config::write_generation(end_of_text))?;
    write(&dir.join(CONFIG), &config::write(spec, end_of_text))
}

/// Splits the tensors, in order, into files of at most `shard_bytes`, or of a single tensor that is larger.
fn shards(layout: &Layout, shard_bytes: u64) -> Vec<&[TensorSpec]> {
    let mut left = 0;
    let mut ends = vec![];
    for (at, tensor) in layout.tensors().iter().enumerate() {
        let bytes = 4 * tensor.len() as u64;
        if bytes > left {
            ends.push(at);
            left = shard_bytes;
        }
        left = left.saturating_sub(bytes);
    }
    ends.push(layout.tensors().len());
    ends.windows(2).map(|pair| &layout.tensors()[pair[0]..pair[1]]).collect()
}

fn write_shard(path: &Path, tensors: &[TensorSpec], theta: &[f32]) -> Result<(), ExportError> {
    let views = tensors.iter().map(|tensor| {
        let shape = tensor.shape.iter().map(|&size| size as usize).collect();
        (&tensor.name, Weights { shape, values: &theta[tensor.range()] })
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|source| ExportError::Safetensors { path: path.to_owned(), source })
}

/// A tensor whose bytes are made only while it is written.
struct Weights<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl View for Weights<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        bytes.extend(self.values.iter().flat_map(|value| value.to_le_bytes()));
        bytes.into()
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

fn write(path: &Path, value: &Value) -> Result<(), ExportError> {
    fs::write(path, format!("{value:#}\n")).map_err(|source| ExportError::Io { path: path.to_owned(), source })
}

fn remove(path: &Path) -> Result<(), ExportError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ExportError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
