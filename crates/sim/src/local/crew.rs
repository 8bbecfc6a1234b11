//! Runs a local network's nodes and watches over them, from their start to the last window.

use std::sync::atomic::Ordering;
use std::time::Duration;

use templar_protocol::clock::Schedule;
use templar_protocol::run::RunSpec;
use templar_record::event::{NodeEvent, Role};
use templar_record::report::Final;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::chain_record;
use crate::local::error::NetworkError;
use crate::local::final_theta::final_theta;
use crate::local::listing::Wait;
use crate::local::network::{Moment, News, NodeFailure, Outcome, Phase};
use crate::local::services::Services;
use crate::local::steps::Steps;
use crate::local::wait::{sleep_until, stopped};
use crate::plan::Plan;

/// How long the network waits for the slowest node at the end.
const LAST_CALL: Duration = Duration::from_mins(1);
/// Blocks for which chain and buckets stay after the end, so that guests see the last window settled, and how long
/// these blocks may take.
const GUEST_BLOCKS: u64 = 3;
const GUEST_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether all nodes are listed, before the first window.
const LISTING_CHECK: Duration = Duration::from_millis(100);
/// Most events that may wait to be shown.
const EVENTS: usize = 256;
/// Share of a paced window's time that training takes: nearly all of it.
const TRAINING_SHARE: f64 = 0.9;

/// The running nodes.
pub(crate) struct Crew {
    nodes: JoinSet<Result<(), NodeFailure>>,
    sender: mpsc::Sender<NodeEvent>,
    events: mpsc::Receiver<NodeEvent>,
    stop: watch::Sender<bool>,
    /// Whether the network continues without a node that ended.
    goes_on: bool,
    /// Inner steps of the miners of this process.
    steps: Vec<Steps>,
    /// How many blocks that did not wait for a node have been reported.
    late_told: u64,
}

impl Crew {
    pub(crate) fn new(goes_on: bool) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        let (nodes, stop) = (JoinSet::new(), watch::Sender::new(false));
        Self { nodes, sender, events, stop, goes_on, steps: Vec::new(), late_told: 0 }
    }

    /// Starts a node by `node`, which gets the channel for its events and the signal to stop.
    pub(crate) fn start<F>(&mut self, node: impl FnOnce(mpsc::Sender<NodeEvent>, watch::Receiver<bool>) -> F)
    where
        F: Future<Output = Result<(), NodeFailure>> + Send + 'static,
    {
        self.nodes.spawn(node(self.sender.clone(), self.stop.subscribe()));
    }

    /// Counts the inner steps of one more miner.
    pub(crate) fn count_steps(&mut self) -> Steps {
        let steps = Steps::default();
        self.steps.push(steps.clone());
        steps
    }

    /// Runs the network to the last window, or until `stop`, and takes it down.
    pub(crate) async fn run(
        mut self,
        mut services: Services,
        plan: &Plan,
        stop: &mut watch::Receiver<bool>,
        tell: &mut dyn FnMut(News<'_>),
    ) -> Result<Outcome, NetworkError> {
        let roles = services.members.iter().map(|member| member.role);
        let guests = services.kept.definition.guests();
        let miners = roles.chain(guests.iter().map(|guest| guest.role)).filter(|role| *role == Role::Miner).count();
        tell(News::Stands { spec: &services.spec, nodes: services.members.len(), miners });
        let mut failures = Vec::new();
        let ended = self.watch(&mut services, plan.windows - 1, stop, &mut failures, tell).await;
        if matches!(ended, Ok(false)) && !services.kept.definition.guests.is_empty() {
            self.wait_for_guests(&mut services, stop, tell).await;
        }
        let _ = self.stop.send(true);
        // From now on no sender waits for room in the channel.
        self.events.close();
        while let Ok(event) = self.events.try_recv() {
            hear(&event, &mut services, tell);
        }
        while self.nodes.join_next().await.is_some() {}
        services.kept.note_time();
        let last = Final {
            floor_bits_per_byte: services.floor_bits_per_byte,
            wall_s: services.kept.definition.wall_s,
            ..Final::default()
        };
        let (neurons, late) = (chain_record::neurons(&services.chain), chain_record::late(&services.chain));
        let report = services.kept.recorder.finish(&services.spec, plan.seed, plan.windows, &neurons, late, last);
        let theta = final_theta(&services.folder, &services.members, &services.spec, plan.windows);
        let spec = services.spec.clone();
        services.shutdown().await?;
        Ok(Outcome { report, spec, theta, stopped: ended?, failures })
    }

    /// Whether it was stopped before every node had settled the last window.
    async fn watch(
        &mut self,
        services: &mut Services,
        last: u64,
        stop: &mut watch::Receiver<bool>,
        failures: &mut Vec<NodeFailure>,
        tell: &mut dyn FnMut(News<'_>),
    ) -> Result<bool, NetworkError> {
        let everybody = services.members.len();
        let schedule = Schedule::new(&services.spec);
        let mut clock = tokio::time::interval(Duration::from_secs(1));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut deadline, mut look_again) = (None, tokio::time::Instant::now());
        while !self.nodes.is_empty() {
            let listing_check = services.listing.is_some().then_some(look_again);
            tokio::select! {
                biased;
                () = stopped(stop) => return Ok(true),
                error = services.chain_failed() => return Err(error),
                Some(ended) = self.nodes.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) => failures.push(failure),
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                },
                Some(event) = self.events.recv() => hear(&event, services, tell),
                () = sleep_until(deadline) => break,
                () = sleep_until(listing_check) => {
                    look_again += LISTING_CHECK;
                    check_listing(services, failures, tell);
                }
                _ = clock.tick() => {
                    self.tell_late(services, &schedule, tell);
                    if services.listing.is_none() {
                        tell(News::Moment(self.moment(services, &schedule)));
                    }
                }
            }
            if !failures.is_empty() && !self.goes_on {
                break;
            }
            let settled = services.kept.recorder.settled(last);
            let is_validated = services.kept.recorder.validated(last)
                || failures.iter().any(|failure| services.validates(&failure.name));
            if settled + failures.len() >= everybody && is_validated {
                break;
            }
            if settled > 0 && deadline.is_none() {
                deadline = Some(tokio::time::Instant::now() + LAST_CALL);
            }
        }
        self.tell_late(services, &schedule, tell);
        Ok(false)
    }

    /// Lets guests see the end: they hear of the last block when the nodes here do.
    async fn wait_for_guests(
        &mut self,
        services: &mut Services,
        stop: &mut watch::Receiver<bool>,
        tell: &mut dyn FnMut(News<'_>),
    ) {
        let end = services.chain.newest().number + GUEST_BLOCKS;
        let deadline = tokio::time::Instant::now() + GUEST_PATIENCE;
        while services.chain.newest().number < end {
            tokio::select! {
                biased;
                () = stopped(stop) => return,
                Some(event) = self.events.recv() => hear(&event, services, tell),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                () = sleep_until(Some(deadline)) => return,
            }
        }
    }

    /// Reports the nodes for which blocks did not wait since the last call.
    fn tell_late(&mut self, services: &Services, schedule: &Schedule, tell: &mut dyn FnMut(News<'_>)) {
        let total = services.chain.late_total();
        let new = usize::try_from(total - self.late_told).unwrap_or(usize::MAX);
        self.late_told = total;
        let late = services.chain.late();
        for (block, hotkey) in &late[late.len().saturating_sub(new)..] {
            let member = services.members.iter().find(|member| member.keypair.hotkey() == *hotkey);
            if let Some(member) = member {
                tell(News::Late { node: &member.name, block: *block, window: schedule.window_at(*block) });
            }
        }
    }

    fn moment(&self, services: &Services, schedule: &Schedule) -> Moment {
        let (spec, block) = (&services.spec, services.chain.newest().number);
        let of_miner = spec.inner.steps_of(schedule.window_at(block).unwrap_or_default());
        let all = self.steps.len() as u64 * u64::from(of_miner);
        let done = self.steps.iter().map(|steps| steps.load(Ordering::Relaxed)).sum::<u64>().min(all);
        let steps = (all > 0).then_some((done, all));
        moment(block, spec, schedule, steps)
    }
}

/// Releases the chain when all nodes are listed, and says for whom it waits or goes without.
fn check_listing(services: &mut Services, failures: &[NodeFailure], tell: &mut dyn FnMut(News<'_>)) {
    let Some(listing) = &mut services.listing else { return };
    match listing.check(|node| failures.iter().any(|failure| failure.name == node)) {
        Wait::For(nodes) => tell(News::Awaited { nodes: &nodes }),
        Wait::Over(nodes) => {
            services.listing = None;
            if !nodes.is_empty() {
                tell(News::NotListed { nodes: &nodes });
            }
        }
    }
}

fn moment(block: u64, spec: &RunSpec, schedule: &Schedule, steps: Option<(u64, u64)>) -> Moment {
    let Some(window) = schedule.window_at(block) else {
        return Moment { block, window: None, phase: Phase::Waiting, share: 0.0, steps: None };
    };
    let into = block - schedule.first_block(window);
    let put = spec.windows.put_block;
    let phase = match into {
        _ if into < put - (put / 5).max(1) => Phase::Training,
        _ if into < put => Phase::Uploading,
        _ => Phase::Judging,
    };
    let of_blocks = into as f64 / spec.windows.blocks.max(1) as f64;
    // Paced blocks wait for the steps, so their number says little.
    let share = match (phase, steps) {
        (Phase::Training, Some((done, all))) => TRAINING_SHARE * done as f64 / all as f64,
        (_, Some(_)) => TRAINING_SHARE + (1.0 - TRAINING_SHARE) * of_blocks,
        (_, None) => of_blocks,
    };
    Moment { block, window: Some(window), phase, share, steps: steps.filter(|_| phase == Phase::Training) }
}

fn hear(event: &NodeEvent, services: &mut Services, tell: &mut dyn FnMut(News<'_>)) {
    services.kept.hear(event);
    tell(News::Event(event, &services.kept.recorder));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use templar_chain::{BlockTime, DevError};
    use templar_node::pretrain::checkpoint::Retention;
    use templar_protocol::hash::Hash32;
    use templar_protocol::run::CodecKind;

    use super::*;
    use crate::local::kept::Ring;
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
            set: Vec::new(),
            from: None,
            text: Text::BuiltIn,
            folder: folder.path().to_path_buf(),
            engines: Vec::new(),
            retention: Retention::default(),
        };
        let (_keep, mut stop) = watch::channel(false);
        let time = |_: &[_]| BlockTime::Fixed(Duration::from_hours(1));
        let (ring, here) = (Ring::Localnet, Ipv4Addr::LOCALHOST.into());
        let services = Services::start(ring, &network, here, &[], time, &mut stop, &mut |_| {}).await;
        let mut services = services.unwrap().unwrap();
        let full = || DevError::Storage { doing: "made a block".to_owned(), reason: "the disk is full".to_owned() };
        services.blocks.spawn(async move { Err(full().into()) });
        let mut crew = Crew::new(true);
        crew.start(|_, mut stop| async move {
            stopped(&mut stop).await;
            Ok(())
        });
        let mut tell = |_: News<'_>| {};
        let running = crew.run(services, &network.plan, &mut stop, &mut tell);
        let ended = tokio::time::timeout(Duration::from_secs(30), running).await.expect("it waits for blocks");
        assert!(matches!(ended, Err(NetworkError::Blocks(_))), "{ended:?}");
    }

    #[test]
    fn a_moment_says_what_the_nodes_do_and_how_far_the_window_is() {
        let plan =
            Plan { miners: 1, validators: 1, windows: 1, seed: 1, preset: tiny_preset(), adversaries: Vec::new() };
        let spec = plan.spec(Hash32::of(b"g"), Hash32::of(b"m"));
        let schedule = Schedule::new(&spec);
        let at = |into: u64, steps| moment(schedule.first_block(3) + into, &spec, &schedule, steps);
        assert_eq!(moment(0, &spec, &schedule, None).phase, Phase::Waiting);
        let phases: Vec<Phase> = [0, 9, 10, 11, 12, 19].into_iter().map(|into| at(into, None).phase).collect();
        assert_eq!(
            phases,
            [Phase::Training, Phase::Training, Phase::Uploading, Phase::Uploading, Phase::Judging, Phase::Judging]
        );
        assert_eq!((at(5, None).window, at(5, None).share), (Some(3), 0.25));
        // If blocks wait for the steps, the steps show the progress; the share never falls.
        let shares = [at(0, Some((0, 32))), at(9, Some((16, 32))), at(10, Some((32, 32))), at(19, Some((32, 32)))];
        assert!(shares.windows(2).all(|pair| pair[0].share < pair[1].share), "{shares:?}");
        assert_eq!((shares[1].share, shares[1].steps, shares[3].steps), (0.45, Some((16, 32)), None));
    }
}
