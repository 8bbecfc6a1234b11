//! The outer step, to the bit: what all nodes must compute alike, on any machine and in any order.
//!
//! Floating-point sums depend on their order, so contributions are added as integers. For every parameter and every
//! contribution c that sent a value v for it:
//!
//! > q = round(((f64(v) · clip_c) · α) / R · 2^40), ties to even, as i64
//!
//! evaluated from left to right in f64. R is the number of contributions or, if the run says so, max(senders of this
//! parameter, m). Then θ′ = f32(f64(θ) − f64(Σq) · 2^-40), and θ stays untouched where Σq = 0. Each operation is
//! correctly rounded by IEEE 754 and none is fused, so q has the same bits everywhere; integer sums have no order.
//!
//! Under a transform, v is a coefficient, and so is "this parameter" in the above: contributions are summed as coefficients.
//! Then [`crate::dct`] turns each chunk's Σq, in integers, into what θ is moved by.
//!
//! *No overflow.* |v| ≤ `codec.max_abs` ≤ 2^10, clip ≤ 1, α ≤ 2^4, so that |q| ≤ 2^54 / R + 1. R is at least the number
//! of addends, which is at most 256: |Σq| ≤ 2^54 + 256, which leaves eight bits of an i64 for other use. θ stays
//! finite, since the subtrahend is far below half a unit in the last place of `f32::MAX`.
//!
//! *Flush-to-zero.* Values are 0 or normal by the format. A sum other than 0 moves θ by at least 2^-40, next to which a
//! subnormal θ disappears, and θ − Σq · 2^-40 is 0 or at least 2^-64: no subnormal number plays a part.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use templar_protocol::layout::Layout;
use templar_protocol::run::{CANDIDATES_MAX, MeanOver, OuterSpec, Transform};

use crate::contribution::{Chunks, Contribution, Sent};
use crate::dct;
use crate::fixed::{ONE, quantise};
use crate::plan::Segment;
use crate::segment::Entry;

/// The most contributions that a window gathers.
const CONTRIBUTIONS_MAX: usize = CANDIDATES_MAX as usize;

/// By how much each contribution is scaled down, `[contribution][tensor]`: min(1, median / norm).
///
/// The median is taken over all contributions' norms of the tensor; of two middle ones it is the lower, so that half of
/// the contributions can never raise it. A tensor of norm 0 has factor 1.
///
/// # Panics
/// If the contributions belong to different layouts or codecs.
pub fn clip_factors(contributions: &[&Contribution]) -> Vec<Vec<f64>> {
    let Some(first) = contributions.first() else { return Vec::new() };
    for contribution in contributions {
        first.assert_same_run(contribution);
    }
    let norms: Vec<&[f64]> = contributions.iter().map(|contribution| contribution.norms()).collect();
    let medians: Vec<f64> = (0..norms[0].len())
        .map(|tensor| {
            let mut of_tensor: Vec<f64> = norms.iter().map(|norms| norms[tensor]).collect();
            of_tensor.sort_by(f64::total_cmp);
            of_tensor[(of_tensor.len() - 1) / 2]
        })
        .collect();
    let factor = |(&norm, &median): (&f64, &f64)| if norm == 0.0 { 1.0 } else { (median / norm).min(1.0) };
    norms.into_iter().map(|norms| norms.iter().zip(&medians).map(factor).collect()).collect()
}

/// θ ← θ′, one outer step (SparseLoCo, eq. 4, with clipping), bit for bit the same on every node.
///
/// Neither the order of `contributions` nor the number of threads matters; without contributions θ stays. A chunk of
/// scale 0 has sent nothing, so it does not count among the senders. Payloads are unpacked as they are added: memory
/// beyond θ and the payloads is a few chunks per thread.
///
/// # Panics
/// If `theta` or the contributions do not belong to `layout`, if there are more than 256 contributions, or if `outer`
/// is not one that [`RunSpec::validate`](templar_protocol::run::RunSpec::validate) accepts.
pub fn outer_step(layout: &Layout, theta: &mut [f32], contributions: &[&Contribution], outer: &OuterSpec) {
    assert_eq!(theta.len(), layout.len(), "θ does not fit the layout");
    let Some(first) = contributions.first() else { return };
    assert!(*first.plan.layout == *layout, "the contributions belong to another layout");
    let step = Step::new(contributions, outer);
    let plan = &first.plan;
    let shares = plan.split_params(theta);
    plan.segments.par_iter().enumerate().zip(shares).for_each_init(
        || Scratch {
            slots: vec![0; plan.chunk],
            table: Box::new([[0; CONTRIBUTIONS_MAX]; 4]),
            dct: dct::Scratch::default(),
        },
        |scratch, ((index, segment), theta)| {
            first.arch.dispatch(StepSegment { step: &step, index, segment, theta, scratch });
        },
    );
}

/// Everything that an outer step needs beyond θ.
struct Step<'a> {
    contributions: &'a [&'a Contribution],
    clips: Vec<Vec<f64>>,
    rate: f64,
    /// R is the number of senders, but at least this.
    min_divisor: u16,
    /// Every R, from the least on.
    divisors: Box<[f64; CONTRIBUTIONS_MAX]>,
}

/// One segment of θ, and the working memory of the thread that moves it.
struct StepSegment<'a> {
    step: &'a Step<'a>,
    index: usize,
    segment: &'a Segment,
    theta: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl WithSimd for StepSegment<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.step.apply(self.index, self.segment, self.theta, self.scratch);
    }
}

struct Scratch {
    /// For each parameter of a chunk, Σq · 2^8 and, in the eight bits below, how far its R exceeds the least: one place
    /// in memory for both. All are 0 between chunks.
    slots: Vec<i64>,
    /// q · 2^8 of one contribution's chunk, by code and R.
    table: Box<Table>,
    dct: dct::Scratch,
}

type Table = [[i64; CONTRIBUTIONS_MAX]; 4];

/// Bits of a slot below its sum.
const ROW_BITS: u32 = 8;

impl<'a> Step<'a> {
    fn new(contributions: &'a [&'a Contribution], outer: &OuterSpec) -> Self {
        let count = contributions.len();
        assert!(count <= CONTRIBUTIONS_MAX, "a window gathers at most {CONTRIBUTIONS_MAX} contributions, not {count}");
        assert!((0.0..=16.0).contains(&outer.rate), "outer.rate is {}; validate the run first", outer.rate);
        let min_divisor = match outer.mean_over {
            // Nobody sends a parameter more often than there are peers: this is the mean over peers.
            MeanOver::Peers => count,
            MeanOver::Senders => (outer.min_senders as usize).clamp(1, CONTRIBUTIONS_MAX),
        };
        let divisors = Box::new(std::array::from_fn(|above| (min_divisor + above) as f64));
        let clips = clip_factors(contributions);
        Self { contributions, clips, rate: outer.rate, min_divisor: min_divisor as u16, divisors }
    }

    /// Moves one segment of θ, chunk by chunk.
    #[inline(always)]
    fn apply(&self, index: usize, segment: &Segment, theta: &mut [f32], scratch: &mut Scratch) {
        let mut peers: Vec<Chunks<'_>> = self.contributions.iter().map(|peer| peer.chunks(index)).collect();
        for theta in theta.chunks_mut(segment.chunk_len) {
            // Hot code uses loops, not iterators: what is not inlined here is compiled for the oldest processor.
            let mut sent = Vec::with_capacity(peers.len());
            for (peer, clips) in peers.iter_mut().zip(&self.clips) {
                sent.push((peer.next(), clips[segment.tensor]));
            }
            let slots = &mut scratch.slots[..theta.len()];
            let most = self.count_senders(&sent, slots);
            for &(sent, clip) in &sent {
                match sent {
                    Sent::Sparse(entries, values) => {
                        self.fill_table(values, clip, most, &mut scratch.table);
                        add_sparse(entries, &scratch.table, slots);
                    }
                    Sent::Dense(values) => self.add_dense(values, clip, most, slots),
                }
            }
            match segment.transform {
                Transform::None => {
                    for (theta, slot) in theta.iter_mut().zip(slots) {
                        *theta = moved(*theta, std::mem::take(slot) >> ROW_BITS);
                    }
                }
                Transform::Dct => {
                    for slot in &mut *slots {
                        *slot >>= ROW_BITS;
                    }
                    dct::inverse(slots, &mut scratch.dct);
                    for (theta, slot) in theta.iter_mut().zip(slots) {
                        *theta = moved(*theta, std::mem::take(slot));
                    }
                }
            }
        }
    }

    /// Writes into each slot how far its R exceeds the least; returns the largest R of the chunk.
    #[inline(always)]
    fn count_senders(&self, sent: &[(Sent<'_>, f64)], slots: &mut [i64]) -> u16 {
        let count = sent.len() as u16;
        if self.min_divisor >= count || matches!(sent.first(), Some((Sent::Dense(_), _))) {
            return self.min_divisor.max(count);
        }
        for (sent, _) in sent {
            if let Sent::Sparse(entries, _) = *sent {
                for entry in entries {
                    let slot = &mut slots[entry.position()];
                    *slot = slot.wrapping_add(1);
                }
            }
        }
        let (least, mut most) = (i64::from(self.min_divisor), 0);
        for slot in slots {
            *slot = slot.wrapping_sub(least).max(0);
            most = most.max(*slot);
        }
        self.min_divisor + most as u16
    }

    /// q of every code for all R that occur, and for at most seven more.
    #[inline(always)]
    fn fill_table(&self, values: [f32; 4], clip: f64, most: u16, table: &mut Table) {
        let rows = usize::from(most - self.min_divisor) + 1;
        // With one level, only the first two codes occur.
        let codes = if values[0] == values[2] { 2 } else { 4 };
        for (column, value) in table.iter_mut().zip(values).take(codes) {
            let column = column.as_chunks_mut::<8>().0.iter_mut().zip(self.divisors.as_chunks().0);
            for (q, divisors) in column.take(rows.div_ceil(8)) {
                *q = divisors.map(|divisor| quantise(f64::from(value), clip, self.rate, divisor) << ROW_BITS);
            }
        }
    }

    /// Adds a dense chunk, in which everybody sends every parameter.
    #[inline(always)]
    fn add_dense(&self, values: &[[u8; 4]], clip: f64, divisor: u16, slots: &mut [i64]) {
        for (slot, value) in slots.iter_mut().zip(values) {
            let q = quantise(f64::from(f32::from_le_bytes(*value)), clip, self.rate, f64::from(divisor));
            *slot = slot.wrapping_add(q << ROW_BITS);
        }
    }
}

/// θ′ of the module's documentation.
#[inline(always)]
fn moved(theta: f32, sum: i64) -> f32 {
    let moved = (f64::from(theta) - sum as f64 / ONE) as f32;
    if sum == 0 { theta } else { moved }
}

/// Adds what one contribution sends of a chunk.
#[inline(always)]
fn add_sparse(entries: &[Entry], table: &Table, slots: &mut [i64]) {
    for entry in entries {
        let slot = &mut slots[entry.position()];
        // Checked sums would take longer; the module's documentation says why none overflows.
        *slot = slot.wrapping_add(table[entry.code()][usize::from(*slot as u8)]);
    }
}
