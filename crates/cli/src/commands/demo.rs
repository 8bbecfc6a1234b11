//! `templar demo`

use std::path::Path;
use std::time::Duration;

use clap::Args;
use color_eyre::eyre::Result;
use templar_node::frame::local::Saving;
use templar_sim::local::demo;
use templar_sim::local::kept::Ring;

use crate::commands::network::NetworkArgs;
use crate::end::End;
use crate::numbers::whole;
use crate::show::Loss;
use crate::stop;
use crate::watch::Watcher;

/// A whole network in this process: an S3 server and a chain on loopback, miners, validators, and a model that learns.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    network: NetworkArgs,
    /// Seconds that a block waits for a node before the chain continues without it; its contribution does not count
    /// then.
    #[arg(long, env = "TEMPLAR_PACE_CAP_S", default_value_t = 60, value_parser = whole::<u64>(1..=86_400))]
    pace_cap_s: u64,
}

impl Demo {
    #[tokio::main]
    pub(crate) async fn run(self) -> Result<End> {
        let folder = self.network.folder()?;
        let stop = stop::on_signal_leaving(folder.temporary().map(Path::to_path_buf));
        let network = self.network.network(&folder)?;
        self.network.metrics.serve()?;
        self.network.introduce(Ring::Demo, &network, &folder);
        let watcher = Watcher::new(network.plan.windows, Loss::Text);
        // A network is never resumed from a folder that is removed at the end.
        let saving = if folder.temporary().is_some() { Saving::Sparing } else { Saving::Exact };
        let demo = demo::Demo { network, pace_cap: Duration::from_secs(self.pace_cap_s), saving };
        let outcome = demo.run(stop, &mut |news| watcher.on_news(&news)).await;
        watcher.finish();
        self.network.finish(Ring::Demo, outcome, folder)
    }
}
