//! Reads a folder that somebody else may have written.
//!
//! Order matters: first the configuration, then the headers of all weight files. Parameters are allocated only once
//! every tensor is known to be there in its right shape, and take at most twice the bytes that the files really have.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use templar_protocol::layout::{Layout, ModelSpec, TensorSpec};

use crate::hf::config;
use crate::hf::files::{CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS};

/// Largest `config.json` and index that are read.
const JSON_BYTES_MAX: u64 = 16 << 20;
/// Largest header of a weight file; Covenant-72B's takes 0.1 MB.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Most files that an index may name.
const SHARDS_MAX: usize = 4096;
/// Bytes that are read and converted at a time; a multiple of every element's size.
const BLOCK_BYTES: usize = 1 << 20;

/// Why a folder does not hold a model that we can run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    #[error("cannot read {}: {source}; a model folder has config.json and model.safetensors", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} has {found} bytes; at most {} are read", path.display(), JSON_BYTES_MAX)]
    TooLong { path: PathBuf, found: u64 },
    #[error("{} does not describe a Llama or Qwen 3 model that can be run: {why}", path.display())]
    Config { path: PathBuf, why: String },
    #[error("{} is not an index of weight files: {why}", path.display())]
    Index { path: PathBuf, why: String },
    #[error("{} is not a valid safetensors file: {why}; download it again", path.display())]
    Header { path: PathBuf, why: String },
    #[error("tensor {name} is missing; the folder is incomplete or holds another model")]
    Missing { name: String },
    #[error("tensor {name} is in the weights, but not in the model that config.json describes")]
    Unexpected { name: String },
    #[error("tensor {name} is in two files; the folder is damaged")]
    Twice { name: String },
    #[error("tensor {name} has shape {found:?}, but config.json asks for {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<u64> },
    #[error("tensor {name} has elements of type {found}; F32, BF16 and F16 can be read")]
    ElementType { name: String, found: Dtype },
    #[error("tensor {name} has a value that is not finite; the model is damaged or diverged")]
    NotFinite { name: String },
}

/// Reads `config.json` and the weights of a folder; parameters come back in canonical order.
pub fn import(dir: &Path) -> Result<(ModelSpec, Vec<f32>), ImportError> {
    let spec = import_shape(dir)?;
    let layout = Layout::llama(&spec);
    let mut files = vec![];
    for name in weight_files(dir)? {
        files.push(WeightFile::open(dir.join(name))?);
    }
    let places = locate(&spec, &layout, &files)?;
    let mut theta = Vec::with_capacity(layout.len());
    for (tensor, (file, info)) in layout.tensors().iter().zip(places) {
        files[file].append(&mut theta, tensor, &info)?;
    }
    Ok((spec, theta))
}

/// Reads `config.json` alone.
pub fn import_shape(dir: &Path) -> Result<ModelSpec, ImportError> {
    let path = dir.join(CONFIG);
    config::read(&read_json(&path)?).map_err(|why| ImportError::Config { path, why })
}

/// The token that ends a text, by the folder's `generation_config.json`, else by its `config.json`. Of several, the first.
pub fn end_of_text(dir: &Path) -> Result<Option<u32>, ImportError> {
    for name in [GENERATION_CONFIG, CONFIG] {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        if let Some(token) =
            config::read_end_of_text(&read_json(&path)?).map_err(|why| ImportError::Config { path, why })?
        {
            return Ok(Some(token));
        }
    }
    Ok(None)
}

fn read_json(path: &Path) -> Result<Vec<u8>, ImportError> {
    let io_error = |source| ImportError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    let mut bytes = vec![];
    file.take(JSON_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error)?;
    match bytes.len() as u64 {
        found if found > JSON_BYTES_MAX => Err(ImportError::TooLong { path: path.to_owned(), found }),
        _ => Ok(bytes),
    }
}

/// Names of the weight files: the single one, or those that the index lists.
fn weight_files(dir: &Path) -> Result<Vec<String>, ImportError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let path = dir.join(INDEX);
    if dir.join(WEIGHTS).exists() || !path.exists() {
        return Ok(vec![WEIGHTS.to_owned()]);
    }
    let text = read_json(&path)?;
    let index_error = |why: String| ImportError::Index { path: path.clone(), why };
    let index: Index = serde_json::from_slice(&text).map_err(|error| index_error(error.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() || names.len() > SHARDS_MAX {
        return Err(index_error(format!("it names {} files; 1 to {SHARDS_MAX} are allowed", names.len())));
    }
    // A name with a separator could lead out of the folder.
    let plain = |name: &String| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        name.len() <= 200 && name.bytes().all(allowed) && name.ends_with(".safetensors") && !name.starts_with('.')
    };
    match names.iter().find(|name| !plain(name)) {
        Some(name) => {
            Err(index_error(format!("{:?} is not a plain name of a .safetensors file", name.get(..80).unwrap_or(name))))
        }
        None => Ok(names),
    }
}

/// Finds every tensor of the layout, in order, as (file, place in it).
fn locate(spec: &ModelSpec, layout: &Layout, files: &[WeightFile]) -> Result<Vec<(usize, TensorInfo)>, ImportError> {
    let mut found = BTreeMap::new();
    for (number, file) in files.iter().enumerate() {
        for (name, info) in file.header.tensors() {
            // Buffers of older checkpoints, and a copy of the embedding that tying makes irrelevant.
            let ignored = name.ends_with("rotary_emb.inv_freq") || spec.tied_embeddings && name == "lm_head.weight";
            if !ignored && found.insert(name.clone(), (number, info.clone())).is_some() {
                return Err(ImportError::Twice { name });
            }
        }
    }
    let mut places = Vec::with_capacity(layout.tensors().len());
    for tensor in layout.tensors() {
        let name = tensor.name.clone();
        let Some((file, info)) = found.remove(&name) else {
            return Err(ImportError::Missing { name });
        };
        if !info.shape.iter().map(|&size| size as u64).eq(tensor.shape.iter().copied()) {
            return Err(ImportError::Shape { name, found: info.shape, expected: tensor.shape.clone() });
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(ImportError::ElementType { name, found: info.dtype });
        }
        places.push((file, info));
    }
    match found.into_keys().next() {
        Some(name) => Err(ImportError::Unexpected { name }),
        None => Ok(places),
    }
}

/// An open safetensors file whose header was checked against its length.
struct WeightFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the tensors' bytes start.
    data_start: u64,
}

impl WeightFile {
    fn open(path: PathBuf) -> Result<Self, ImportError> {
        let io_error = |source| ImportError::Io { path: path.clone(), source };
        let header_error = |why: String| ImportError::Header { path: path.clone(), why };
        let mut file = File::open(&path).map_err(io_error)?;
        let file_bytes = file.metadata().map_err(io_error)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| header_error("it ends before its header".to_owned()))?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX || length + 8 > file_bytes {
            return Err(header_error(format!("its header claims {length} bytes of {file_bytes}")));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(io_error)?;
        // Checks that offsets are contiguous and fit shapes and element types.
        let header: Metadata = serde_json::from_slice(&text).map_err(|error| header_error(error.to_string()))?;
        let data_start = length + 8;
        if file_bytes - data_start != header.data_len() as u64 {
            let tensors = header.data_len();
            return Err(header_error(format!(
                "its tensors take {tensors} bytes, but it has {}",
                file_bytes - data_start
            )));
        }
        Ok(Self { path, file, header, data_start })
    }

    /// Reads one tensor, converts it to f32 and appends it.
    fn append(&mut self, theta: &mut Vec<f32>, tensor: &TensorSpec, info: &TensorInfo) -> Result<(), ImportError> {
        let io_error = |source| ImportError::Io { path: self.path.clone(), source };
        let start = theta.len();
        let (from, to) = info.data_offsets;
        self.file.seek(SeekFrom::Start(self.data_start + from as u64)).map_err(io_error)?;
        let mut block = vec![0; BLOCK_BYTES.min(to - from)];
        let mut left = to - from;
        while left > 0 {
            let bytes = &mut block[..BLOCK_BYTES.min(left)];
            self.file.read_exact(bytes).map_err(io_error)?;
            match info.dtype {
                Dtype::F32 => theta.extend(elements(bytes).map(f32::from_le_bytes)),
                Dtype::BF16 => theta.extend(elements(bytes).map(|bits| bf16::from_le_bytes(bits).to_f32())),
                Dtype::F16 => theta.extend(elements(bytes).map(|bits| f16::from_le_bytes(bits).to_f32())),
                found => return Err(ImportError::ElementType { name: tensor.name.clone(), found }),
            }
            left -= bytes.len();
        }
        if theta[start..].iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        Err(ImportError::NotFinite { name: tensor.name.clone() })
    }
}

fn elements<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}
