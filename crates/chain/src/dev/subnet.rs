//! The state of the subnet at the head of the dev chain, and its rules: registration, admission, inclusion.

use borsh::{BorshDeserialize, BorshSerialize};
use templar_protocol::{
    commitment::Commitment,
    hash::Hash32,
    keys::Hotkey,
    roster::{EntryId, Neuron, Uid},
};

use super::{config::DevConfig, error::DevError};
use crate::{
    call::{Call, commitment_cost_bytes},
    error::ChainError,
};

/// All TAO that will ever exist, in rao: no stake is larger.
pub(crate) const STAKE_RAO_MAX: u64 = 21_000_000 * 1_000_000_000;

/// Everything that the chain knows of one neuron.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub(crate) struct NeuronState {
    pub(crate) hotkey: Hotkey,
    pub(crate) registered_at_block: u64,
    pub(crate) stake_rao: u64,
    pub(crate) permit: bool,
    pub(crate) incentive: u16,
    pub(crate) dividends: u16,
    /// Paid since its registration.
    pub(crate) emission_rao: u64,
    pub(crate) commitment: Option<Commitment>,
    pub(crate) quota: QuotaUse,
    pub(crate) weights: Option<WeightsRow>,
    /// (uid, bond) as of the last epoch.
    pub(crate) bonds: Vec<(u16, f64)>,
}

/// Bytes of commitments published in one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, BorshSerialize, BorshDeserialize)]
pub(crate) struct QuotaUse {
    epoch: u64,
    used_bytes: u64,
}

/// A validator's weights as of the block that included them, scaled so that the largest is 65535.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub(crate) struct WeightsRow {
    pub(crate) block: u64,
    pub(crate) weights: Vec<(u16, u16)>,
}

/// A registration or change of stake that the next block will make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registration {
    pub(crate) uid: Uid,
    pub(crate) hotkey: Hotkey,
    pub(crate) stake_rao: u64,
}

/// The subnet as of the end of a block. A neuron's uid is its index.
#[derive(Clone, Debug, Default, PartialEq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Subnet {
    pub(crate) last_epoch_block: u64,
    /// The owner's account: its share, and what rounding or a lack of weights left unpaid to others.
    pub(crate) owner_rao: u64,
    /// Kept in rows of their own.
    #[borsh(skip)]
    pub(crate) neurons: Vec<NeuronState>,
}

impl NeuronState {
    fn new(hotkey: Hotkey, stake_rao: u64, registered_at_block: u64) -> Self {
        Self {
            hotkey,
            registered_at_block,
            stake_rao,
            permit: false,
            incentive: 0,
            dividends: 0,
            emission_rao: 0,
            commitment: None,
            quota: QuotaUse::default(),
            weights: None,
            bonds: Vec::new(),
        }
    }

    /// What snapshots show.
    pub(crate) fn visible(&self, uid: u16) -> Neuron {
        Neuron {
            entry: EntryId { uid: Uid(uid), hotkey: self.hotkey, registered_at_block: self.registered_at_block },
            stake_rao: self.stake_rao,
            permit: self.permit,
            incentive: self.incentive,
            commitment: self.commitment.clone(),
        }
    }
}

impl Subnet {
    /// The mean of the weights for `uid` over the validators that have set any weights.
    pub(crate) fn rating(&self, uid: u16) -> u16 {
        let rows = self.neurons.iter().filter_map(|neuron| neuron.weights.as_ref());
        let set =
            rows.map(|row| row.weights.iter().find(|(of, _)| *of == uid).map_or(0, |(_, weight)| u64::from(*weight)));
        let (sum, count) = set.fold((0, 0), |(sum, count), weight| (sum + weight, count + 1));
        (sum / u64::max(count, 1)) as u16
    }

    pub(crate) fn uid_of(&self, hotkey: &Hotkey) -> Option<usize> {
        self.neurons.iter().position(|neuron| neuron.hotkey == *hotkey)
    }

    /// The uid that `hotkey` gets in `block`, after the registrations already `waiting` for it: its own if it has one,
    /// else the next free one, else that of the neuron with the lowest incentive (of several, the one registered
    /// first) that has no permit, is beyond its immunity and is not the owner.
    pub(crate) fn place(
        &self,
        hotkey: &Hotkey,
        waiting: &[Registration],
        block: u64,
        config: &DevConfig,
    ) -> Result<Uid, DevError> {
        if let Some(known) = waiting.iter().find(|registration| registration.hotkey == *hotkey) {
            return Ok(known.uid);
        }
        let taken = |uid: u16| waiting.iter().any(|registration| registration.uid.0 == uid);
        if let Some(uid) = self.uid_of(hotkey).map(|uid| uid as u16).filter(|uid| !taken(*uid)) {
            return Ok(Uid(uid));
        }
        let next = (self.neurons.len()..usize::from(config.max_uids)).map(|uid| uid as u16).find(|uid| !taken(*uid));
        if let Some(uid) = next {
            return Ok(Uid(uid));
        }
        (0u16..)
            .zip(&self.neurons)
            .filter(|(uid, neuron)| {
                let beyond_immunity = block.saturating_sub(neuron.registered_at_block) >= config.immunity_blocks;
                !neuron.permit && beyond_immunity && config.owner != Some(neuron.hotkey) && !taken(*uid)
            })
            .min_by_key(|(uid, neuron)| (neuron.incentive, neuron.registered_at_block, *uid))
            .map(|(uid, _)| Uid(uid))
            .ok_or(DevError::SubnetFull { uids: u64::from(config.max_uids) })
    }

    /// Carries out a registration in `block`. Whoever gets a reused uid inherits nothing, and nobody's opinion of the
    /// former neuron stays.
    pub(crate) fn register(&mut self, registration: &Registration, block: u64) {
        let uid = usize::from(registration.uid.0);
        let fresh = NeuronState::new(registration.hotkey, registration.stake_rao, block);
        match self.neurons.get_mut(uid) {
            Some(known) if known.hotkey == registration.hotkey => known.stake_rao = registration.stake_rao,
            Some(replaced) => {
                *replaced = fresh;
                for neuron in &mut self.neurons {
                    neuron.bonds.retain(|(of, _)| usize::from(*of) != uid);
                }
            }
            None => self.neurons.push(fresh),
        }
    }

    /// Whether `block` may include this call: asked at admission for the next block, and again at inclusion.
    pub(crate) fn check(&self, hotkey: &Hotkey, call: &Call, block: u64, config: &DevConfig) -> Result<(), ChainError> {
        match call {
            Call::Commit { fields } => self.check_commitment(hotkey, fields, block, config),
            Call::SetWeights { weights, version_key } => {
                self.check_weights(hotkey, weights, *version_key, block, config)
            }
        }
    }

    fn check_commitment(
        &self,
        hotkey: &Hotkey,
        fields: &[Vec<u8>],
        block: u64,
        config: &DevConfig,
    ) -> Result<(), ChainError> {
        let cost_bytes = commitment_cost_bytes(fields)?;
        let neuron = self.neuron(hotkey)?;
        let epoch = block / config.tempo_blocks;
        let used_bytes = if neuron.quota.epoch == epoch { neuron.quota.used_bytes } else { 0 };
        let quota_bytes = config.commitment_quota_bytes;
        if used_bytes + cost_bytes > quota_bytes {
            let resets_at_block = (epoch + 1) * config.tempo_blocks;
            return Err(ChainError::QuotaExceeded { cost_bytes, used_bytes, quota_bytes, resets_at_block });
        }
        Ok(())
    }

    /// The rules of Bittensor's `set_weights`, in its order. That uids and weights come in pairs is in the type.
    fn check_weights(
        &self,
        hotkey: &Hotkey,
        weights: &[(u16, u16)],
        version_key: u64,
        block: u64,
        config: &DevConfig,
    ) -> Result<(), ChainError> {
        let count = weights.len() as u64;
        let neurons = self.neurons.len() as u64;
        if count > neurons {
            return Err(ChainError::TooManyWeights { weights: count, neurons });
        }
        let neuron = self.neuron(hotkey)?;
        if neuron.stake_rao < config.weights_min_stake_rao {
            let (stake_rao, needed_rao) = (neuron.stake_rao, config.weights_min_stake_rao);
            return Err(ChainError::StakeTooLow { hotkey: *hotkey, stake_rao, needed_rao });
        }
        if config.weights_version_key != 0 && version_key < config.weights_version_key {
            return Err(ChainError::VersionKeyTooOld { version_key, needed: config.weights_version_key });
        }
        if let Some(last) = &neuron.weights {
            let allowed_at_block = last.block + config.weights_rate_limit_blocks;
            if block < allowed_at_block {
                return Err(ChainError::RateLimited { allowed_at_block });
            }
        }
        if !neuron.permit {
            return Err(ChainError::NoPermit { hotkey: *hotkey });
        }
        let mut uids: Vec<u16> = weights.iter().map(|(uid, _)| *uid).collect();
        uids.sort_unstable();
        if let Some(pair) = uids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ChainError::DuplicateUid { uid: Uid(pair[0]) });
        }
        if let Some(uid) = uids.last().filter(|uid| u64::from(**uid) >= neurons) {
            return Err(ChainError::UnknownUid { uid: Uid(*uid) });
        }
        if count < u64::from(config.min_allowed_weights) {
            return Err(ChainError::TooFewWeights { weights: count, needed: u64::from(config.min_allowed_weights) });
        }
        Ok(())
    }

    /// Carries out a call that [`Self::check`] allowed for `block`.
    pub(crate) fn apply(
        &mut self,
        hotkey: &Hotkey,
        call: Call,
        block: u64,
        config: &DevConfig,
    ) -> Result<(), ChainError> {
        self.check(hotkey, &call, block, config)?;
        let uid = self.uid_of(hotkey).ok_or(ChainError::NotRegistered { hotkey: *hotkey })?;
        let neuron = &mut self.neurons[uid];
        match call {
            Call::Commit { fields } => {
                let cost_bytes = commitment_cost_bytes(&fields)?;
                let epoch = block / config.tempo_blocks;
                if neuron.quota.epoch != epoch {
                    neuron.quota = QuotaUse { epoch, used_bytes: 0 };
                }
                neuron.quota.used_bytes += cost_bytes;
                neuron.commitment = Some(Commitment { block, fields });
            }
            Call::SetWeights { weights, .. } => {
                neuron.weights = Some(WeightsRow { block, weights: max_upscaled(weights) });
            }
        }
        Ok(())
    }

    fn neuron(&self, hotkey: &Hotkey) -> Result<&NeuronState, ChainError> {
        self.uid_of(hotkey).map(|uid| &self.neurons[uid]).ok_or(ChainError::NotRegistered { hotkey: *hotkey })
    }
}

/// The hash of a block: of the seed and the height alone, so that one seed gives one run.
pub(crate) fn block_hash(seed: u64, number: u64) -> Hash32 {
    Hash32::of_value("templar v1 dev chain block", &(seed, number))
}

/// Scales weights so that the largest becomes 65535, rounding to the nearest; zeros are dropped.
fn max_upscaled(weights: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    let largest = u64::from(weights.iter().map(|(_, weight)| *weight).max().unwrap_or(0));
    weights
        .into_iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(uid, weight)| (uid, ((u64::from(weight) * 65535 + largest / 2) / largest) as u16))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_scaled_to_the_largest() {
        assert_eq!(max_upscaled(vec![(3, 1), (0, 2), (1, 0)]), [(3, 32768), (0, 65535)]);
        assert_eq!(max_upscaled(vec![(0, 0), (1, 0)]), []);
        assert_eq!(max_upscaled(vec![(5, 65535), (6, 1)]), [(5, 65535), (6, 1)]);
    }

    #[test]
    fn block_hashes_depend_on_seed_and_height_only() {
        // Golden: a change of the rule breaks every recorded run.
        let golden = "93b022691b473d231d45a14bdd4937e1d52ae0a1677d093596ceb11bde820b56";
        assert_eq!(block_hash(1, 2).to_string(), golden);
        assert_ne!(block_hash(1, 2), block_hash(2, 1));
        assert_ne!(block_hash(1, 2), block_hash(1, 3));
    }
}
