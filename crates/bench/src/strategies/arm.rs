//! One way to train a model on several machines, with all of its rates.

use std::fmt;

use templar_protocol::run::{CodecKind, InnerSpec, MeanOver, Optimiser, Transform};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arm {
    pub inner: Inner,
    pub exchange: Exchange,
}

/// What each peer does between two exchanges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inner {
    pub optimiser: Optimiser,
    /// AdamW's learning rate: for every tensor, or for those that Muon leaves alone.
    pub lr: f64,
    pub muon_lr: f64,
    /// H: steps between two exchanges.
    pub steps: u32,
    /// Moments are forgotten every so many windows; 0: never.
    pub reset_every_windows: u64,
    /// Steps of warm-up after a reset.
    pub reset_warmup_steps: u64,
}

/// What the peers send each other, and what they do with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Exchange {
    /// Data parallel: one optimiser on the mean gradient of all peers' batches, step by step.
    EveryStep,
    /// The whole pseudo-gradient as f32, once per window.
    Dense(Outer),
    /// The codec's contribution, once per window.
    Sparse(Sparse),
}

/// The step along the mean of dense pseudo-gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outer {
    Plain {
        rate: f64,
    },
    /// DiLoCo: m ← μ·m + Δ, θ ← θ − rate · (Δ + μ·m).
    Nesterov {
        rate: f64,
        momentum: f64,
    },
}

/// The codec and the protocol's outer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sparse {
    pub kind: CodecKind,
    pub transform: Transform,
    /// Values sent per chunk of 4096.
    pub k: u32,
    /// β: how much of the error feedback survives a window.
    pub error_decay: f64,
    pub mean_over: MeanOver,
    pub min_senders: u32,
    /// α.
    pub rate: f64,
    /// Every so many windows, more values per chunk than `k`.
    pub denser: Option<Denser>,
}

/// A window in which more is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denser {
    pub every_windows: u64,
    pub k: u32,
}

impl Arm {
    /// What the peers of `base` do in this arm.
    pub(super) fn inner_spec(&self, base: &InnerSpec) -> InnerSpec {
        let Inner { optimiser, lr, muon_lr, steps, reset_every_windows, reset_warmup_steps } = self.inner;
        InnerSpec { optimiser, lr, muon_lr, steps, reset_every_windows, reset_warmup_steps, ..base.clone() }
    }
}

/// The arm's name in files: two arms with the same name are the same.
impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { optimiser, lr, muon_lr, steps, reset_every_windows, reset_warmup_steps } = self.inner;
        match optimiser {
            Optimiser::Adamw => write!(f, "adamw {lr}")?,
            Optimiser::Muon => write!(f, "muon {muon_lr} (adamw {lr})")?,
        }
        if reset_every_windows > 0 {
            write!(f, ", reset every {reset_every_windows} with warm-up {reset_warmup_steps}")?;
        }
        match self.exchange {
            Exchange::EveryStep => f.write_str("; data parallel"),
            Exchange::Dense(Outer::Plain { rate }) => write!(f, "; H {steps}; dense, α {rate}"),
            Exchange::Dense(Outer::Nesterov { rate, momentum }) => {
                write!(f, "; H {steps}; dense, Nesterov α {rate} μ {momentum}")
            }
            Exchange::Sparse(sparse) => write!(f, "; H {steps}; {sparse}"),
        }
    }
}

impl fmt::Display for Sparse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            CodecKind::TopkSign => "topk-sign",
            CodecKind::TopkTwoBit => "topk-2bit",
            CodecKind::DenseF32 => "dense-f32",
        };
        if self.transform == Transform::Dct {
            f.write_str("DCT, ")?;
        }
        let Self { k, error_decay, min_senders, rate, .. } = self;
        match self.mean_over {
            MeanOver::Peers => write!(f, "{kind} k {k}, β {error_decay}, peers, α {rate}"),
            MeanOver::Senders => write!(f, "{kind} k {k}, β {error_decay}, max(senders, {min_senders}), α {rate}"),
        }?;
        match self.denser {
            Some(Denser { every_windows, k }) => write!(f, ", k {k} every {every_windows}"),
            None => Ok(()),
        }
    }
}
