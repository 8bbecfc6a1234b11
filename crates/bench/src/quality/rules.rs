//! How the peers' values become one outer step.

use std::fmt;

use serde::Serialize;
use templar_protocol::layout::Layout;
use templar_protocol::run::{MeanOver, OuterSpec};

/// The divisor of the sum of the sent values, per coordinate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// All peers.
    Peers,
    /// The peers that sent the coordinate, but at least this many.
    Senders { at_least: usize },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peers => f.pad("peers"),
            Self::Senders { at_least: 1 } => f.pad("senders"),
            Self::Senders { at_least } => f.pad(&format!("max(senders, {at_least})")),
        }
    }
}

impl Rule {
    /// The protocol's values for this rule.
    pub(super) fn outer(self, rate: f64) -> OuterSpec {
        let (mean_over, min_senders) = match self {
            Self::Peers => (MeanOver::Peers, 1),
            Self::Senders { at_least } => (MeanOver::Senders, at_least as u32),
        };
        OuterSpec { rate, mean_over, min_senders }
    }

    /// The outer step without the sign: the protocol's rule in f64, clipping to the lower median norm of each tensor
    /// included. (The protocol itself adds integers; the formats compared here include ones that it does not have.)
    pub(super) fn aggregate(self, layout: &Layout, peers: &[&[f32]], rate: f64) -> Vec<f32> {
        let mut step = vec![0.0; layout.len()];
        for tensor in layout.tensors() {
            let norm =
                |peer: &&[f32]| peer[tensor.range()].iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            let norms: Vec<f64> = peers.iter().map(norm).collect();
            let mut sorted = norms.clone();
            sorted.sort_by(f64::total_cmp);
            let median = sorted[(sorted.len() - 1) / 2];
            for at in tensor.range() {
                let (mut sum, mut senders) = (0.0, 0);
                for (peer, &norm) in peers.iter().zip(&norms) {
                    if peer[at] != 0.0 {
                        sum += f64::from(peer[at]) * (median / norm).min(1.0);
                        senders += 1;
                    }
                }
                let divisor = match self {
                    Self::Peers => peers.len(),
                    Self::Senders { at_least } => senders.max(at_least),
                };
                step[at] = (rate * sum / divisor as f64) as f32;
            }
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use templar_codec::{Codec, outer_step};
    use templar_protocol::run::CodecKind;

    use super::*;

    #[test]
    fn agrees_with_the_protocol() {
        let layout = Layout::new([("a".to_owned(), vec![64, 64]), ("b".to_owned(), vec![100])]);
        let codec = Codec::new(Arc::new(layout.clone()), &crate::codec::spec(CodecKind::TopkSign));
        let delta = |peer: usize| -> Vec<f32> {
            (0..layout.len())
                .map(|at| ((at * (peer + 3) * 7919 % 1009) as f32 - 504.0) * 1e-3 * (peer + 1) as f32)
                .collect()
        };
        let contributions: Vec<_> = (0..4)
            .map(|peer| codec.decode(codec.encode(&mut vec![0.0; layout.len()], &delta(peer)).unwrap()).unwrap())
            .collect();
        let dense: Vec<Vec<f32>> = contributions
            .iter()
            .map(|contribution| {
                let mut values = vec![0.0; layout.len()];
                contribution.add_scaled(&mut values, 1.0);
                values
            })
            .collect();
        let peers: Vec<&[f32]> = dense.iter().map(Vec::as_slice).collect();
        for rule in [Rule::Peers, Rule::Senders { at_least: 2 }] {
            let mut theta = vec![0.0; layout.len()];
            outer_step(&layout, &mut theta, &contributions.iter().collect::<Vec<_>>(), &rule.outer(0.7));
            let step = rule.aggregate(&layout, &peers, 0.7);
            assert!(theta.iter().zip(&step).all(|(theta, step)| (theta + step).abs() < 1e-6));
        }
    }
}
