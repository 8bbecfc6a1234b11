//! Who takes part in a local network, and the run that they form.

use templar_host::defaults::{VALIDATOR_STAKE_RAO, run_defaults};
use templar_model::presets::Preset;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::{Hotkey, Keypair};
use templar_protocol::run::{ChainSpec, DataSpec, RunSpec, WindowSpec};
use templar_record::event::Role;
use templar_record::recorder::Participant;

use crate::zoo::kind::{Adversary, Kind};

const NETUID: u16 = 3;

/// What a local network consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub miners: usize,
    pub validators: usize,
    pub windows: u64,
    pub seed: u64,
    pub preset: Preset,
    /// How the last miners and the last validators misbehave, one each.
    pub adversaries: Vec<Kind>,
}

/// One node of a local network.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    pub role: Role,
    /// How it misbehaves, unless it is honest.
    pub adversary: Option<Adversary>,
    pub keypair: Keypair,
    pub stake_rao: u64,
}

/// The stake of a node with this role in a local network.
pub(crate) fn stake_rao(role: Role) -> u64 {
    match role {
        Role::Miner => 0,
        Role::Validator => VALIDATOR_STAKE_RAO,
    }
}

impl Member {
    /// The member as the report lists it.
    pub fn participant(&self) -> Participant {
        Participant {
            name: self.name.clone(),
            role: self.role,
            behaviour: self.adversary.map_or("honest", |adversary| adversary.kind.name).to_owned(),
            hotkey: self.keypair.hotkey(),
        }
    }
}

/// Miners first, then validators: in the order in which they register. The last ones of either role misbehave.
pub(crate) fn members(seed: u64, miners: usize, validators: usize, adversaries: &[Kind]) -> Vec<Member> {
    let adversaries = Adversary::all(adversaries);
    let of_role = |role: Role, count: usize| {
        let kind = match role {
            Role::Miner => "miner",
            Role::Validator => "validator",
        };
        let bad: Vec<Adversary> = adversaries.iter().filter(|bad| bad.kind.role == role).copied().collect();
        let honest = count.saturating_sub(bad.len());
        let member = move |nth: usize| {
            let name = format!("{kind}-{nth}");
            let keypair = Keypair::insecure_dev(seed, &name);
            let adversary = nth.checked_sub(honest).map(|at| bad[at]);
            Member { name, role, adversary, keypair, stake_rao: stake_rao(role) }
        };
        (0..count).map(member)
    };
    of_role(Role::Miner, miners).chain(of_role(Role::Validator, validators)).collect()
}

impl Plan {
    /// Miners first, then validators: in the order in which they register.
    pub fn members(&self) -> Vec<Member> {
        members(self.seed, self.miners, self.validators, &self.adversaries)
    }

    /// The run of this network on a dev chain.
    pub fn spec(&self, genesis: Hash32, manifest: Hash32) -> RunSpec {
        let mut spec = self.spec_without_root(genesis, manifest);
        spec.theta0.root = spec.layout().theta0_root(&spec.model, spec.theta0.seed);
        spec
    }

    /// The subnet's owner: it takes no part, and what nobody earns goes to its uid. It registers after the members.
    pub(crate) fn owner(&self) -> Hotkey {
        Keypair::insecure_dev(self.seed, "owner").hotkey()
    }

    /// [`Plan::spec`] with zeros for the root of θ₀, which takes minutes for large models.
    pub fn spec_without_root(&self, genesis: Hash32, manifest: Hash32) -> RunSpec {
        let chain = ChainSpec { genesis, netuid: NETUID, start_block: 20 };
        let data = DataSpec { manifest, seed: self.seed };
        let mut spec = run_defaults("local", &self.preset, chain, data, self.seed, local_windows());
        spec.scoring.budget_tokens = self.budget_tokens(&spec);
        spec.scoring.burn_uid = (self.miners + self.validators) as u16;
        spec
    }

    /// A network with fewer miners than seats is as large as its operator wants it.
    pub(crate) fn budget_tokens(&self, spec: &RunSpec) -> u64 {
        let working = (self.miners as u64).clamp(1, spec.roster.gather.into());
        working.saturating_mul(spec.slice_tokens(0))
    }

    /// Most contributions that count in a window.
    pub fn seats(&self) -> u32 {
        self.spec_without_root(Hash32::default(), Hash32::default()).roster.gather
    }

    pub fn chain_config(&self) -> templar_chain::DevConfig {
        templar_chain::DevConfig {
            seed: self.seed,
            netuid: NETUID,
            tempo_blocks: local_windows().blocks,
            weights_rate_limit_blocks: 10,
            owner: Some(self.owner()),
            ..templar_chain::DevConfig::default()
        }
    }
}

/// Short windows: about the shortest that Bittensor's quota of commitments (3100 bytes in 360 blocks) would allow. Here
/// the tempo is as long as a window, so that each window is paid; the quota is renewed as often, and binds in tests
/// only.
fn local_windows() -> WindowSpec {
    WindowSpec {
        blocks: 20,
        snapshot_lag_blocks: 2,
        put_block: 12,
        vote_block: 18,
        delay_windows: 0,
        checkpoint_every_windows: 4,
    }
}

#[cfg(test)]
mod tests {
    use templar_host::defaults::{mainnet_windows, run_spec};

    use crate::zoo::attack::{late_vote, noise, withhold};
    use crate::zoo::kind::Part;

    use super::*;

    #[test]
    fn defaults_are_valid_for_every_preset_that_fits_a_test() {
        let chain = ChainSpec { genesis: Hash32::of(b"g"), netuid: 3, start_block: 1000 };
        let data = DataSpec { manifest: Hash32::of(b"m"), seed: 1 };
        let preset = templar_model::presets::preset("nano").unwrap();
        for windows in [local_windows(), mainnet_windows()] {
            run_spec("t", &preset, chain.clone(), data.clone(), 1, windows).validate().unwrap();
        }
    }

    #[test]
    fn the_last_of_a_role_misbehave_each_in_its_part() {
        let preset = templar_model::presets::preset("nano").unwrap();
        let adversaries = vec![noise::KIND, late_vote::KIND, withhold::KIND, noise::KIND];
        let plan = Plan { miners: 5, validators: 2, windows: 1, seed: 1, preset, adversaries };
        let members = plan.members();
        let behaviours: Vec<_> = members.iter().map(|member| member.participant().behaviour).collect();
        assert_eq!(behaviours, ["honest", "honest", "noise", "withhold", "noise", "honest", "late-vote"]);
        let parts: Vec<_> = members.iter().filter_map(|member| member.adversary).map(|bad| bad.part).collect();
        let part = |nth, of| Part { nth, of };
        assert_eq!(parts, [part(0, 2), part(0, 1), part(1, 2), part(0, 1)]);
    }
}
