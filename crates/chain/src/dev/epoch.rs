//! The end of an epoch: pay by the weights, then reassign the permits.

use super::{config::DevConfig, subnet::Subnet};
use crate::yuma::{self, Voter};

/// The owner's share of the emission, in percent.
const OWNER_PERCENT: u64 = 18;

impl Subnet {
    /// Whether an epoch ends with `block`: every tempo, and at once if nobody has a permit but somebody has stake,
    /// so that a new network does not wait a whole tempo for its first validators.
    pub(super) fn epoch_is_due(&self, block: u64, config: &DevConfig) -> bool {
        let nobody_judges = !self.neurons.iter().any(|neuron| neuron.permit);
        let somebody_could = self.neurons.iter().any(|neuron| neuron.stake_rao > 0);
        block.is_multiple_of(config.tempo_blocks) || (nobody_judges && somebody_could)
    }

    /// Pays what the blocks since the last epoch emitted, by the consensus of the validators that had a permit, and
    /// gives the permits to the highest stakes.
    pub(super) fn run_epoch(&mut self, block: u64, config: &DevConfig) {
        let judges: Vec<usize> = (0..self.neurons.len()).filter(|uid| self.judges(*uid, block, config)).collect();
        let voters: Vec<Voter> = judges.iter().map(|uid| self.voter(*uid)).collect();
        let outcome = yuma::epoch(self.neurons.len(), &voters);

        let emission_rao = (block - self.last_epoch_block) * config.emission_rao_per_block;
        let for_others_rao = emission_rao - emission_rao * OWNER_PERCENT / 100;
        let for_miners_rao = for_others_rao / 2;
        let for_validators_rao = for_others_rao - for_miners_rao;
        let mut paid_rao = 0;
        for (neuron, incentive) in self.neurons.iter_mut().zip(&outcome.incentive) {
            neuron.incentive = share_u16(*incentive);
            neuron.dividends = 0;
            neuron.bonds.clear();
            let pay_rao = share_rao(*incentive, for_miners_rao);
            neuron.emission_rao += pay_rao;
            paid_rao += pay_rao;
        }
        for ((uid, dividends), bonds) in judges.into_iter().zip(&outcome.dividends).zip(outcome.bonds) {
            let neuron = &mut self.neurons[uid];
            neuron.dividends = share_u16(*dividends);
            neuron.bonds = bonds;
            let pay_rao = share_rao(*dividends, for_validators_rao);
            neuron.emission_rao += pay_rao;
            paid_rao += pay_rao;
        }
        self.owner_rao += emission_rao.saturating_sub(paid_rao);
        self.last_epoch_block = block;
        self.give_permits(config);
    }

    /// Whether this neuron's weights count: it has a permit, and set weights (or registered) not too long ago.
    fn judges(&self, uid: usize, block: u64, config: &DevConfig) -> bool {
        let neuron = &self.neurons[uid];
        let active_at = neuron.weights.as_ref().map_or(neuron.registered_at_block, |row| row.block);
        neuron.permit && neuron.stake_rao > 0 && active_at + config.activity_cutoff_blocks >= block
    }

    /// A validator's weights, without those for itself and those for neurons registered after they were set.
    fn voter(&self, uid: usize) -> Voter {
        let neuron = &self.neurons[uid];
        let row = neuron.weights.as_ref();
        let weights = row.map_or(Vec::new(), |row| {
            let counts = |of: usize| of != uid && self.neurons[of].registered_at_block <= row.block;
            row.weights.iter().copied().filter(|(of, _)| counts(usize::from(*of))).collect()
        });
        Voter { stake_rao: neuron.stake_rao, weights, bonds: neuron.bonds.clone() }
    }

    /// Permits to the highest stakes above 0; of equal stakes, to the lower uid.
    fn give_permits(&mut self, config: &DevConfig) {
        let mut by_stake: Vec<usize> = (0..self.neurons.len()).filter(|uid| self.neurons[*uid].stake_rao > 0).collect();
        by_stake.sort_by_key(|uid| (std::cmp::Reverse(self.neurons[*uid].stake_rao), *uid));
        by_stake.truncate(usize::from(config.max_validators));
        for (uid, neuron) in self.neurons.iter_mut().enumerate() {
            neuron.permit = by_stake.contains(&uid);
        }
    }
}

/// A share of 1 as a share of 65535, rounded down as subtensor does.
fn share_u16(share: f64) -> u16 {
    (share * 65535.0) as u16
}

/// A share of an amount, rounded down. Amounts are far below 2^53 rao for any sane emission; above, the rounding is
/// coarser, and `min` keeps it from paying more than there is.
fn share_rao(share: f64, amount_rao: u64) -> u64 {
    ((share * amount_rao as f64) as u64).min(amount_rao)
}
