//! Writes a folder that `transformers` loads.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use templar_cpu::Engine;
use templar_protocol::layout::{Layout, ModelSpec, TensorSpec};

use crate::hf::config;
use crate::hf::files::{
    CONFIG, ExportError, GENERATION_CONFIG, INDEX, LOGITS, WEIGHTS, remove, write_json, write_whole,
};

/// Weights above this size are split, as `transformers` does.
const SHARD_BYTES_MAX: u64 = 4 << 30;
/// Parameters converted to bytes at a time.
const BLOCK_VALUES: usize = 1 << 18;

/// Writes the model into `dir`, which is created if needed; earlier files of these names are replaced.
///
/// Parameters are written as f32, one tensor at a time, so memory never holds a second copy of them all. Above 4 GiB
/// they go into several files with an index. `end_of_text` is the token that ends generation.
pub fn export(dir: &Path, spec: &ModelSpec, theta: &[f32], end_of_text: Option<u32>) -> Result<(), ExportError> {
    export_in_shards(dir, spec, theta, end_of_text, SHARD_BYTES_MAX)
}

/// Writes `logits.json` beside an exported model: our logits for some sequences, against which another implementation
/// can be compared (`tools/check_hf.py`).
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
    write_json(&dir.join(LOGITS), &value)
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
    fs::create_dir_all(dir).map_err(ExportError::io(dir))?;
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
    // The other form, left by an earlier export, would be loaded instead of this one or beside it.
    if shards.len() == 1 {
        remove(&dir.join(INDEX))?;
    } else {
        remove(&dir.join(WEIGHTS))?;
        let index = json!({ "metadata": { "total_size": 4 * layout.len() }, "weight_map": places });
        write_json(&dir.join(INDEX), &index)?;
    }
    write_json(&dir.join(GENERATION_CONFIG), &config::write_generation(end_of_text))?;
    write_json(&dir.join(CONFIG), &config::write(spec, end_of_text))
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
    let header = header(tensors);
    write_whole(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut bytes = vec![];
        for block in tensors.iter().flat_map(|tensor| theta[tensor.range()].chunks(BLOCK_VALUES)) {
            bytes.clear();
            bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

/// The safetensors header of consecutive tensors, padded to a multiple of 8 bytes.
fn header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let shape = tensor.shape.iter().map(|&size| size as usize).collect();
        let start = end;
        end += 4 * tensor.len();
        (tensor.name.clone(), TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) })
    });
    let texts = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(texts), infos.collect()).expect("tensors are consecutive");
    let mut header = serde_json::to_vec(&metadata).expect("names and numbers only");
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}
