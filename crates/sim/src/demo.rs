//! `templar demo`: a whole network in one process, of real parts. Nodes share nothing but the chain and the buckets.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use templar_chain::BlockTime;
use templar_data::Progress;
use templar_node::events::{NodeEvent, Role};
use templar_node::local::Local;
use templar_protocol::run::RunSpec;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::engine::Engine;
use crate::plan::{Member, Plan};
use crate::report::{Final, Late, Recorder, Report};
use crate::world::{Text, World, WorldError};

/// How long the end waits for the slowest node.
const LAST_CALL: Duration = Duration::from_secs(30);

/// A demonstration.
#[derive(Debug)]
pub struct Demo {
    pub plan: Plan,
    pub text: Text,
    pub folder: PathBuf,
    /// One for each node, miners first; the last one is for all further nodes.
    pub engines: Vec<Engine>,
    /// How long a block waits for a node before the chain goes on without it.
    pub pace_cap: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub report: Report,
    pub spec: RunSpec,
    /// θ after the last window, as the first validator has it.
    pub theta: Option<Vec<f32>>,
    /// Whether it ended before its last window.
    pub stopped: bool,
}

impl Demo {
    /// Runs to the last window, or until `stop`. Progress of the preparation and all events are shown to the caller.
    pub async fn run(
        self,
        mut stop: watch::Receiver<bool>,
        on_prepare: &mut dyn FnMut(Progress),
        on_event: &mut dyn FnMut(&NodeEvent, &Recorder),
    ) -> Result<Outcome, WorldError> {
        let started = Instant::now();
        let pacing = |members: &[Member]| BlockTime::Paced {
            participants: members.iter().map(|member| member.keypair.hotkey()).collect(),
            cap: self.pace_cap,
        };
        let world = World::start(&self.plan, &self.folder, &self.text, pacing, on_prepare).await?;
        let (sender, mut events) = mpsc::channel(256);
        let (stop_nodes, nodes_stopped) = watch::channel(false);
        let mut nodes = JoinSet::new();
        for (nth, member) in world.members.clone().into_iter().enumerate() {
            let connection = world.connection(&member, Engine::of_node(&self.engines, nth));
            let sender = sender.clone();
            let nodes_stopped = nodes_stopped.clone();
            nodes.spawn(async move {
                let setup = connection.open(sender).await.map_err(|error| failed(&member, &error))?;
                setup.run(nodes_stopped).await.map_err(|error| failed(&member, &error))
            });
        }
        drop(sender);
        let mut recorder = Recorder::new(world.members.clone());
        let mut deadline = None;
        let (last, everybody) = (self.plan.windows - 1, world.members.len());
        let mut failure = None;
        let was_stopped = loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break true,
                Some(ended) = nodes.join_next() => match ended {
                    Ok(Err(error)) => { failure = Some(error); break true }
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                    Ok(Ok(())) => {}
                },
                event = events.recv() => {
                    let Some(event) = event else { break true };
                    recorder.record(&event);
                    on_event(&event, &recorder);
                }
                () = sleep_until(deadline) => break false,
            }
            let settled = recorder.settled(last);
            if settled == everybody && recorder.validated(last) {
                break false;
            }
            if settled > 0 && deadline.is_none() {
                deadline = Some(tokio::time::Instant::now() + LAST_CALL);
            }
        };
        let _ = stop_nodes.send(true);
        drop(events);
        while nodes.join_next().await.is_some() {}
        if let Some(failure) = failure {
            world.shutdown().await?;
            return Err(failure);
        }
        let floor_bits_per_byte = world.floor_bits_per_byte;
        let last = Final { floor_bits_per_byte, wall_s: started.elapsed().as_secs_f64(), ..Final::default() };
        let report = recorder.finish(
            &world.spec,
            self.plan.seed,
            self.plan.windows,
            &world.chain.emissions(),
            Late::of(&world.chain),
            last,
        );
        let theta = final_theta(&world, self.plan.windows);
        let spec = world.spec.clone();
        world.shutdown().await?;
        Ok(Outcome { report, spec, theta, stopped: was_stopped })
    }
}

/// Ends when `stop` is true, or nobody is left to say so.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Ends at the deadline; never without one.
pub(crate) async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn failed(member: &Member, error: &dyn std::error::Error) -> WorldError {
    WorldError::Node { name: member.name.clone(), reason: error.to_string() }
}

/// θ from the disk of the first validator, once it has stopped.
pub fn final_theta(world: &World, windows: u64) -> Option<Vec<f32>> {
    let validator = world.members.iter().find(|member| member.role == Role::Validator)?;
    let local = Local::open(&world.state_folder(validator), world.spec.id(), &validator.keypair.hotkey()).ok()?;
    let states = local.states(world.spec.id()).ok()?;
    // A network on a clock may have gone on meanwhile.
    let state = states.iter().find(|state| state.settled == windows).or(states.first())?.clone();
    local.theta(&state, &world.spec.layout())
}
