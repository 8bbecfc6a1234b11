//! A run is a hash: [`RunSpec`] is everything that nodes of one run must agree on, and [`RunId`] is its BLAKE3.
//!
//! `run.toml` is the text form. Parsing is strict: an unknown key, a missing key or an impossible value is an error that
//! names the key and the allowed range. The canonical form that is hashed is the Borsh encoding of the parsed values,
//! so comments, order and white space do not change the run.

mod range;

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::hash::Hash32;
use crate::layout::{Layout, ModelSpec};

/// The protocol version. It is part of every run, and says nothing about the version of the binary.
pub const PROTOCOL_VERSION: u16 = 1;

/// Most parameters that a model may have: far above any that trains today, and few enough to count on.
const PARAMETERS_MAX: u64 = 1 << 40;

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

/// The initial parameters: a seed of the generator, and the root that it must give.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Theta0Spec {
    pub seed: u64,
    /// `state_root` of θ₀.
    pub root: Hash32,
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
}

/// The inner optimiser: AdamW with linear warm-up and cosine decay, clipped by the global norm.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerSpec {
    /// H: inner steps in a window.
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
}

/// By how many the sum of contributions is divided, coordinate by coordinate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[borsh(use_discriminant = true)]
pub enum MeanOver {
    /// R = all contributing peers (SparseLoCo, eq. 4).
    Peers = 1,
    /// R = the peers that sent this coordinate, but at least `min_senders`.
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
    /// D_put: a header must be committed in this block or before.
    pub put_block: u64,
    /// D_vote: a vote must be committed in this block or before.
    pub vote_block: u64,
    /// d: windows that pass before a contribution is in θ (0: the next window starts from it; 1: the one after).
    pub delay_windows: u32,
    /// Validators publish a checkpoint after every so many windows, and serve contributions until the next one.
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
    /// Blocks between the two stake snapshots of which the lower counts.
    pub stake_age_blocks: u64,
    /// Windows for which a certified exclusion lasts.
    pub exclusion_windows: u64,
    /// Share of common positions from which the later of two contributions is a duplicate.
    pub overlap_max: f64,
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
    /// How much of the moving averages survives an evaluation.
    pub memory: f64,
    /// Windows between two settings of weights.
    pub weights_every_windows: u64,
}

impl RunSpec {
    /// Strictly parses and validates `run.toml`.
    pub fn from_toml(text: &str) -> Result<Self, RunSpecError> {
        if text.len() > 64 * 1024 {
            return Err(RunSpecError::TooLong { bytes: text.len() });
        }
        let spec: Self = toml::from_str(text)
            .map_err(|error| range::of_wrong_type(text, &error).unwrap_or(RunSpecError::Syntax(Box::new(error))))?;
        spec.validate()?;
        Ok(spec)
    }

    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a run spec has no value that TOML lacks")
    }

    /// BLAKE3 of the canonical encoding.
    pub fn id(&self) -> RunId {
        RunId(Hash32::of_value("templar v1 run id", self))
    }

    pub fn layout(&self) -> Layout {
        Layout::llama(&self.model)
    }

    /// Samples that a miner needs for a window: one sequence each.
    pub fn slice_samples(&self) -> u64 {
        u64::from(self.inner.steps) * u64::from(self.inner.batch_sequences)
    }

    /// Checks every value against its range, in the order in which they stand in the file.
    pub fn validate(&self) -> Result<(), RunSpecError> {
        check("protocol", self.protocol, PROTOCOL_VERSION, PROTOCOL_VERSION)?;
        check("name (length)", self.name.len(), 1, 64)?;
        // TOML has signed integers of 64 bits.
        let integer_max = i64::MAX as u64;
        check("chain.start_block", self.chain.start_block, 1, 1 << 40)?;
        check("theta0.seed", self.theta0.seed, 0, integer_max)?;
        check("data.seed", self.data.seed, 0, integer_max)?;
        self.validate_model()?;
        self.validate_training()?;
        self.validate_windows()?;
        check("roster.gather", self.roster.gather, 1, 256)?;
        check("roster.reserve", self.roster.reserve, 0, 256)?;
        check("roster.gather + roster.reserve", self.roster.gather + self.roster.reserve, 1, 256)?;
        check("roster.active_blocks", self.roster.active_blocks, self.windows.blocks, integer_max)?;
        check("roster.validator_stake_rao", self.roster.validator_stake_rao, 1, integer_max)?;
        check("roster.stake_age_blocks", self.roster.stake_age_blocks, 0, self.chain.start_block)?;
        check("roster.exclusion_windows", self.roster.exclusion_windows, 0, 1_000_000)?;
        // Contributions that send much have much in common by chance.
        let dense = f64::from(self.codec.k) / f64::from(self.codec.chunk);
        check("roster.overlap_max", self.roster.overlap_max, (2.0 * dense).clamp(0.05, 1.0), 1.0)?;
        check("scoring.draws", self.scoring.draws, 1, 256)?;
        check("scoring.sequences", self.scoring.sequences, 1, 4096)?;
        check("scoring.step_fraction", self.scoring.step_fraction, 1e-6, 1.0)?;
        check("scoring.memory", self.scoring.memory, 0.0, 0.9999)?;
        check("scoring.weights_every_windows", self.scoring.weights_every_windows, 1, 10_000)
    }

    fn validate_model(&self) -> Result<(), RunSpecError> {
        let model = &self.model;
        check("model.vocab_size", model.vocab_size, 2, 1 << 20)?;
        check("model.hidden_size", model.hidden_size, 2, 1 << 16)?;
        check("model.layers", model.layers, 1, 1024)?;
        check("model.heads", model.heads, 1, model.hidden_size)?;
        check("model.kv_heads", model.kv_heads, 1, model.heads)?;
        check("model.ffn_size", model.ffn_size, 1, 1 << 20)?;
        check("model.seq_len", model.seq_len, 2, 1 << 20)?;
        check("model.rope_theta", model.rope_theta, 1.0, 1e12)?;
        check("model.norm_eps", model.norm_eps, 1e-12, 1e-1)?;
        multiple("model.hidden_size", model.hidden_size, "model.heads", model.heads)?;
        multiple("model.heads", model.heads, "model.kv_heads", model.kv_heads)?;
        multiple("model.hidden_size / model.heads", model.head_dim(), "2 (rotary pairs)", 2)?;
        check("model (parameters)", self.layout().len() as u64, 1, PARAMETERS_MAX)
    }

    fn validate_training(&self) -> Result<(), RunSpecError> {
        let (codec, inner, outer) = (&self.codec, &self.inner, &self.outer);
        check("codec.chunk", codec.chunk, 16, 65_536)?;
        check("codec.k", codec.k, 1, codec.chunk)?;
        check("codec.error_decay", codec.error_decay, 0.0, 1.0)?;
        check("codec.max_abs", codec.max_abs, 1e-6, 1024.0)?;
        check("inner.steps", inner.steps, 1, 10_000)?;
        check("inner.batch_sequences", inner.batch_sequences, 1, 1 << 16)?;
        check("inner.micro_batch_sequences", inner.micro_batch_sequences, 1, inner.batch_sequences)?;
        multiple(
            "inner.batch_sequences",
            inner.batch_sequences,
            "inner.micro_batch_sequences",
            inner.micro_batch_sequences,
        )?;
        check("inner.lr", inner.lr, 1e-9, 1.0)?;
        check("inner.beta1", inner.beta1, 0.0, 0.9999)?;
        check("inner.beta2", inner.beta2, 0.0, 0.999_999)?;
        check("inner.epsilon", inner.epsilon, 1e-15, 1e-2)?;
        check("inner.weight_decay", inner.weight_decay, 0.0, 1.0)?;
        check("inner.clip_norm", inner.clip_norm, 1e-6, 1e6)?;
        check("inner.warmup_steps", inner.warmup_steps, 0, 1 << 40)?;
        check("inner.decay_steps", inner.decay_steps, 1, 1 << 40)?;
        check("inner.final_lr_fraction", inner.final_lr_fraction, 0.0, 1.0)?;
        check("outer.rate", outer.rate, 1e-6, 16.0)?;
        check("outer.min_senders", outer.min_senders, 1, 256)
    }

    fn validate_windows(&self) -> Result<(), RunSpecError> {
        let windows = &self.windows;
        check("windows.blocks", windows.blocks, 10, 1_000_000)?;
        // The seed is that of the snapshot's block: nobody should know it before the window before its own.
        let longest_lag = windows.blocks.min(self.chain.start_block);
        check("windows.snapshot_lag_blocks", windows.snapshot_lag_blocks, 1, longest_lag)?;
        check("windows.delay_windows", windows.delay_windows, 0, 1)?;
        check("windows.checkpoint_every_windows", windows.checkpoint_every_windows, 1, 10_000)?;
        // Room to train before it, and to open and vote after it.
        check("windows.put_block", windows.put_block, 3, windows.blocks - 4)?;
        // The word of the next window replaces this window's, so it must have been read by then; and a window whose
        // θ the next one starts from must end before that one starts.
        let last_vote = windows.blocks - 1 + u64::from(windows.delay_windows) * windows.put_block;
        check("windows.vote_block", windows.vote_block, windows.put_block + 3, last_vote)
    }
}

/// Why a text or value is not a run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RunSpecError {
    #[error("it has {bytes} bytes; a run needs less than 64 KiB. Is this the right file?")]
    TooLong { bytes: usize },
    #[error("`{key}` is not a value of its kind ({reason}); it must lie in {min} ..= {max}")]
    WrongType { key: String, reason: String, min: String, max: String },
    #[error("it does not parse: {0}")]
    Syntax(Box<toml::de::Error>),
    #[error("`{key}` is {found}, but must lie in {min} ..= {max}")]
    OutOfRange { key: &'static str, found: String, min: String, max: String },
    #[error("`{key}` is {found}, but must be a multiple of {of}, which is {divisor}")]
    NotMultiple { key: &'static str, found: u32, of: &'static str, divisor: u32 },
}

fn check<T: PartialOrd + fmt::Display + Copy>(key: &'static str, found: T, min: T, max: T) -> Result<(), RunSpecError> {
    if found >= min && found <= max {
        return Ok(());
    }
    Err(RunSpecError::OutOfRange { key, found: found.to_string(), min: min.to_string(), max: max.to_string() })
}

fn multiple(key: &'static str, found: u32, of: &'static str, divisor: u32) -> Result<(), RunSpecError> {
    if found.is_multiple_of(divisor) {
        return Ok(());
    }
    Err(RunSpecError::NotMultiple { key, found, of, divisor })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    fn error(edit: impl Fn(&mut RunSpec)) -> String {
        let mut run = spec();
        edit(&mut run);
        RunSpec::from_toml(&run.to_toml()).unwrap_err().to_string()
    }

    #[test]
    fn text_and_values_are_one_run() {
        let run = spec();
        assert_eq!(RunSpec::from_toml(&run.to_toml()).unwrap(), run);
        let commented = format!("# a comment\n{}", run.to_toml().replace(" = ", "   =   "));
        assert_eq!(RunSpec::from_toml(&commented).unwrap().id(), run.id());
        assert_eq!(run.id().to_string(), "bf8f28bf549d96b1e067cf8697787e37b6e930f85c536ad69c08e58ac156f81f");
    }

    #[test]
    fn every_value_is_part_of_the_id() {
        let edits: [fn(&mut RunSpec); 6] = [
            |run| run.chain.netuid += 1,
            |run| run.inner.lr *= 2.0,
            |run| run.outer.mean_over = MeanOver::Senders,
            |run| run.windows.vote_block += 1,
            |run| run.scoring.memory = 0.5,
            |run| run.name.push('x'),
        ];
        for edit in edits {
            let mut run = spec();
            edit(&mut run);
            assert_ne!(run.id(), spec().id());
        }
    }

    #[test]
    fn errors_name_the_key_and_the_range() {
        assert_eq!(error(|run| run.windows.put_block = 40), "`windows.put_block` is 40, but must lie in 3 ..= 16");
        assert_eq!(
            error(|run| run.model.heads = 5),
            "`model.hidden_size` is 32, but must be a multiple of model.heads, which is 5"
        );
        let huge =
            error(|run| (run.model.ffn_size, run.model.hidden_size, run.model.layers) = (1 << 20, 1 << 16, 1024));
        assert!(huge.starts_with("`model (parameters)` is 2"), "{huge}");
        assert!(error(|run| run.inner.lr = f64::NAN).starts_with("`inner.lr` is NaN, but must lie in"));
        let text = spec().to_toml();
        let unknown = RunSpec::from_toml(&text.replace("[windows]", "[windows]\nsecs = 3")).unwrap_err().to_string();
        assert!(unknown.contains("unknown field `secs`"), "{unknown}");
        let unit = RunSpec::from_toml(&text.replace("blocks = 20", "blocks = \"20s\"")).unwrap_err().to_string();
        assert_eq!(
            unit,
            "`windows.blocks` is not a value of its kind (invalid type: string \"20s\", expected u64); \
             it must lie in 10 ..= 1000000"
        );
        let negative = RunSpec::from_toml(&text.replace("layers = 2", "layers = -2")).unwrap_err().to_string();
        assert!(negative.ends_with("it must lie in 1 ..= 1024"), "{negative}");
        let missing = RunSpec::from_toml(&text.replace("put_block = 10\n", "")).unwrap_err().to_string();
        assert!(missing.contains("missing field `put_block`"), "{missing}");
        let netuid = RunSpec::from_toml(&text.replace("netuid = 3", "netuid = 70000")).unwrap_err().to_string();
        assert!(netuid.starts_with("`chain.netuid`") && netuid.ends_with("in 0 ..= 65535"), "{netuid}");
        for huge in ["99999999999999999999", "-99999999999999999999"] {
            let huge = RunSpec::from_toml(&text.replace("layers = 2", &format!("layers = {huge}"))).unwrap_err();
            let huge = huge.to_string();
            assert!(huge.starts_with("`model.layers`") && huge.ends_with("in 1 ..= 1024"), "{huge}");
        }
        let late = |run: &mut RunSpec| (run.chain.start_block, run.windows.snapshot_lag_blocks) = (1000, 21);
        assert_eq!(error(late), "`windows.snapshot_lag_blocks` is 21, but must lie in 1 ..= 20");
        assert!(matches!(RunSpec::from_toml(&"#".repeat(70_000)), Err(RunSpecError::TooLong { .. })));
    }
}
