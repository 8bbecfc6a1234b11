//! The one table of a run's keys and their ranges: validation, error messages and the page of keys read it.

use std::fmt::{self, Display, Write as _};

use crate::hash::{Hash32, Hasher};
use crate::run::spec::{
    CANDIDATES_MAX, CHUNK_MAX, MUON_LR, MUON_MOMENTUM, MUON_WEIGHT_DECAY, Optimiser, PROTOCOL_VERSION, RunSpec,
    SENT_MAX, SENT_MIN, Theta0Source, Transform,
};

use Bound::{At, Of};

/// A key of `run.toml`.
#[derive(Debug)]
pub struct RunKey {
    /// Section and name, such as `outer.rate`.
    pub key: &'static str,
    pub values: Values,
    /// What is counted or measured; empty where the value is a plain number.
    pub unit: &'static str,
    pub doc: &'static str,
    /// For a key that came after the first release of this protocol version: whether a run behaves as it did before the
    /// key existed. It is left out of the hash then, and may be left out of the file.
    pub is_as_before: Option<fn(&RunSpec) -> bool>,
}

/// What a key can be set to, and how to find it in a run.
#[derive(Debug)]
pub enum Values {
    Integer {
        get: fn(&RunSpec) -> u64,
        min: Bound<u64>,
        max: Bound<u64>,
    },
    Number {
        get: fn(&RunSpec) -> f64,
        min: Bound<f64>,
        max: Bound<f64>,
    },
    Text {
        get: fn(&RunSpec) -> &str,
        bytes_max: usize,
    },
    /// 64 hexadecimal digits.
    Hash(fn(&RunSpec) -> Hash32),
    /// A name, and the number that stands for it in the run's encoding.
    Choice {
        get: fn(&RunSpec) -> u8,
        names: &'static [&'static str],
    },
    Switch(fn(&RunSpec) -> bool),
}

/// One end of a range.
#[derive(Debug)]
pub enum Bound<T: 'static> {
    At(T),
    /// It follows from other keys, as the text says.
    Of(&'static str, fn(&RunSpec) -> T),
}

impl<T: Copy> Bound<T> {
    /// Its value in a run whose earlier keys are valid.
    pub(super) fn of(&self, run: &RunSpec) -> T {
        match self {
            At(value) => *value,
            Of(_, value) => value(run),
        }
    }
}

impl<T: Display> Display for Bound<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At(value) => value.fmt(f),
            Of(text, _) => f.write_str(text),
        }
    }
}

/// TOML has signed integers of 64 bits.
const INTEGER_MAX: u64 = i64::MAX as u64;

/// All keys in the order in which they stand in the file. A bound may depend on keys before its own, and on those of
/// sections before.
#[rustfmt::skip] // A table: one key per line.
pub static KEYS: &[RunKey] = &[
    integer("protocol", |run| run.protocol.into(), (At(PROTOCOL_VERSION as u64), At(PROTOCOL_VERSION as u64)), "", "The version of the protocol. It says nothing about the version of the binary."),
    RunKey { key: "name", values: Values::Text { get: |run| &run.name, bytes_max: 64 }, unit: "", doc: "A name for people.", is_as_before: None },
    RunKey { key: "chain.genesis", values: Values::Hash(|run| run.chain.genesis), unit: "", doc: "Hash of the chain's block 0.", is_as_before: None },
    integer("chain.netuid", |run| run.chain.netuid.into(), (At(0), At(u16::MAX as u64)), "", "The subnet."),
    integer("chain.start_block", |run| run.chain.start_block, (At(1), At(1 << 40)), "block", "First block of window 0."),
    integer("model.vocab_size", |run| run.model.vocab_size.into(), (At(2), At(1 << 20)), "tokens", "Tokens that the model knows."),
    integer("model.hidden_size", |run| run.model.hidden_size.into(), (At(2), At(1 << 16)), "", "Width of the model: a multiple of twice `model.heads`."),
    integer("model.layers", |run| run.model.layers.into(), (At(1), At(1024)), "layers", "Transformer layers."),
    integer("model.heads", |run| run.model.heads.into(), (At(1), Of("model.hidden_size", |run| run.model.hidden_size.into())), "heads", "Attention heads: a multiple of `model.kv_heads`."),
    integer("model.kv_heads", |run| run.model.kv_heads.into(), (At(1), Of("model.heads", |run| run.model.heads.into())), "heads", "Heads of keys and values."),
    integer("model.ffn_size", |run| run.model.ffn_size.into(), (At(1), At(1 << 20)), "", "Width of the feed-forward part."),
    integer("model.seq_len", |run| run.model.seq_len.into(), (At(2), At(1 << 20)), "tokens", "Longest sequence."),
    number("model.rope_theta", |run| run.model.rope_theta, (At(1.0), At(1e12)), "", "Base of the rotary position embedding."),
    number("model.norm_eps", |run| run.model.norm_eps, (At(1e-12), At(1e-1)), "", "What RMS norms add to the mean square."),
    RunKey { key: "model.tied_embeddings", values: Values::Switch(|run| run.model.tied_embeddings), unit: "", doc: "Whether the output projection is the embedding itself.", is_as_before: None },
    RunKey { key: "model.qk_norm", values: Values::Switch(|run| run.model.qk_norm), unit: "", doc: "Whether queries and keys pass an RMS norm of their own, head by head, before they are rotated, as in Qwen 3: two more tensors in every layer.", is_as_before: Some(|run| !run.model.qk_norm) },
    integer("theta0.seed", |run| run.theta0.seed, (At(0), At(INTEGER_MAX)), "", "Seed of the initial parameters."),
    RunKey { key: "theta0.root", values: Values::Hash(|run| run.theta0.root), unit: "", doc: "State root that the initial parameters must have; it follows from `theta0.seed` and `model`, or from the weights.", is_as_before: None },
    RunKey { key: "theta0.source", values: Values::Choice { get: |run| run.theta0.source as u8, names: &["seed", "weights"] }, unit: "", doc: "Where the initial parameters come from: from `theta0.seed`, or from weights that are served beside the dataset (`run init --from`).", is_as_before: Some(|run| run.theta0.source == Theta0Source::Seed) },
    RunKey { key: "data.manifest", values: Values::Hash(|run| run.data.manifest), unit: "", doc: "BLAKE3 of the dataset's canonical manifest, which names tokenizer, shards and samples.", is_as_before: None },
    integer("data.seed", |run| run.data.seed, (At(0), At(INTEGER_MAX)), "", "Seed of the order of the samples, epoch by epoch."),
    RunKey { key: "codec.kind", values: Values::Choice { get: |run| run.codec.kind as u8, names: &["topk-sign", "dense-f32", "topk-2bit"] }, unit: "", doc: "How a contribution becomes bytes.", is_as_before: None },
    integer("codec.chunk", |run| run.codec.chunk.into(), (At(16), At(CHUNK_MAX as u64)), "values", "Values per chunk."),
    integer("codec.k", |run| run.codec.k.into(), (At(1), Of("codec.chunk", |run| run.codec.chunk.into())), "values", "Values sent per full chunk."),
    number("codec.error_decay", |run| run.codec.error_decay, (At(0.0), At(1.0)), "", "β: how much of the error feedback survives a window."),
    number("codec.max_abs", |run| run.codec.max_abs, (At(SENT_MIN), At(SENT_MAX)), "", "Largest magnitude that a sent value may have."),
    RunKey { key: "codec.transform", values: Values::Choice { get: |run| run.codec.transform as u8, names: &["none", "dct"] }, unit: "", doc: "In which coordinates the largest values are picked and summed: the parameters, or the coefficients of a cosine transform of full chunks (DeMo). `dct` needs a top-k `codec.kind` and `codec.chunk = 4096`.", is_as_before: Some(|run| run.codec.transform == Transform::None) },
    integer("inner.steps", |run| run.inner.steps.into(), (At(1), At(10_000)), "steps", "H: inner steps per window."),
    integer("inner.batch_sequences", |run| run.inner.batch_sequences.into(), (At(1), At(1 << 16)), "sequences", "Sequences per inner step: a multiple of `inner.micro_batch_sequences`."),
    integer("inner.micro_batch_sequences", |run| run.inner.micro_batch_sequences.into(), (At(1), Of("inner.batch_sequences", |run| run.inner.batch_sequences.into())), "sequences", "Sequences per forward pass; gradients are accumulated over the passes of a step."),
    number("inner.lr", |run| run.inner.lr, (At(1e-9), At(1.0)), "", "Learning rate after the warm-up."),
    number("inner.beta1", |run| run.inner.beta1, (At(0.0), At(0.9999)), "", "How much of the mean of gradients survives a step."),
    number("inner.beta2", |run| run.inner.beta2, (At(0.0), At(0.999_999)), "", "How much of the mean of squared gradients survives a step."),
    number("inner.epsilon", |run| run.inner.epsilon, (At(1e-15), At(1e-2)), "", "What AdamW adds to the divisor."),
    number("inner.weight_decay", |run| run.inner.weight_decay, (At(0.0), At(1.0)), "", "Decoupled weight decay."),
    number("inner.clip_norm", |run| run.inner.clip_norm, (At(1e-6), At(1e6)), "", "Largest global norm of a gradient."),
    integer("inner.warmup_steps", |run| run.inner.warmup_steps, (At(0), At(1 << 40)), "steps", "Inner steps of the linear warm-up."),
    integer("inner.decay_steps", |run| run.inner.decay_steps, (At(1), At(1 << 40)), "steps", "Inner steps from the end of the warm-up to the end of the cosine."),
    number("inner.final_lr_fraction", |run| run.inner.final_lr_fraction, (At(0.0), At(1.0)), "of lr", "Learning rate after the cosine."),
    RunKey { key: "inner.optimiser", values: Values::Choice { get: |run| run.inner.optimiser as u8, names: &["adamw", "muon"] }, unit: "", doc: "How gradients become inner steps: AdamW everywhere, or Muon for the matrices of the layers and AdamW for the rest.", is_as_before: Some(|run| run.inner.optimiser == Optimiser::Adamw) },
    number("inner.muon_lr", |run| run.inner.muon_lr, (At(1e-9), At(1.0)), "", "Learning rate of Muon after the warm-up; it follows the schedule of `inner.lr`.").added(|run| same(run.inner.muon_lr, MUON_LR)),
    number("inner.muon_momentum", |run| run.inner.muon_momentum, (At(0.0), At(0.9999)), "", "How much of Muon's momentum survives a step.").added(|run| same(run.inner.muon_momentum, MUON_MOMENTUM)),
    number("inner.muon_weight_decay", |run| run.inner.muon_weight_decay, (At(0.0), At(1.0)), "", "Decoupled weight decay of the matrices that Muon updates.").added(|run| same(run.inner.muon_weight_decay, MUON_WEIGHT_DECAY)),
    integer("inner.reset_every_windows", |run| run.inner.reset_every_windows, (At(0), At(1_000_000)), "windows", "The inner optimiser forgets its moments before every window whose number is a multiple of this; 0: never.").added(|run| run.inner.reset_every_windows == 0),
    integer("inner.reset_warmup_steps", |run| run.inner.reset_warmup_steps, (At(0), Of("inner.steps", |run| run.inner.steps.into())), "steps", "Inner steps after a reset over which the learning rate rises linearly to its value.").added(|run| run.inner.reset_warmup_steps == 0),
    integer("inner.anneal_from_window", |run| run.inner.anneal_from_window, (At(0), At(1_000_000_000)), "", "First window of the anneal with which the run ends: the learning rate falls linearly to 0; 0: no anneal. Null windows count.").added(|run| run.inner.anneal_from_window == 0),
    integer("inner.anneal_windows", |run| run.inner.anneal_windows, (Of("1 with an anneal, else 0", |run| run.inner.anneal_from_window.min(1)), At(1_000_000)), "windows", "Windows over which the learning rate falls. The run ends with the last of them: nobody trains in later ones.").added(|run| run.inner.anneal_windows == 0),
    integer("inner.anneal_steps", |run| run.inner.anneal_steps.into(), (At(0), Of("inner.steps", |run| run.inner.steps.into())), "steps", "H from the first window of the anneal on; 0: `inner.steps`.").added(|run| run.inner.anneal_steps == 0),
    number("inner.z_loss", |run| run.inner.z_loss, (At(0.0), At(1.0)), "", "ζ: training lowers loss + ζ·(log Z)² of every target, where Z is the sum of the exponentiated logits; 1e-4 is usual. Losses are reported without it.").added(|run| same(run.inner.z_loss, 0.0)),
    number("outer.rate", |run| run.outer.rate, (At(1e-6), At(16.0)), "", "α: the outer learning rate."),
    RunKey { key: "outer.mean_over", values: Values::Choice { get: |run| run.outer.mean_over as u8, names: &["peers", "senders"] }, unit: "", doc: "What a coordinate's sum is divided by: the number of all contributing peers, or of those that sent it.", is_as_before: None },
    integer("outer.min_senders", |run| run.outer.min_senders.into(), (At(1), At(CANDIDATES_MAX as u64)), "peers", "With `outer.mean_over = \"senders\"`, a coordinate is divided by at least this many."),
    integer("windows.blocks", |run| run.windows.blocks, (At(10), At(1_000_000)), "blocks", "Length of a window."),
    integer("windows.snapshot_lag_blocks", |run| run.windows.snapshot_lag_blocks, (At(1), Of("the lower of windows.blocks and chain.start_block", |run| run.windows.blocks.min(run.chain.start_block))), "blocks", "How long before a window its roster is fixed. The window's seed is known from then on, never earlier than the start of the previous window."),
    integer("windows.put_block", |run| run.windows.put_block, (At(3), Of("windows.blocks − 4", |run| run.windows.blocks - 4)), "blocks", "A header must be committed at most this long after the start of its window."),
    integer("windows.vote_block", |run| run.windows.vote_block, (Of("windows.put_block + 3", |run| run.windows.put_block + 3), Of("windows.blocks − 1 + windows.delay_windows · windows.put_block", last_vote)), "blocks", "A vote must be committed at most this long after the start of its window."),
    integer("windows.delay_windows", |run| run.windows.delay_windows.into(), (At(0), At(1)), "windows", "Windows that pass before a contribution is in the parameters that a window starts from."),
    integer("windows.checkpoint_every_windows", |run| run.windows.checkpoint_every_windows, (At(1), At(10_000)), "windows", "Windows between two checkpoints of the validators, which serve contributions until the next one."),
    integer("roster.gather", |run| run.roster.gather.into(), (At(1), At(CANDIDATES_MAX as u64)), "miners", "G: contributions that count in a window."),
    integer("roster.reserve", |run| run.roster.reserve.into(), (At(0), At(CANDIDATES_MAX as u64)), "miners", "Further candidates, for those of the first G that do not pass. With `roster.gather` at most 256."),
    integer("roster.validator_stake_rao", |run| run.roster.validator_stake_rao, (At(1), At(INTEGER_MAX)), "RAO", "Stake from which a neuron with a permit is a validator."),
    integer("roster.active_blocks", |run| run.roster.active_blocks, (Of("windows.blocks", |run| run.windows.blocks), At(INTEGER_MAX)), "blocks", "A neuron whose last commitment is older is not in the roster."),
    integer("roster.stake_age_blocks", |run| run.roster.stake_age_blocks, (At(0), Of("chain.start_block", |run| run.chain.start_block)), "blocks", "Blocks between the two snapshots of stake; the lower stake counts."),
    integer("roster.exclusion_windows", |run| run.roster.exclusion_windows, (At(0), At(1_000_000)), "windows", "How long a certified exclusion lasts."),
    integer("roster.silent_windows", |run| run.roster.silent_windows, (At(2), At(1_000_000)), "windows", "A validator whose last vote is about an older window than this many ago is not in the roster, so that a run that too many left goes on without them."),
    integer("scoring.draws", |run| run.scoring.draws.into(), (At(1), At(256)), "miners", "Miners that a validator evaluates per window."),
    integer("scoring.sequences", |run| run.scoring.sequences.into(), (At(1), At(4096)), "sequences", "Sequences of each kind (assigned, unseen) per evaluation."),
    number("scoring.step_fraction", |run| run.scoring.step_fraction, (At(1e-6), At(1.0)), "of the step", "c: a miner is evaluated at θ − c·α·contribution."),
    number("scoring.memory", |run| run.scoring.memory, (At(0.0), At(0.9999)), "", "How much of the moving averages survives a window or an evaluation."),
    integer("scoring.budget_tokens", |run| run.scoring.budget_tokens, (At(1), At(1 << 50)), "tokens", "Verified tokens per window that earn the whole emission. What fewer tokens leave over is burned; more share it."),
    integer("scoring.burn_uid", |run| run.scoring.burn_uid.into(), (At(0), At(u16::MAX as u64)), "uid", "The uid that gets what nobody earned: the subnet's owner, whose share the chain burns or recycles."),
    integer("scoring.weights_every_windows", |run| run.scoring.weights_every_windows, (At(1), At(10_000)), "windows", "Windows between two settings of weights."),
];

const fn integer(
    key: &'static str,
    get: fn(&RunSpec) -> u64,
    (min, max): (Bound<u64>, Bound<u64>),
    unit: &'static str,
    doc: &'static str,
) -> RunKey {
    RunKey { key, values: Values::Integer { get, min, max }, unit, doc, is_as_before: None }
}

const fn number(
    key: &'static str,
    get: fn(&RunSpec) -> f64,
    (min, max): (Bound<f64>, Bound<f64>),
    unit: &'static str,
    doc: &'static str,
) -> RunKey {
    RunKey { key, values: Values::Number { get, min, max }, unit, doc, is_as_before: None }
}

impl RunKey {
    const fn added(mut self, is_as_before: fn(&RunSpec) -> bool) -> Self {
        self.is_as_before = Some(is_as_before);
        self
    }
}

fn same(value: f64, before: f64) -> bool {
    value.to_bits() == before.to_bits()
}

/// The on-chain record of the next window replaces this window's, which must have been read before that; and if the
/// next window starts from this one's θ, this one must end before the next one starts.
fn last_vote(run: &RunSpec) -> u64 {
    run.windows.blocks - 1 + u64::from(run.windows.delay_windows) * run.windows.put_block
}

impl RunKey {
    /// The key with that name.
    pub fn find(key: &str) -> Option<&'static Self> {
        KEYS.iter().find(|known| known.key == key)
    }

    /// Absorbs its value in `run`. The kind of a key's value never changes, so nothing else need be absorbed.
    pub(super) fn absorb(&self, run: &RunSpec, hasher: &mut Hasher) {
        match &self.values {
            Values::Integer { get, .. } => hasher.update_value(&get(run)),
            Values::Number { get, .. } => hasher.update_value(&get(run).to_bits()),
            Values::Text { get, .. } => hasher.update_value(get(run)),
            Values::Hash(get) => hasher.update_value(&get(run)),
            Values::Choice { get, .. } => hasher.update_value(&get(run)),
            Values::Switch(get) => hasher.update_value(&get(run)),
        };
    }

    /// Both ends of a number's range, in words where they follow from other keys.
    pub fn range(&self) -> Option<(String, String)> {
        match &self.values {
            Values::Integer { min, max, .. } => Some((min.to_string(), max.to_string())),
            Values::Number { min, max, .. } => Some((min.to_string(), max.to_string())),
            _ => None,
        }
    }

    /// What it can be set to, with its unit, in words.
    pub fn allowed(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" ({})", self.unit) };
        match &self.values {
            Values::Integer { min: At(min), max: At(max), .. } if min == max => format!("{min}"),
            Values::Integer { min, max, .. } => format!("a whole number in {min} ..= {max}{unit}"),
            Values::Number { min, max, .. } => format!("a number in {min} ..= {max}{unit}"),
            Values::Text { bytes_max, .. } => format!("text of 1 ..= {bytes_max} bytes"),
            Values::Hash(_) => "64 hexadecimal digits, 0-9 and a-f".to_owned(),
            Values::Choice { names, .. } => format!("one of {}", names.join(", ")),
            Values::Switch(_) => "true or false".to_owned(),
        }
    }

    /// Whether its value in `run` lies between those of its bounds that depend on no other key.
    pub(super) fn allows(&self, run: &RunSpec) -> bool {
        fn within<T: PartialOrd>(found: &T, min: &Bound<T>, max: &Bound<T>) -> bool {
            (if let At(min) = min { found >= min } else { true }) && if let At(max) = max { found <= max } else { true }
        }
        match &self.values {
            Values::Integer { get, min, max } => within(&get(run), min, max),
            Values::Number { get, min, max } => get(run).is_finite() && within(&get(run), min, max),
            Values::Text { get, bytes_max } => (1..=*bytes_max).contains(&get(run).len()),
            Values::Hash(_) | Values::Choice { .. } | Values::Switch(_) => true,
        }
    }

    /// What the author of the unknown key `wrong` may have meant: the nearest key, or the keys of its section, or all
    /// sections.
    pub(super) fn hint(wrong: &str) -> String {
        let distance = |known: &&RunKey| edits(known.key, wrong);
        if let Some(nearest) = KEYS.iter().min_by_key(distance).filter(|known| distance(known) <= 3) {
            return format!("did you mean `{}`?", nearest.key);
        }
        // The right name without its section, or in the wrong section.
        let name = wrong.rsplit('.').next().unwrap_or(wrong);
        if let Some(known) = KEYS.iter().find(|known| known.key.rsplit('.').next() == Some(name)) {
            return format!("did you mean `{}`?", known.key);
        }
        let section = wrong.split('.').next().unwrap_or(wrong);
        let of_section = |known: &&RunKey| known.key.split_once('.').is_some_and(|(of, _)| of == section);
        let keys: Vec<&str> = KEYS.iter().filter(of_section).map(|known| known.key).collect();
        if !keys.is_empty() {
            return format!("`{section}` has {}", keys.join(", "));
        }
        let mut sections: Vec<&str> = KEYS.iter().filter_map(|known| Some(known.key.split_once('.')?.0)).collect();
        sections.dedup();
        format!("its sections are {}", sections.join(", "))
    }
}

/// Letters to insert, remove or replace to get from one text to the other (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j].min(diagonal) + 1);
        }
    }
    row[b.len()]
}

/// The page of all keys, as Markdown.
pub fn page() -> String {
    let mut page = "# Keys of run.toml\n\n\
        This page is generated from the table in [`keys.rs`](../crates/protocol/src/run/keys.rs), which also validates runs: \
        `TEMPLAR_BLESS=1 cargo test --release -p templar-protocol golden` rewrites it.\n\n\
        No other keys are allowed. All are required but those marked *later*, which came after the first runs of this protocol\n\
        version: without them a run is as before. `templar run init` writes a file with this project's defaults; \
        `--set KEY=VALUE` gives a key another value there.\n"
        .to_owned();
    let mut section = "-";
    for key in KEYS {
        let of = key.key.split_once('.').map_or("", |(section, _)| section);
        if of != section {
            section = of;
            let title = if of.is_empty() { "Before all sections".to_owned() } else { format!("`[{of}]`") };
            let _ = write!(page, "\n## {title}\n\n| key | value | meaning |\n|---|---|---|\n");
        }
        let name = key.key.rsplit('.').next().unwrap_or(key.key);
        let later = if key.is_as_before.is_some() { " *(later)*" } else { "" };
        let _ = writeln!(page, "| `{name}`{later} | {} | {} |", key.allowed(), key.doc);
    }
    page
}
