//! How many FLOPs a model needs, and how much memory a process used: counted alike for every engine.

use std::fs;

use templar_protocol::layout::{Layout, ModelSpec};

/// FLOPs per token of training, in sequences of `seq_len` tokens: 6·(P − P of the input embedding) + 6·L·d·s, for L
/// layers of width d. Attention is counted causally. A tied embedding is also the output projection, so it stays in P.
pub fn flops_per_token(model: &ModelSpec, seq_len: usize) -> f64 {
    let layout = Layout::llama(model);
    let lookup = if model.tied_embeddings { 0 } else { layout.tensors()[0].len() };
    let attention = f64::from(model.layers) * f64::from(model.hidden_size) * seq_len as f64;
    6.0 * (layout.len() - lookup) as f64 + 6.0 * attention
}

/// Largest resident memory of this process so far; 0 where the system does not report it.
pub fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same model and the same count as in the worker's tests.
    #[test]
    fn flops_are_those_of_the_formula() {
        let model = ModelSpec {
            vocab_size: 32,
            hidden_size: 16,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            ffn_size: 24,
            seq_len: 8,
            rope_theta: 50.0,
            norm_eps: 1e-5,
            tied_embeddings: false,
            qk_norm: false,
        };
        let (matrices, norms) = (2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 16 * 24) + 32 * 16, 5 * 16);
        let expected = f64::from(6 * (matrices + norms) + 6 * 2 * 16 * 8);
        for tied_embeddings in [false, true] {
            assert_eq!(
                flops_per_token(&ModelSpec { tied_embeddings, ..model.clone() }, 8).to_bits(),
                expected.to_bits()
            );
        }
    }
}
