//! Matrix products, the one place that calls into `gemm`.
//!
//! Every product runs on the thread that asks for it. The engine splits its work into pieces that depend on shapes alone and
//! gives those to rayon, so that no thread count can change a bit.

/// A matrix in a slice: element (row, column) lies at row · `row_stride` + column · `column_stride`.
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
        assert!(
            rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= values.len(),
            "a matrix in its slice"
        );
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
}

/// What happens to the values that a product finds in its output.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Onto {
    Replace,
    Add,
}

/// `out` ← a · b, or `out` + a · b; `out` is row-major with rows as long as b's.
pub(crate) fn product(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, onto: Onto) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert!(k == b.rows && out.len() >= m * n, "the shapes of a product fit");
    #[expect(unsafe_code, reason = "gemm takes pointers")]
    // SAFETY: `Matrix` keeps every element (row < rows, column < columns) inside its slice, transposed or not; `out` holds
    // m · n elements and, being `&mut`, overlaps neither. Strides fit into `isize` because slices do.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            onto == Onto::Add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `out` ← the transpose of a row-major matrix with `columns` columns.
pub(crate) fn transpose(out: &mut [f32], values: &[f32], columns: usize) {
    transpose_columns(out, values, columns, 0);
}

/// `out` ← the transpose of as many columns from `first` on as it has room for, of a row-major matrix with `columns` columns.
pub(crate) fn transpose_columns(out: &mut [f32], values: &[f32], columns: usize, first: usize) {
    /// Rows that are read while their cache lines last.
    const TILE: usize = 16;
    let rows = values.len() / columns;
    let taken = out.len() / rows;
    for (tile, values) in values.chunks(TILE * columns).enumerate() {
        for column in 0..taken {
            let out = out[column * rows + tile * TILE..].iter_mut();
            for (out, value) in out.zip(values[first + column..].iter().step_by(columns)) {
                *out = *value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_transposes_are_those_of_the_textbook() {
        let value = |at: usize| ((at * 37 + 11) % 17) as f32 - 8.0;
        for (m, n, k) in [(1, 1, 1), (3, 5, 2), (33, 17, 70), (64, 1, 40), (1, 64, 40), (7, 100, 300)] {
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(value).collect();
            let (mut a_t, mut b_t) = (vec![0.0; m * k], vec![0.0; k * n]);
            transpose(&mut a_t, &a, k);
            transpose(&mut b_t, &b, n);
            let expected: Vec<f32> =
                (0..m * n).map(|at| (0..k).map(|i| a[at / n * k + i] * b[i * n + at % n]).sum::<f32>()).collect();
            // Small integers, so that every order of summation gives the same.
            for a in [Matrix::new(&a, m, k), Matrix::new(&a_t, k, m).transposed()] {
                for b in [Matrix::new(&b, k, n), Matrix::new(&b_t, n, k).transposed()] {
                    let mut out = vec![f32::NAN; m * n];
                    product(&mut out, a, b, Onto::Replace);
                    assert_eq!(out, expected);
                    product(&mut out, a, b, Onto::Add);
                    assert!(
                        out.iter().zip(&expected).all(|(out, expected)| out.to_bits() == (2.0 * expected).to_bits())
                    );
                }
            }
        }
    }
}
