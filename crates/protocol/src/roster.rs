//! Who takes part in a window: a [`Snapshot`] of the chain, and the [`Roster`] that follows from it.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::bucket::{BucketError, BucketLocator};
use crate::commitment::Commitment;
use crate::hash::Hash32;
use crate::keys::Hotkey;
use crate::locator::{Locator, Role};
use crate::run::{RunSpec, VALIDATORS_MAX};
use crate::word::Vote;

/// A neuron's number in its subnet. A number can be reused; see [`EntryId`].
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Uid(pub u16);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}", self.0)
    }
}

/// One registration. All state is keyed by it, so the next owner of a uid inherits nothing.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
pub struct EntryId {
    pub uid: Uid,
    pub hotkey: Hotkey,
    pub registered_at_block: u64,
}

/// One neuron as the chain knows it at some block.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Neuron {
    pub entry: EntryId,
    pub stake_rao: u64,
    /// Whether it may set weights.
    pub permit: bool,
    /// The chain's reward share, 0 ..= 65535.
    pub incentive: u16,
    pub commitment: Option<Commitment>,
}

/// The subnet at one finalised block, neurons in the order of their uids.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Snapshot {
    pub block: u64,
    pub block_hash: Hash32,
    pub neurons: Vec<Neuron>,
}

impl Snapshot {
    pub fn find(&self, entry: &EntryId) -> Option<&Neuron> {
        self.neurons.iter().find(|neuron| neuron.entry == *entry)
    }

    /// The commitment of `entry`, if it has one.
    pub fn commitment_of(&self, entry: &EntryId) -> Option<&Commitment> {
        self.find(entry).and_then(|neuron| neuron.commitment.as_ref())
    }
}

/// A miner of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miner {
    pub entry: EntryId,
    pub incentive: u16,
    pub work_class: u8,
    pub bucket: BucketLocator,
}

/// A validator of a window, with the stake that weighs its vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator {
    pub entry: EntryId,
    pub stake_rao: u64,
    pub bucket: BucketLocator,
}

/// The participants of a window, each list in the order of uids. Fixed by the snapshot at `S_w`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    pub miners: Vec<Miner>,
    pub validators: Vec<Validator>,
    /// Who is left out because the first field of a recent commitment is not a locator.
    pub malformed: Vec<(EntryId, BucketError)>,
}

impl Roster {
    /// The roster of `window` that follows from the snapshot at `S_w` and the one `stake_age_blocks` before it.
    ///
    /// A neuron takes part if its commitment is recent and its first field is a locator, in the role that the locator
    /// names. The lower of a validator's two stakes counts, so that stake borrowed for a moment carries no vote. A
    /// validator needs a permit and enough stake, and a vote that is not too old; at most [`VALIDATORS_MAX`] take part,
    /// those of the most stake.
    pub fn new(window: u64, now: &Snapshot, earlier: &Snapshot, spec: &RunSpec) -> Self {
        let mut roster = Self { miners: Vec::new(), validators: Vec::new(), malformed: Vec::new() };
        for neuron in &now.neurons {
            let Some(commitment) = &neuron.commitment else { continue };
            if commitment.block + spec.roster.active_blocks < now.block {
                continue;
            }
            let entry = neuron.entry;
            let Locator { role, work_class, bucket } =
                match commitment.fields.first().map(|field| Locator::decode(field)) {
                    None => continue,
                    Some(Ok(locator)) => locator,
                    Some(Err(error)) => {
                        roster.malformed.push((entry, error));
                        continue;
                    }
                };
            let stake_before = earlier.find(&entry).map_or(0, |before| before.stake_rao);
            let stake_rao = neuron.stake_rao.min(stake_before);
            // Without a vote on chain, it has just come, or come back: its commitment is its ticket.
            let silent = Vote::read_window(commitment).is_some_and(|voted| {
                u64::from(voted) + spec.roster.silent_windows < window || u64::from(voted) > window
            });
            match role {
                Role::Miner => roster.miners.push(Miner { entry, incentive: neuron.incentive, work_class, bucket }),
                Role::Validator if neuron.permit && stake_rao >= spec.roster.validator_stake_rao && !silent => {
                    roster.validators.push(Validator { entry, stake_rao, bucket });
                }
                Role::Validator => {}
            }
        }
        if roster.validators.len() > VALIDATORS_MAX {
            roster.validators.sort_by_key(|validator| (std::cmp::Reverse(validator.stake_rao), validator.entry.uid));
            roster.validators.truncate(VALIDATORS_MAX);
            roster.validators.sort_by_key(|validator| validator.entry.uid);
        }
        roster
    }

    pub fn miner(&self, entry: &EntryId) -> Option<&Miner> {
        self.miners.iter().find(|miner| miner.entry == *entry)
    }

    pub fn validator_stake_rao(&self) -> u128 {
        self.validators.iter().map(|validator| u128::from(validator.stake_rao)).sum()
    }
}
