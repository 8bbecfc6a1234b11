//! Newton–Schulz iteration: the singular values of a matrix are brought close to 1, and its singular vectors stay.
//!
//! With the short side first, X ← aX + (bA + cA²)X with A = XXᵀ. The coefficients are those of Jordan et al., "Muon"
//! (2024): they do not converge to 1, but in five rounds they bring every singular value that was not tiny into 0.7 to
//! 1.2, which is enough for an update. Both symmetric products compute one triangle and mirror it.

use rayon::prelude::*;

use crate::product::{Matrix, Onto, Panels, product};

/// Of X, of A · X and of A² · X.
const A: f32 = 3.4445;
const B: f32 = -4.7750;
const C: f32 = 2.0315;
const ROUNDS: usize = 5;
/// Rows of a product that one task computes. The number is fixed, so that threads do not matter.
const BLOCK_ROWS: usize = 48;

/// Memory of an iteration, to be kept for the next one.
#[derive(Debug, Default)]
pub struct NewtonSchulz {
    gram: Vec<f32>,
    polynomial: Vec<f32>,
    panels: Vec<f32>,
    before: Vec<f32>,
}

impl NewtonSchulz {
    /// Brings the singular values of `x`, row-major with rows of `columns`, close to 1. They must not be above 1, which
    /// holds if the matrix has a Frobenius norm of 1.
    ///
    /// # Panics
    /// If `x` does not consist of whole rows.
    pub fn orthogonalise(&mut self, x: &mut [f32], columns: usize) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "a matrix has whole rows");
        let rows = x.len() / columns;
        let short = rows.min(columns);
        self.gram.resize(short * short, 0.0);
        self.polynomial.resize(short * short, 0.0);
        let room = Panels::room(columns, rows).max(Panels::room(rows, columns)).max(Panels::room(short, short));
        self.panels.resize(room, 0.0);
        for _ in 0..ROUNDS {
            self.round(x, rows, columns);
        }
    }

    fn round(&mut self, x: &mut [f32], rows: usize, columns: usize) {
        let Self { gram, polynomial, panels, before } = self;
        let (is_wide, short) = (rows <= columns, rows.min(columns));
        let matrix = Matrix::new(x, rows, columns);
        let wide = if is_wide { matrix } else { matrix.transposed() };
        symmetric(gram, wide, Panels::pack(panels, wide.transposed()));
        let square = Matrix::new(gram, short, short);
        symmetric(polynomial, square, Panels::pack(panels, square));
        polynomial.iter_mut().zip(&*gram).for_each(|(square, gram)| *square = B * gram + C * *square);
        let polynomial = Matrix::new(polynomial, short, short);
        let (left, right) = if is_wide {
            (polynomial, Panels::pack(panels, matrix))
        } else {
            before.clear();
            before.extend_from_slice(x);
            (Matrix::new(before, rows, columns), Panels::pack(panels, polynomial))
        };
        for value in x.iter_mut() {
            *value *= A;
        }
        x.par_chunks_mut(BLOCK_ROWS * columns).enumerate().for_each(|(block, out)| {
            let first = block * BLOCK_ROWS;
            product(out, left.rows(first..first + out.len() / columns), right, Onto::Add);
        });
    }
}

/// `out` ← a · b, of which the caller knows that it is symmetric.
fn symmetric(out: &mut [f32], a: Matrix<'_>, b: Panels<'_>) {
    let size = a.shape().0;
    out.par_chunks_mut(BLOCK_ROWS * size).enumerate().for_each(|(block, out)| {
        let (first, rows) = (block * BLOCK_ROWS, out.len() / size);
        let columns = first + rows;
        product(out, a.rows(first..columns), b.columns(columns), Onto::Replace);
        // From rows of `columns` to rows of `size`; the last one moves farthest.
        for row in (1..rows).rev() {
            out.copy_within(row * columns..(row + 1) * columns, row * size);
        }
    });
    for row in 0..size {
        for column in row + 1..size {
            out[row * size + column] = out[column * size + row];
        }
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::hash::Hasher;

    use super::*;

    /// Values in −1 ..= 1, divided by the Frobenius norm.
    fn normed(rows: usize, columns: usize) -> Vec<f32> {
        let mut stream =
            Hasher::new("newton-schulz").update_value(&(rows as u64, columns as u64)).clone().into_stream();
        let mut value = || (stream.next_u64() >> 40) as f64 / f64::from(1 << 23) - 1.0;
        let x: Vec<f64> = (0..rows * columns).map(|_| value()).collect();
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter().map(|x| (x / norm) as f32).collect()
    }

    fn times(a: &[f64], b: &[f64], inner: usize) -> Vec<f64> {
        let columns = b.len() / inner;
        let element = |at: usize| (0..inner).map(|i| a[at / columns * inner + i] * b[i * columns + at % columns]).sum();
        (0..a.len() / inner * columns).map(element).collect()
    }

    fn turned(x: &[f64], columns: usize) -> Vec<f64> {
        let rows = x.len() / columns;
        (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect()
    }

    /// The same in f64, from the formula: A = XXᵀ whatever the shape.
    fn textbook(x: &[f32], rows: usize, columns: usize) -> Vec<f64> {
        let mut x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for _ in 0..ROUNDS {
            let gram = times(&x, &turned(&x, columns), columns);
            let square = times(&gram, &gram, rows);
            let polynomial: Vec<f64> =
                gram.iter().zip(square).map(|(gram, square)| f64::from(B) * gram + f64::from(C) * square).collect();
            let update = times(&polynomial, &x, rows);
            x.iter_mut().zip(update).for_each(|(x, update)| *x = f64::from(A) * *x + update);
        }
        x
    }

    #[test]
    fn it_follows_the_formula_for_every_shape() {
        let mut room = NewtonSchulz::default();
        for (rows, columns) in [(1, 1), (1, 7), (7, 1), (48, 48), (50, 130), (130, 50), (97, 97), (16, 300)] {
            let start = normed(rows, columns);
            let mut x = start.clone();
            room.orthogonalise(&mut x, columns);
            let expected = textbook(&start, rows, columns);
            let farthest = x.iter().zip(&expected).map(|(x, e)| (f64::from(*x) - e).abs()).fold(0.0, f64::max);
            assert!(farthest < 2e-4, "{rows} × {columns}: {farthest}");
            // Singular values near 1 make a square as long as the short side.
            let square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / rows.min(columns) as f64;
            assert!((0.4..1.4).contains(&square), "{rows} × {columns}: {square}");
        }
    }

    #[test]
    fn a_matrix_of_zeros_stays() {
        let mut x = vec![0.0; 60];
        NewtonSchulz::default().orthogonalise(&mut x, 6);
        assert!(x.iter().all(|&value| value == 0.0));
    }

    #[test]
    fn threads_change_nothing() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut x = normed(200, 150);
            pool.install(|| NewtonSchulz::default().orthogonalise(&mut x, 150));
            x.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(3));
    }
}
