//! What an engine says of its last training job.

use serde::{Deserialize, Serialize};

/// How much of its device an engine uses. Rates are of the whole engine, all its devices together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineStats {
    /// Name of the device, and how many there are.
    pub device: String,
    pub tokens_per_s: f64,
    /// FLOP/s that the model needs: (6·(P − P of the input embedding) + 6·L·d·s) · tokens/s, for L layers of width d and
    /// sequences of s tokens.
    pub model_flops_per_s: f64,
    /// FLOP/s of a plain matrix product in the same precision, measured on the spot.
    pub matmul_flops_per_s: f64,
    /// Dense bf16 FLOP/s by the maker's data sheet, where there is one.
    pub peak_flops_per_s: Option<f64>,
    /// Largest memory that one device had in use; on CPUs, that of the process, or 0 where the system does not say.
    pub peak_memory_bytes: u64,
}

impl EngineStats {
    /// Model FLOPs utilisation, 0 to 1: what the model needs over what the data sheet promises.
    pub fn mfu(&self) -> Option<f64> {
        self.peak_flops_per_s.filter(|&peak| peak > 0.0).map(|peak| self.model_flops_per_s / peak)
    }
}
