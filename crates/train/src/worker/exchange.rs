//! The folder shared with a worker: tensors in the safetensors layout, in memory where the system has files in memory.
//!
//! This side writes and reads files and never maps them, so that a full folder is an error and not a signal that kills
//! the node, and so that nobody changes bytes under its feet.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use templar_protocol::layout::{Layout, TensorSpec};
use templar_protocol::run::InnerSpec;

use crate::batch::TokenBatch;
use crate::muon::takes_muon;
use crate::state::{self, STEPS_MAX, StateShape};
use crate::worker::error::WorkerError;
use crate::worker::folder::{self, PrivateFolder};

/// Largest header that is read; a model of 80 layers takes 0.1 MB.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Bytes that are converted at a time; a multiple of every element's size.
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes per parameter: θ, Δ, and two moments.
const BYTES_PER_PARAMETER: u64 = 16;
/// Room for batches and headers.
const EXTRA_BYTES: u64 = 64 << 20;

/// A private folder with the files in it.
#[derive(Debug)]
pub(super) struct Exchange {
    folder: PrivateFolder,
    layout: Layout,
    state_shape: StateShape,
    /// Names and shapes of a state's tensors, in the order of its bytes.
    state_tensors: Vec<(String, Vec<u64>)>,
    theta_version: u64,
}

impl Exchange {
    pub(super) fn new(layout: &Layout, inner: &InnerSpec) -> Result<Self, WorkerError> {
        let parent = folder::parent(BYTES_PER_PARAMETER * layout.len() as u64 + EXTRA_BYTES);
        let folder = PrivateFolder::new(&parent).map_err(|error| exchange_error(&parent, &error))?;
        Ok(Self {
            folder,
            layout: layout.clone(),
            state_shape: StateShape::new(layout, inner),
            state_tensors: state_tensors(layout, inner),
            theta_version: 0,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.safetensors"))
    }

    /// Removes an output, so that an old one is never mistaken for a new one.
    pub(super) fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.path(name));
    }

    /// Writes θ and returns its version, which changes only if θ does: a validator evaluates the same θ many times.
    pub(super) fn put_theta(&mut self, theta: &[f32]) -> Result<u64, WorkerError> {
        let path = self.path("theta");
        if self.theta_version == 0 || !holds(&path, theta).unwrap_or(false) {
            self.theta_version += 1;
            let tensors = self.layout.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone()));
            write(&path, &header(tensors, Dtype::F32, None), |file| write_f32(file, theta))?;
        }
        Ok(self.theta_version)
    }

    /// Writes the batches as `batch.0`, `batch.1`, …, each `[sequences, tokens]`.
    pub(super) fn put_batches(&self, batches: &[TokenBatch]) -> Result<(), WorkerError> {
        let shape = |batch: &TokenBatch| vec![batch.sequences as u64, batch.seq_len as u64];
        let tensors = batches.iter().enumerate().map(|(nth, batch)| (format!("batch.{nth}"), shape(batch)));
        // Tokens are below 2^31: the vocabulary would otherwise not fit into memory.
        write(&self.path("batches"), &header(tensors, Dtype::I32, None), |file| {
            batches.iter().flat_map(|batch| &batch.tokens).try_for_each(|token| file.write_all(&token.to_le_bytes()))
        })
    }

    /// Δ, flat, in canonical order.
    pub(super) fn delta(&self) -> Result<Vec<f32>, WorkerError> {
        let mut file = TensorFile::open("delta", &self.path("delta"))?;
        file.expect_count(self.layout.tensors().len())?;
        let mut delta = Vec::with_capacity(self.layout.len());
        for tensor in self.layout.tensors() {
            file.read(&tensor.name, &tensor.shape, Dtype::F32, |bytes| {
                delta.extend(bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)));
            })?;
        }
        finite("delta", delta.iter().all(|value| value.is_finite()))?;
        Ok(delta)
    }

    /// One loss per sequence.
    pub(super) fn losses(&self, sequences: usize) -> Result<Vec<f64>, WorkerError> {
        let mut file = TensorFile::open("losses", &self.path("losses"))?;
        let mut losses = Vec::with_capacity(sequences);
        file.read("losses", &[sequences as u64], Dtype::F64, |bytes| {
            losses.extend(bytes.as_chunks().0.iter().map(|&value| f64::from_le_bytes(value)));
        })?;
        finite("losses", losses.iter().all(|loss| loss.is_finite()))?;
        Ok(losses)
    }

    /// Writes moments, in the order of a state's bytes, and the number of steps that they have seen.
    pub(super) fn put_state(&self, steps: u64, moments: &[u8]) -> Result<(), WorkerError> {
        let steps = HashMap::from([("steps".to_owned(), steps.to_string())]);
        let header = header(self.state_tensors.iter().cloned(), Dtype::F32, Some(steps));
        write(&self.path("state"), &header, |file| file.write_all(moments))
    }

    /// The moments that the worker exported, as [`crate::optimiser::Optimiser`] exports its own.
    pub(super) fn state(&self) -> Result<Vec<u8>, WorkerError> {
        let mut file = TensorFile::open("state", &self.path("state"))?;
        file.expect_count(self.state_tensors.len())?;
        let steps = file.header.metadata().as_ref().and_then(|texts| texts.get("steps")?.parse().ok());
        let steps = steps.filter(|steps| *steps <= STEPS_MAX);
        let why = || format!("it does not state its number of steps, 0 to {STEPS_MAX}");
        let mut state =
            self.state_shape.begin(steps.ok_or_else(|| WorkerError::Tensors { file: "state", why: why() })?);
        for (name, shape) in &self.state_tensors {
            file.read(name, shape, Dtype::F32, |bytes| state.extend_from_slice(bytes))?;
        }
        finite("state", self.state_shape.is_sound(state::split(&state).1))?;
        Ok(state)
    }
}

/// `momentum.NAME` of the tensors that Muon updates, then `first.NAME` and `second.NAME` of the others.
fn state_tensors(layout: &Layout, inner: &InnerSpec) -> Vec<(String, Vec<u64>)> {
    let moment = |moment: &'static str, of_muon: bool| {
        let tensors = layout.tensors().iter().filter(move |tensor| takes_muon(inner, tensor) == of_muon);
        tensors.map(move |TensorSpec { name, shape, .. }| (format!("{moment}.{name}"), shape.clone()))
    };
    moment("momentum", true).chain(moment("first", false)).chain(moment("second", false)).collect()
}

fn exchange_error(path: &Path, error: &io::Error) -> WorkerError {
    WorkerError::Exchange { folder: path.display().to_string(), why: error.to_string() }
}

fn finite(file: &'static str, all_are: bool) -> Result<(), WorkerError> {
    if all_are { Ok(()) } else { Err(WorkerError::NotFinite { file }) }
}

/// The header of tensors that lie one after the other, with its length before it.
fn header(
    tensors: impl Iterator<Item = (String, Vec<u64>)>,
    dtype: Dtype,
    texts: Option<HashMap<String, String>>,
) -> Vec<u8> {
    let mut end = 0;
    let infos = tensors.map(|(name, shape)| {
        let shape: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let metadata = Metadata::new(texts, infos.collect()).expect("tensors lie one after the other");
    let mut text = serde_json::to_vec(&metadata).expect("names and numbers only");
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    header
}

/// Writes a new file in place of the old one, of which somebody may still hold a mapping.
fn write(
    path: &Path,
    header: &[u8],
    data: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), WorkerError> {
    let attempt = || {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            BufWriter::with_capacity(BLOCK_BYTES, OpenOptions::new().write(true).create_new(true).open(path)?);
        file.write_all(header)?;
        data(&mut file)?;
        file.flush()
    };
    attempt().map_err(|error| exchange_error(path, &error))
}

fn write_f32(file: &mut impl Write, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    for block in values.chunks(BLOCK_BYTES / 4) {
        bytes.clear();
        bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
        file.write_all(&bytes)?;
    }
    Ok(())
}

/// Whether the file that this side wrote has these values. Different ones usually differ in their first block.
fn holds(path: &Path, values: &[f32]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-(4 * values.len() as i64)))?;
    let mut bytes = vec![0; BLOCK_BYTES];
    for block in values.chunks(BLOCK_BYTES / 4) {
        let bytes = &mut bytes[..4 * block.len()];
        file.read_exact(bytes)?;
        let stored = bytes.as_chunks().0.iter().map(|&value| u32::from_le_bytes(value));
        if !stored.eq(block.iter().map(|value| value.to_bits())) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A file that a worker wrote, whose header has been checked against its length.
struct TensorFile {
    name: &'static str,
    file: File,
    header: Metadata,
    data_start: u64,
}

impl TensorFile {
    fn open(name: &'static str, path: &Path) -> Result<Self, WorkerError> {
        Self::check(name, path).map_err(|why| WorkerError::Tensors { file: name, why })
    }

    fn check(name: &'static str, path: &Path) -> Result<Self, String> {
        let text = |error: io::Error| error.to_string();
        let mut file = File::open(path).map_err(text)?;
        let file_bytes = file.metadata().map_err(text)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(text)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX || length + 8 > file_bytes {
            return Err(format!("its header claims {length} bytes, but the file has {file_bytes}"));
        }
        let mut json = vec![0; length as usize];
        file.read_exact(&mut json).map_err(text)?;
        // Checks that offsets are contiguous and fit shapes and element types.
        let header: Metadata = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
        let data_start = length + 8;
        if file_bytes - data_start != header.data_len() as u64 {
            return Err(format!(
                "its tensors take {} bytes, but it has {}",
                header.data_len(),
                file_bytes - data_start
            ));
        }
        Ok(Self { name, file, header, data_start })
    }

    fn expect_count(&self, tensors: usize) -> Result<(), WorkerError> {
        let found = self.header.tensors().len();
        if found == tensors {
            return Ok(());
        }
        Err(WorkerError::Tensors { file: self.name, why: format!("it has {found} tensors, not {tensors}") })
    }

    /// Hands the bytes of one tensor of exactly this shape and type to `take`, in blocks of whole elements.
    fn read(
        &mut self,
        name: &str,
        shape: &[u64],
        dtype: Dtype,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), WorkerError> {
        let refuse = |file: &'static str, why: String| WorkerError::Tensors { file, why };
        let Some(info) = self.header.info(name) else {
            return Err(refuse(self.name, format!("it has no tensor {name}")));
        };
        if info.dtype != dtype || !info.shape.iter().map(|&size| size as u64).eq(shape.iter().copied()) {
            let (found, found_dtype) = (&info.shape, info.dtype);
            return Err(refuse(
                self.name,
                format!("{name} is {found_dtype} of shape {found:?}, not {dtype} of shape {shape:?}"),
            ));
        }
        let (start, end) = info.data_offsets;
        let text = |error: io::Error| refuse(self.name, error.to_string());
        self.file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(text)?;
        let mut left = end - start;
        let mut block = vec![0; BLOCK_BYTES.min(left)];
        while left > 0 {
            let bytes = &mut block[..BLOCK_BYTES.min(left)];
            self.file.read_exact(bytes).map_err(text)?;
            take(bytes);
            left -= bytes.len();
        }
        Ok(())
    }
}
