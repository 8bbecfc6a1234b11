//! Names of the files in a folder, and how they are written: all with the mode of the user's other files.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const LOGITS: &str = "logits.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Bytes that are collected before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    #[error("the model has {expected} parameters, but {found} were given; give those of this run")]
    WrongLength { expected: usize, found: usize },
    #[error("cannot write {}: {source}; check the folder's permissions and free space", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the tokenizer cannot be copied into the model's folder: {why}; use a Hugging Face tokenizer.json")]
    Tokenizer { why: String },
}

impl ExportError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

/// Writes a JSON document that people can read: indented, with a newline at its end.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<(), ExportError> {
    fs::write(path, format!("{value:#}\n")).map_err(ExportError::io(path))
}

/// Writes a large file under a temporary name and renames it when it is complete. An earlier file of that name, which
/// another process may have mapped, is replaced and never truncated.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), ExportError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let attempt = || {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(&partial)?);
        write(&mut file)?;
        file.flush()?;
        fs::rename(&partial, path)
    };
    attempt().map_err(|source| {
        let _ = fs::remove_file(&partial);
        ExportError::io(path)(source)
    })
}

/// Removes a file if it is there.
pub(super) fn remove(path: &Path) -> Result<(), ExportError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ExportError::io(path)(source)),
        _ => Ok(()),
    }
}
