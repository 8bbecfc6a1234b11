//! The watch over a local network's nodes, from their start to the last window.

use std::time::{Duration, Instant};

use templar_node::frame::local::{Disk, Local};
use templar_record::event::{NodeEvent, Role};
use templar_record::recorder::Recorder;
use templar_record::report::Final;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::chain_record;
use crate::local::network::{NetworkError, News, NodeFailure, Outcome};
use crate::local::services::Services;
use crate::local::wait::{sleep_until, stopped};
use crate::plan::{Member, Plan};

/// How long the end waits for the slowest node.
const LAST_CALL: Duration = Duration::from_mins(1);
/// Events that may wait to be shown.
const EVENTS: usize = 256;

/// The nodes at work.
pub(crate) struct Crew {
    nodes: JoinSet<Result<(), NodeFailure>>,
    sender: mpsc::Sender<NodeEvent>,
    events: mpsc::Receiver<NodeEvent>,
    stop: watch::Sender<bool>,
    /// Whether a network does without a node that ended.
    goes_on: bool,
}

impl Crew {
    pub(crate) fn new(goes_on: bool) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        Self { nodes: JoinSet::new(), sender, events, stop: watch::Sender::new(false), goes_on }
    }

    /// Starts a node, given where its events go and what tells it to stop.
    pub(crate) fn start<F>(&mut self, node: impl FnOnce(mpsc::Sender<NodeEvent>, watch::Receiver<bool>) -> F)
    where
        F: Future<Output = Result<(), NodeFailure>> + Send + 'static,
    {
        self.nodes.spawn(node(self.sender.clone(), self.stop.subscribe()));
    }

    /// Runs the network to the last window, or until `stop`, and takes it down.
    pub(crate) async fn run(
        mut self,
        mut services: Services,
        plan: &Plan,
        started: Instant,
        stop: &mut watch::Receiver<bool>,
        tell: &mut dyn FnMut(News<'_>),
    ) -> Result<Outcome, NetworkError> {
        let mut recorder = Recorder::new(services.members.iter().map(Member::participant).collect());
        let mut failures = Vec::new();
        let ended = self.watch(&mut services, plan.windows - 1, stop, &mut recorder, &mut failures, tell).await;
        let _ = self.stop.send(true);
        // From now on nobody waits for a place in the channel.
        self.events.close();
        while let Ok(event) = self.events.try_recv() {
            hear(&event, &mut recorder, tell);
        }
        while self.nodes.join_next().await.is_some() {}
        let last = Final {
            floor_bits_per_byte: services.floor_bits_per_byte,
            wall_s: started.elapsed().as_secs_f64(),
            ..Final::default()
        };
        let (neurons, late) = (chain_record::neurons(&services.chain), chain_record::late(&services.chain));
        let report = recorder.finish(&services.spec, plan.seed, plan.windows, &neurons, late, last);
        let (theta, spec) = (final_theta(&services, plan.windows), services.spec.clone());
        services.shutdown().await?;
        Ok(Outcome { report, spec, theta, stopped: ended?, failures })
    }

    /// Whether it was stopped before every node had settled the last window.
    async fn watch(
        &mut self,
        services: &mut Services,
        last: u64,
        stop: &mut watch::Receiver<bool>,
        recorder: &mut Recorder,
        failures: &mut Vec<NodeFailure>,
        tell: &mut dyn FnMut(News<'_>),
    ) -> Result<bool, NetworkError> {
        let everybody = services.members.len();
        let mut deadline = None;
        while !self.nodes.is_empty() {
            tokio::select! {
                biased;
                () = stopped(stop) => return Ok(true),
                error = services.chain_failed() => return Err(error),
                Some(ended) = self.nodes.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) => failures.push(failure),
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                },
                Some(event) = self.events.recv() => hear(&event, recorder, tell),
                () = sleep_until(deadline) => break,
            }
            if !failures.is_empty() && !self.goes_on {
                break;
            }
            let settled = recorder.settled(last);
            let is_validated =
                recorder.validated(last) || failures.iter().any(|failure| services.validates(&failure.name));
            if settled + failures.len() >= everybody && is_validated {
                break;
            }
            if settled > 0 && deadline.is_none() {
                deadline = Some(tokio::time::Instant::now() + LAST_CALL);
            }
        }
        Ok(false)
    }
}

fn hear(event: &NodeEvent, recorder: &mut Recorder, tell: &mut dyn FnMut(News<'_>)) {
    recorder.record(event);
    tell(News::Event(event, recorder));
}

/// θ from the disk of the first validator, once it has stopped. Whoever started the network may look there; its nodes
/// may not, and do not.
fn final_theta(services: &Services, windows: u64) -> Option<Vec<f32>> {
    let validator = services.members.iter().find(|member| member.role == Role::Validator)?;
    let (folder, hotkey) = (services.state_folder(validator), validator.keypair.hotkey());
    let local = Local::open(&folder, services.spec.id(), &hotkey, Disk::Durable).ok()?;
    let states = local.states(services.spec.id()).ok()?;
    // A network on a clock may have gone on meanwhile.
    let state = states.iter().find(|state| state.settled == windows).or(states.first())?.clone();
    local.theta(&state, &services.spec.layout()).ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use templar_chain::{BlockTime, DevError};
    use templar_protocol::run::CodecKind;

    use super::*;
    use crate::local::network::{Network, Text};
    use crate::r#virtual::scenario::tiny_preset;

    #[tokio::test]
    async fn a_chain_without_disk_ends_the_network() {
        let folder = tempfile::tempdir().unwrap();
        let plan =
            Plan { miners: 1, validators: 1, windows: 1, seed: 1, preset: tiny_preset(), adversaries: Vec::new() };
        let network = Network {
            plan,
            codec: CodecKind::TopkSign,
            text: Text::BuiltIn,
            folder: folder.path().to_path_buf(),
            engines: Vec::new(),
        };
        let (_keep, mut stop) = watch::channel(false);
        let time = |_: &[_]| BlockTime::Fixed(Duration::from_hours(1));
        let services = Services::start(&network, Ipv4Addr::LOCALHOST.into(), &[], time, &mut stop, &mut |_| {}).await;
        let mut services = services.unwrap().unwrap();
        let full = || DevError::Storage { doing: "made a block".to_owned(), reason: "the disk is full".to_owned() };
        services.blocks.spawn(async move { Err(full().into()) });
        let mut crew = Crew::new(true);
        crew.start(|_, mut stop| async move {
            stopped(&mut stop).await;
            Ok(())
        });
        let mut tell = |_: News<'_>| {};
        let running = crew.run(services, &network.plan, Instant::now(), &mut stop, &mut tell);
        let ended = tokio::time::timeout(Duration::from_secs(30), running).await.expect("it waits for blocks");
        assert!(matches!(ended, Err(NetworkError::Blocks(_))), "{ended:?}");
    }
}
