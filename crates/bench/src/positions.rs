//! How evenly the sent positions are spread: what a better coder could save.
//!
//! Three costs of the same choices, in bits per value sent: as the codec writes them; the bound for a choice without a
//! pattern, log2 C(L, k) per chunk; and under a model that knows, from the previous window, how often each row and each
//! column of each matrix was sent (P ∝ (row + 1) · (column + 1)), which is more than a coder would know at first.

use serde::Serialize;
use templar_protocol::layout::Layout;

/// Costs of positions; the module defines them.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct PositionCost {
    pub bound_bits: f64,
    pub rows_and_columns_bits: f64,
    /// The whole payload, as the codec writes it.
    pub payload_bits: f64,
    /// Share of this window's positions that the same peer sent in the previous window.
    pub repeated_share: f64,
    /// Share of one peer's positions that another peer sent in the same window.
    pub shared_share: f64,
}

/// Computes the costs from the sent positions, as one flag per parameter, of this window, the previous window and
/// another peer.
///
/// # Panics
/// If the flags do not fit the layout.
pub fn cost(layout: &Layout, chunk: usize, sent: &[bool], before: &[bool], other: &[bool]) -> PositionCost {
    assert!([sent, before, other].iter().all(|flags| flags.len() == layout.len()), "one flag per parameter");
    let (mut bound, mut modelled) = (0.0, 0.0);
    for tensor in layout.tensors() {
        let columns = tensor.shape.last().map_or(1, |&columns| columns as usize);
        let weight = weights(&before[tensor.range()], columns);
        for (index, flags) in sent[tensor.range()].chunks(chunk).enumerate() {
            let k = flags.iter().filter(|&&sent| sent).count();
            bound += log2_choose(flags.len(), k);
            modelled += modelled_bits(flags, k, |at| weight(index * chunk + at));
        }
    }
    let count = |flags: &dyn Fn(usize) -> bool| (0..sent.len()).filter(|&at| sent[at] && flags(at)).count() as f64;
    let total = count(&|_| true).max(1.0);
    PositionCost {
        bound_bits: bound / total,
        rows_and_columns_bits: modelled / total,
        payload_bits: 0.0,
        repeated_share: count(&|at| before[at]) / total,
        shared_share: count(&|at| other[at]) / total,
    }
}

/// How likely each position of a matrix is, up to a factor.
fn weights(before: &[bool], columns: usize) -> impl Fn(usize) -> f64 {
    let mut of_row = vec![1.0; before.len().div_ceil(columns)];
    let mut of_column = vec![1.0; columns];
    for at in (0..before.len()).filter(|&at| before[at]) {
        of_row[at / columns] += 1.0;
        of_column[at % columns] += 1.0;
    }
    move |at| of_row[at / columns] * of_column[at % columns]
}

/// Bits of a choice of `k` positions if each is sent with a probability ∝ its weight, given that `k` are sent.
fn modelled_bits(flags: &[bool], k: usize, weight: impl Fn(usize) -> f64) -> f64 {
    if k == 0 || k == flags.len() {
        return 0.0;
    }
    let mut chances: Vec<f64> = (0..flags.len()).map(weight).collect();
    // A few rounds make them sum to k, although none may reach 1.
    for _ in 0..8 {
        let factor = k as f64 / chances.iter().sum::<f64>();
        for chance in &mut chances {
            *chance = (*chance * factor).min(0.999);
        }
    }
    let bits: f64 =
        chances.iter().zip(flags).map(|(&chance, &sent)| -(if sent { chance } else { 1.0 - chance }).log2()).sum();
    // It is known that k are sent: subtract that information, by the normal approximation.
    let variance: f64 = chances.iter().map(|chance| chance * (1.0 - chance)).sum();
    bits - 0.5 * (2.0 * std::f64::consts::PI * variance).log2()
}

fn log2_choose(n: usize, k: usize) -> f64 {
    (0..k).map(|i| ((n - i) as f64 / (k - i) as f64).log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_pattern_the_model_gains_nothing() {
        assert!((log2_choose(4096, 64) / 64.0 - 7.364).abs() < 1e-3);
        let layout = Layout::new([("w".to_owned(), vec![256, 64])]);
        let mut hasher = templar_protocol::hash::Hasher::new("templar bench positions test");
        let mut stream = hasher.update_value(&1u64).clone().into_stream();
        let mut flags = || {
            let mut flags = vec![false; 16_384];
            for chunk in flags.chunks_mut(4096) {
                for _ in 0..64 {
                    chunk[stream.below(4096) as usize] = true;
                }
            }
            flags
        };
        let (sent, before) = (flags(), flags());
        let random = cost(&layout, 4096, &sent, &before, &before);
        assert!(random.rows_and_columns_bits > random.bound_bits - 0.02, "{random:?}");
        // All positions are in one column in both windows, which the model knows.
        let column: Vec<bool> = (0..16_384).map(|at| at % 64 == 7).collect();
        let patterned = cost(&layout, 4096, &column, &column, &column);
        assert!(patterned.rows_and_columns_bits < 0.8 * patterned.bound_bits, "{patterned:?}");
        assert_eq!((patterned.repeated_share, patterned.shared_share), (1.0, 1.0));
    }
}
