//! Reads a folder that somebody else may have written.
//!
//! Order matters: first the configuration, then the headers of all weight files. Parameters are allocated only once
//! every tensor is known to be there in its right shape, and take at most twice the bytes that the files really have.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata as Header, TensorInfo};
use serde::Deserialize;
use templar_protocol::layout::{Layout, ModelSpec, TensorSpec};

use crate::hf::config;
use crate::hf::files::{CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS};

/// Largest `config.json` and index that are read.
const JSON_BYTES_MAX: u64 = 16 << 20;
/// Largest header of a weight file; Covenant-72B's takes 0.1 MB.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Largest headers of all weight files together: in memory they take a few times as much.
const HEADERS_BYTES_MAX: u64 = 64 << 20;
/// Most files that an index may name.
const SHARDS_MAX: usize = 4096;
/// Letters of a tensor's name, and of a reason, that an error repeats.
const NAME_CHARS_MAX: usize = 80;
const WHY_CHARS_MAX: usize = 400;
/// Bytes that are read and converted at a time; a multiple of every element's size.
const BLOCK_BYTES: usize = 1 << 20;

/// Why a folder does not hold a model that we can run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    #[error("cannot read {}: {source}; a model folder has config.json and model.safetensors", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not an ordinary file; a model folder has config.json and model.safetensors", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} has {found} bytes; at most {} are read", path.display(), JSON_BYTES_MAX)]
    TooLong { path: PathBuf, found: u64 },
    #[error(
        "{} does not describe a Llama or Qwen 3 model that can be run: {}",
        path.display(),
        shown(why, WHY_CHARS_MAX)
    )]
    Config { path: PathBuf, why: String },
    #[error("{} is not an index of weight files: {}", path.display(), shown(why, WHY_CHARS_MAX))]
    Index { path: PathBuf, why: String },
    #[error("{} is not a valid safetensors file: {}; download it again", path.display(), shown(why, WHY_CHARS_MAX))]
    Header { path: PathBuf, why: String },
    #[error(
        "{} brings the headers of the weight files to {found} bytes; at most {} are read: save the model in fewer files",
        path.display(),
        HEADERS_BYTES_MAX
    )]
    TooManyHeaders { path: PathBuf, found: u64 },
    #[error("{} is the same file as another of the model; the folder is damaged", path.display())]
    SameFile { path: PathBuf },
    #[error("tensor {} is missing; the folder is incomplete or holds another model", shown(name, NAME_CHARS_MAX))]
    Missing { name: String },
    #[error(
        "tensor {} is in the weights, but not in the model that config.json describes",
        shown(name, NAME_CHARS_MAX)
    )]
    Unexpected { name: String },
    #[error("tensor {} is in two files; the folder is damaged", shown(name, NAME_CHARS_MAX))]
    Twice { name: String },
    #[error(
        "tensor {name} has shape {}, but config.json asks for {expected:?}",
        shown(&format!("{found:?}"), NAME_CHARS_MAX)
    )]
    Shape { name: String, found: Vec<usize>, expected: Vec<u64> },
    #[error("tensor {name} has elements of type {found}; F32, BF16 and F16 can be read")]
    ElementType { name: String, found: Dtype },
    #[error("value {index} of tensor {name} is {value}; the model is damaged or has diverged")]
    NotFinite { name: String, index: usize, value: f32 },
}

/// Reads `config.json` and the weights of a folder; parameters come back in canonical order.
pub fn import(dir: &Path) -> Result<(ModelSpec, Vec<f32>), ImportError> {
    let spec = import_shape(dir)?;
    let layout = Layout::llama(&spec);
    let files = weight_files(dir)?.into_iter().map(|name| dir.join(name)).collect();
    let mut files = open_all(files)?;
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
    let (file, _) = open_file(path)?;
    let mut bytes = vec![];
    file.take(JSON_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error)?;
    match bytes.len() as u64 {
        found if found > JSON_BYTES_MAX => Err(ImportError::TooLong { path: path.to_owned(), found }),
        _ => Ok(bytes),
    }
}

/// Opens an ordinary file, or what a link leads to. Whoever opens anything else, such as a pipe, may wait for ever.
fn open_file(path: &Path) -> Result<(File, Metadata), ImportError> {
    let io_error = |source| ImportError::Io { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(io_error)?;
    if !metadata.is_file() {
        return Err(ImportError::NotAFile { path: path.to_owned() });
    }
    Ok((File::open(path).map_err(io_error)?, metadata))
}

/// Opens the weight files with their headers, which are bounded together: links may lead many names to one large header.
fn open_all(paths: Vec<PathBuf>) -> Result<Vec<WeightFile>, ImportError> {
    let (mut files, mut headers_bytes, mut seen) = (Vec::with_capacity(paths.len()), 0, HashSet::new());
    for path in paths {
        let (file, metadata) = open_file(&path)?;
        if identity(&metadata).is_some_and(|identity| !seen.insert(identity)) {
            return Err(ImportError::SameFile { path });
        }
        files.push(WeightFile::open(path, file, metadata.len(), &mut headers_bytes)?);
    }
    Ok(files)
}

/// What two names of one file have in common, where the system says it.
#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "other systems have none")]
fn identity(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<(u64, u64)> {
    None
}

/// A stranger's text as an error repeats it: cut, and with nothing that a terminal obeys.
fn shown(text: &str, chars_max: usize) -> String {
    let mut letters = text.chars();
    let escape =
        |letter: char| if letter.is_control() { letter.escape_default().to_string() } else { letter.to_string() };
    let mut shown: String = letters.by_ref().take(chars_max).map(escape).collect();
    if letters.next().is_some() {
        shown.push('…');
    }
    shown
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
    header: Header,
    /// Where the tensors' bytes start.
    data_start: u64,
}

impl WeightFile {
    /// Adds the bytes of its header to `headers_bytes`, before any of them is read.
    fn open(path: PathBuf, mut file: File, file_bytes: u64, headers_bytes: &mut u64) -> Result<Self, ImportError> {
        let io_error = |source| ImportError::Io { path: path.clone(), source };
        let header_error = |why: String| ImportError::Header { path: path.clone(), why };
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| header_error("it ends before its header".to_owned()))?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX || length + 8 > file_bytes {
            return Err(header_error(format!("its header claims {length} bytes of {file_bytes}")));
        }
        *headers_bytes += length;
        if *headers_bytes > HEADERS_BYTES_MAX {
            return Err(ImportError::TooManyHeaders { found: *headers_bytes, path });
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(io_error)?;
        // Checks that offsets are contiguous and fit shapes and element types.
        let header: Header = serde_json::from_slice(&text).map_err(|error| header_error(error.to_string()))?;
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
        match theta[start..].iter().enumerate().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((index, &value)) => Err(ImportError::NotFinite { name: tensor.name.clone(), index, value }),
        }
    }
}

fn elements<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}
