//! `templar miner` and `templar validator`

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use color_eyre::eyre::{Context, ContextCompat as _, Result, ensure, eyre};
use serde::de::DeserializeOwned;
use templar_host::connection::Connection;
use templar_host::engine::EngineName;
use templar_host::home::{BucketFile, LocatorFile};
use templar_node::pretrain::setup::Setup;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_record::event::{NodeEvent, Role};
use tokio::sync::mpsc;

use crate::commands::engine::TorchArgs;
use crate::metrics::{self, MetricsArgs};
use crate::{End, show, stop};

/// What every node takes.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The run's specification.
    #[arg(long, env = "TEMPLAR_RUN", value_name = "FILE")]
    run: PathBuf,
    /// JSON-RPC endpoint of the chain, as in ws://127.0.0.1:9944.
    #[arg(long, env = "TEMPLAR_CHAIN", value_name = "URL")]
    chain: String,
    /// File with the hotkey's 32-byte seed in hexadecimal. Only its owner should be able to read it.
    #[arg(long, env = "TEMPLAR_KEY", value_name = "FILE")]
    key: PathBuf,
    /// This node's bucket: `[write]` with the credential that may write, `[public]` with what is published on chain.
    #[arg(long, env = "TEMPLAR_BUCKET", value_name = "FILE")]
    bucket: PathBuf,
    /// The bucket that serves the run's dataset: endpoint, bucket, region and a credential that may read.
    #[arg(long, alias = "data", env = "TEMPLAR_DATA_BUCKET", value_name = "FILE")]
    data_bucket: PathBuf,
    /// Where the dataset is kept.
    #[arg(long, env = "TEMPLAR_DATA_FOLDER", default_value = "templar/dataset", value_name = "DIR")]
    data_folder: PathBuf,
    /// Where the node's state is kept, by run.
    #[arg(long, env = "TEMPLAR_STATE_FOLDER", default_value = "templar/state", value_name = "DIR")]
    state_folder: PathBuf,
    /// The node's name in events and logs.
    #[arg(long, env = "TEMPLAR_NAME", default_value = "node")]
    name: String,
    /// What trains and evaluates: builtin or torch.
    #[arg(long, env = "TEMPLAR_ENGINE", value_name = "ENGINE", default_value_t)]
    engine: EngineName,
    /// Print events as JSON lines instead of text for people.
    #[arg(long, env = "TEMPLAR_JSON")]
    json: bool,
    /// For localnets: end at once when standard input ends, as it does with the process that started this one.
    #[arg(long, hide = true)]
    with_parent: bool,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    torch: TorchArgs,
}

/// Train on assigned data, publish what was learned, be paid for what it was worth.
#[derive(Debug, Args)]
pub(crate) struct Miner {
    #[command(flatten)]
    node: NodeArgs,
}

/// Judge contributions, vote on them, measure what they were worth, set weights.
#[derive(Debug, Args)]
pub(crate) struct Validator {
    #[command(flatten)]
    node: NodeArgs,
    /// Samples of held-out text on which the model is validated after each window; 0 for none.
    #[arg(long, env = "TEMPLAR_VALIDATION_SAMPLES", default_value_t = 0)]
    validation_samples: u64,
}

impl Miner {
    pub(crate) fn run(self) -> Result<End> {
        run(self.node, Role::Miner, ValidatorOptions::default(), |setup| setup)
    }
}

impl Validator {
    pub(crate) fn run(self) -> Result<End> {
        let options = ValidatorOptions { validation_samples: self.validation_samples };
        run(self.node, Role::Validator, options, |setup| setup)
    }
}

/// Runs a node; `wrap` may change what it is made of.
#[tokio::main]
pub(crate) async fn run(
    args: NodeArgs,
    role: Role,
    options: ValidatorOptions,
    wrap: impl FnOnce(Setup) -> Setup,
) -> Result<End> {
    let spec = crate::commands::run::load(&args.run)?;
    if args.with_parent {
        end_with_parent();
    }
    let bucket_form = format!("`[write]` with access_key_id and secret_access_key, and `[public]` with {LOCATOR_FORM}");
    let connection = Connection {
        name: args.name,
        role,
        spec,
        keypair: read_key(&args.key)?,
        chain: args.chain,
        bucket: parse_secret::<BucketFile>(&args.bucket, &bucket_form)?.into(),
        data: parse_secret::<LocatorFile>(&args.data_bucket, LOCATOR_FORM)?.into(),
        data_folder: args.data_folder,
        state_folder: args.state_folder,
        engine: args.torch.engines(&[args.engine], None)?.remove(0),
        options,
    };
    args.metrics.serve()?;
    let (sender, receiver) = mpsc::channel(256);
    let mut printing = tokio::spawn(print_events(receiver, args.json));
    let stop = stop::on_signal();
    let mut stopped = stop.clone();
    let running = async {
        let setup = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
            setup = connection.open(sender) => setup?,
        };
        Ok::<(), color_eyre::Report>(wrap(setup).run(stop.clone()).await?)
    };
    tokio::select! {
        biased;
        ended = running => ended?,
        // A process whose parent is gone must not go on for ever unseen.
        printed = &mut printing => printed?.wrap_err("events cannot be printed: standard output is closed")?,
    }
    if !printing.is_finished() {
        printing.await??;
    }
    Ok(if *stop.borrow() { End::Stopped } else { End::Done })
}

/// The hotkey whose seed is in a file.
pub(crate) fn read_key(path: &Path) -> Result<Keypair> {
    let text = read_small(path)?;
    warn_if_shared(path);
    // Whatever the file holds may be a secret: nothing of it is told.
    let seed = parse_seed(&text).with_context(|| {
        let (path, characters) = (path.display(), text.trim().chars().count());
        format!(
            "{path} is no key file: it must hold a seed as 64 hexadecimal digits, with or without 0x before them, and has \
             {characters} characters that are not that; `templar key new` makes one"
        )
    })?;
    Ok(Keypair::from_seed(seed.0))
}

/// Says so if others than its owner may read a file with a secret.
fn warn_if_shared(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode()) & 0o777;
        if mode & 0o077 != 0 {
            let path = path.display();
            tracing::warn!(
                "{path} holds a secret, and others than its owner may use it (mode {mode:o}): chmod 600 {path}"
            );
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// A node that its parent cannot stop any more must not go on unseen. Its state on disk is whole at any moment.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(1);
    });
}

/// A seed as wallets write it, too: with `0x`, or in capitals.
fn parse_seed(text: &str) -> Option<Hash32> {
    let text = text.trim().to_ascii_lowercase();
    text.strip_prefix("0x").unwrap_or(&text).parse().ok()
}

async fn print_events(mut events: mpsc::Receiver<NodeEvent>, json: bool) -> std::io::Result<()> {
    while let Some(event) = events.recv().await {
        metrics::record(&event);
        let line = if json { serde_json::to_string(&event)? } else { show::event(&event) };
        let mut output = std::io::stdout().lock();
        writeln!(output, "{line}")?;
        output.flush()?;
    }
    Ok(())
}

/// What a bucket that may be read is told as.
const LOCATOR_FORM: &str = "endpoint, bucket, region, access_key_id and secret_access_key";
/// Largest text that a verb takes in: runs, keys and credentials are far smaller.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// A small text file; one byte more than allowed is enough to be refused.
pub(crate) fn read_small(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text));
    read.wrap_err_with(|| format!("{} cannot be read", path.display()))?;
    ensure!(text.len() as u64 <= TEXT_BYTES_MAX, "{} has more than 64 KiB; is this the right file?", path.display());
    Ok(text)
}

/// A TOML file with credentials, which has the fields that `form` tells of. Errors show nothing of what is in it.
fn parse_secret<T: DeserializeOwned>(path: &Path, form: &str) -> Result<T> {
    let text = read_small(path)?;
    warn_if_shared(path);
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        eyre!("{} is not in order (line {line}): it must have {form}, each as a text in quotes", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_may_look_as_wallets_write_it() {
        let seed = "ab".repeat(32);
        for text in [seed.clone(), format!("0x{seed}\n"), format!("0x{}", seed.to_uppercase())] {
            assert_eq!(parse_seed(&text).unwrap(), Hash32([0xab; 32]));
        }
        assert_eq!(parse_seed("0xab"), None);
    }
}
