//! The values of a run, and what follows from them alone.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::hash::Hash32;
use crate::layout::{Layout, ModelSpec};

/// The protocol version. It is part of every run, and says nothing about the version of the binary.
pub const PROTOCOL_VERSION: u16 = 2;

/// Most candidates of a window: two bitmaps of this length fit the field of a vote, beside tag, window and root.
pub const CANDIDATES_MAX: u32 = 256;
/// Most validators of a window, which have a bit each in every vote: as many as Bittensor gives permits to.
pub const VALIDATORS_MAX: usize = 64;
/// Most values in a chunk of the codec: positions are 16-bit integers.
pub const CHUNK_MAX: u32 = 1 << 16;
/// Values in a chunk that the codec can transform: a square of 64 by 64.
pub const TRANSFORM_CHUNK: u32 = 64 * 64;
/// Range of `codec.max_abs`: the codec's scales begin at 2^-28.
pub const SENT_MIN: f64 = 1e-6;
pub const SENT_MAX: f64 = 1024.0;

/// The identity of a run: BLAKE3 of its canonical encoding.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RunId(pub Hash32);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunId({})", self.0.short())
    }
}

/// Everything that nodes of one run agree on.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// Protocol version, [`PROTOCOL_VERSION`].
    pub protocol: u16,
    /// A name for people.
    pub name: String,
    pub chain: ChainSpec,
    pub model: ModelSpec,
    pub theta0: Theta0Spec,
    pub data: DataSpec,
    pub codec: CodecSpec,
    pub inner: InnerSpec,
    pub outer: OuterSpec,
    pub windows: WindowSpec,
    pub roster: RosterSpec,
    pub scoring: ScoringSpec,
}

/// Which chain and subnet the run lives on.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainSpec {
    /// Hash of block 0.
    pub genesis: Hash32,
    pub netuid: u16,
    /// First block of window 0.
    pub start_block: u64,
}

/// Where the initial parameters come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[borsh(use_discriminant = true)]
pub enum Theta0Source {
    /// Our own generator.
    #[default]
    Seed = 1,
    /// Somebody's weights, which are served beside the dataset.
    Weights = 2,
}

/// The initial parameters: the generator's seed, and the root that the parameters must have.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Theta0Spec {
    pub seed: u64,
    /// `state_root` of θ₀.
    pub root: Hash32,
    #[serde(default)]
    pub source: Theta0Source,
}

/// What is trained on.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// BLAKE3 of the dataset's canonical manifest, which names tokenizer, shards and samples.
    pub manifest: Hash32,
    /// Seed of the per-epoch permutations of the samples.
    pub seed: u64,
}

/// How a pseudo-gradient becomes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[borsh(use_discriminant = true)]
pub enum CodecKind {
    /// SparseLoCo: the k largest of each chunk as a sign and a scale per chunk.
    TopkSign = 1,
    /// DiLoCo: every value as f32, for comparison.
    DenseF32 = 2,
    /// The k largest of each chunk as a sign and one of two magnitudes per chunk.
    #[serde(rename = "topk-2bit")]
    TopkTwoBit = 3,
}

/// In which coordinates the codec picks the largest values and contributions are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[borsh(use_discriminant = true)]
pub enum Transform {
    /// The parameters themselves.
    #[default]
    None = 1,
    /// DeMo: the coefficients of the cosine transform (DCT-II) of each full chunk, taken as a square.
    Dct = 2,
}

#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecSpec {
    pub kind: CodecKind,
    /// Values per chunk.
    pub chunk: u32,
    /// Values sent per full chunk.
    pub k: u32,
    /// β: how much of the error feedback survives a window (SparseLoCo, eq. 2).
    pub error_decay: f64,
    /// Largest magnitude that a sent value may have.
    pub max_abs: f64,
    #[serde(default)]
    pub transform: Transform,
}

/// How gradients become inner steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[borsh(use_discriminant = true)]
pub enum Optimiser {
    /// "Decoupled Weight Decay Regularization" for every tensor.
    #[default]
    Adamw = 1,
    /// The momentum's matrix sign for the matrices of the layers; AdamW for embeddings, output projection and norms.
    Muon = 2,
}

/// The inner optimiser, with linear warm-up and cosine decay, clipped by the global norm.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerSpec {
    /// H: inner steps in a window, but for those of an anneal: [`InnerSpec::steps_of`].
    pub steps: u32,
    /// Sequences in one inner step.
    pub batch_sequences: u32,
    /// Sequences in one forward pass; gradients are accumulated over `batch / micro_batch` passes.
    pub micro_batch_sequences: u32,
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Largest global norm of a gradient.
    pub clip_norm: f64,
    pub warmup_steps: u64,
    /// Inner steps from the end of the warm-up to the end of the cosine.
    pub decay_steps: u64,
    /// Learning rate after the cosine, as a fraction of `lr`.
    pub final_lr_fraction: f64,
    #[serde(default)]
    pub optimiser: Optimiser,
    /// Muon's learning rate at the place of `lr`, whose schedule it follows.
    #[serde(default = "muon_lr")]
    pub muon_lr: f64,
    #[serde(default = "muon_momentum")]
    pub muon_momentum: f64,
    #[serde(default = "muon_weight_decay")]
    pub muon_weight_decay: f64,
    /// The optimiser forgets its moments before every window whose number is a multiple of this; 0: never.
    #[serde(default)]
    pub reset_every_windows: u64,
    /// Steps after a reset over which the learning rate rises linearly to its value.
    #[serde(default)]
    pub reset_warmup_steps: u64,
    /// First window of the anneal, which ends the run; 0: none.
    #[serde(default)]
    pub anneal_from_window: u64,
    /// Windows over which the learning rate falls to 0.
    #[serde(default)]
    pub anneal_windows: u64,
    /// H from the anneal on; 0: as before it.
    #[serde(default)]
    pub anneal_steps: u32,
    /// ζ: training lowers loss + ζ·(log Z)² of every target, where Z is the sum of the exponentiated logits.
    #[serde(default)]
    pub z_loss: f64,
}

/// What the keys of Muon are where a run does not name them.
pub const MUON_LR: f64 = 0.02;
pub const MUON_MOMENTUM: f64 = 0.95;
pub const MUON_WEIGHT_DECAY: f64 = 0.01;

fn muon_lr() -> f64 {
    MUON_LR
}

fn muon_momentum() -> f64 {
    MUON_MOMENTUM
}

fn muon_weight_decay() -> f64 {
    MUON_WEIGHT_DECAY
}

/// What the sum of contributions is divided by, coordinate by coordinate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[borsh(use_discriminant = true)]
pub enum MeanOver {
    /// R = the number of all contributing peers (SparseLoCo, eq. 4).
    Peers = 1,
    /// R = the number of peers that sent this coordinate, but at least `min_senders`.
    Senders = 2,
}

#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OuterSpec {
    /// α, the outer learning rate.
    pub rate: f64,
    pub mean_over: MeanOver,
    /// m: with `mean-over = "senders"`, a coordinate is divided by at least this many peers.
    pub min_senders: u32,
}

/// The phases of a window, all counted in blocks from its first block.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSpec {
    /// Length of a window.
    pub blocks: u64,
    /// How long before a window its roster is fixed.
    pub snapshot_lag_blocks: u64,
    /// D_put: a header must be committed in this block or earlier.
    pub put_block: u64,
    /// D_vote: a vote must be committed in this block or earlier.
    pub vote_block: u64,
    /// d: windows that pass before a contribution is in θ (0: the next window starts from it; 1: the one after).
    pub delay_windows: u32,
    /// Windows between two checkpoints of the validators, which serve contributions until the next one.
    pub checkpoint_every_windows: u64,
}

#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterSpec {
    /// G: contributions that count in a window.
    pub gather: u32,
    /// Further candidates, for those of the first G that do not pass.
    pub reserve: u32,
    /// Stake, in RAO, from which a neuron with a permit is a validator.
    pub validator_stake_rao: u64,
    /// A neuron whose last commitment is older than this is not in the roster.
    pub active_blocks: u64,
    /// Blocks between the two snapshots of stake; the lower stake counts.
    pub stake_age_blocks: u64,
    /// Windows for which a certified exclusion lasts.
    pub exclusion_windows: u64,
    /// A validator whose last vote is about an older window than this many ago is not in the roster, so that a run that
    /// too many of them left goes on without them.
    pub silent_windows: u64,
}

#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoringSpec {
    /// Miners that a validator evaluates in a window.
    pub draws: u32,
    /// Sequences of each kind (assigned, unseen) in an evaluation.
    pub sequences: u32,
    /// c: evaluate θ − c·α·contribution (Gauntlet's β).
    pub step_fraction: f64,
    /// How much of the moving averages survives a window or an evaluation.
    pub memory: f64,
    /// Tokens per window that earn the whole emission: miners that together train fewer earn less of it.
    pub budget_tokens: u64,
    /// The uid that gets what nobody earned: the subnet's owner, whose share the chain burns or recycles.
    pub burn_uid: u16,
    /// Windows between two settings of weights.
    pub weights_every_windows: u64,
}

impl RunSpec {
    pub fn layout(&self) -> Layout {
        Layout::llama(&self.model)
    }

    /// Tokens of a miner's slice in a window.
    pub fn slice_tokens(&self, window: u64) -> u64 {
        self.inner.samples_of(window).saturating_mul(self.model.seq_len.into())
    }
}
