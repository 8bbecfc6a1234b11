//! What an engine reports about its last training job.

use serde::{Deserialize, Serialize};

/// How much of its device an engine uses. Rates cover the whole engine, all its devices together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineStats {
    /// Name of the device, and how many of them.
    pub device: String,
    pub tokens_per_s: f64,
    /// FLOP/s that the model needs: (6·(P − P of the input embedding) + 6·L·d·s) · tokens/s, for L layers of width d and
    /// sequences of s tokens.
    pub model_flops_per_s: f64,
    /// FLOP/s of a plain matrix product in the same precision, measured on the spot.
    pub matmul_flops_per_s: f64,
    /// Dense bf16 FLOP/s from the maker's data sheet, if there is one.
    pub peak_flops_per_s: Option<f64>,
    /// Largest memory that one device had in use; on CPUs the process's, or 0 if the system does not report it.
    pub peak_memory_bytes: u64,
}

impl EngineStats {
    /// Model FLOPs utilisation, 0 to 1: what the model needs over what the data sheet promises.
    pub fn mfu(&self) -> Option<f64> {
        self.peak_flops_per_s.filter(|&peak| peak > 0.0).map(|peak| self.model_flops_per_s / peak)
    }
}
