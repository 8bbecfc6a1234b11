//! The large files of a node's local state, and what goes wrong with a disk.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use templar_protocol::hash::Hash32;

use crate::frame::error::NodeError;
use crate::frame::floats::from_bytes;
use crate::frame::records::FloatFormat;

/// Bytes handed to the system at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// The kind of disk that holds the local state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Written data survives a loss of power.
    Durable,
    /// Written data may be lost with the machine, and nothing waits for a disk: for simulations, in which processes die
    /// but the machine does not.
    Volatile,
}

/// A folder of files, each written under a temporary name and renamed.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    disk: Disk,
}

/// Why something on the local disk cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Damage {
    pub cause: String,
}

impl Files {
    pub(crate) fn new(folder: PathBuf, disk: Disk) -> Self {
        Self { folder, disk }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), NodeError> {
        self.write_with(name, bytes.len() as u64, |file| file.write_all(bytes))
    }

    /// Writes values without a copy of them in memory.
    pub(crate) fn write_floats(&self, name: &str, values: &[f32]) -> Result<(), NodeError> {
        self.write_with(name, 4 * values.len() as u64, |file| {
            values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
        })
    }

    fn write_with(
        &self,
        name: &str,
        bytes: u64,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), NodeError> {
        let path = self.folder.join(name);
        let temporary = self.folder.join(format!("{name}.tmp"));
        let write = || -> io::Result<()> {
            let mut file = BufWriter::with_capacity(BUFFER_BYTES, fs::File::create(&temporary)?);
            content(&mut file)?;
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            if self.disk == Disk::Durable {
                file.sync_all()?;
            }
            fs::rename(&temporary, &path)?;
            self.sync_folder()
        };
        write().map_err(|error| {
            // A full disk needs every byte.
            let _ = fs::remove_file(&temporary);
            Failure::from(error).of(bytes).at(&path)
        })
    }

    /// A new name must be on disk, too, before the database uses it.
    fn sync_folder(&self) -> io::Result<()> {
        #[cfg(unix)]
        if self.disk == Disk::Durable {
            fs::File::open(&self.folder)?.sync_all()?;
        }
        Ok(())
    }

    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, Damage> {
        fs::read(self.folder.join(name)).map_err(|error| Damage { cause: format!("{name}: {error}") })
    }

    /// Stores `bytes` under a name derived from them, and returns the name.
    pub(crate) fn put(&self, kind: &str, bytes: &[u8]) -> Result<String, NodeError> {
        let name = content_name(kind, bytes);
        if !self.folder.join(&name).exists() {
            self.write(&name, bytes)?;
        }
        Ok(name)
    }

    /// The inverse of [`Files::put`].
    pub(crate) fn get(&self, name: &str) -> Result<Vec<u8>, Damage> {
        let bytes = self.read(name)?;
        let is_whole = name.split_once('-').is_some_and(|(kind, _)| content_name(kind, &bytes) == name);
        if is_whole { Ok(bytes) } else { Err(Damage { cause: format!("{name} was changed") }) }
    }

    /// Removes all files of a kind except `keep`.
    pub(crate) fn retain(&self, kind: &str, keep: &[&str]) -> Result<(), NodeError> {
        let sweep = || -> io::Result<()> {
            for item in fs::read_dir(&self.folder)? {
                let name = item?.file_name();
                let Some(name) = name.to_str() else { continue };
                if name.starts_with(&format!("{kind}-")) && !keep.contains(&name) {
                    remove_if_there(&self.folder.join(name))?;
                }
            }
            Ok(())
        };
        sweep().map_err(|error| Failure::from(error).at(&self.folder))
    }
}

fn content_name(kind: &str, bytes: &[u8]) -> String {
    format!("{kind}-{}.bin", Hash32::of(bytes))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The upper halves of finite values, rounded to the nearest, ties to even.
pub(crate) fn to_bf16(values: &[f32]) -> Vec<u8> {
    let round = |value: &f32| {
        let bits = value.to_bits();
        let rounded = (u64::from(bits) + 0x7fff + u64::from(bits >> 16 & 1)) >> 16;
        let half = rounded as u16;
        // A value that would become infinite becomes the largest finite one.
        if half & 0x7fff == 0x7f80 { (bits >> 16) as u16 } else { half }
    };
    values.iter().flat_map(|value| round(value).to_le_bytes()).collect()
}

/// Values of a file.
pub(crate) fn floats(bytes: &[u8], format: FloatFormat) -> Vec<f32> {
    let widen = |half: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16);
    match format {
        FloatFormat::F32 => from_bytes(bytes),
        FloatFormat::Bf16 => bytes.as_chunks::<2>().0.iter().map(widen).collect(),
    }
}

/// The error, with the number of bytes that were to be written.
pub(crate) struct Failure {
    cause: Cause,
    needed_bytes: u64,
}

enum Cause {
    Io(io::Error),
    Database(rusqlite::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { cause: Cause::Io(error), needed_bytes: 0 }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self { cause: Cause::Database(error), needed_bytes: 0 }
    }
}

impl Failure {
    pub(crate) fn of(self, needed_bytes: u64) -> Self {
        Self { needed_bytes, ..self }
    }

    pub(crate) fn at(self, path: &Path) -> NodeError {
        use rusqlite::ErrorCode::{DatabaseBusy, DiskFull};
        let path = path.display().to_string();
        let (is_full, reason) = match self.cause {
            Cause::Database(error) if error.sqlite_error_code() == Some(DatabaseBusy) => {
                return NodeError::InUse { path };
            }
            Cause::Database(error) => (error.sqlite_error_code() == Some(DiskFull), error.to_string()),
            Cause::Io(error) => {
                let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
                (full.contains(&error.kind()), error.to_string())
            }
        };
        if is_full {
            NodeError::DiskFull { path, needed_bytes: self.needed_bytes }
        } else {
            NodeError::Local { path, reason }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_its_name_says_or_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path().to_owned(), Disk::Durable);
        let name = files.put("error", b"bytes").unwrap();
        assert_eq!(files.get(&name).unwrap(), b"bytes");
        fs::write(folder.path().join(&name), b"bites").unwrap();
        assert!(files.get(&name).unwrap_err().cause.contains("was changed"));
        fs::remove_file(folder.path().join(&name)).unwrap();
        assert!(files.get(&name).is_err());
    }

    #[test]
    fn bf16_is_the_nearest_and_finite() {
        let near = |value: f32| floats(&to_bf16(&[value]), FloatFormat::Bf16)[0];
        for value in [0.0, -0.0, 1.0, -1.5, 3.1e-5, 1e-40, f32::MAX, f32::MIN] {
            let (found, unit) = (near(value), value.abs() / 256.0);
            assert!((found - value).abs() <= unit.max(1e-40) && found.is_finite(), "{value}: {found}");
            assert_eq!(found.is_sign_negative(), value.is_sign_negative());
        }
        // A tie goes to the even one.
        assert_eq!(near(f32::from_bits(0x3f80_8000)).to_bits(), 0x3f80_0000);
        assert_eq!(near(f32::from_bits(0x3f81_8000)).to_bits(), 0x3f82_0000);
    }

    #[test]
    fn a_full_disk_is_told_with_what_it_takes() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = Failure::from(full).of(12_345).at(Path::new("/x"));
        assert!(matches!(error, NodeError::DiskFull { needed_bytes: 12_345, .. }), "{error}");
        assert!(error.is_fatal() && error.to_string().contains("12345 bytes"), "{error}");
    }
}
