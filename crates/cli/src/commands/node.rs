//! `templar miner` and `templar validator`

use std::path::{Path, PathBuf};

use clap::Args;
use color_eyre::eyre::{Context, Result};
use serde::de::DeserializeOwned;
use templar_model::Device;
use templar_node::events::{NodeEvent, Role};
use templar_node::validator::ValidatorOptions;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::run::RunSpec;
use templar_sim::connect::{BucketFile, Connection, LocatorFile};
use templar_sim::plan::Behaviour;
use tokio::sync::mpsc;

use crate::{End, show, stop};

/// What every node takes.
#[derive(Debug, Args)]
struct NodeArgs {
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
    #[arg(long, env = "TEMPLAR_DATA", value_name = "FILE")]
    data: PathBuf,
    /// Where the dataset is kept.
    #[arg(long, env = "TEMPLAR_DATA_FOLDER", default_value = "templar/dataset", value_name = "DIR")]
    data_folder: PathBuf,
    /// Where the node's state is kept, by run.
    #[arg(long, env = "TEMPLAR_STATE_FOLDER", default_value = "templar/state", value_name = "DIR")]
    state_folder: PathBuf,
    /// The node's name in events and logs.
    #[arg(long, env = "TEMPLAR_NAME", default_value = "node")]
    name: String,
    /// Where to train: cpu, or what else this build supports.
    #[arg(long, env = "TEMPLAR_DEVICE", default_value = "cpu")]
    device: Device,
    /// Print events as JSON lines instead of text for people.
    #[arg(long, env = "TEMPLAR_JSON")]
    json: bool,
}

/// Train on assigned data, publish what was learned, be paid for what it was worth.
#[derive(Debug, Args)]
pub(crate) struct Miner {
    #[command(flatten)]
    node: NodeArgs,
    /// For rehearsals only: misbehave.
    #[arg(long, env = "TEMPLAR_BEHAVIOUR", default_value_t, hide = true)]
    behaviour: Behaviour,
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
        run(self.node, Role::Miner, self.behaviour, ValidatorOptions::default())
    }
}

impl Validator {
    pub(crate) fn run(self) -> Result<End> {
        let options = ValidatorOptions { validation_samples: self.validation_samples };
        run(self.node, Role::Validator, Behaviour::Honest, options)
    }
}

#[tokio::main]
async fn run(args: NodeArgs, role: Role, behaviour: Behaviour, options: ValidatorOptions) -> Result<End> {
    let spec = RunSpec::from_toml(&read(&args.run)?).wrap_err_with(|| args.run.display().to_string())?;
    let seed: Hash32 =
        read(&args.key)?.trim().parse().wrap_err_with(|| format!("the key in {}", args.key.display()))?;
    let connection = Connection {
        name: args.name,
        role,
        behaviour,
        spec,
        keypair: Keypair::from_seed(seed.0),
        chain: args.chain,
        bucket: parse::<BucketFile>(&args.bucket)?.into(),
        data: parse::<LocatorFile>(&args.data)?.into(),
        data_folder: args.data_folder,
        state_folder: args.state_folder,
        device: args.device,
        options,
    };
    let (sender, receiver) = mpsc::channel(256);
    let printing = tokio::spawn(print_events(receiver, args.json));
    let stop = stop::on_signal();
    let setup = connection.open(sender).await?;
    setup.run(stop).await?;
    printing.await?;
    Ok(End::Done)
}

async fn print_events(mut events: mpsc::Receiver<NodeEvent>, json: bool) {
    while let Some(event) = events.recv().await {
        if json {
            match serde_json::to_string(&event) {
                Ok(line) => println!("{line}"),
                Err(error) => tracing::error!(%error, "an event cannot be printed"),
            }
        } else {
            println!("{}", show::event(&event));
        }
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).wrap_err_with(|| format!("{} cannot be read", path.display()))
}

fn parse<T: DeserializeOwned>(path: &Path) -> Result<T> {
    toml::from_str(&read(path)?).wrap_err_with(|| format!("{} is not in order", path.display()))
}
