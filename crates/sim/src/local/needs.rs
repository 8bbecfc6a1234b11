//! What a network needs of this machine. It is checked before anything starts: a model that does not fit would fail
//! after minutes or hours, or take the machine down with it.

use std::path::Path;

use templar_host::engine::Engine;
use templar_model::presets::{self, Preset};
use templar_protocol::layout::Layout;
use templar_record::event::Role;

use crate::local::network::{Network, Text};
use crate::plan::Plan;

/// What a miner holds per parameter: three recent states of θ, the copy that is trained, its gradient, both moments
/// of AdamW and the error feedback, f32 each.
const MINER_BYTES: u64 = 4 * (3 + 1 + 1 + 2 + 1);
/// Three recent states of θ, and the one with a contribution applied that is evaluated.
const VALIDATOR_BYTES: u64 = 4 * (3 + 1);
/// On a miner's disk: three states, the error feedback, both moments.
const MINER_DISK_BYTES: u64 = 4 * (3 + 1 + 2);
/// On a validator's disk and in its bucket: three states, three checkpoints.
const VALIDATOR_DISK_BYTES: u64 = 4 * (3 + 3);
/// What a node takes besides its model: connections, data, buffers.
const NODE_BYTES: u64 = 32 << 20;
/// What a network takes besides its nodes: chain, S3 server, the text. With it the estimate is within a tenth of what demos
/// of nano with 1 to 8 miners had resident after 12 windows.
const NETWORK_BYTES: u64 = 32 << 20;

/// Bytes that a network needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

/// Bytes that the machine has, if the system reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
}

/// A network that this machine cannot hold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NeedsError {
    #[error("preset {preset} needs about {} of memory for {nodes} nodes; this machine has {} available: {advice}", size(*needed_bytes), size(*available_bytes))]
    Memory { preset: &'static str, nodes: usize, needed_bytes: u64, available_bytes: u64, advice: String },
    #[error("preset {preset} needs about {} of disk for {nodes} nodes; {folder} has {} free: name another --folder, or {advice}", size(*needed_bytes), size(*available_bytes))]
    Disk { preset: &'static str, nodes: usize, folder: String, needed_bytes: u64, available_bytes: u64, advice: String },
}

impl Needs {
    /// What a plan needs. Nodes whose engine works on a GPU train there, and need no memory of this machine for that.
    pub fn of(plan: &Plan, engines: &[Engine]) -> Self {
        let parameters = Layout::llama(&plan.preset.model).len() as u64;
        let (mut memory_bytes, mut disk_bytes) = (NETWORK_BYTES, 0);
        for (nth, member) in plan.members().iter().enumerate() {
            let on_device = matches!(Engine::of_node(engines, nth), Engine::Torch(torch) if torch.device != "cpu");
            let (memory, disk) = match member.role {
                Role::Miner if on_device => (VALIDATOR_BYTES, MINER_DISK_BYTES),
                Role::Miner => (MINER_BYTES, MINER_DISK_BYTES),
                Role::Validator => (VALIDATOR_BYTES, VALIDATOR_DISK_BYTES),
            };
            let activations =
                if on_device || member.role == Role::Validator { 0 } else { activation_bytes(&plan.preset) };
            memory_bytes += NODE_BYTES + activations + memory * parameters;
            disk_bytes += disk * parameters;
        }
        Self { memory_bytes, disk_bytes }
    }
}

/// What a miner's engine keeps of a forward pass for the backward pass: about this many f32 per position of a
/// micro-batch and per layer (residual stream, projections, attention's output, both halves of SwiGLU).
fn activation_bytes(preset: &Preset) -> u64 {
    let (model, inner) = (&preset.model, &preset.inner);
    let positions = u64::from(inner.micro_batch_sequences) * u64::from(model.seq_len);
    let kv = u64::from(model.hidden_size) * 2 * u64::from(model.kv_heads) / u64::from(model.heads).max(1);
    let of_layer = 4 * u64::from(model.hidden_size) + kv + 2 * u64::from(model.ffn_size);
    4 * positions * u64::from(model.layers) * of_layer
}

impl Machine {
    /// This machine, and the disk of `folder`, which need not exist yet.
    pub fn here(folder: &Path) -> Self {
        Self { memory_bytes: available_memory_bytes(), disk_bytes: free_disk_bytes(folder) }
    }
}

/// Refuses a network that `machine` cannot hold, before anything is started.
pub fn check(network: &Network, machine: Machine) -> Result<(), NeedsError> {
    let Network { plan, engines, text, folder, .. } = network;
    let (preset, nodes, needs) = (plan.preset.name, plan.miners + plan.validators, Needs::of(plan, engines));
    if let Some(available_bytes) = machine.memory_bytes.filter(|available| needs.memory_bytes > *available) {
        let advice = advice(plan, engines, text, |needs| needs.memory_bytes <= available_bytes);
        return Err(NeedsError::Memory { preset, nodes, needed_bytes: needs.memory_bytes, available_bytes, advice });
    }
    if let Some(available_bytes) = machine.disk_bytes.filter(|available| needs.disk_bytes > *available) {
        let advice = advice(plan, engines, text, |needs| needs.disk_bytes <= available_bytes);
        let folder = folder.display().to_string();
        return Err(NeedsError::Disk {
            preset,
            nodes,
            folder,
            needed_bytes: needs.disk_bytes,
            available_bytes,
            advice,
        });
    }
    Ok(())
}

/// Advice: what would fit.
fn advice(plan: &Plan, engines: &[Engine], _text: &Text, fits: impl Fn(Needs) -> bool) -> String {
    let of = |preset: Preset| Needs::of(&Plan { preset, ..plan.clone() }, engines);
    let fitting: Vec<String> = presets::names()
        .iter()
        .filter_map(|name| presets::preset(name))
        .map(|preset| (preset.name, of(preset)))
        .filter(|(_, needs)| fits(*needs))
        .map(|(name, needs)| format!("{name} (about {})", size(needs.memory_bytes)))
        .collect();
    match fitting.as_slice() {
        [] => "take fewer --miners and --validators, or a machine with more".to_owned(),
        presets => format!("try --preset {}", presets.join(" or ")),
    }
}

/// Available memory: what is free or can be freed, with what can be swapped out, and no more than a container
/// allows.
fn available_memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
    };
    let available = field("MemAvailable")? + field("SwapFree").unwrap_or(0);
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let allowed = read("/sys/fs/cgroup/memory.max");
    Some(allowed.map_or(available, |allowed| available.min(allowed)))
}

fn free_disk_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let folder = std::path::absolute(folder).ok()?;
        let there = folder.ancestors().find(|path| path.exists())?;
        let stat = rustix::fs::statvfs(there).ok()?;
        Some(stat.f_bavail * stat.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e12 => format!("{:.1} TB", bytes / 1e12),
        bytes if bytes >= 10e9 => format!("{:.0} GB", bytes / 1e9),
        bytes if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.0} MB", bytes / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use templar_node::pretrain::checkpoint::Retention;
    use templar_protocol::run::CodecKind;

    use super::*;

    fn network(preset: &str) -> Network {
        let preset = presets::preset(preset).unwrap();
        let plan = Plan { miners: 4, validators: 2, windows: 1, seed: 0, preset, adversaries: Vec::new() };
        let (codec, text) = (CodecKind::TopkSign, Text::BuiltIn);
        Network {
            plan,
            codec,
            set: Vec::new(),
            from: None,
            text,
            folder: "/net".into(),
            engines: Vec::new(),
            retention: Retention::default(),
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_figures_and_what_would_fit() {
        let machine = Machine { memory_bytes: Some(21_000_000_000), disk_bytes: Some(100_000_000_000) };
        assert_eq!(check(&network("nano"), machine), Ok(()));
        assert_eq!(check(&network("micro"), machine), Ok(()));
        let said = check(&network("72b"), machine).unwrap_err().to_string();
        // 72.7·10⁹ parameters with 4 · 32 + 2 · 16 bytes each, and what the passes keep.
        assert!(said.starts_with("preset 72b needs about 1") && said.contains(" TB of memory for 6 nodes"), "{said}");
        assert!(said.contains("has 21 GB available: try --preset nano (about") && said.contains("or micro"), "{said}");
        let small = Machine { memory_bytes: None, disk_bytes: Some(1_000_000_000) };
        let said = check(&network("150m"), small).unwrap_err().to_string();
        assert!(said.contains("GB of disk for 6 nodes; /net has 1.0 GB free"), "{said}");
        assert_eq!(check(&network("72b"), Machine::default()), Ok(()), "a system that says nothing is trusted");
    }

    #[test]
    fn the_estimate_is_near_what_demos_of_nano_took() {
        // Miners, validators, and the largest resident memory of 12 windows, in MB.
        for (miners, validators, measured_mb) in [(1, 1, 145), (4, 2, 426), (8, 2, 655)] {
            let plan = Plan { miners, validators, ..network("nano").plan };
            let estimated_mb = Needs::of(&plan, &[]).memory_bytes / 1_000_000;
            let is_near = (measured_mb * 9 / 10..=measured_mb * 12 / 10).contains(&estimated_mb);
            assert!(is_near, "{miners} + {validators}: {estimated_mb} MB, not {measured_mb}");
        }
    }

    #[test]
    fn this_machine_is_read() {
        let machine = Machine::here(Path::new("/not/there/yet"));
        if cfg!(target_os = "linux") {
            assert!(machine.memory_bytes.unwrap() > 1 << 20 && machine.disk_bytes.is_some());
        }
    }
}
