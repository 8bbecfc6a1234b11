//! `templar localnet`: the same network as a demo, with every node an operating-system process of its own.
//!
//! The parent serves the chain and the buckets, starts a process a node with the verbs that anybody would use, reads
//! the events that they print, and starts again whatever dies.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use templar_chain::BlockTime;
use templar_data::Progress;
use templar_node::events::{Event, NodeEvent};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::demo::{Outcome, final_theta, sleep_until, stopped};
use crate::engine::Engine;
use crate::plan::{Member, Plan};
use crate::report::{Final, Recorder};
use crate::world::{Text, World, WorldError};

/// Pause before a node that died is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// A life shorter than this, ended by nobody here, is a quick death; after so many in a row a node is given up.
const QUICK_DEATH: Duration = Duration::from_secs(10);
const QUICK_DEATHS_MAX: u32 = 5;
/// How long a process whose output has ended may take to end itself.
const LAST_BREATH: Duration = Duration::from_secs(5);
/// How long the end waits for the slowest node.
const LAST_CALL: Duration = Duration::from_mins(1);
/// Most that a process may print in its life before it is started again.
const OUTPUT_BYTES_MAX: u64 = 1 << 30;

/// A network of processes.
#[derive(Debug)]
pub struct Localnet {
    pub plan: Plan,
    pub text: Text,
    pub folder: PathBuf,
    /// One for each node, miners first; the last one is for all further nodes.
    pub engines: Vec<Engine>,
    /// The binary with the verbs `miner` and `validator`.
    pub binary: PathBuf,
    pub block: Duration,
    /// Processes to kill in mid-window.
    pub kills: Vec<Kill>,
}

/// SIGKILL for a node in the middle of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub node: String,
    pub window: u64,
}

impl FromStr for Kill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('@').and_then(|(node, window)| Some((node.to_owned(), window.parse().ok()?)));
        let (node, window) =
            parsed.ok_or_else(|| format!("{text:?} is not of the form NODE@WINDOW, such as miner-1@4"))?;
        Ok(Self { node, window })
    }
}

impl Localnet {
    /// Runs to the last window, or until `stop`. Progress of the preparation and all events are shown to the caller.
    pub async fn run(
        self,
        mut stop: watch::Receiver<bool>,
        on_prepare: &mut dyn FnMut(Progress),
        on_event: &mut dyn FnMut(&NodeEvent, &Recorder),
    ) -> Result<Outcome, WorldError> {
        let started = Instant::now();
        let time = |_: &[Member]| BlockTime::Fixed(self.block);
        let world = World::start(&self.plan, &self.folder, &self.text, time, on_prepare).await?;
        let (sender, mut events) = mpsc::channel(256);
        let (stop_nodes, nodes_stopped) = watch::channel(false);
        let mut nodes = JoinSet::new();
        for (nth, member) in world.members.iter().enumerate() {
            let connection = world.connection(member, Engine::of_node(&self.engines, nth));
            let home = world.folder.join("nodes").join(&member.name);
            let run = world.folder.join("run.toml");
            let mut arguments = connection.write(&home, &run).map_err(WorldError::io(&home))?;
            arguments.extend(["--log".to_owned(), "info".to_owned()]);
            let kills = self.kills.iter().filter(|kill| kill.node == member.name).map(|kill| kill.window).collect();
            let process = Process {
                name: member.name.clone(),
                binary: self.binary.clone(),
                arguments,
                log: home.join("log"),
                kills,
                // Some blocks into the window, when a miner trains and a validator fetches.
                kill_after: self.block * 6,
                events: sender.clone(),
            };
            nodes.spawn(process.supervise(nodes_stopped.clone()));
        }
        drop(sender);
        let mut recorder = Recorder::new(world.members.clone());
        let was_stopped = self.watch(&mut events, &mut stop, &mut recorder, on_event).await;
        let _ = stop_nodes.send(true);
        drop(events);
        while nodes.join_next().await.is_some() {}
        let floor_bits_per_byte = world.floor_bits_per_byte;
        let last = Final { floor_bits_per_byte, wall_s: started.elapsed().as_secs_f64(), ..Final::default() };
        let (seed, windows) = (self.plan.seed, self.plan.windows);
        let report = recorder.finish(&world.spec, seed, windows, &world.chain.emissions(), (Vec::new(), 0), last);
        let (theta, spec) = (final_theta(&world, windows), world.spec.clone());
        world.shutdown().await?;
        Ok(Outcome { report, spec, theta, stopped: was_stopped })
    }

    /// Whether it was stopped before every node had settled the last window.
    async fn watch(
        &self,
        events: &mut mpsc::Receiver<NodeEvent>,
        stop: &mut watch::Receiver<bool>,
        recorder: &mut Recorder,
        on_event: &mut dyn FnMut(&NodeEvent, &Recorder),
    ) -> bool {
        let (last, everybody) = (self.plan.windows - 1, self.plan.miners + self.plan.validators);
        let mut deadline = None;
        loop {
            tokio::select! {
                biased;
                () = stopped(stop) => return true,
                event = events.recv() => {
                    let Some(event) = event else { return true };
                    recorder.record(&event);
                    on_event(&event, recorder);
                }
                () = sleep_until(deadline) => return false,
            }
            let settled = recorder.settled(last);
            if settled == everybody && recorder.validated(last) {
                return false;
            }
            if settled > 0 && deadline.is_none() {
                deadline = Some(tokio::time::Instant::now() + LAST_CALL);
            }
        }
    }
}

/// A node's process, started again whenever it dies.
struct Process {
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    /// Windows in the middle of which to kill it.
    kills: BTreeSet<u64>,
    kill_after: Duration,
    events: mpsc::Sender<NodeEvent>,
}

impl Process {
    async fn supervise(mut self, mut stop: watch::Receiver<bool>) {
        let mut quick_deaths = 0;
        while !*stop.borrow() && quick_deaths < QUICK_DEATHS_MAX {
            let (born, kills) = (Instant::now(), self.kills.len());
            let end = self.live(&mut stop).await;
            if *stop.borrow() {
                return;
            }
            let was_killed = self.kills.len() < kills;
            quick_deaths = if was_killed || born.elapsed() >= QUICK_DEATH { 0 } else { quick_deaths + 1 };
            let cause = match end {
                Ok(status) => format!("its process ended: {status}"),
                Err(error) => format!("its process cannot be run: {error}"),
            };
            let next = if quick_deaths < QUICK_DEATHS_MAX { "it is started again" } else { "it is given up" };
            let what = format!("{cause}; {next}, see {}", self.log.display());
            let _ = self.events.send(NodeEvent { node: self.name.clone(), event: Event::Trouble { what } }).await;
            let _ = tokio::time::timeout(RESTART_PAUSE, stopped(&mut stop)).await;
        }
    }

    /// One life of the process, from its start to its end by whatever cause. What it prints goes to its log, too.
    async fn live(&mut self, stop: &mut watch::Receiver<bool>) -> std::io::Result<ExitStatus> {
        let mut log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut child = Command::new(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().ok_or_else(|| std::io::Error::other("the process has no output"))?;
        let mut lines = BufReader::new(output.take(OUTPUT_BYTES_MAX)).lines();
        let mut kill_at = None;
        loop {
            tokio::select! {
                biased;
                () = stopped(stop) => return end(&mut child).await,
                () = sleep_until(kill_at) => {
                    child.start_kill()?;
                    kill_at = None;
                }
                line = lines.next_line() => {
                    let Some(line) = line? else { break };
                    writeln!(log, "{line}")?;
                    let Ok(event) = serde_json::from_str::<NodeEvent>(&line) else { continue };
                    if let Event::Settled { window, .. } = &event.event
                        && self.kills.remove(&(window + 1))
                    {
                        kill_at = Some(tokio::time::Instant::now() + self.kill_after);
                    }
                    if self.events.send(event).await.is_err() {
                        return end(&mut child).await;
                    }
                }
            }
        }
        // Its output is at its end: so should it be.
        match tokio::time::timeout(LAST_BREATH, child.wait()).await {
            Ok(status) => status,
            Err(_) => end(&mut child).await,
        }
    }
}

/// Ends the process.
async fn end(child: &mut Child) -> std::io::Result<ExitStatus> {
    // Its state on disk is whole at any moment, so it can be killed.
    child.start_kill()?;
    child.wait().await
}
