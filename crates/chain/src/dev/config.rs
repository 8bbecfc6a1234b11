//! The settings of a dev chain, fixed for its life.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use templar_protocol::keys::Hotkey;

use super::error::DevError;
use crate::{
    call::{COMMITMENT_COST_BYTES_MIN, FIELD_BYTES_MAX, FIELDS_MAX, UIDS_MAX},
    chain::Hyperparams,
};

/// The settings of a dev chain with its one subnet. Where Bittensor has a value, the default is that value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevConfig {
    /// Block hashes follow from it and the height alone.
    pub seed: u64,
    pub netuid: u16,
    /// Blocks from one epoch to the next; also the period of the commitment quota.
    pub tempo_blocks: u64,
    pub weights_rate_limit_blocks: u64,
    pub commitment_quota_bytes: u64,
    /// Permits go to this many highest stakes.
    pub max_validators: u16,
    /// At most [`UIDS_MAX`].
    pub max_uids: u16,
    /// Blocks in which a new neuron cannot be replaced.
    pub immunity_blocks: u64,
    /// Blocks after which a validator that set no weights is left out of the epoch.
    pub activity_cutoff_blocks: u64,
    pub weights_version_key: u64,
    pub min_allowed_weights: u16,
    pub weights_min_stake_rao: u64,
    /// Paid per block: 18 % to the owner, half of the rest to miners, half to validators.
    pub emission_rao_per_block: u64,
    /// The subnet's owner, if it is registered: nobody replaces it.
    #[serde(default)]
    pub owner: Option<Hotkey>,
    pub timestamps: Timestamps,
}

/// Where the timestamps of blocks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timestamps {
    /// The machine's clock, made strictly increasing.
    Wall,
    /// `genesis_ms + number × step_ms`: for simulations and tests.
    Stepped { genesis_ms: u64, step_ms: u64 },
}

impl Default for DevConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            netuid: 3,
            tempo_blocks: 360,
            weights_rate_limit_blocks: 100,
            commitment_quota_bytes: 3100,
            max_validators: 64,
            max_uids: UIDS_MAX,
            immunity_blocks: 5000,
            activity_cutoff_blocks: 5000,
            weights_version_key: 0,
            min_allowed_weights: 1,
            weights_min_stake_rao: 0,
            emission_rao_per_block: 1_000_000_000,
            owner: None,
            timestamps: Timestamps::Wall,
        }
    }
}

impl DevConfig {
    pub(crate) fn check(&self) -> Result<(), DevError> {
        let limits = [
            ("tempo_blocks", self.tempo_blocks, 1, 1_000_000),
            ("weights_rate_limit_blocks", self.weights_rate_limit_blocks, 0, 1_000_000),
            ("commitment_quota_bytes", self.commitment_quota_bytes, COMMITMENT_COST_BYTES_MIN, 1 << 30),
            ("max_uids", u64::from(self.max_uids), 1, u64::from(UIDS_MAX)),
            ("max_validators", u64::from(self.max_validators), 1, u64::from(self.max_uids)),
            ("immunity_blocks", self.immunity_blocks, 0, 1 << 40),
            ("activity_cutoff_blocks", self.activity_cutoff_blocks, 1, 1 << 40),
            // Ten TAO per block for a billion blocks still fit the 64 bits of an account.
            ("emission_rao_per_block", self.emission_rao_per_block, 0, 10_000_000_000),
        ];
        for (setting, found, lowest, highest) in limits {
            if !(lowest..=highest).contains(&found) {
                let (found, allowed) = (found.to_string(), format!("{lowest} to {highest}"));
                return Err(DevError::InvalidConfig { setting: setting.to_owned(), found, allowed });
            }
        }
        Ok(())
    }

    pub(crate) fn hyperparams(&self) -> Hyperparams {
        Hyperparams {
            tempo_blocks: self.tempo_blocks,
            weights_rate_limit_blocks: self.weights_rate_limit_blocks,
            commitment_quota_bytes: self.commitment_quota_bytes,
            commitment_min_cost_bytes: COMMITMENT_COST_BYTES_MIN,
            commitment_max_fields: FIELDS_MAX as u32,
            commitment_max_field_bytes: FIELD_BYTES_MAX as u32,
            max_validators: self.max_validators,
            max_uids: self.max_uids,
            immunity_blocks: self.immunity_blocks,
            weights_version_key: self.weights_version_key,
            min_allowed_weights: self.min_allowed_weights,
            weights_min_stake_rao: self.weights_min_stake_rao,
        }
    }
}

impl Timestamps {
    /// The timestamp of block `number`, after a block with `previous_ms`.
    pub(crate) fn of_block(self, number: u64, previous_ms: u64) -> u64 {
        match self {
            Self::Stepped { genesis_ms, step_ms } => genesis_ms.saturating_add(step_ms.saturating_mul(number)),
            Self::Wall => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
                now.max(previous_ms.saturating_add(1))
            }
        }
    }
}
