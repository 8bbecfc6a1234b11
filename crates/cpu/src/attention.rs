//! Causal grouped-query attention of one sequence and one key-value head, forward and backward.
//!
//! Queries are taken in blocks; a block's scores against all keys up to its last position are the largest thing in memory.
//! The backward pass computes them again from the queries, the keys and one number per row.

use std::cell::RefCell;

use crate::aligned::{Aligned, LINE};
use crate::arch::simd;
use crate::kernels::{causal_softmax, causal_softmax_backward, dot, norm_row, norm_row_backward};
use crate::product::{Matrix, Onto, Panels, product};
use crate::rope::Rotation;

/// Queries per block.
const BLOCK: usize = 64;

thread_local! {
    /// Room for one call, kept from call to call: fresh memory costs page faults.
    static SCRATCH: RefCell<Aligned> = RefCell::default();
}

/// What all calls of a pass share.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) rotation: &'a Rotation,
    /// What queries and keys pass before they are rotated, if the model has it.
    pub(crate) norms: Option<HeadNorms<'a>>,
    pub(crate) positions: usize,
    /// Elements of a head.
    pub(crate) dim: usize,
    /// Query heads that share a key-value head.
    pub(crate) group: usize,
    /// Elements between the rows of projections: those of all queries, keys and values.
    pub(crate) stride: usize,
}

/// RMS norms over the elements of a head, with weights that all heads of a layer share.
#[derive(Clone, Copy)]
pub(crate) struct HeadNorms<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) key: &'a [f32],
    pub(crate) epsilon: f32,
}

/// What is rotated: each has its norm.
#[derive(Clone, Copy, PartialEq)]
enum Rotated {
    Query,
    Key,
}

/// One sequence's projections, as seen from a key-value head: rows `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Projections<'a> {
    /// From the first of the group's queries on.
    pub(crate) queries: &'a [f32],
    pub(crate) key: &'a [f32],
    pub(crate) value: &'a [f32],
}

impl Attention<'_> {
    /// Sets `out`, `[group, positions, dim]`, to the mixed values and `log_sums`, `[group, positions]`, to the logarithms of
    /// the softmax's sums.
    pub(crate) fn forward(&self, out: &mut [f32], log_sums: &mut [f32], projections: Projections<'_>) {
        let (positions, dim) = (self.positions, self.dim);
        let (room_t, room) = (Panels::room(dim, positions), Panels::room(positions, dim));
        let sizes = [positions * dim, positions * dim, room_t, room, BLOCK * positions];
        with_scratch(sizes, |[query, key, key_t, value, scores]| {
            self.rotate(Rotated::Key, key, projections.key);
            let key_t = Panels::pack(key_t, Matrix::new(key, positions, dim).transposed());
            let value = Panels::pack(value, Matrix::strided(projections.value, positions, dim, self.stride));
            let heads = out.chunks_exact_mut(positions * dim).zip(log_sums.chunks_exact_mut(positions));
            for (head, (out, log_sums)) in heads.enumerate() {
                self.rotate(Rotated::Query, query, &projections.queries[head * dim..]);
                for (block, (out, log_sums)) in out.chunks_mut(BLOCK * dim).zip(log_sums.chunks_mut(BLOCK)).enumerate()
                {
                    let first = block * BLOCK;
                    let (rows, seen) = (log_sums.len(), first + log_sums.len());
                    let scores = &mut scores[..rows * seen];
                    let query = Matrix::new(&query[first * dim..], rows, dim);
                    product(scores, query, key_t.columns(seen), Onto::Replace);
                    let mut totals = [1.0; BLOCK];
                    causal_softmax(scores, seen, first + 1, |row, largest, total| {
                        totals[row] = total;
                        log_sums[row] = largest + total.ln();
                    });
                    product(out, Matrix::new(scores, rows, seen), value.rows(0..seen), Onto::Replace);
                    for (out, total) in out.chunks_exact_mut(dim).zip(totals) {
                        for out in out {
                            *out /= total;
                        }
                    }
                }
            }
        });
    }

    /// Sets `d`, `[group queries, key, value][positions, dim]`, to the gradients of the projections, and `d_norms`,
    /// `[query, key][dim]`, to those of the norms' weights; without norms it is empty. `mixed` is the output of
    /// [`Attention::forward`] and `d_mixed` its gradient, both from the group's first head on with rows `mixed_stride` apart.
    pub(crate) fn backward(
        &self,
        (d, d_norms): (&mut [f32], &mut [f32]),
        projections: Projections<'_>,
        (mixed, d_mixed, mixed_stride): (&[f32], &[f32], usize),
        log_sums: &[f32],
    ) {
        let (positions, dim) = (self.positions, self.dim);
        let (d_queries, d_key_value) = d.split_at_mut(self.group * positions * dim);
        let (d_key, d_value) = d_key_value.split_at_mut(positions * dim);
        d_key.fill(0.0);
        d_value.fill(0.0);
        d_norms.fill(0.0);
        let (room_t, room) = (Panels::room(dim, positions), Panels::room(positions, dim));
        let (rows, block) = (positions * dim, BLOCK * positions);
        let sizes = [rows, rows, room, room, room, room_t, room_t, positions, block, block];
        with_scratch(
            sizes,
            |[query, key, query_panels, key_panels, d_out_panels, key_t, value_t, pull, scores, d_scores]| {
                self.rotate(Rotated::Key, key, projections.key);
                let key = Matrix::new(key, positions, dim);
                let (key, key_t) = (Panels::pack(key_panels, key), Panels::pack(key_t, key.transposed()));
                let value = Matrix::strided(projections.value, positions, dim, self.stride);
                let value_t = Panels::pack(value_t, value.transposed());
                for (head, d_query) in d_queries.chunks_exact_mut(positions * dim).enumerate() {
                    let log_sums = &log_sums[head * positions..][..positions];
                    let own = &projections.queries[head * dim..];
                    self.rotate(Rotated::Query, query, own);
                    let query_panels = Panels::pack(query_panels, Matrix::new(query, positions, dim));
                    let (mixed, d_mixed) = (&mixed[head * dim..], &d_mixed[head * dim..]);
                    let d_out_panels =
                        Panels::pack(d_out_panels, Matrix::strided(d_mixed, positions, dim, mixed_stride));
                    simd(
                        #[inline(always)]
                        || {
                            let rows = d_mixed.chunks(mixed_stride).zip(mixed.chunks(mixed_stride));
                            for (pull, (d_mixed, mixed)) in pull.iter_mut().zip(rows) {
                                *pull = dot(&d_mixed[..dim], &mixed[..dim]);
                            }
                        },
                    );
                    for (block, d_query) in d_query.chunks_mut(BLOCK * dim).enumerate() {
                        let (first, rows) = (block * BLOCK, d_query.len() / dim);
                        let seen = first + rows;
                        let (scores, d_scores) = (&mut scores[..rows * seen], &mut d_scores[..rows * seen]);
                        let query = Matrix::new(&query[first * dim..], rows, dim);
                        let d_out = Matrix::strided(&d_mixed[first * mixed_stride..], rows, dim, mixed_stride);
                        product(scores, query, key_t.columns(seen), Onto::Replace);
                        product(d_scores, d_out, value_t.columns(seen), Onto::Replace);
                        let range = first..seen;
                        let (log_sums, pull) = (&log_sums[range.clone()], &pull[range.clone()]);
                        causal_softmax_backward(scores, d_scores, seen, first + 1, log_sums, pull);
                        let (weights, d_scores) = (Matrix::new(scores, rows, seen), Matrix::new(d_scores, rows, seen));
                        product(d_value, weights.transposed(), d_out_panels.rows(range.clone()), Onto::Add);
                        product(d_query, d_scores, key.rows(0..seen), Onto::Replace);
                        product(d_key, d_scores.transposed(), query_panels.rows(range), Onto::Add);
                    }
                    self.rotate_backward(Rotated::Query, d_query, d_norms, own);
                }
                self.rotate_backward(Rotated::Key, d_key, d_norms, projections.key);
            },
        );
    }

    /// What is rotated is multiplied with this, so that scores need no further factor.
    fn scale(&self, what: Rotated) -> f32 {
        match what {
            Rotated::Query => 1.0 / (self.dim as f32).sqrt(),
            Rotated::Key => 1.0,
        }
    }

    /// The weights of its norm and ε, if the model has norms.
    fn norm(&self, what: Rotated) -> Option<(&[f32], f32)> {
        self.norms.map(|norms| match what {
            Rotated::Query => (norms.query, norms.epsilon),
            Rotated::Key => (norms.key, norms.epsilon),
        })
    }

    /// Sets `out`, `[positions, dim]`, to the queries or keys that scores are products of.
    fn rotate(&self, what: Rotated, out: &mut [f32], x: &[f32]) {
        let scale = self.scale(what);
        match self.norm(what) {
            None => simd(
                #[inline(always)]
                || self.rotation.forward(out, x, self.stride, scale, <[f32]>::copy_from_slice),
            ),
            Some((weight, epsilon)) => simd(
                #[inline(always)]
                || {
                    self.rotation.forward(
                        out,
                        x,
                        self.stride,
                        scale,
                        #[inline(always)]
                        |out, x| norm_row(out, x, weight, epsilon),
                    );
                },
            ),
        }
    }

    /// Takes gradients of what [`Attention::rotate`] made back to those of `x`, in place, and adds to those of the norms.
    fn rotate_backward(&self, what: Rotated, d: &mut [f32], d_norms: &mut [f32], x: &[f32]) {
        simd(
            #[inline(always)]
            || {
                self.rotation.backward(d, self.scale(what));
                let Some((weight, epsilon)) = self.norm(what) else { return };
                let (d_query, d_key) = d_norms.split_at_mut(self.dim);
                let d_weight = if what == Rotated::Query { d_query } else { d_key };
                for (d, x) in d.chunks_exact_mut(self.dim).zip(x.chunks(self.stride)) {
                    norm_row_backward(d, d_weight, &x[..self.dim], weight, epsilon);
                }
            },
        );
    }
}

/// Calls `work` with slices of the given lengths, which hold whatever the last call left there.
fn with_scratch<const N: usize>(sizes: [usize; N], work: impl FnOnce([&mut [f32]; N])) {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut rest = scratch.room(sizes.iter().map(|size| size.next_multiple_of(LINE)).sum());
        let mut part = |size: usize| rest.split_off_mut(..size.next_multiple_of(LINE)).expect("room for all parts");
        work(sizes.map(|size| &mut part(size)[..size]));
    });
}
