//! A decoded contribution: which parameters a miner wants moved, and by how much.

use std::{fmt, ops::Range, sync::Arc};

use rayon::prelude::*;

use crate::{
    format::{scale_value, write_dense, write_head, write_signs},
    plan::{Plan, Segment},
};

/// A valid contribution to one run. [`Codec::decode`](crate::Codec::decode) makes it, nothing else.
///
/// Memory: for topk-sign two bytes and one bit a value, and two bytes a chunk; for dense-f32 four bytes a value.
#[derive(Clone, PartialEq)]
pub struct Contribution {
    pub(crate) plan: Arc<Plan>,
    /// In the order of the plan's segments.
    pub(crate) parts: Vec<Part>,
}

/// The chunks of one segment.
#[derive(Clone, PartialEq)]
pub(crate) enum Part {
    Signs {
        /// bfloat16, one a chunk.
        scales: Vec<u16>,
        /// k a chunk.
        positions: Vec<u16>,
        /// ⌈k / 64⌉ words a chunk, least significant bit first; 1 is negative.
        signs: Vec<u64>,
    },
    Dense(Vec<f32>),
}

/// What one chunk sends.
#[derive(Clone, Copy)]
pub(crate) enum Sent<'a> {
    Signs { scale: f32, positions: &'a [u16], signs: &'a [u64] },
    Dense(&'a [f32]),
}

impl Sent<'_> {
    /// Calls `visit` with every position within the chunk and its value, in the order of positions.
    #[inline]
    pub(crate) fn for_each(self, mut visit: impl FnMut(usize, f32)) {
        match self {
            // A chunk with scale 0 sends nothing: its positions are filler.
            Self::Signs { scale: 0.0, .. } => {}
            Self::Signs { scale, positions, signs } => {
                for (positions, &signs) in positions.chunks(64).zip(signs) {
                    for (index, &position) in positions.iter().enumerate() {
                        let sign = ((signs >> index) as u32 & 1) << 31;
                        visit(usize::from(position), f32::from_bits(scale.to_bits() | sign));
                    }
                }
            }
            Self::Dense(values) => values.iter().enumerate().for_each(|(position, &value)| visit(position, value)),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Signs { scale: 0.0, .. } => 0,
            Self::Signs { positions, .. } => positions.len(),
            Self::Dense(values) => values.len(),
        }
    }

    /// Sum of squares in f64, added up in the order of positions.
    fn square_sum(self) -> f64 {
        match self {
            // All squares are equal and have 16 significant bits at most, so that up to 2^16 of them add up without
            // rounding: the product is the serial sum, to the bit.
            Self::Signs { scale, positions, .. } => f64::from(scale) * f64::from(scale) * positions.len() as f64,
            Self::Dense(values) => values.iter().fold(0.0, |sum, &value| sum + f64::from(value) * f64::from(value)),
        }
    }

    /// How many positions two chunks of one place have in common.
    fn common(self, other: Self) -> usize {
        match (self, other) {
            (Self::Signs { positions: a, .. }, Self::Signs { positions: b, .. }) => count_common(a, b),
            _ => self.len().min(other.len()),
        }
    }
}

/// Length of the intersection of two strictly increasing sequences.
fn count_common(a: &[u16], b: &[u16]) -> usize {
    let (mut i, mut j, mut common) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        common += usize::from(a[i] == b[j]);
        let (step_a, step_b) = (a[i] <= b[j], b[j] <= a[i]);
        i += usize::from(step_a);
        j += usize::from(step_b);
    }
    common
}

impl Part {
    pub(crate) fn chunk(&self, segment: &Segment, chunk: usize) -> Sent<'_> {
        let range = |len: usize| -> Range<usize> { chunk * len..(chunk + 1) * len };
        match self {
            Self::Signs { scales, positions, signs } => Sent::Signs {
                scale: scale_value(scales[chunk]),
                positions: &positions[range(segment.k)],
                signs: &signs[range(segment.words_per_chunk())],
            },
            Self::Dense(values) => Sent::Dense(&values[range(segment.chunk_len)]),
        }
    }

    fn chunks<'a>(&'a self, segment: &'a Segment) -> impl Iterator<Item = Sent<'a>> {
        (0..segment.chunks).map(|chunk| self.chunk(segment, chunk))
    }
}

impl Contribution {
    /// Number of values that it sends: those of chunks with a scale above 0, or all if dense.
    pub fn values_sent(&self) -> u64 {
        self.parts().map(|(segment, part)| part.chunks(segment).map(Sent::len).sum::<usize>() as u64).sum()
    }

    /// L2 norm of every tensor, in canonical order.
    ///
    /// In f64: squares are added serially within a chunk, the chunks' sums in their order; so every node and every
    /// number of threads gets the same bits.
    pub fn norms(&self) -> Vec<f64> {
        let segments = &self.plan.segments;
        let sums: Vec<Vec<f64>> = segments
            .par_iter()
            .zip(&self.parts)
            .map(|(segment, part)| part.chunks(segment).map(Sent::square_sum).collect())
            .collect();
        let mut norms = vec![0.0; self.plan.layout.tensors().len()];
        for (segment, sums) in segments.iter().zip(sums) {
            for sum in sums {
                norms[segment.tensor] += sum;
            }
        }
        norms.into_iter().map(f64::sqrt).collect()
    }

    /// e ← e − contribution (SparseLoCo, eq. 2): the difference in f64, rounded to f32 once.
    ///
    /// # Panics
    /// If `e` does not have the length of the run's parameters.
    pub fn subtract_from(&self, e: &mut [f32]) {
        self.update(e, |e, value| (f64::from(e) - f64::from(value)) as f32);
    }

    /// θ ← θ + factor · contribution: product and sum in f64, rounded to f32 once. For evaluation; what nodes must
    /// agree on is [`outer_step`](crate::outer_step).
    ///
    /// # Panics
    /// If `theta` does not have the length of the run's parameters.
    pub fn add_scaled(&self, theta: &mut [f32], factor: f64) {
        self.update(theta, |theta, value| (f64::from(theta) + factor * f64::from(value)) as f32);
    }

    fn update(&self, params: &mut [f32], new: impl Fn(f32, f32) -> f32 + Sync) {
        let shares = self.plan.split_params(params);
        self.plan.segments.par_iter().zip(&self.parts).zip(shares).for_each(|((segment, part), params)| {
            for (sent, params) in part.chunks(segment).zip(params.chunks_mut(segment.chunk_len)) {
                sent.for_each(|position, value| params[position] = new(params[position], value));
            }
        });
    }

    /// How alike the choices of two contributions to one run are: the share of a chunk's positions that both have in
    /// common, 0 ..= 1, averaged over the chunks with the number of their values as weight.
    ///
    /// Chunks in which either sends nothing are left out, because their positions are filler; 0 if none remains. By
    /// chance it is k / chunk; dense contributions are always 1.
    ///
    /// # Panics
    /// If the two belong to different layouts or codecs.
    pub fn overlap(&self, other: &Self) -> f64 {
        self.assert_same_run(other);
        let (mut common, mut sent) = (0usize, 0usize);
        for ((segment, a), b) in self.parts().zip(&other.parts) {
            for (a, b) in a.chunks(segment).zip(b.chunks(segment)) {
                if a.len() > 0 && b.len() > 0 {
                    common += a.common(b);
                    sent += a.len();
                }
            }
        }
        if sent == 0 { 0.0 } else { common as f64 / sent as f64 }
    }

    /// The one payload that decodes to this contribution.
    pub fn to_payload(&self) -> Vec<u8> {
        let mut payload = vec![0; self.plan.payload_bytes];
        write_head(&mut payload, self.plan.kind);
        for (segment, part) in self.parts() {
            let outs = payload[segment.bytes()].chunks_mut(segment.chunk_bytes);
            for (chunk, out) in outs.enumerate() {
                match part.chunk(segment, chunk) {
                    Sent::Signs { scale, positions, signs } => {
                        let scale_bits = (scale.to_bits() >> 16) as u16;
                        write_signs(out, segment.position_bits(), scale_bits, positions, signs);
                    }
                    Sent::Dense(values) => write_dense(out, values.iter().copied()),
                }
            }
        }
        payload
    }

    pub(crate) fn assert_same_run(&self, other: &Self) {
        assert!(
            Arc::ptr_eq(&self.plan, &other.plan) || self.plan == other.plan,
            "contributions must come from one run's codec"
        );
    }

    fn parts(&self) -> impl Iterator<Item = (&Segment, &Part)> {
        self.plan.segments.iter().zip(&self.parts)
    }
}

/// In short: a contribution may hold gigabytes.
impl fmt::Debug for Contribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contribution")
            .field("kind", &self.plan.kind)
            .field("values_sent", &self.values_sent())
            .finish_non_exhaustive()
    }
}
