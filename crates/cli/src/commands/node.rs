//! `templar miner` and `templar validator`

use std::path::PathBuf;

use clap::Args;
use color_eyre::eyre::{Result, eyre};
use templar_host::connection::Connection;
use templar_host::engine::EngineName;
use templar_host::home::{BucketFile, LocatorFile};
use templar_node::pretrain::checkpoint::Retention;
use templar_node::pretrain::setup::Setup;
use templar_node::pretrain::validator::ValidatorOptions;
use templar_record::event::{NodeEvent, Role};
use tokio::sync::{mpsc, watch};

use crate::commands::engine::TorchArgs;
use crate::commands::tenure::{Ending, Tenure};
use crate::end::End;
use crate::failure::coded;
use crate::files::{BUCKET_KEYS, LOCATOR_KEYS, read_key, read_run, read_secret};
use crate::metrics::{self, MetricsArgs};
use crate::numbers::whole;
use crate::output::say;
use crate::{output, show, stop};

/// Options of every node.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The run's specification.
    #[arg(long, env = "TEMPLAR_RUN", value_name = "FILE")]
    run: PathBuf,
    /// Endpoint of the development chain's own JSON-RPC, such as ws://127.0.0.1:9944.
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
    /// End after this many windows of the run; a localnet tells its guests how many it has. Without it a node never
    /// ends.
    #[arg(long, env = "TEMPLAR_UNTIL_WINDOW", value_name = "WINDOWS", value_parser = whole::<u64>(1..=u64::MAX))]
    until_window: Option<u64>,
    /// For localnets: end at once when standard input ends, as it does with the process that started this one.
    #[arg(long, hide = true)]
    with_parent: bool,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    torch: TorchArgs,
}

/// Mine: train on assigned data, publish what was learned, be paid for what it was worth.
#[derive(Debug, Args)]
pub(crate) struct Miner {
    #[command(flatten)]
    node: NodeArgs,
}

/// Validate: judge contributions, vote on them, measure what they were worth, set weights.
#[derive(Debug, Args)]
pub(crate) struct Validator {
    #[command(flatten)]
    node: NodeArgs,
    /// Samples of held-out text on which the model is validated after each window; 0 for none.
    #[arg(long, env = "TEMPLAR_VALIDATION_SAMPLES", default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX))]
    validation_samples: u64,
    /// Serve the contributions that counted for good, not only until a later checkpoint, so that `templar run verify
    /// --from-genesis` can compute every θ again.
    #[arg(long, env = "TEMPLAR_ARCHIVE")]
    archive: bool,
}

impl Miner {
    pub(crate) fn run(self) -> Result<End> {
        run(self.node, Role::Miner, ValidatorOptions::default(), |setup| setup)
    }
}

impl Validator {
    pub(crate) fn run(self) -> Result<End> {
        let options = ValidatorOptions {
            validation_samples: self.validation_samples,
            retention: if self.archive { Retention::ForGood } else { Retention::Promised },
        };
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
    let spec = read_run(&args.run)?;
    if args.with_parent {
        end_with_parent();
    }
    let connection = Connection {
        name: args.name,
        role,
        spec,
        keypair: read_key(&args.key)?,
        chain: args.chain,
        bucket: read_secret::<BucketFile>(&args.bucket, BUCKET_KEYS)?.into(),
        data: read_secret::<LocatorFile>(&args.data_bucket, LOCATOR_KEYS)?.into(),
        data_folder: args.data_folder,
        state_folder: args.state_folder,
        engine: args.torch.engines(&[args.engine], None).map_err(coded("usage"))?.remove(0),
        options,
    };
    args.metrics.serve()?;
    let (sender, receiver) = mpsc::channel(256);
    // The node stops on a signal, or when its part has ended.
    let (stop, (halt, mut halted)) = (stop::on_signal(), watch::channel(false));
    tokio::spawn(forward(stop.clone(), halt.clone()));
    let is_shown = args.until_window.is_some() || !output::is_json();
    let hotkey = connection.keypair.hotkey();
    let tenure = Tenure::new(args.until_window, is_shown, connection.chain.clone(), hotkey, role);
    let printing = tokio::spawn(print_events(receiver, tenure, halt));
    let setup = tokio::select! {
        biased;
        _ = halted.wait_for(|halt| *halt) => None,
        setup = connection.open(sender) => Some(setup?),
    };
    if let Some(setup) = setup {
        wrap(setup).run(halted).await?;
    }
    if printing.await?? == Some(Ending::ChainGone) {
        let gone =
            "the chain is gone: its network has ended early, or its machine is down; restart to resume from here";
        return Err(coded("chain")(eyre!(gone)));
    }
    Ok(if *stop.borrow() { End::Stopped } else { End::Done })
}

/// Passes a signal on.
async fn forward(mut stop: watch::Receiver<bool>, halt: watch::Sender<bool>) {
    if stop.wait_for(|stop| *stop).await.is_ok() {
        halt.send_replace(true);
    }
}

/// A node that its parent can no longer stop must not continue unseen. Its state on disk is consistent at any moment.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(1);
    });
}

/// Prints events as they come, until the node has ended or standard output accepts nothing more. Ends the node when its
/// part is over, and prints the final result.
async fn print_events(
    mut events: mpsc::Receiver<NodeEvent>,
    mut tenure: Tenure,
    halt: watch::Sender<bool>,
) -> Result<Option<Ending>> {
    let json = output::is_json();
    let mut ending = None;
    while let Some(event) = events.recv().await {
        metrics::record(&event);
        let line = if json { serde_json::to_string(&event)? } else { show::event(&event) };
        say!("{line}");
        if ending.is_none() {
            ending = tenure.note(&event.event).await;
            if ending.is_some() {
                halt.send_replace(true);
            }
        }
    }
    if let Some(summary) = tenure.summary(json) {
        say!("{summary}");
    }
    Ok(ending)
}
