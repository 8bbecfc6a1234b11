//! What a network keeps in its folder beside the nodes' own files, so that it can go on after a kill, and so that its
//! model and report can be made from the folder alone.
//!
//! | file | what |
//! |---|---|
//! | `network.toml` | how the network was started |
//! | `run.toml` | the run; it is written last, so a folder without it never stood |
//! | `events.jsonl` | every event that was heard, see [`templar_record::log`] |
//! | `lock` | locked while a process runs the network, or exports it |

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use templar_model::presets::Preset;
use templar_protocol::keys::Hotkey;
use templar_protocol::run::{CodecKind, RunSpec};
use templar_record::event::{NodeEvent, Role};
use templar_record::log::{self, LogError, Writer};
use templar_record::recorder::{Participant, Recorder};

use crate::local::guest::Guest;
use crate::local::network::{Network, Text};
use crate::plan::{Behaviour, Member, Plan};

/// Changes with every change of what the folder holds.
const FORMAT: u32 = 1;
/// Names of the files.
const DEFINITION: &str = "network.toml";
const RUN: &str = "run.toml";
const EVENTS: &str = "events.jsonl";
const LOCK: &str = "lock";
/// Ending of a file that is being written.
const TEMPORARY: &str = "tmp";
/// What the verbs start at most.
pub const WINDOWS_MAX: u64 = 100_000;
pub const MINERS_MAX: u16 = 128;
pub const VALIDATORS_MAX: u16 = 32;
/// What an earlier start may have left of a network that never stood.
const LEFTOVERS: [&str; 6] = ["dataset", "s3", "nodes", "guests", EVENTS, "chain.sqlite"];
/// Longest file that is read as a whole.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// Which verb runs a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ring {
    Demo,
    Localnet,
}

impl Ring {
    /// The verb.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Localnet => "localnet",
        }
    }
}

/// How a network was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    format: u32,
    verb: Ring,
    preset: String,
    codec: CodecKind,
    miners: usize,
    validators: usize,
    adversaries: Vec<Behaviour>,
    pub seed: u64,
    /// What is trained on; nothing for the built-in corpus.
    data: Vec<String>,
    /// This much may change from start to start.
    pub windows: u64,
    /// Where chain and buckets were served last, so that guests find them there again.
    pub chain: Option<SocketAddr>,
    pub buckets: Option<SocketAddr>,
    #[serde(default)]
    pub guests: Vec<Invited>,
}

/// A guest of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invited {
    name: String,
    role: Role,
    hotkey: Hotkey,
}

/// Why a folder cannot be used, or used again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeptError {
    #[error("{path}: {source}; check free space and permissions")]
    Io { path: String, source: std::io::Error },
    #[error("another process runs the network in {folder}, or exports it: wait for its end, or stop it")]
    InUse { folder: String },
    #[error("{path} is not the file that `templar demo` or `templar localnet` wrote: {reason}; name another folder")]
    Malformed { path: String, reason: String },
    #[error("{folder} holds no network: name a folder that `templar demo` or `templar localnet` was given as --folder")]
    NoNetwork { folder: String },
    #[error("the network in {folder} was stopped before it stood: there is nothing in it yet")]
    NeverStood { folder: String },
    #[error(
        "{folder} holds a network that was started with other options: --{option} was {was}, and is {is} now. Give the same \
         options to go on with it, or name another folder"
    )]
    Differs { folder: String, option: &'static str, was: String, is: String },
    #[error(
        "all {windows} windows of the network in {folder} are trained. Keep its model with `templar export {folder} --out DIR`, \
         or give a greater --windows to train on"
    )]
    Finished { folder: String, windows: u64 },
    #[error(transparent)]
    Log(#[from] LogError),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> KeptError + '_ {
    move |source| KeptError::Io { path: path.display().to_string(), source }
}

impl Definition {
    /// Of a network that `verb` runs.
    pub fn new(ring: Ring, network: &Network, guests: &[Guest]) -> Self {
        let Network { plan, codec, text, .. } = network;
        let guest = |guest: &Guest| Invited { name: guest.name.clone(), role: guest.role, hotkey: guest.hotkey };
        Self {
            format: FORMAT,
            verb: ring,
            preset: plan.preset.name.to_owned(),
            codec: *codec,
            miners: plan.miners,
            validators: plan.validators,
            adversaries: plan.adversaries.clone(),
            seed: plan.seed,
            data: text.described(),
            windows: plan.windows,
            chain: None,
            buckets: None,
            guests: guests.iter().map(guest).collect(),
        }
    }

    /// Whether `folder` holds a network, finished or not.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(DEFINITION).is_file()
    }

    /// Whether a network may begin in `folder`: nothing is in it but what a start leaves that is killed at its beginning.
    pub fn is_free(folder: &Path) -> std::io::Result<bool> {
        let temporary = Path::new(DEFINITION).with_extension(TEMPORARY);
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            if name != LOCK && name != temporary {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read(folder: &Path) -> Result<Self, KeptError> {
        let path = folder.join(DEFINITION);
        if !path.exists() {
            return Err(KeptError::NoNetwork { folder: folder.display().to_string() });
        }
        let malformed = |reason: String| KeptError::Malformed { path: path.display().to_string(), reason };
        let definition: Self = toml::from_str(&text(&path)?).map_err(|error| malformed(error.message().to_owned()))?;
        if definition.format != FORMAT {
            return Err(malformed(format!("it has format {}, and this binary reads {FORMAT}", definition.format)));
        }
        definition.check().map_err(malformed)?;
        Ok(definition)
    }

    /// Anybody may have written the file: what no verb would start is no network.
    fn check(&self) -> Result<(), String> {
        let counts = [
            ("windows", self.windows, WINDOWS_MAX),
            ("miners", self.miners as u64, u64::from(MINERS_MAX)),
            ("validators", self.validators as u64, u64::from(VALIDATORS_MAX)),
        ];
        for (key, count, max) in counts {
            if !(1..=max).contains(&count) {
                return Err(format!("{key} is {count}, but a network has 1 to {max}"));
            }
        }
        if self.adversaries.len() >= self.miners {
            return Err(format!("{} of {} miners misbehave: one must not", self.adversaries.len(), self.miners));
        }
        Ok(())
    }

    /// Adds the guests of an earlier start: they are registered on the chain, and have their buckets. A guest that is new
    /// gets a name that is.
    fn keep_guests(&mut self, was: Vec<Invited>) {
        let new = std::mem::replace(&mut self.guests, was);
        for mut guest in new {
            if self.guests.iter().any(|known| known.hotkey == guest.hotkey) {
                continue;
            }
            let is_taken = |name: &str| self.guests.iter().any(|known| known.name == name);
            if is_taken(&guest.name) {
                let mut names = (0..).map(|nth| format!("guest-{nth}"));
                guest.name = names.find(|name| !is_taken(name)).expect("there are more names than guests");
            }
            self.guests.push(guest);
        }
    }

    /// Those who may join.
    pub(crate) fn guests(&self) -> Vec<Guest> {
        let guest = |guest: &Invited| Guest { name: guest.name.clone(), role: guest.role, hotkey: guest.hotkey };
        self.guests.iter().map(guest).collect()
    }

    fn write(&self, folder: &Path) -> Result<(), KeptError> {
        let text = toml::to_string(self).expect("text and numbers only");
        let intro =
            "# How this network was started. The same verb with the same options and --folder goes on with it.\n";
        replace(&folder.join(DEFINITION), &(intro.to_owned() + &text))
    }

    /// The first option in which another start differs, as it was and as it is.
    fn difference(&self, now: &Self) -> Option<(&'static str, String, String)> {
        let adversaries = |of: &Self| of.adversaries.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let data = |of: &Self| of.data.join(" ");
        let codec = |of: &Self| {
            toml::Value::try_from(of.codec)
                .map_or_else(|_| String::new(), |name| name.as_str().unwrap_or_default().to_owned())
        };
        let pairs = [
            ("preset", self.preset.clone(), now.preset.clone()),
            ("miners", self.miners.to_string(), now.miners.to_string()),
            ("validators", self.validators.to_string(), now.validators.to_string()),
            ("seed", self.seed.to_string(), now.seed.to_string()),
            ("codec", codec(self), codec(now)),
            ("adversary", adversaries(self), adversaries(now)),
            ("data", data(self), data(now)),
        ];
        let named = |text: String| if text.is_empty() { "not given".to_owned() } else { text };
        let mut pairs = pairs.into_iter();
        pairs.find(|(_, was, is)| was != is).map(|(option, was, is)| (option, named(was), named(is)))
    }

    /// The plan of the network, of which `spec` is the run.
    pub fn plan(&self, spec: &RunSpec) -> Plan {
        Plan {
            miners: self.miners,
            validators: self.validators,
            windows: self.windows,
            seed: self.seed,
            preset: Preset { name: "kept", model: spec.model.clone(), inner: spec.inner.clone() },
            adversaries: self.adversaries.clone(),
        }
    }

    /// Whether the built-in corpus is trained on.
    pub fn has_built_in_text(&self) -> bool {
        self.data.is_empty()
    }
}

impl Text {
    /// As options say it, paths in full.
    fn described(&self) -> Vec<String> {
        let full = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string();
        match self {
            Self::BuiltIn => Vec::new(),
            Self::Prepared(folder) => vec![full(folder)],
            Self::Paths { sources, tokenizer, end_of_text } => {
                let tokenizer = tokenizer.iter().map(|path| format!("--tokenizer {}", full(path)));
                let end_of_text = end_of_text.iter().map(|token| format!("--end-of-text {token}"));
                sources.iter().map(full).chain(tokenizer).chain(end_of_text).collect()
            }
        }
    }
}

/// A network's folder, locked for this process.
#[derive(Debug)]
pub struct Kept {
    folder: PathBuf,
    _lock: File,
    pub definition: Definition,
    /// The run, if the network stood before.
    pub spec: Option<RunSpec>,
    /// All that was heard so far.
    pub(crate) recorder: Recorder,
    /// None once it could not be written.
    log: Option<Writer<File>>,
}

impl Kept {
    /// The folder of a network that is to start, or to go on.
    pub(crate) fn open(folder: &Path, now: &Definition) -> Result<Self, KeptError> {
        fs::create_dir_all(folder).map_err(io(folder))?;
        let lock = lock(folder)?;
        let name = || folder.display().to_string();
        let mut definition = now.clone();
        let mut spec = None;
        if Definition::is_in(folder) {
            let was = Definition::read(folder)?;
            if was.verb != now.verb {
                let (was, is) = (was.verb.verb().to_owned(), now.verb.verb().to_owned());
                let reason = format!("it is of `templar {was}`, not of `templar {is}`");
                return Err(KeptError::Malformed { path: folder.join(DEFINITION).display().to_string(), reason });
            }
            if let Some((option, was, is)) = was.difference(now) {
                return Err(KeptError::Differs { folder: name(), option, was, is });
            }
            (definition.chain, definition.buckets) = (was.chain, was.buckets);
            spec = read_run(folder)?;
            if spec.is_none() {
                remove_leftovers(folder)?;
            } else {
                definition.keep_guests(was.guests);
            }
        }
        let recorder = replay(folder, &definition)?;
        let everybody = definition.miners + definition.validators;
        let last = definition.windows - 1;
        if spec.is_some() && (recorder.settled(last) >= everybody || recorder.validated(last)) {
            return Err(KeptError::Finished { folder: name(), windows: definition.windows });
        }
        // A refusal changes nothing.
        definition.write(folder)?;
        let log = Some(append(&folder.join(EVENTS))?);
        Ok(Self { folder: folder.to_path_buf(), _lock: lock, definition, spec, recorder, log })
    }

    /// The folder of a network that ran, to look at.
    pub(crate) fn read(folder: &Path) -> Result<(Self, RunSpec), KeptError> {
        let definition = Definition::read(folder)?;
        let lock = lock(folder)?;
        let never = || KeptError::NeverStood { folder: folder.display().to_string() };
        let spec = read_run(folder)?.ok_or_else(never)?;
        let recorder = replay(folder, &definition)?;
        let kept = Self { folder: folder.to_path_buf(), _lock: lock, definition, spec: None, recorder, log: None };
        Ok((kept, spec))
    }

    /// Notes where the network is served, and then that it stands.
    pub(crate) fn stands(&mut self, spec: &RunSpec, chain: SocketAddr, buckets: SocketAddr) -> Result<(), KeptError> {
        (self.definition.chain, self.definition.buckets) = (Some(chain), Some(buckets));
        self.definition.write(&self.folder)?;
        replace(&self.folder.join(RUN), &spec.to_toml())
    }

    /// Windows that somebody has settled before, and those that were validated, too.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let all = 0..self.definition.windows;
        let settled = all.clone().take_while(|window| self.recorder.settled(*window) > 0).count() as u64;
        (settled, all.take_while(|window| self.recorder.validated(*window)).count() as u64)
    }

    /// Takes in an event. A log that cannot be written is told once, and ends no network.
    pub(crate) fn hear(&mut self, event: &NodeEvent) {
        self.recorder.record(event);
        if let Some(log) = &mut self.log
            && let Err(error) = log.write(event)
        {
            tracing::warn!("{error}");
            self.log = None;
        }
    }
}

/// Members and guests, as the report knows them.
pub(crate) fn participants(members: &[Member], guests: &[Invited]) -> Vec<Participant> {
    let guest = |guest: &Invited| Participant {
        name: guest.name.clone(),
        role: guest.role,
        behaviour: "guest".to_owned(),
        hotkey: guest.hotkey,
    };
    members.iter().map(Member::participant).chain(guests.iter().map(guest)).collect()
}

fn replay(folder: &Path, definition: &Definition) -> Result<Recorder, KeptError> {
    let members =
        crate::plan::members(definition.seed, definition.miners, definition.validators, &definition.adversaries);
    let mut recorder = Recorder::new(participants(&members, &definition.guests));
    let path = folder.join(EVENTS);
    match File::open(&path) {
        Ok(file) => {
            for event in log::read(BufReader::new(file)) {
                recorder.record(&event?);
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(&path)(error)),
    }
    Ok(recorder)
}

/// The log, to be gone on with. What a kill cut off in the middle of a line is ended first.
fn append(path: &Path) -> Result<Writer<File>, KeptError> {
    let open = || -> std::io::Result<Writer<File>> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut bytes = file.metadata()?.len();
        if bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Writer::new(file, bytes))
    };
    open().map_err(io(path))
}

fn lock(folder: &Path) -> Result<File, KeptError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(KeptError::InUse { folder: folder.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(io(&path)(error)),
    }
}

fn read_run(folder: &Path) -> Result<Option<RunSpec>, KeptError> {
    let path = folder.join(RUN);
    if !path.exists() {
        return Ok(None);
    }
    let malformed = |error: templar_protocol::run::RunSpecError| KeptError::Malformed {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    RunSpec::from_toml(&text(&path)?).map(Some).map_err(malformed)
}

fn text(path: &Path) -> Result<String, KeptError> {
    let mut text = String::new();
    let file = File::open(path).map_err(io(path))?;
    file.take(TEXT_BYTES_MAX).read_to_string(&mut text).map_err(io(path))?;
    Ok(text)
}

fn remove_leftovers(folder: &Path) -> Result<(), KeptError> {
    for name in LEFTOVERS {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&path)(error)),
            _ => {}
        }
    }
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(folder.join(format!("chain.sqlite{suffix}")));
    }
    Ok(())
}

/// Writes a file as a whole or not at all.
fn replace(path: &Path, text: &str) -> Result<(), KeptError> {
    let temporary = path.with_extension(TEMPORARY);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io(path))
}

#[cfg(test)]
mod tests {
    use templar_protocol::hash::Hash32;
    use templar_record::event::{Event, Verdict};

    use super::*;
    use crate::r#virtual::scenario::tiny_preset;

    fn network(seed: u64, windows: u64) -> Network {
        let plan = Plan { miners: 1, validators: 1, windows, seed, preset: tiny_preset(), adversaries: Vec::new() };
        let (codec, text) = (CodecKind::TopkTwoBit, Text::BuiltIn);
        Network { plan, codec, text, folder: PathBuf::new(), engines: Vec::new() }
    }

    fn open(folder: &Path, network: &Network) -> Result<Kept, KeptError> {
        Kept::open(folder, &Definition::new(Ring::Demo, network, &[]))
    }

    fn stand(kept: &mut Kept, network: &Network) {
        let spec = network.plan.spec(Hash32::of(b"g"), Hash32::of(b"m"));
        let place = "127.0.0.1:7".parse().unwrap();
        kept.stands(&spec, place, place).unwrap();
    }

    fn settled(window: u64) -> NodeEvent {
        let (verdict, state_root) = (Verdict::NoQuorum, Hash32::of(b"r"));
        let event = Event::Settled { window, verdict, state_root, payload_bytes: 0, values: 0, tokens: 0 };
        NodeEvent { node: "validator-0".to_owned(), event }
    }

    #[test]
    fn a_network_that_stood_goes_on_with_what_was_heard_and_a_finished_one_says_so() {
        let (folder, network) = (tempfile::tempdir().unwrap(), network(1, 2));
        let mut kept = open(folder.path(), &network).unwrap();
        assert!(kept.spec.is_none());
        stand(&mut kept, &network);
        assert!(matches!(open(folder.path(), &network), Err(KeptError::InUse { .. })));
        kept.hear(&settled(0));
        drop(kept);
        // A kill in the middle of a line.
        let path = folder.path().join(EVENTS);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, whole.clone() + &whole[..20]).unwrap();
        let mut kept = open(folder.path(), &network).unwrap();
        assert!(kept.spec.is_some() && kept.definition.chain == Some("127.0.0.1:7".parse().unwrap()));
        assert_eq!(kept.progress(), (1, 0));
        let bits_per_byte = 1.0;
        for event in
            [settled(1), NodeEvent { event: Event::Validated { window: 1, loss: 1.0, bits_per_byte }, ..settled(1) }]
        {
            kept.hear(&event);
        }
        drop(kept);
        let said = open(folder.path(), &network).unwrap_err().to_string();
        assert!(said.starts_with("all 2 windows") && said.contains("templar export"), "{said}");
        // More windows are another matter.
        assert_eq!(open(folder.path(), &super::tests::network(1, 3)).unwrap().progress().0, 2);
        let (kept, _) = Kept::read(folder.path()).unwrap();
        assert_eq!(kept.recorder.settled(1), 1);
    }

    #[test]
    fn another_network_is_told_apart_by_the_option_that_differs() {
        let folder = tempfile::tempdir().unwrap();
        stand(&mut open(folder.path(), &network(1, 2)).unwrap(), &network(1, 2));
        let said = |network: &Network| open(folder.path(), network).unwrap_err().to_string();
        assert!(said(&network(2, 2)).contains("--seed was 1, and is 2 now"));
        let codec = Network { codec: CodecKind::DenseF32, ..network(1, 2) };
        assert!(said(&codec).contains("--codec was topk-2bit, and is dense-f32 now"), "{}", said(&codec));
        let text = Text::Paths { sources: vec!["/a.txt".into()], tokenizer: None, end_of_text: None };
        assert!(said(&Network { text, ..network(1, 2) }).contains("--data was not given, and is /a.txt now"));
        let localnet = Definition::new(Ring::Localnet, &network(1, 2), &[]);
        let said = Kept::open(folder.path(), &localnet).unwrap_err().to_string();
        assert!(said.contains("it is of `templar demo`"), "{said}");
    }

    #[test]
    fn guests_stay_when_a_network_goes_on_without_naming_them() {
        let (folder, network) = (tempfile::tempdir().unwrap(), network(1, 2));
        let guest = |name: &str, key: &str| Guest {
            name: name.to_owned(),
            role: Role::Miner,
            hotkey: templar_protocol::keys::Keypair::insecure_dev(1, key).hotkey(),
        };
        let open =
            |guests: &[Guest]| Kept::open(folder.path(), &Definition::new(Ring::Localnet, &network, guests)).unwrap();
        let first = guest("guest-0", "a");
        stand(&mut open(std::slice::from_ref(&first)), &network);
        assert_eq!(open(&[]).definition.guests(), std::slice::from_ref(&first));
        assert_eq!(open(std::slice::from_ref(&first)).definition.guests(), std::slice::from_ref(&first));
        // Who is new takes nobody's bucket.
        assert_eq!(open(&[guest("guest-0", "b")]).definition.guests(), [first.clone(), guest("guest-1", "b")]);
        assert_eq!(open(&[]).definition.guests(), [first, guest("guest-1", "b")]);
    }

    #[test]
    fn a_definition_that_no_verb_would_write_is_refused() {
        let (folder, network) = (tempfile::tempdir().unwrap(), network(1, 2));
        stand(&mut open(folder.path(), &network).unwrap(), &network);
        let path = folder.path().join(DEFINITION);
        let whole = fs::read_to_string(&path).unwrap();
        for (was, is) in [
            ("windows = 2", "windows = 0"),
            ("windows = 2", "windows = 100001"),
            ("miners = 1", "miners = 4000000000"),
            ("validators = 1", "validators = 0"),
            ("adversaries = []", "adversaries = [\"noise\"]"),
        ] {
            assert!(whole.contains(was), "{whole}");
            fs::write(&path, whole.replace(was, is)).unwrap();
            for refused in [Kept::read(folder.path()).map(|(kept, _)| kept), open(folder.path(), &network)] {
                assert!(matches!(refused, Err(KeptError::Malformed { .. })), "{is}: {refused:?}");
            }
            let exported = crate::local::export::outcome(folder.path());
            assert!(exported.is_err_and(|error| error.to_string().contains("network.toml")), "{is}");
        }
    }

    #[test]
    fn a_folder_in_which_a_start_was_killed_at_once_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let is_free = || Definition::is_free(folder.path()).unwrap();
        assert!(is_free());
        drop(lock(folder.path()).unwrap());
        fs::write(folder.path().join("network.tmp"), "# How this").unwrap();
        assert!(is_free());
        drop(open(folder.path(), &network(1, 2)).unwrap());
        assert!(!is_free() && !folder.path().join("network.tmp").exists());
        let foreign = tempfile::tempdir().unwrap();
        fs::write(foreign.path().join("letter.txt"), "mine").unwrap();
        assert!(!Definition::is_free(foreign.path()).unwrap());
    }

    #[test]
    fn what_never_stood_is_begun_anew_and_foreign_folders_are_left_alone() {
        let (folder, network) = (tempfile::tempdir().unwrap(), network(1, 2));
        drop(open(folder.path(), &network).unwrap());
        fs::create_dir(folder.path().join("dataset")).unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        assert!(matches!(Kept::read(folder.path()), Err(KeptError::NeverStood { .. })));
        drop(open(folder.path(), &network).unwrap());
        assert!(!folder.path().join("dataset").exists() && folder.path().join("notes.txt").exists());
        let foreign = tempfile::tempdir().unwrap();
        fs::create_dir(foreign.path().join("dataset")).unwrap();
        assert!(matches!(Kept::read(foreign.path()), Err(KeptError::NoNetwork { .. })));
        drop(open(foreign.path(), &network).unwrap());
        assert!(foreign.path().join("dataset").exists());
    }
}
