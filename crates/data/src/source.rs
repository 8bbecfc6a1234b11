//! Reads documents from files and folders: UTF-8 text (one document per file) and JSON Lines (one per line, in the
//! field `text`).
//!
//! A file given by name is JSON Lines if its name ends in `.jsonl`, else text. In a folder only `.txt` and `.jsonl`
//! files count. Files and subfolders are visited in byte order of their names, which is the same on every platform.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Longest accepted line of a `.jsonl` file, in bytes.
pub const LINE_BYTES_MAX: u64 = 64 << 20;
/// Deepest accepted nesting of folders.
pub const DEPTH_MAX: usize = 64;
const CHUNK_BYTES: usize = 64 << 10;

/// Why sources cannot be read as text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    #[error("cannot read {path}: {source}; check the path and its permissions", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is neither a file nor a folder; copy its text into a file", path = path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "{path} is reached twice, by two arguments or a symbolic link (maybe a loop); its text could be both trained \
         on and held out, so remove one of the paths to it", path = path.display()
    )]
    Twice { path: PathBuf },
    #[error("{path} is nested deeper than {DEPTH_MAX} folders; give an inner folder instead", path = path.display())]
    TooDeep { path: PathBuf },
    #[error("{path} has a name that is not UTF-8, so its place in the order is not defined; rename it", path = path.display())]
    Name { path: PathBuf },
    #[error("{path} is empty; remove it from the sources", path = path.display())]
    EmptyFile { path: PathBuf },
    #[error(
        "found no .txt or .jsonl file in {}; give files of UTF-8 text by name, or other folders",
        sources.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoFiles { sources: Vec<PathBuf> },
    #[error("{path} is not UTF-8 at byte {offset}; convert it, for example with iconv", path = path.display())]
    Utf8 { path: PathBuf, offset: u64 },
    #[error("{path}:{line} is not a JSON object with a string field `text`: {reason}; mend or remove the line", path = path.display())]
    JsonLine { path: PathBuf, line: u64, reason: String },
    #[error("{path}:{line} has more than {LINE_BYTES_MAX} bytes; split it into several lines", path = path.display())]
    LineTooLong { path: PathBuf, line: u64 },
}

/// Some text of a document. The pieces of a document follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) ends_document: bool,
    /// Bytes of the source that were read for it.
    pub(crate) source_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    JsonLines,
}

/// One file to read.
#[derive(Debug)]
pub(crate) struct SourceFile {
    path: PathBuf,
    kind: Kind,
    pub(crate) file_bytes: u64,
}

/// All files of the sources, in order.
pub(crate) fn list(sources: &[PathBuf]) -> Result<Vec<SourceFile>, SourceError> {
    let mut walk = Walk { seen: HashSet::new(), files: Vec::new() };
    for source in sources {
        walk.visit(source, 0)?;
    }
    if walk.files.is_empty() {
        return Err(SourceError::NoFiles { sources: sources.to_vec() });
    }
    Ok(walk.files)
}

struct Walk {
    /// Canonical paths: one set detects loops, links and overlapping arguments.
    seen: HashSet<PathBuf>,
    files: Vec<SourceFile>,
}

impl Walk {
    fn visit(&mut self, path: &Path, depth: usize) -> Result<(), SourceError> {
        let io = |source| SourceError::Io { path: path.to_owned(), source };
        let kind = match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl") => Some(Kind::JsonLines),
            Some("txt") => Some(Kind::Text),
            _ => None,
        };
        let metadata = fs::metadata(path).map_err(io)?;
        let kind = match (metadata.is_dir(), kind, depth) {
            (false, None, 1..) => return Ok(()),
            (_, kind, _) => kind.unwrap_or(Kind::Text),
        };
        if !self.seen.insert(fs::canonicalize(path).map_err(io)?) {
            return Err(SourceError::Twice { path: path.to_owned() });
        }
        if metadata.is_dir() {
            return self.folder(path, depth);
        }
        if !metadata.is_file() {
            return Err(SourceError::NotAFile { path: path.to_owned() });
        }
        if metadata.len() == 0 {
            return Err(SourceError::EmptyFile { path: path.to_owned() });
        }
        self.files.push(SourceFile { path: path.to_owned(), kind, file_bytes: metadata.len() });
        Ok(())
    }

    fn folder(&mut self, path: &Path, depth: usize) -> Result<(), SourceError> {
        if depth >= DEPTH_MAX {
            return Err(SourceError::TooDeep { path: path.to_owned() });
        }
        let io = |source| SourceError::Io { path: path.to_owned(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(io)? {
            let entry = entry.map_err(io)?;
            names.push(entry.file_name().into_string().map_err(|_| SourceError::Name { path: entry.path() })?);
        }
        names.sort_unstable();
        names.iter().try_for_each(|name| self.visit(&path.join(name), depth + 1))
    }
}

impl SourceFile {
    /// The file's text, piece by piece. At most 64 KiB or one JSON line is in memory.
    pub(crate) fn pieces(self) -> Box<dyn Iterator<Item = Result<Piece, SourceError>>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(source) => return Box::new(std::iter::once(Err(SourceError::Io { path: self.path, source }))),
        };
        match self.kind {
            Kind::Text => Box::new(TextPieces { file, path: self.path, carry: Vec::new(), offset: 0, done: false }),
            Kind::JsonLines => {
                Box::new(JsonLinePieces { file: BufReader::new(file), path: self.path, line: 0, done: false })
            }
        }
    }
}

struct TextPieces {
    file: File,
    path: PathBuf,
    /// Start of a character that the last chunk cut: at most three bytes.
    carry: Vec<u8>,
    /// Bytes of all pieces so far.
    offset: u64,
    done: bool,
}

impl TextPieces {
    fn read(&mut self) -> Result<Piece, SourceError> {
        let mut bytes = std::mem::take(&mut self.carry);
        let read = (&self.file).take(CHUNK_BYTES as u64).read_to_end(&mut bytes);
        let read = read.map_err(|source| SourceError::Io { path: self.path.clone(), source })?;
        let valid = match std::str::from_utf8(&bytes) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() && read > 0 => error.valid_up_to(),
            Err(error) => {
                let offset = self.offset + error.valid_up_to() as u64;
                return Err(SourceError::Utf8 { path: self.path.clone(), offset });
            }
        };
        self.carry = bytes.split_off(valid);
        self.offset += valid as u64;
        self.done = read == 0;
        let text = String::from_utf8(bytes).expect("checked above");
        Ok(Piece { text, ends_document: self.done, source_bytes: read as u64 })
    }
}

impl Iterator for TextPieces {
    type Item = Result<Piece, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let piece = self.read();
        self.done |= piece.is_err();
        Some(piece)
    }
}

struct JsonLinePieces {
    file: BufReader<File>,
    path: PathBuf,
    line: u64,
    done: bool,
}

#[derive(Deserialize)]
struct JsonDocument {
    text: String,
}

impl JsonLinePieces {
    /// The next line that is not blank.
    fn read(&mut self) -> Result<Option<Piece>, SourceError> {
        let mut bytes = Vec::new();
        let mut source_bytes = 0;
        loop {
            bytes.clear();
            self.line += 1;
            let read = (&mut self.file).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes);
            let read = read.map_err(|source| SourceError::Io { path: self.path.clone(), source })?;
            if read == 0 {
                return Ok(None);
            }
            source_bytes += read as u64;
            if bytes.len() as u64 > LINE_BYTES_MAX {
                return Err(SourceError::LineTooLong { path: self.path.clone(), line: self.line });
            }
            if !bytes.trim_ascii().is_empty() {
                break;
            }
        }
        let document: JsonDocument = serde_json::from_slice(&bytes).map_err(|error| SourceError::JsonLine {
            path: self.path.clone(),
            line: self.line,
            reason: error.to_string(),
        })?;
        Ok(Some(Piece { text: document.text, ends_document: true, source_bytes }))
    }
}

impl Iterator for JsonLinePieces {
    type Item = Result<Piece, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let piece = self.read().transpose();
        self.done = !matches!(piece, Some(Ok(_)));
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Result<Vec<Piece>, SourceError> {
        list(&[path.to_owned()])?.into_iter().flat_map(SourceFile::pieces).collect()
    }

    #[test]
    fn characters_survive_chunk_boundaries() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("book");
        let text = "x".to_owned() + &"日本".repeat(40_000);
        fs::write(&path, &text).unwrap();
        let pieces = read(&path).unwrap();
        assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.text.len() <= CHUNK_BYTES + 3));
        assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), text);
        assert_eq!(pieces.iter().filter(|piece| piece.ends_document).count(), 1);
    }

    #[test]
    fn errors_locate_bad_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.txt");
        let mut bytes = vec![b'x'; CHUNK_BYTES];
        for (tail, offset) in [(&b"ab\xff"[..], CHUNK_BYTES + 2), (b"\xe6\x97", CHUNK_BYTES)] {
            bytes.truncate(CHUNK_BYTES);
            bytes.extend(tail);
            fs::write(&path, &bytes).unwrap();
            let error = read(&path).unwrap_err();
            assert!(matches!(error, SourceError::Utf8 { offset: found, .. } if found == offset as u64), "{error}");
        }
        let path = folder.path().join("bad.jsonl");
        for line in [&b"{\"text\": 3}"[..], b"{\"texts\": \"\"}", b"{\"text\": \"\xff\"}", b"{\"text\": \"a\"", b"[]"] {
            fs::write(&path, [b"{\"text\": \"good\", \"id\": [1]}\n\n", line, b"\n"].concat()).unwrap();
            let error = read(&path).unwrap_err();
            assert!(matches!(error, SourceError::JsonLine { line: 3, .. }) && error.to_string().contains("jsonl:3"));
        }
        fs::write(&path, "").unwrap();
        assert!(matches!(read(&path).unwrap_err(), SourceError::EmptyFile { .. }));
        assert!(matches!(read(&folder.path().join("none")).unwrap_err(), SourceError::Io { .. }));
    }

    #[test]
    fn folders_are_walked_in_order_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("b/c")).unwrap();
        for name in ["b/z.txt", "b/c/y.txt", "a.txt", "c.txt", "picture.png"] {
            fs::write(root.join(name), name).unwrap();
        }
        let texts = |pieces: Vec<Piece>| pieces.into_iter().map(|piece| piece.text).collect::<Vec<_>>().concat();
        assert_eq!(texts(read(root).unwrap()), "a.txtb/c/y.txtb/z.txtc.txt");
        let twice = list(&[root.to_owned(), root.join("b/z.txt")]).unwrap_err();
        assert!(matches!(twice, SourceError::Twice { .. }));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("../..", root.join("b/c/loop")).unwrap();
            assert!(matches!(read(root).unwrap_err(), SourceError::Twice { .. }));
            fs::remove_file(root.join("b/c/loop")).unwrap();
        }
        fs::create_dir(root.join("empty")).unwrap();
        assert!(matches!(read(&root.join("empty")).unwrap_err(), SourceError::NoFiles { .. }));
    }
}
