//! Named models with inner settings that suit them, from a laptop to the shape of Covenant-72B.
//!
//! A preset is only a starting point of a `run.toml`; nothing refers to it by name once the run exists.

use templar_protocol::layout::ModelSpec;
use templar_protocol::run::{InnerSpec, MUON_LR, MUON_MOMENTUM, MUON_WEIGHT_DECAY, Optimiser};

/// A shape and the inner optimiser's settings for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    pub name: &'static str,
    pub model: ModelSpec,
    pub inner: InnerSpec,
}

impl Preset {
    /// Fits the model to a dataset: sequences become as long as its samples, and the vocabulary grows to hold its
    /// tokens, rounded up to a multiple of 16, on which matrix products are fastest. The vocabulary never shrinks.
    pub fn fit(&mut self, seq_len: u32, vocab_size: u32) {
        self.model.seq_len = seq_len;
        self.model.vocab_size = self.model.vocab_size.max(vocab_size.next_multiple_of(16));
    }
}

const NAMES: [&str; 7] = ["nano", "micro", "150m", "1b", "7b", "8b", "72b"];

/// All presets, smallest first.
pub fn names() -> &'static [&'static str] {
    &NAMES
}

/// The preset of that name.
pub fn preset(name: &str) -> Option<Preset> {
    match name {
        "nano" => Some(nano()),
        "micro" => Some(micro()),
        "150m" => Some(of_150_million()),
        "1b" => Some(of_1_billion()),
        "7b" => Some(of_7_billion()),
        "8b" => Some(of_8_billion()),
        "72b" => Some(of_72_billion()),
        _ => None,
    }
}

/// Bytes as tokens: 256 and an end of text, rounded up to a multiple of 16.
const BYTE_VOCABULARY: u32 = 272;

/// A million parameters, for two cores and two minutes.
fn nano() -> Preset {
    let model = ModelSpec {
        vocab_size: BYTE_VOCABULARY,
        hidden_size: 128,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        ffn_size: 384,
        seq_len: 128,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        tied_embeddings: false,
        qk_norm: false,
    };
    let inner = InnerSpec {
        steps: 8,
        batch_sequences: 8,
        micro_batch_sequences: 4,
        lr: 3e-3,
        beta2: 0.99,
        warmup_steps: 20,
        decay_steps: 1_000,
        ..inner()
    };
    Preset { name: "nano", model, inner }
}

/// Five million parameters.
fn micro() -> Preset {
    let model =
        ModelSpec { hidden_size: 256, layers: 6, heads: 8, kv_heads: 4, ffn_size: 704, seq_len: 256, ..nano().model };
    let inner = InnerSpec { steps: 20, lr: 2e-3, warmup_steps: 50, decay_steps: 4_000, ..nano().inner };
    Preset { name: "micro", model, inner }
}

fn of_150_million() -> Preset {
    let model = ModelSpec {
        vocab_size: 32_768,
        hidden_size: 768,
        layers: 16,
        heads: 12,
        kv_heads: 4,
        ffn_size: 2048,
        seq_len: 2048,
        ..nano().model
    };
    let inner = InnerSpec {
        batch_sequences: 64,
        micro_batch_sequences: 8,
        lr: 6e-4,
        warmup_steps: 500,
        decay_steps: 20_000,
        ..inner()
    };
    Preset { name: "150m", model, inner }
}

/// The shape of TinyLlama with a vocabulary of 32 Ki.
fn of_1_billion() -> Preset {
    let model = ModelSpec {
        vocab_size: 32_768,
        hidden_size: 2048,
        layers: 22,
        heads: 32,
        kv_heads: 4,
        ffn_size: 5632,
        seq_len: 2048,
        ..nano().model
    };
    let inner = InnerSpec {
        batch_sequences: 128,
        micro_batch_sequences: 4,
        lr: 4e-4,
        warmup_steps: 1_000,
        decay_steps: 60_000,
        ..inner()
    };
    Preset { name: "1b", model, inner }
}

/// The shape of Llama 2 7B.
fn of_7_billion() -> Preset {
    let model = ModelSpec {
        vocab_size: 32_000,
        hidden_size: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        ffn_size: 11_008,
        seq_len: 2048,
        ..nano().model
    };
    Preset { name: "7b", model, inner: InnerSpec { lr: 3e-4, ..inner() } }
}

/// The shape of Llama 3 8B.
fn of_8_billion() -> Preset {
    let model =
        ModelSpec { vocab_size: 128_256, kv_heads: 8, ffn_size: 14_336, rope_theta: 500_000.0, ..of_7_billion().model };
    Preset { name: "8b", model, inner: InnerSpec { lr: 3e-4, ..inner() } }
}

/// The shape and inner settings of Covenant-72B.
fn of_72_billion() -> Preset {
    let model = ModelSpec {
        vocab_size: 262_144,
        hidden_size: 8192,
        layers: 80,
        heads: 64,
        kv_heads: 8,
        ffn_size: 28_672,
        seq_len: 2048,
        rope_theta: 500_000.0,
        norm_eps: 1e-5,
        tied_embeddings: false,
        qk_norm: false,
    };
    Preset { name: "72b", model, inner: inner() }
}

/// Covenant-72B's inner settings, which the larger presets share, except for learning rate and batch size.
fn inner() -> InnerSpec {
    InnerSpec {
        steps: 30,
        batch_sequences: 192,
        micro_batch_sequences: 1,
        lr: 1.2e-4,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        clip_norm: 1.0,
        warmup_steps: 1_500,
        decay_steps: 140_000,
        final_lr_fraction: 0.1,
        optimiser: Optimiser::Adamw,
        muon_lr: MUON_LR,
        muon_momentum: MUON_MOMENTUM,
        muon_weight_decay: MUON_WEIGHT_DECAY,
        reset_every_windows: 0,
        reset_warmup_steps: 0,
        anneal_from_window: 0,
        anneal_windows: 0,
        anneal_steps: 0,
        z_loss: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::layout::Layout;

    use super::*;

    #[test]
    fn presets_have_the_sizes_in_their_names() {
        let parameters = |name| Layout::llama(&preset(name).unwrap().model).len();
        assert_eq!(parameters("72b"), 72_747_327_488);
        assert_eq!(parameters("8b"), 8_030_261_248, "Llama 3 8B");
        assert_eq!(parameters("7b"), 6_738_415_616, "Llama 2 7B");
        for (name, about) in [("nano", 0.9e6), ("micro", 4.6e6), ("150m", 150e6), ("1b", 1.1e9)] {
            let ratio = parameters(name) as f64 / about;
            assert!((0.93..1.07).contains(&ratio), "{name} has {} parameters", parameters(name));
        }
    }

    #[test]
    fn names_and_presets_agree_and_shapes_are_valid() {
        for &name in names() {
            let Preset { name: own, model, inner } = preset(name).unwrap();
            assert_eq!(own, name);
            assert!(model.hidden_size.is_multiple_of(model.heads) && model.heads.is_multiple_of(model.kv_heads));
            assert!(
                model.head_dim().is_multiple_of(2) && inner.batch_sequences.is_multiple_of(inner.micro_batch_sequences)
            );
        }
        assert!(preset("giga").is_none());
    }
}
