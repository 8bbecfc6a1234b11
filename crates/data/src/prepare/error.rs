//! Why a preparation fails.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::manifest::{ManifestError, Split};
use crate::source::SourceError;
use crate::tokenizer::TokenizerError;

/// Why no dataset was created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    #[error("{option} is {found}; it must be {allowed}")]
    Option { option: &'static str, found: String, allowed: String },
    #[error("--end-of-text needs --tokenizer; without one, tokens are bytes and 256 ends a text")]
    EndOfTextOfBytes,
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("cannot write to {path}: {source}; check free space and permissions", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is a file; name a folder for the dataset", path = path.display())]
    OutIsFile { path: PathBuf },
    #[error("{path} is not empty: it holds {holds}", path = path.display())]
    NotEmpty { path: PathBuf, holds: Holds },
    #[error(
        "{path} does not belong to the dataset that is to be replaced, and the new one needs its name; move it elsewhere",
        path = path.display()
    )]
    InTheWay { path: PathBuf },
    #[error(
        "another preparation is writing to {path}; wait until it has ended, or name another folder",
        path = path.display()
    )]
    Busy { path: PathBuf },
    #[error(
        "the text is too short: its {split} split has {tokens} tokens, but a sample takes {seq_len}; give more text, \
         make samples shorter, or hold out a fraction nearer to 0.5"
    )]
    TooShort { split: Split, tokens: u64, seq_len: u32 },
    #[error("the result is not a valid dataset: {0}")]
    Manifest(#[from] ManifestError),
}

impl PrepareError {
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Write { path: path.to_owned(), source }
    }
}

/// What a folder that is not empty holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// A manifest, and maybe more.
    Dataset,
    /// Shards without a manifest: a preparation was interrupted while it put them there.
    Leftovers,
    /// Files that no preparation writes, for example one of this name.
    Others { example: String },
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dataset => f.write_str("a dataset; replace it with --replace, or name another folder"),
            Self::Leftovers => {
                f.write_str("files of an interrupted preparation; replace them with --replace, or name another folder")
            }
            Self::Others { example } => {
                write!(f, "{example:?}, which does not belong to a dataset; name another folder")
            }
        }
    }
}
