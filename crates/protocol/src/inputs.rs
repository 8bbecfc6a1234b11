//! What a settled window was decided from. The run state names it by its digest, and the next window's votes certify
//! that, so an archive can be content-addressed: whoever has these bytes can compute the certificate again.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::candidates::Contender;
use crate::commitment::Commitment;
use crate::hash::Hash32;
use crate::roster::{EntryId, Neuron, Roster, Snapshot};
use crate::word::{HeaderWord, Vote};

/// Upper bound of encoded inputs: every uid that 16 bits can name is a miner, of 110 bytes, and 64 are validators, of 182.
pub const INPUTS_BYTES_MAX: u64 = 7 * 1024 * 1024;

/// Everything that the rules read from the chain for one window.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct WindowInputs {
    pub window: u64,
    /// Hash of the block S_w: it gives the window's seed.
    pub snapshot_hash: Hash32,
    /// Hash of the block D_put: it gives the evaluation draws.
    pub put_hash: Hash32,
    pub miners: Vec<MinerInput>,
    pub validators: Vec<ValidatorInput>,
}

/// A miner of the roster, and what it had on chain at the put deadline.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct MinerInput {
    pub entry: EntryId,
    pub incentive: u16,
    pub work_class: u8,
    /// [`crate::bucket::BucketLocator::identity`] of its bucket.
    pub bucket: Hash32,
    /// The header that it committed for this window, if there is one.
    pub header: Option<Hash32>,
}

/// A validator of the roster, and what it had on chain at the vote deadline.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ValidatorInput {
    pub entry: EntryId,
    pub stake_rao: u64,
    /// The field of its vote as it stands on chain, whatever is in it; empty if there is none.
    pub ballot: Vec<u8>,
}

impl WindowInputs {
    /// The inputs of `window` from its roster and the snapshots at its deadlines.
    pub fn new(window: u64, snapshot_hash: Hash32, roster: &Roster, at_put: &Snapshot, at_vote: &Snapshot) -> Self {
        let header = |entry: &EntryId| {
            HeaderWord::read(at_put.commitment_of(entry)?, window as u32).ok().map(|word| word.header_hash)
        };
        let ballot = |entry: &EntryId| at_vote.commitment_of(entry).map_or(Vec::new(), |of| Vote::field(of).to_vec());
        let miners = roster.miners.iter().map(|miner| MinerInput {
            entry: miner.entry,
            incentive: miner.incentive,
            work_class: miner.work_class,
            bucket: miner.bucket.identity(),
            header: header(&miner.entry),
        });
        let validators = roster.validators.iter().map(|validator| ValidatorInput {
            entry: validator.entry,
            stake_rao: validator.stake_rao,
            ballot: ballot(&validator.entry),
        });
        Self {
            window,
            snapshot_hash,
            put_hash: at_put.block_hash,
            miners: miners.collect(),
            validators: validators.collect(),
        }
    }

    /// What decided who the candidates are, in the order of the roster.
    pub fn contenders(&self) -> impl Iterator<Item = Contender> {
        self.miners.iter().map(|miner| {
            let MinerInput { entry, incentive, bucket, .. } = *miner;
            Contender { entry, incentive, bucket }
        })
    }

    /// The header that `entry` committed for this window, if it is a miner that did.
    pub fn header_of(&self, entry: &EntryId) -> Option<Hash32> {
        self.miners.iter().find(|miner| miner.entry == *entry)?.header
    }

    /// The ballots as a snapshot has them. Whatever else was on the chain is not in it.
    pub fn at_vote(&self) -> Snapshot {
        let neuron = |validator: &ValidatorInput| Neuron {
            entry: validator.entry,
            stake_rao: validator.stake_rao,
            permit: true,
            incentive: 0,
            commitment: Some(Commitment { block: 0, fields: vec![vec![], vec![], validator.ballot.clone()] }),
        };
        Snapshot { block: 0, block_hash: Hash32::default(), neurons: self.validators.iter().map(neuron).collect() }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("inputs have no value that Borsh lacks")
    }

    /// Reads a stranger's bytes. `None` if they are not the canonical encoding of the inputs with this digest.
    pub fn from_bytes(bytes: &[u8], digest: &Hash32) -> Option<Self> {
        let inputs: Self = borsh::from_slice(bytes).ok()?;
        (inputs.digest() == *digest).then_some(inputs)
    }

    /// What the run state after the window names.
    pub fn digest(&self) -> Hash32 {
        Hash32::of_value("templar v2 window inputs", self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commitment::FIELD_BYTES_MAX;
    use crate::roster::Neuron;
    use crate::run::VALIDATORS_MAX;
    use crate::testing::{entry, roster};
    use crate::word::fields;

    #[test]
    fn inputs_hold_what_is_on_chain_and_nothing_of_other_windows() {
        let roster = roster(2, 1);
        let neuron = |uid, fields| Neuron {
            entry: entry(uid),
            stake_rao: 1,
            permit: false,
            incentive: 0,
            commitment: Some(Commitment { block: 1, fields }),
        };
        let word = |window| HeaderWord { window, header_hash: Hash32::of(b"header") };
        let snapshot = |neurons| Snapshot { block: 9, block_hash: Hash32::of(b"put"), neurons };
        let headers = [(0, 7), (1, 6)].map(|(uid, window)| neuron(uid, fields(b"l", Some(&word(window)), None)));
        let ballots = vec![neuron(2, vec![vec![], vec![], vec![9; 3]])];
        let inputs =
            WindowInputs::new(7, Hash32::of(b"seed"), &roster, &snapshot(headers.to_vec()), &snapshot(ballots));
        let found: Vec<Option<Hash32>> = inputs.miners.iter().map(|miner| miner.header).collect();
        assert_eq!(found, [Some(Hash32::of(b"header")), None]);
        assert_eq!(inputs.validators[0].ballot, [9; 3]);
        let bytes = inputs.to_bytes();
        assert_eq!(WindowInputs::from_bytes(&bytes, &inputs.digest()).as_ref(), Some(&inputs));
        assert_eq!(WindowInputs::from_bytes(&[bytes, vec![0]].concat(), &inputs.digest()), None);
        let mut other = inputs.clone();
        other.validators[0].ballot.push(0);
        assert_ne!(other.digest(), inputs.digest());
    }

    /// What a validator archives per window; the operators' page has the figure.
    #[test]
    fn inputs_of_a_full_subnet_are_small_and_the_bound_holds_for_every_subnet() {
        let miner = MinerInput {
            entry: entry(1),
            incentive: 1,
            work_class: 0,
            bucket: Hash32::default(),
            header: Some(Hash32::default()),
        };
        let validator = ValidatorInput { entry: entry(2), stake_rao: 1, ballot: vec![0; FIELD_BYTES_MAX] };
        let bytes = |miners: usize, validators: usize| {
            let hash = Hash32::default();
            let (miners, validators) = (vec![miner.clone(); miners], vec![validator.clone(); validators]);
            WindowInputs { window: 1, snapshot_hash: hash, put_hash: hash, miners, validators }.to_bytes().len() as u64
        };
        assert_eq!(bytes(192, 64), 80 + 192 * 110 + 64 * 182);
        assert!(bytes(192, 64) < 33_000 && bytes(1 << 16, VALIDATORS_MAX) < INPUTS_BYTES_MAX);
    }
}
