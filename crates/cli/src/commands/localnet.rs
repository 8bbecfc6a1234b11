//! `templar localnet`

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use color_eyre::eyre::{Context, Result, ensure};
use templar_protocol::keys::Hotkey;
use templar_record::event::Role;
use templar_sim::local::guest::Guest;
use templar_sim::local::kept::Ring;
use templar_sim::local::localnet::{self, Kill};
use templar_sim::plan::Plan;

use crate::commands::network::NetworkArgs;
use crate::end::End;
use crate::failure::coded;
use crate::numbers::real;
use crate::output::{is_json, say};
use crate::show::Loss;
use crate::stop;
use crate::watch::Watcher;

/// The network of `demo` with each node in its own process, on a chain with a fixed block time.
#[derive(Debug, Args)]
pub(crate) struct Localnet {
    #[command(flatten)]
    network: NetworkArgs,
    /// Seconds between two blocks; a window has 20 blocks, and training may take 10 of them.
    #[arg(long, env = "TEMPLAR_BLOCK_S", default_value_t = 1.0, value_parser = real(0.05..=600.0))]
    block_s: f64,
    /// Kill a node with SIGKILL in the middle of a window, such as `miner-1@4`; may be given several times.
    #[arg(long, env = "TEMPLAR_KILL", value_delimiter = ',', value_name = "NODE@WINDOW")]
    kill: Vec<Kill>,
    /// Hotkeys of miners on other machines that may take part; `templar key new` makes one.
    #[arg(long, env = "TEMPLAR_JOIN", num_args = 1.., value_delimiter = ',', value_name = "HOTKEY")]
    join: Vec<Hotkey>,
    /// Hotkeys of validators on other machines that may take part, with the same stake as those here.
    #[arg(long, env = "TEMPLAR_JOIN_VALIDATOR", num_args = 1.., value_delimiter = ',', value_name = "HOTKEY")]
    join_validator: Vec<Hotkey>,
    /// Address of this machine under which the others reach its chain and buckets.
    #[arg(long, env = "TEMPLAR_LISTEN", default_value = "127.0.0.1", value_name = "IP")]
    listen: IpAddr,
}

impl Localnet {
    #[tokio::main]
    pub(crate) async fn run(self) -> Result<End> {
        ensure!(!self.listen.is_unspecified(), "--listen {} is not an address that others can reach", self.listen);
        let folder = self.network.folder()?;
        let stop = stop::on_signal_leaving(folder.temporary().map(Path::to_path_buf));
        let network = self.network.network(&folder)?;
        self.check_kills(&network.plan).map_err(coded("usage"))?;
        self.network.metrics.serve()?;
        self.network.introduce(Ring::Localnet, &network, &folder);
        if !is_json() {
            say!("  logs     {}/nodes/*/log", folder.path().display());
        }
        let watcher = Watcher::new(network.plan.windows, Loss::Text);
        if !self.listen.is_loopback() {
            eprintln!(
                "warning: --listen {}: a development chain trusts its network. Buckets speak plain HTTP, and keys and \
                 credentials follow from the seed: whoever reaches this address can read and change everything here",
                self.listen
            );
        }
        let localnet = localnet::Localnet {
            network,
            binary: std::env::current_exe().wrap_err("cannot start nodes: the path of this binary is unknown")?,
            block: Duration::from_secs_f64(self.block_s),
            kills: self.kill.clone(),
            listen: self.listen,
            guests: self.guests(),
        };
        let outcome = localnet.run(stop, &mut |news| watcher.on_news(&news)).await;
        watcher.finish();
        self.network.finish(Ring::Localnet, outcome, folder)
    }

    fn check_kills(&self, plan: &Plan) -> Result<()> {
        for kill in &self.kill {
            let known = plan.members().iter().any(|member| member.name == kill.node);
            ensure!(known, "--kill names {:?}, but nodes are miner-0 …, validator-0 …", kill.node);
            ensure!(
                (1..plan.windows).contains(&kill.window),
                "--kill names window {}, but a node can be killed in windows 1 to {}",
                kill.window,
                plan.windows - 1
            );
        }
        Ok(())
    }

    fn guests(&self) -> Vec<Guest> {
        let miners = self.join.iter().map(|hotkey| (Role::Miner, *hotkey));
        let guests = miners.chain(self.join_validator.iter().map(|hotkey| (Role::Validator, *hotkey)));
        let guest = |(nth, (role, hotkey))| Guest { name: format!("guest-{nth}"), role, hotkey };
        guests.enumerate().map(guest).collect()
    }
}
