//! Matrix products on the thread that asks for them.
//!
//! The engine splits its work into pieces that depend on shapes alone and gives those to rayon, so that no thread count
//! can change a bit. Every element of a product is also summed in one order, whatever else is computed beside it: step
//! after step for at most [`PART`] steps, and these parts one after the other.
//!
//! out = a · b, in the manner of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008): a
//! tile of 12 × 32 sums stays in registers (4 × 16 with narrower vectors). It reads [`PART`] rows of a panel of `b`, 32
//! columns side by side, which stay in the first-level cache while all of `a` goes by; and `a` in quads, the values of
//! four rows side by side, which stay in the second-level cache. Callers pass `b` as [`Panels`], since most of them
//! multiply with it more than once.

#![expect(clippy::inline_always, reason = "a call would leave the instructions that its caller chose")]

use std::cell::RefCell;

use pulp::{Simd, WithSimd};

use crate::aligned::{Aligned, LINE};
use crate::arch::{arch, simd};

/// Columns of a panel.
const WIDTH: usize = 32;
/// Rows of a panel that are read in one go, 32 KiB.
const PART: usize = 256;
/// Steps for which `a` is brought into quads at once.
const LONG: usize = 768;
/// Most rows of a tile.
const ROWS_MAX: usize = 12;
/// Rows that are brought into panels before the next panel's turn: a source that is row-major is read nearly in its order.
const PACKED_ROWS: usize = 32;

thread_local! {
    /// Room for the quads of one product, kept from call to call.
    static SCRATCH: RefCell<Aligned> = RefCell::default();
}

/// A matrix in a slice: element (row, column) lies at row · `row_stride` + column · `column_stride`; one stride is 1.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major, `rows × columns`.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Row-major, with rows `row_stride` apart.
    pub(crate) fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose, without a copy.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows.
    pub(crate) fn rows(self, rows: std::ops::Range<usize>) -> Self {
        assert!(rows.end <= self.rows, "the matrix has these rows");
        Self { values: &self.values[rows.start * self.row_stride..], rows: rows.len(), ..self }
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Four columns from `first` on, from row `from` on. Past the last column, that column again.
    #[inline(always)]
    fn four_columns(&self, first: usize, from: usize) -> [&'a [f32]; 4] {
        let last = self.columns - 1;
        let column = |at: usize| &self.values[at.min(last) * self.column_stride..][from..self.rows];
        [column(first), column(first + 1), column(first + 2), column(first + 3)]
    }
}

/// A matrix in panels of 32 columns, one after the other; in a panel, row after row. The last panel may have unused
/// columns.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    /// Elements between panels.
    stride: usize,
}

impl<'a> Panels<'a> {
    /// Elements that a matrix takes.
    pub(crate) fn room(rows: usize, columns: usize) -> usize {
        rows * columns.next_multiple_of(WIDTH)
    }

    /// What [`Panels::pack`] or [`Panels::pack_columns`] left in `values`.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { values: &values[..Self::room(rows, columns)], rows, columns, stride: rows * WIDTH }
    }

    /// Brings a matrix into panels.
    pub(crate) fn pack(values: &'a mut [f32], matrix: Matrix<'_>) -> Self {
        Self::pack_columns(&mut values[..Self::room(matrix.rows, matrix.columns)], matrix, 0);
        Self::new(values, matrix.rows, matrix.columns)
    }

    /// Sets as many whole panels as there is room for, from column `first` on.
    pub(crate) fn pack_columns(values: &mut [f32], matrix: Matrix<'_>, first: usize) {
        if matrix.rows == 0 {
            return;
        }
        let row_major = matrix.column_stride == 1;
        simd(
            #[inline(always)]
            || {
                let rows = if row_major { PACKED_ROWS } else { matrix.rows };
                for from in (0..matrix.rows).step_by(rows) {
                    for (panel, values) in values.chunks_exact_mut(matrix.rows * WIDTH).enumerate() {
                        let first = first + panel * WIDTH;
                        let columns = WIDTH.min(matrix.columns - first);
                        let panel = &mut values.as_chunks_mut::<WIDTH>().0[from..matrix.rows.min(from + rows)];
                        if row_major {
                            let source = &matrix.values[from * matrix.row_stride + first..];
                            copy_rows(panel, source, matrix.row_stride, columns);
                        } else {
                            for quad in (0..columns).step_by(4) {
                                put_quad(panel, quad, matrix.four_columns(first + quad, 0));
                            }
                        }
                    }
                }
            },
        );
    }

    /// Some of the rows.
    pub(crate) fn rows(self, rows: std::ops::Range<usize>) -> Self {
        Self { values: &self.values[rows.start * WIDTH..], rows: rows.len(), ..self }
    }

    /// The first columns.
    pub(crate) fn columns(self, columns: usize) -> Self {
        assert!(columns <= self.columns, "the matrix has these columns");
        Self { columns, ..self }
    }
}

/// Copies the first `columns` values of each row of a source whose rows are `stride` apart. The compiler knows the
/// usual number of columns.
#[inline(always)]
fn copy_rows<const N: usize>(out: &mut [[f32; N]], mut source: &[f32], stride: usize, columns: usize) {
    for out in out {
        match source.first_chunk() {
            Some(source) if columns == N => *out = *source,
            _ => out[..columns].copy_from_slice(&source[..columns]),
        }
        source = source.get(stride..).unwrap_or_default();
    }
}

/// Four slices side by side.
#[inline(always)]
fn interleave(out: &mut [[f32; 4]], [a, b, c, d]: [&[f32]; 4]) {
    for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *out = [*a, *b, *c, *d];
    }
}

/// Sets elements `first..first + 4` of each row to those of four columns.
#[inline(always)]
fn put_quad(rows: &mut [[f32; WIDTH]], first: usize, columns: [&[f32]; 4]) {
    // By way of a buffer: writing straight to places that far apart would compile to slow scatters.
    let mut quads = [[0.0; 4]; PACKED_ROWS];
    for (number, rows) in rows.chunks_mut(PACKED_ROWS).enumerate() {
        let [a, b, c, d] = columns;
        let part = number * PACKED_ROWS..number * PACKED_ROWS + rows.len();
        interleave(&mut quads, [&a[part.clone()], &b[part.clone()], &c[part.clone()], &d[part]]);
        for (row, quad) in rows.iter_mut().zip(quads) {
            row[first..].as_chunks_mut().0[0] = quad;
        }
    }
}

/// What happens to the values that a product finds in its output.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Onto {
    Replace,
    Add,
}

/// `out` ← a · b, or `out` + a · b; `out` is row-major with rows as long as b's.
pub(crate) fn product(out: &mut [f32], a: Matrix<'_>, b: Panels<'_>, onto: Onto) {
    assert!(a.columns == b.rows && out.len() >= a.rows * b.columns, "the shapes of a product fit");
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    if a.columns == 0 {
        if onto == Onto::Replace {
            out[..a.rows * b.columns].fill(0.0);
        }
        return;
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let quads = scratch.room(4 * a.rows.div_ceil(4) * LONG.min(a.columns));
        arch().dispatch(Product { out, a, b, onto, quads: quads.as_chunks_mut().0 });
    });
}

/// Cuts `length` into pieces of the same size, none larger than `most`, and gives that size.
fn even(length: usize, most: usize) -> usize {
    length.div_ceil(length.div_ceil(most))
}

struct Product<'a> {
    out: &'a mut [f32],
    a: Matrix<'a>,
    b: Panels<'a>,
    onto: Onto,
    /// Room for [`LONG`] steps of `a`.
    quads: &'a mut [[f32; 4]],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 3, 2, 2>(simd),
            8 => self.run::<S, 1, 2, 4>(simd),
            4 => self.run::<S, 1, 4, 8>(simd),
            _ => self.run::<S, 1, 8, 32>(simd),
        }
    }
}

impl Product<'_> {
    /// With tiles of `Q` quads by `V` vectors; a panel is `P` vectors wide.
    #[inline(always)]
    fn run<S: Simd, const Q: usize, const V: usize, const P: usize>(self, simd: S) {
        let Self { out, a, b, onto, quads } = self;
        let count = a.rows.div_ceil(4);
        let long = even(a.columns, LONG);
        let part = even(long, PART);
        for from in (0..a.columns).step_by(long) {
            let quads = &mut quads[..count * long.min(a.columns - from)];
            pack_quads(quads, a, from, count, part);
            for first in (0..b.columns).step_by(WIDTH) {
                for (quads, from) in quads.chunks(count * part).zip((from..).step_by(part)) {
                    let steps = quads.len() / count;
                    let (panel, next) = b.values[first / WIDTH * b.stride + from * WIDTH..].split_at(steps * WIDTH);
                    let strip = Strip {
                        out: &mut out[first..],
                        stride: b.columns,
                        rows: a.rows,
                        columns: WIDTH.min(b.columns - first),
                        onto: if from == 0 { onto } else { Onto::Add },
                        quads,
                        panel,
                        next: &next[..next.len().min(panel.len())],
                    };
                    strip.run::<S, Q, V, P>(simd);
                }
            }
        }
    }
}

/// Sets `quads`, parts of `[count][part][4]`, to as many steps of all rows of `a`, from step `from` on. Values past the
/// last row are arbitrary. It takes four rows at a time with all of their steps, so that what it reads lies together.
#[inline(always)]
fn pack_quads(quads: &mut [[f32; 4]], a: Matrix<'_>, from: usize, count: usize, part: usize) {
    let a = a.transposed();
    for quad in 0..count {
        for (quads, from) in quads.chunks_mut(count * part).zip((from..).step_by(part)) {
            let steps = quads.len() / count;
            let (quads, first) = (&mut quads[quad * steps..][..steps], 4 * quad);
            if a.column_stride == 1 {
                copy_rows(quads, &a.values[from * a.row_stride + first..], a.row_stride, 4.min(a.columns - first));
            } else {
                interleave(quads, a.four_columns(first, from));
            }
        }
    }
}

/// One panel's columns of the output: the sums of some steps, tile by tile from top to bottom.
struct Strip<'a> {
    out: &'a mut [f32],
    stride: usize,
    rows: usize,
    columns: usize,
    onto: Onto,
    quads: &'a [[f32; 4]],
    panel: &'a [f32],
    /// What is read after the panel: every tile prefetches its share.
    next: &'a [f32],
}

impl Strip<'_> {
    #[inline(always)]
    fn run<S: Simd, const Q: usize, const V: usize, const P: usize>(self, simd: S) {
        let Self { out, stride, rows, columns, onto, quads, panel, next } = self;
        let steps = panel.len() / WIDTH;
        let tiles = quads.len().div_ceil(Q * steps);
        let mut shares = next.chunks(panel.len().div_ceil(tiles).next_multiple_of(LINE));
        for (quads, top) in quads.chunks(Q * steps).zip((0..).step_by(4 * Q)) {
            for line in shares.next().unwrap_or_default().as_chunks::<LINE>().0 {
                prefetch(line);
            }
            let put = |out: &mut [f32], stride, onto| {
                for column in (0..P).step_by(V) {
                    let tile = Tile { out: &mut out[column * S::F32_LANES..], stride, onto, quads, panel, column };
                    if quads.len() == Q * steps {
                        simd.vectorize(Kernel::<Q, V, P>(tile));
                    } else if quads.len() == 2 * steps {
                        simd.vectorize(Kernel::<2, V, P>(tile));
                    } else {
                        simd.vectorize(Kernel::<1, V, P>(tile));
                    }
                }
            };
            let out = &mut out[top * stride..];
            let inside = rows.min(top + 4 * quads.len() / steps) - top;
            if columns == WIDTH && inside * steps == 4 * quads.len() {
                put(out, stride, onto);
                continue;
            }
            let mut edge = [[0.0; WIDTH]; ROWS_MAX];
            put(edge.as_flattened_mut(), WIDTH, Onto::Replace);
            for (out, edge) in out.chunks_mut(stride).zip(&edge[..inside]) {
                for (out, sum) in out.iter_mut().zip(&edge[..columns]) {
                    *out = if onto == Onto::Add { *out + sum } else { *sum };
                }
            }
        }
    }
}

/// Some rows of some columns of the output.
struct Tile<'a> {
    out: &'a mut [f32],
    stride: usize,
    onto: Onto,
    quads: &'a [[f32; 4]],
    panel: &'a [f32],
    /// Where in the panel, in vectors.
    column: usize,
}

/// A tile of `Q` quads by `V` vectors, all of whose sums stay in registers.
struct Kernel<'a, const Q: usize, const V: usize, const P: usize>(Tile<'a>);

impl<const Q: usize, const V: usize, const P: usize> WithSimd for Kernel<'_, Q, V, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tile { out, stride, onto, quads, panel, column } = self.0;
        let panel = S::as_simd_f32s(panel).0.as_chunks::<P>().0;
        let steps = panel.len();
        let quads: [_; Q] = std::array::from_fn(|at| &quads[at * steps..][..steps]);
        for row in out.chunks(stride).take(4 * Q) {
            row[..V * S::F32_LANES].chunks(LINE).for_each(prefetch);
        }
        let mut sums = [[[simd.splat_f32s(0.0); V]; 4]; Q];
        // Two steps at a time: otherwise counting them takes a tenth of the instructions.
        let (pairs, last) = panel.as_chunks::<2>();
        let quads: [_; Q] = std::array::from_fn(|at| quads[at].as_chunks::<2>());
        for (at, pair) in pairs.iter().enumerate() {
            steps_of(simd, &mut sums, std::array::from_fn(|quad| &quads[quad].0[at]), pair, column);
        }
        for (at, one) in last.as_chunks::<1>().0.iter().enumerate() {
            steps_of(simd, &mut sums, std::array::from_fn(|quad| &quads[quad].1.as_chunks().0[at]), one, column);
        }
        let mut rows = out.chunks_mut(stride).map(|row| S::as_mut_simd_f32s(row).0.first_chunk_mut::<V>());
        for sums in sums.as_flattened() {
            let Some(Some(out)) = rows.next() else { return };
            if onto == Onto::Add {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = simd.add_f32s(*out, *sum);
                }
            } else {
                *out = *sums;
            }
        }
    }
}

/// Adds some steps to a tile, one after the other.
#[inline(always)]
fn steps_of<S: Simd, const N: usize, const Q: usize, const V: usize, const P: usize>(
    simd: S,
    sums: &mut [[[S::f32s; V]; 4]; Q],
    quads: [&[[f32; 4]; N]; Q],
    panel: &[[S::f32s; P]; N],
    column: usize,
) {
    for step in 0..N {
        let Some(b) = panel[step][column..].first_chunk::<V>() else { return };
        for (quad, sums) in quads.iter().zip(&mut *sums) {
            for (a, sums) in quad[step].iter().zip(sums) {
                let a = simd.splat_f32s(*a);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = simd.mul_add_e_f32s(a, *b, *sum);
                }
            }
        }
    }
}

/// Prefetches the cache line of the first value.
#[inline(always)]
fn prefetch(line: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "an instruction that takes a pointer")]
    // SAFETY: a prefetch reads nothing that the program can see, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn products_are_those_of_the_textbook(m in 1usize..70, n in 1usize..100, k in 0usize..900) {
            // Small integers, so that every order of summation gives the same.
            let value = |at: usize| ((at * 37 + 11) % 17) as f32 - 8.0;
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(value).collect();
            let turned = |x: &[f32], rows: usize| -> Vec<f32> {
                (0..x.len()).map(|at| x[at % rows * (x.len() / rows) + at / rows]).collect()
            };
            let (a_t, b_t) = (turned(&a, m), turned(&b, k));
            let expected: Vec<f32> =
                (0..m * n).map(|at| (0..k).fold(0.0, |sum, i| sum + a[at / n * k + i] * b[i * n + at % n])).collect();
            for a in [Matrix::new(&a, m, k), Matrix::new(&a_t, k, m).transposed()] {
                for b in [Matrix::new(&b, k, n), Matrix::new(&b_t, n, k).transposed()] {
                    let mut room = vec![f32::NAN; Panels::room(k, n)];
                    let b = Panels::pack(&mut room, b);
                    let mut out = vec![f32::NAN; m * n];
                    product(&mut out, a, b, Onto::Replace);
                    prop_assert!(out == expected);
                    product(&mut out, a, b, Onto::Add);
                    let doubled = expected.iter().map(|expected| (2.0 * expected).to_bits());
                    prop_assert!(out.iter().map(|out| out.to_bits()).eq(doubled));
                }
            }
        }
    }

    #[test]
    fn parts_of_panels_are_parts_of_the_matrix() {
        let (m, n, k) = (6, 70, 90);
        let a: Vec<f32> = (0..m * k).map(|at| (at % 7) as f32).collect();
        let b: Vec<f32> = (0..k * n).map(|at| (at % 5) as f32).collect();
        let mut room = vec![0.0; Panels::room(k, n)];
        let panels = Panels::pack(&mut room, Matrix::new(&b, k, n));
        let (rows, columns) = (17..51, 40);
        let mut out = vec![0.0; m * columns];
        let part = Matrix::strided(&a[rows.start..], m, rows.len(), k);
        product(&mut out, part, panels.rows(rows.clone()).columns(columns), Onto::Replace);
        for (at, out) in out.iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let expected: f32 = rows.clone().map(|i| a[row * k + i] * b[i * n + column]).sum();
            assert!(out.to_bits() == expected.to_bits());
        }
    }
}
