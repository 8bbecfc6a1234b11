//! What the nodes of a simulation train with.

use std::fmt;
use std::str::FromStr;

use templar_model::presets::{self, Preset};
use templar_protocol::layout::ModelSpec;
use templar_protocol::run::{InnerSpec, RunSpec};
use templar_record::engine::EngineStats;
use templar_train::{CpuTrainer, SyntheticTrainer, Trainer, TrainerLayer};

/// A trainer and the model that suits it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// A convex problem in place of a language model: see [`templar_train::synthetic`] for what it can show.
    #[default]
    Surrogate,
    /// The built-in engine on CPUs, with a language model of 0.1 M parameters and text of the built-in grammar.
    Real,
}

impl Engine {
    const ALL: [Self; 2] = [Self::Surrogate, Self::Real];

    /// The model that this engine trains in a simulation.
    pub fn preset(self) -> Preset {
        match self {
            Self::Surrogate => tiny_preset(),
            Self::Real => small_preset(),
        }
    }

    /// A fresh trainer for a node.
    pub(crate) fn trainer(self, spec: &RunSpec) -> Box<dyn Trainer> {
        match self {
            Self::Surrogate => Box::new(SyntheticTrainer::new(&spec.model, &spec.inner)),
            Self::Real => Box::new(Timeless(CpuTrainer::new(&spec.model, &spec.inner))),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Surrogate => "surrogate",
            Self::Real => "real",
        })
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|engine| engine.to_string() == text);
        known.ok_or_else(|| format!("a simulation has no trainer {text:?}; use surrogate or real"))
    }
}

/// A trainer that does not say how fast it was: under a virtual clock that means nothing, and differs from run to run.
struct Timeless(CpuTrainer);

impl TrainerLayer for Timeless {
    fn inner(&self) -> &dyn Trainer {
        &self.0
    }

    fn inner_mut(&mut self) -> &mut dyn Trainer {
        &mut self.0
    }

    fn stats(&self) -> Option<EngineStats> {
        None
    }
}

/// A model of a few thousand parameters: enough for the protocol, and for the surrogate.
pub fn tiny_preset() -> Preset {
    let model = ModelSpec {
        vocab_size: 272,
        hidden_size: 16,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        ffn_size: 32,
        seq_len: 32,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        tied_embeddings: true,
        qk_norm: false,
    };
    let inner = InnerSpec {
        steps: 4,
        batch_sequences: 4,
        micro_batch_sequences: 4,
        lr: 1e-3,
        beta2: 0.95,
        weight_decay: 0.0,
        warmup_steps: 0,
        ..presets::preset("nano").expect("a preset").inner
    };
    Preset { name: "tiny", model, inner }
}

/// A language model of 0.1 M parameters that learns most of what the built-in grammar's letters say in a dozen windows.
fn small_preset() -> Preset {
    let Preset { model, inner, .. } = tiny_preset();
    let model = ModelSpec { hidden_size: 48, layers: 3, heads: 4, kv_heads: 2, ffn_size: 144, seq_len: 64, ..model };
    let inner = InnerSpec { steps: 6, lr: 6e-3, beta2: 0.99, weight_decay: 0.1, warmup_steps: 6, ..inner };
    Preset { name: "small", model, inner }
}

#[cfg(test)]
mod tests {
    use templar_protocol::layout::Layout;

    use super::*;

    #[test]
    fn names_lead_to_engines_and_their_models_are_small() {
        for (engine, parameters) in [(Engine::Surrogate, 1_000..10_000), (Engine::Real, 80_000..150_000)] {
            assert_eq!(engine.to_string().parse(), Ok(engine));
            let size = Layout::llama(&engine.preset().model).len();
            assert!(parameters.contains(&size), "{engine}: {size}");
        }
        assert!("torch".parse::<Engine>().is_err());
    }
}
