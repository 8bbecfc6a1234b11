//! `templar key new|show`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use color_eyre::eyre::{Context, Result, eyre};
use serde_json::json;
use templar_host::home::write_secret;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;

use crate::end::End;
use crate::failure::coded;
use crate::files::read_key;
use crate::output::{is_json, say};

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a hotkey: its seed goes into a file that only its owner may read. Prints the hotkey, which is public.
    New(File),
    /// Print the hotkey whose seed is in a file.
    Show(File),
}

#[derive(Debug, Args)]
pub(crate) struct File {
    /// The seed's file.
    #[arg(default_value = "key.hex")]
    file: PathBuf,
}

impl Key {
    pub(crate) fn run(self) -> Result<End> {
        let pair = match self {
            Self::New(File { file }) => {
                if file.exists() {
                    let message = eyre!("{} exists already; a key is never overwritten", file.display());
                    return Err(coded("io")(message));
                }
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).wrap_err("the system's random number generator failed")?;
                write_secret(&file, &format!("{}\n", Hash32(seed)))
                    .wrap_err_with(|| format!("{} cannot be written", file.display()))?;
                Keypair::from_seed(seed)
            }
            Self::Show(File { file }) => read_key(&file)?,
        };
        if is_json() {
            say!("{}", json!({ "hotkey": pair.hotkey() }));
        } else {
            say!("{}", pair.hotkey());
        }
        Ok(End::Done)
    }
}
