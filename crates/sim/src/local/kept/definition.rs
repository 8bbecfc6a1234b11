//! How a network was started: what another start must repeat, and what it may change.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use templar_model::presets::Preset;
use templar_protocol::keys::Hotkey;
use templar_protocol::run::{CodecKind, RunSpec};
use templar_record::event::Role;

use crate::local::guest::Guest;
use crate::local::kept::files::{DEFINITION, KeptError, LOCK, TEMPORARY, replace, text};
use crate::local::network::{Network, Text};
use crate::plan::Plan;
use crate::zoo::kind::Kind;

/// Rises with every change of what the folder holds.
const FORMAT: u32 = 1;
/// What the verbs start at most.
pub const WINDOWS_MAX: u64 = 100_000;
pub const MINERS_MAX: u16 = 128;
pub const VALIDATORS_MAX: u16 = 32;

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
    pub(super) verb: Ring,
    preset: String,
    codec: CodecKind,
    pub(super) miners: usize,
    pub(super) validators: usize,
    pub(super) adversaries: Vec<Kind>,
    pub seed: u64,
    /// The text to train on; empty for the built-in corpus.
    data: Vec<String>,
    /// Keys of the run with other values than the default.
    #[serde(default)]
    set: Vec<String>,
    /// The model that the run starts from.
    #[serde(default)]
    from: Option<String>,
    /// This may change from start to start.
    pub windows: u64,
    /// Where chain and buckets were last served, so that guests find them there again.
    pub chain: Option<SocketAddr>,
    pub buckets: Option<SocketAddr>,
    /// How long it has run, all starts together; a start that was killed counts up to its last settled window.
    #[serde(default)]
    pub wall_s: f64,
    #[serde(default)]
    pub guests: Vec<Invited>,
}

/// A guest of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invited {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) hotkey: Hotkey,
}

impl Definition {
    /// Describes a network that `verb` runs.
    pub fn new(ring: Ring, network: &Network, guests: &[Guest]) -> Self {
        let Network { plan, codec, set, from, text, .. } = network;
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
            set: set.iter().map(|(key, value)| format!("{key}={value}")).collect(),
            from: from.as_ref().map(full),
            windows: plan.windows,
            chain: None,
            buckets: None,
            wall_s: 0.0,
            guests: guests.iter().map(guest).collect(),
        }
    }

    /// Whether `folder` holds a network, finished or not.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(DEFINITION).is_file()
    }

    /// Whether a network may begin in `folder`: nothing is in it but what a start leaves that is killed at its
    /// beginning.
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

    pub(super) fn read(folder: &Path) -> Result<Self, KeptError> {
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

    /// Adds the guests of an earlier start: they are registered on the chain, and have their buckets. A guest that is
    /// new gets a name that is.
    pub(super) fn keep_guests(&mut self, was: Vec<Invited>) {
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

    pub(super) fn write(&self, folder: &Path) -> Result<(), KeptError> {
        let text = toml::to_string(self).expect("text and numbers only");
        let intro = "# How this network was started. The same verb with the same options and --folder resumes it.\n";
        replace(&folder.join(DEFINITION), &(intro.to_owned() + &text))
    }

    /// The first option in which another start differs, with its old and its new value.
    pub(super) fn difference(&self, now: &Self) -> Option<(&'static str, String, String)> {
        let adversaries = |of: &Self| of.adversaries.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let data = |of: &Self| of.data.join(" ");
        let from = |of: &Self| of.from.clone().unwrap_or_default();
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
            ("set", self.set.join(" "), now.set.join(" ")),
            ("from", from(self), from(now)),
        ];
        let named = |text: String| if text.is_empty() { "not given".to_owned() } else { text };
        let mut pairs = pairs.into_iter();
        pairs.find(|(_, was, is)| was != is).map(|(option, was, is)| (option, named(was), named(is)))
    }

    /// The plan of the network whose run is `spec`.
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

fn full(path: &PathBuf) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string()
}

impl Text {
    /// The text as the options name it, with full paths.
    fn described(&self) -> Vec<String> {
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
