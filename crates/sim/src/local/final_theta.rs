//! θ from the disks of a network's validators.

use std::path::{Path, PathBuf};

use templar_node::frame::error::NodeError;
use templar_node::frame::files::Disk;
use templar_node::frame::local::Local;
use templar_protocol::run::RunSpec;
use templar_record::event::Role;

use crate::local::network::NoTheta;
use crate::plan::Member;

/// The folder of a member's own state.
pub(crate) fn state_folder(folder: &Path, member: &Member) -> PathBuf {
    folder.join("nodes").join(&member.name).join("state")
}

/// θ after `windows` windows, or the newest, from the disks of the validators, once they have stopped. Whoever started
/// the network may look there; its nodes may not, and do not.
pub(crate) fn final_theta(
    folder: &Path,
    members: &[Member],
    spec: &RunSpec,
    windows: u64,
) -> Result<Vec<f32>, NoTheta> {
    let mut newest: Option<(u64, Vec<f32>)> = None;
    let mut missing = NoTheta::NothingSettled;
    for validator in members.iter().filter(|member| member.role == Role::Validator) {
        match theta_of(folder, validator, spec, windows) {
            Ok(Some((settled, theta))) if settled == windows => return Ok(theta),
            Ok(Some((settled, theta))) if newest.as_ref().is_none_or(|(other, _)| settled > *other) => {
                newest = Some((settled, theta));
            }
            Ok(_) => {}
            Err(reason) => {
                tracing::warn!(node = validator.name, reason, "a validator's disk gives no θ");
                missing = NoTheta::Unreadable { node: validator.name.clone(), reason };
            }
        }
    }
    newest.map(|(_, theta)| theta).ok_or(missing)
}

/// θ from the disk of one validator, and how many windows it has settled; none if it has settled nothing.
fn theta_of(
    folder: &Path,
    validator: &Member,
    spec: &RunSpec,
    windows: u64,
) -> Result<Option<(u64, Vec<f32>)>, String> {
    let state_folder = state_folder(folder, validator);
    if !state_folder.exists() {
        return Ok(None);
    }
    let text = |error: NodeError| error.to_string();
    let local = Local::open(&state_folder, spec.id(), &validator.keypair.hotkey(), Disk::Durable).map_err(text)?;
    let states = local.states(spec.id()).map_err(text)?;
    // A network on a clock may have continued meanwhile.
    let Some(state) = states.iter().find(|state| state.settled == windows).or(states.first()) else { return Ok(None) };
    let theta = local.theta(state, &spec.layout()).map_err(|damage| damage.to_string())?;
    Ok(Some((state.settled, theta)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use templar_protocol::hash::Hash32;
    use templar_protocol::state::RunState;

    use super::*;
    use crate::plan::Plan;
    use crate::r#virtual::scenario::tiny_preset;

    #[test]
    fn theta_comes_from_whichever_validator_has_it_and_a_damaged_disk_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let plan =
            Plan { miners: 1, validators: 2, windows: 3, seed: 1, preset: tiny_preset(), adversaries: Vec::new() };
        let spec = plan.spec(Hash32::of(b"g"), Hash32::of(b"m"));
        let members = plan.members();
        let ask = || final_theta(folder.path(), &members, &spec, 3);
        assert_eq!(ask(), Err(NoTheta::NothingSettled));
        let theta = Arc::new(spec.layout().theta0(&spec.model, 0));
        let root = spec.layout().state_root(&theta);
        let settle = |nth: usize, settled: u64| {
            let (member, run) = (&members[1 + nth], RunState::genesis(&spec));
            let folder = state_folder(folder.path(), member);
            let mut local = Local::open(&folder, spec.id(), &member.keypair.hotkey(), Disk::Volatile).unwrap();
            local.save(&RunState { settled, theta_root: root, ..run }, &theta, &[]).unwrap();
            local.folder().to_owned()
        };
        let first = settle(0, 3);
        for file in std::fs::read_dir(&first).unwrap().map(|file| file.unwrap().path()) {
            if file.file_name().unwrap().to_string_lossy().starts_with("theta-") {
                std::fs::write(file, "damaged").unwrap();
            }
        }
        let Err(NoTheta::Unreadable { node, reason }) = ask() else { panic!("it is damaged") };
        assert!(node == "validator-0" && !reason.is_empty(), "{node}: {reason}");
        settle(1, 2);
        assert_eq!(ask().unwrap(), *theta);
    }
}
