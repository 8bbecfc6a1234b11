//! `templar demo`: a whole network in one process, of real parts. Nodes share only the chain and the buckets.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use templar_chain::BlockTime;
use templar_host::connection::Connection;
use templar_host::engine::Engine;
use templar_node::frame::local::Saving;
use templar_node::pretrain::setup::Setup;
use templar_record::event::{NodeEvent, Role};
use tokio::sync::{mpsc, watch};

use crate::local::crew::Crew;
use crate::local::error::NetworkError;
use crate::local::kept::Ring;
use crate::local::network::{Network, News, NodeFailure, Outcome};
use crate::local::services::Services;
use crate::local::steps::{self, Steps};
use crate::local::wait::stopped;
use crate::plan::Member;
use crate::zoo::kind::Adversary;

/// A demonstration.
#[derive(Debug)]
pub struct Demo {
    pub network: Network,
    /// How long a block waits for a node before the chain continues without it.
    pub pace_cap: Duration,
    /// How much its miners write. A demonstration that may be resumed from its folder writes everything.
    pub saving: Saving,
}

impl Demo {
    /// Runs to the last window, or until `stop`; `None` if it was stopped before the network was set up. A node that
    /// ends with an error ends the demonstration: every block would wait for it.
    pub async fn run(
        self,
        mut stop: watch::Receiver<bool>,
        tell: &mut dyn FnMut(News<'_>),
    ) -> Result<Option<Outcome>, NetworkError> {
        let pacing = |members: &[Member]| BlockTime::Paced {
            participants: members.iter().map(|member| member.keypair.hotkey()).collect(),
            cap: self.pace_cap,
        };
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let Some(services) = Services::start(Ring::Demo, &self.network, here, &[], pacing, &mut stop, tell).await?
        else {
            return Ok(None);
        };
        let mut crew = Crew::new(false);
        for (nth, member) in services.members.iter().enumerate() {
            let connection = services.connection(member, Engine::of_node(&self.network.engines, nth));
            let (adversary, saving) = (member.adversary, self.saving);
            let steps = (member.role == Role::Miner).then(|| crew.count_steps());
            crew.start(|events, stop| run_node(connection, adversary, saving, steps, events, stop));
        }
        crew.run(services, &self.network.plan, &mut stop, tell).await.map(Some)
    }
}

async fn run_node(
    connection: Connection,
    adversary: Option<Adversary>,
    saving: Saving,
    steps: Option<Steps>,
    events: mpsc::Sender<NodeEvent>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), NodeFailure> {
    let name = connection.name.clone();
    let failed = |error: &dyn std::error::Error| NodeFailure { name: name.clone(), reason: error.to_string() };
    let setup = tokio::select! {
        biased;
        () = stopped(&mut stop) => return Ok(()),
        setup = connection.open(events) => setup.map_err(|error| failed(&error))?,
    };
    let setup = match steps {
        Some(steps) => steps::counted(setup, steps),
        None => setup,
    };
    let setup = Setup { saving, ..setup };
    let setup = adversary.into_iter().fold(setup, |setup, adversary| adversary.wrap(setup));
    setup.run(stop).await.map_err(|error| failed(&error))
}
