//! Who takes part in a local network, and the run that they form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use templar_host::defaults::{VALIDATOR_STAKE_RAO, run_defaults};
use templar_model::presets::Preset;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::run::{ChainSpec, DataSpec, RunSpec, WindowSpec};
use templar_record::event::Role;
use templar_record::recorder::Participant;

const NETUID: u16 = 3;

/// What a local network consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub miners: usize,
    pub validators: usize,
    pub windows: u64,
    pub seed: u64,
    pub preset: Preset,
    /// Behaviours of the last miners, one per miner; all others are honest.
    pub adversaries: Vec<Behaviour>,
}

/// How a node behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    #[default]
    Honest,
    /// Publishes noise of an honest contribution's size instead of training.
    Noise,
    /// Commits, and never publishes the key.
    Withhold,
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Honest => "honest",
            Self::Noise => "noise",
            Self::Withhold => "withhold",
        })
    }
}

impl FromStr for Behaviour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Honest, Self::Noise, Self::Withhold]
            .into_iter()
            .find(|behaviour| behaviour.to_string() == text)
            .ok_or_else(|| format!("no behaviour {text:?}: there are honest, noise and withhold"))
    }
}

/// One node of a local network.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    pub role: Role,
    pub behaviour: Behaviour,
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
            behaviour: self.behaviour.to_string(),
            hotkey: self.keypair.hotkey(),
        }
    }
}

/// Miners first, then validators: in the order in which they register. The last miners misbehave.
pub(crate) fn members(seed: u64, miners: usize, validators: usize, adversaries: &[Behaviour]) -> Vec<Member> {
    let member = |role: Role, nth: usize, behaviour: Behaviour| {
        let kind = match role {
            Role::Miner => "miner",
            Role::Validator => "validator",
        };
        let name = format!("{kind}-{nth}");
        let keypair = Keypair::insecure_dev(seed, &name);
        Member { name, role, behaviour, keypair, stake_rao: stake_rao(role) }
    };
    let honest = miners.saturating_sub(adversaries.len());
    let behaviour = |nth: usize| nth.checked_sub(honest).map_or(Behaviour::Honest, |bad| adversaries[bad]);
    let miners = (0..miners).map(|nth| member(Role::Miner, nth, behaviour(nth)));
    miners.chain((0..validators).map(|nth| member(Role::Validator, nth, Behaviour::Honest))).collect()
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

    /// [`Plan::spec`] with zeros for the root of θ₀, which takes minutes for large models.
    pub(crate) fn spec_without_root(&self, genesis: Hash32, manifest: Hash32) -> RunSpec {
        let chain = ChainSpec { genesis, netuid: NETUID, start_block: 20 };
        run_defaults("local", &self.preset, chain, DataSpec { manifest, seed: self.seed }, self.seed, local_windows())
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
    fn the_last_miners_misbehave() {
        let preset = templar_model::presets::preset("nano").unwrap();
        let adversaries = vec![Behaviour::Noise, Behaviour::Withhold];
        let plan = Plan { miners: 4, validators: 1, windows: 1, seed: 1, preset, adversaries };
        let behaviours: Vec<_> = plan.members().iter().map(|member| member.behaviour.to_string()).collect();
        let expected = ["honest", "honest", "noise", "withhold", "honest"];
        assert_eq!(behaviours, expected);
    }
}
