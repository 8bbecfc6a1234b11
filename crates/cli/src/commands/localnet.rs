//! `templar localnet`

use std::time::Duration;

use clap::Args;
use color_eyre::eyre::{Context, Result, ensure};
use templar_sim::localnet::{self, Kill};

use crate::commands::network::NetworkArgs;
use crate::show::Watcher;
use crate::{End, stop};

/// The network of `demo` with every node a process of its own, on a chain with a fixed block time.
#[derive(Debug, Args)]
pub(crate) struct Localnet {
    #[command(flatten)]
    network: NetworkArgs,
    /// Seconds between two blocks; a window has 20 blocks, of which training may take 10.
    #[arg(long, env = "TEMPLAR_BLOCK_S", default_value_t = 1.0)]
    block_s: f64,
    /// Kill a node with SIGKILL in the middle of a window, as in `miner-1@4`; may be given several times.
    #[arg(long, env = "TEMPLAR_KILL", value_delimiter = ',', value_name = "NODE@WINDOW")]
    kill: Vec<Kill>,
}

impl Localnet {
    #[tokio::main]
    pub(crate) async fn run(self) -> Result<End> {
        ensure!((0.05..=600.0).contains(&self.block_s), "--block-s is {}; it must be 0.05 to 600", self.block_s);
        let folder = self.network.folder()?;
        let plan = self.network.plan()?;
        for kill in &self.kill {
            let known = plan.members().iter().any(|member| member.name == kill.node);
            ensure!(known, "--kill names {:?}, but nodes are miner-0 …, validator-0 …", kill.node);
            ensure!(
                (1..self.network.windows()).contains(&kill.window),
                "--kill names window {}, but a node can be killed in windows 1 to {}",
                kill.window,
                self.network.windows() - 1
            );
        }
        let watcher = Watcher::new(self.network.json, self.network.windows());
        if !self.network.json {
            eprintln!("logs of the nodes: {}/nodes/*/log", folder.path().display());
        }
        let localnet = localnet::Localnet {
            plan,
            text: self.network.text(),
            folder: folder.path().to_path_buf(),
            engines: self.network.engines(),
            binary: std::env::current_exe().wrap_err("this binary cannot find itself to start nodes")?,
            block: Duration::from_secs_f64(self.block_s),
            kills: self.kill.clone(),
        };
        let outcome = localnet
            .run(stop::on_signal(), &mut |progress| watcher.on_prepare(progress), &mut |event, recorder| {
                watcher.on_event(event, recorder);
            })
            .await;
        watcher.finish();
        match outcome {
            Ok(outcome) => self.network.finish(&outcome, folder.path()),
            Err(error) => {
                let kept = folder.keep();
                Err(error).wrap_err_with(|| format!("the network failed; its files are left in {}", kept.display()))
            }
        }
    }
}
