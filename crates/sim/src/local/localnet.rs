//! `templar localnet`: the same network as a demo, with each node in its own operating-system process.
//!
//! The parent serves the chain and the buckets, starts one process per node with the verbs that anybody would use,
//! reads the events that they print, and restarts processes that die.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use templar_chain::BlockTime;
use templar_host::engine::Engine;
use templar_host::home::Home;
use templar_protocol::keys::Hotkey;
use templar_record::event::{Event, NodeEvent};
use templar_record::trouble::Trouble;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use crate::local::crew::Crew;
use crate::local::error::NetworkError;
use crate::local::guest::{Guest, Invitation};
use crate::local::kept::Ring;
use crate::local::last_words::{Cure, last_words};
use crate::local::network::{Network, News, NodeFailure, Outcome};
use crate::local::services::Services;
use crate::local::wait::{sleep_until, stopped};
use crate::plan::Member;

/// Pause before a node that died is restarted.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// A process that dies sooner than this, unless it was killed on purpose, has died quickly; after this many quick
/// deaths in a row the node is given up.
const QUICK_DEATH: Duration = Duration::from_secs(10);
const QUICK_DEATHS_MAX: u32 = 5;
/// How long a process may run after its output has ended.
const LAST_BREATH: Duration = Duration::from_secs(5);
/// Most bytes that a process may print before it is restarted.
const OUTPUT_BYTES_MAX: u64 = 1 << 30;

/// A network of processes.
#[derive(Debug)]
pub struct Localnet {
    pub network: Network,
    /// The binary with the verbs `miner` and `validator`.
    pub binary: PathBuf,
    pub block: Duration,
    /// Processes to kill in the middle of a window.
    pub kills: Vec<Kill>,
    /// Where chain and buckets are served: the address under which guests reach this machine.
    pub listen: IpAddr,
    pub guests: Vec<Guest>,
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
    /// Runs to the last window, or until `stop`; `None` if it was stopped before the network was set up. It continues
    /// without nodes that are given up.
    pub async fn run(
        self,
        mut stop: watch::Receiver<bool>,
        tell: &mut dyn FnMut(News<'_>),
    ) -> Result<Option<Outcome>, NetworkError> {
        let time = |_: &[Member]| BlockTime::Fixed(self.block);
        let services =
            Services::start(Ring::Localnet, &self.network, self.listen, &self.guests, time, &mut stop, tell).await?;
        let Some(services) = services else { return Ok(None) };
        let mut crew = Crew::new(true);
        for (nth, member) in services.members.iter().enumerate() {
            let connection = services.connection(member, Engine::of_node(&self.network.engines, nth));
            let home = services.folder.join("nodes").join(&member.name);
            let mut arguments = connection.write(&home).map_err(NetworkError::io(&home))?;
            if let Some(adversary) = member.adversary {
                let verb = ["adversary".to_owned()].into_iter().chain(adversary.arguments());
                arguments.splice(..1, verb);
            }
            arguments.extend(["--with-parent", "--log", "info"].map(str::to_owned));
            let kills = self.kills.iter().filter(|kill| kill.node == member.name).map(|kill| kill.window).collect();
            let (name, binary, log) = (member.name.clone(), self.binary.clone(), home.join("log"));
            // A window is settled near its end: this many blocks later miners train in the next one.
            let kill_after = self.block * 6;
            crew.start(|events, stop| {
                Process { name, binary, arguments, log, kills, kill_after, events }.supervise(stop)
            });
        }
        for guest in &services.kept.definition.guests() {
            let folder = services.folder.join("guests").join(&guest.name);
            let windows = self.network.plan.windows;
            let invitation =
                invite(&services, guest, folder.clone(), windows, &self.binary).map_err(NetworkError::io(&folder))?;
            tell(News::Invited(&invitation));
        }
        crew.run(services, &self.network.plan, &mut stop, tell).await.map(Some)
    }
}

/// Writes what a guest needs, except for its key, which its owner keeps.
fn invite(
    services: &Services,
    guest: &Guest,
    folder: PathBuf,
    windows: u64,
    binary: &Path,
) -> std::io::Result<Invitation> {
    let home = Home {
        name: &guest.name,
        role: guest.role,
        run: &services.spec,
        chain: &services.rpc.url(),
        bucket: &services.bucket(&guest.name),
        data: &services.data(),
    };
    home.write(&folder)?;
    let mut arguments = home.arguments(Path::new(""));
    arguments.extend(["--until-window".to_owned(), windows.to_string()]);
    std::fs::write(folder.join("start.sh"), start_script(&guest.hotkey, &arguments, binary))?;
    Ok(Invitation { guest: guest.clone(), folder, arguments })
}

/// The script that starts a guest's node: it finds the binary, or says where it looked.
fn start_script(hotkey: &Hotkey, arguments: &[String], binary: &Path) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let (command, binary) = (arguments.join(" "), quoted(&binary.display().to_string()));
    format!(
        r#"#!/bin/sh
# Starts the node of hotkey {hotkey},
# whose key must lie beside this file as key.hex. Options given here are handed on.
cd "$(dirname "$0")" || exit 1
written_by={binary}
if [ -n "$TEMPLAR_BIN" ]; then
  templar=$TEMPLAR_BIN
elif command -v templar >/dev/null 2>&1; then
  templar=templar
elif [ -x "$written_by" ]; then
  templar=$written_by
else
  echo "start.sh: there is no templar in the PATH. Install it, or say where it is: TEMPLAR_BIN=/path/to/templar sh start.sh" >&2
  exit 127
fi
if [ ! -f key.hex ]; then
  echo "start.sh: key.hex is missing here: it must hold the key of hotkey {hotkey}" >&2
  exit 1
fi
exec "$templar" {command} "$@"
"#
    )
}

/// A node's process, which is restarted whenever it dies.
struct Process {
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    /// Windows in which to kill it.
    kills: BTreeSet<u64>,
    kill_after: Duration,
    events: mpsc::Sender<NodeEvent>,
}

impl Process {
    /// Keeps the process alive until `stop`. Fails if it dies at every start.
    async fn supervise(mut self, mut stop: watch::Receiver<bool>) -> Result<(), NodeFailure> {
        let (mut quick_deaths, mut told) = (0, String::new());
        loop {
            let (born, kills) = (Instant::now(), self.kills.len());
            let log_began = std::fs::metadata(&self.log).map_or(0, |log| log.len());
            let end = self.live(&mut stop).await;
            if *stop.borrow() {
                return Ok(());
            }
            let was_killed = self.kills.len() < kills;
            quick_deaths = if was_killed || born.elapsed() >= QUICK_DEATH { 0 } else { quick_deaths + 1 };
            let log = self.log.display();
            let last_words = last_words(&self.log, log_began);
            let cause = match end {
                Ok(status) => format!("its process ended ({status}): {}", last_words.text),
                Err(error) => format!("its process cannot be run: {error}"),
            };
            let given_up = match last_words.cure {
                Cure::None => Some(format!("{cause}; a restart cannot help; see {log}")),
                Cure::Restart => (quick_deaths == QUICK_DEATHS_MAX)
                    .then(|| format!("given up after {QUICK_DEATHS_MAX} starts: {cause}; see {log}")),
            };
            if let Some(reason) = given_up {
                return Err(NodeFailure { name: self.name, reason });
            }
            // The same cause is told once.
            if told != cause {
                told.clone_from(&cause);
                let event = Event::Trouble { trouble: Trouble::ProcessEnded { cause, log: log.to_string() } };
                let _ = self.events.send(NodeEvent { node: self.name.clone(), event }).await;
            }
            if tokio::time::timeout(RESTART_PAUSE, stopped(&mut stop)).await.is_ok() {
                return Ok(());
            }
        }
    }

    /// One life of the process, from its start until it ends for any reason. Its output also goes to its log.
    async fn live(&mut self, stop: &mut watch::Receiver<bool>) -> std::io::Result<ExitStatus> {
        let mut log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.binary);
        // All of its options are on its command line; this process's variables may mean something else to it.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"TEMPLAR_")) {
            command.env_remove(name);
        }
        let mut child = command
            .args(&self.arguments)
            // Nothing is written to it. It closes when this process ends, for whatever reason, and then the node ends
            // too.
            .stdin(Stdio::piped())
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
        // Its output has ended, so the process should end too.
        match tokio::time::timeout(LAST_BREATH, child.wait()).await {
            Ok(status) => status,
            Err(_) => end(&mut child).await,
        }
    }
}

/// Ends the process.
async fn end(child: &mut Child) -> std::io::Result<ExitStatus> {
    // Its state on disk is consistent at any moment, so it can be killed.
    child.start_kill()?;
    child.wait().await
}

#[cfg(test)]
mod tests {
    use templar_protocol::keys::Keypair;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_start_script_finds_the_binary_or_says_where_it_looked() {
        let folder = tempfile::tempdir().unwrap();
        let hotkey = Keypair::insecure_dev(1, "guest").hotkey();
        let (script, binary) = (folder.path().join("start.sh"), folder.path().join("it's here"));
        std::fs::write(&script, start_script(&hotkey, &["miner".to_owned(), "--name".to_owned()], &binary)).unwrap();
        let start = |chosen: Option<&str>| {
            let mut command = std::process::Command::new("sh");
            command.arg(&script).arg("--extra").env("PATH", "/usr/bin:/bin").env_remove("TEMPLAR_BIN");
            command.envs(chosen.map(|chosen| ("TEMPLAR_BIN", chosen)));
            let output = command.output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        let (code, _, said) = start(None);
        assert!(code == Some(127) && said.contains("TEMPLAR_BIN=/path/to/templar"), "{said}");
        let (code, _, said) = start(Some("echo"));
        assert!(code == Some(1) && said.contains(&format!("the key of hotkey {hotkey}")), "{said}");
        std::fs::write(folder.path().join("key.hex"), "").unwrap();
        assert_eq!(start(Some("echo")).1, "miner --name --extra\n");
        std::fs::write(&binary, "#!/bin/sh\necho found $*\n").unwrap();
        std::fs::set_permissions(&binary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(start(None).1, "found miner --name --extra\n");
    }
}
