//! AdamW with decoupled weight decay ("Decoupled Weight Decay Regularization", algorithm 2) on tensors in flat parameters.
//!
//! θ ← θ − lr · (m̂ / (√v̂ + ε) + wd · θ), without decay for one-dimensional tensors (the norms). One pass over plain
//! slices: each parameter and moment is read and written once per step.

use std::ops::Range;

use rayon::prelude::*;
use templar_cpu::simd;
use templar_protocol::layout::TensorSpec;
use templar_protocol::run::InnerSpec;

/// Elements per task; the result does not depend on it.
const CHUNK: usize = 1 << 15;
/// Elements that are computed at once.
const LANES: usize = 16;

/// The optimiser and its moments.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    tensors: Vec<Place>,
    /// Steps taken so far, for the bias correction.
    steps: u64,
    /// m, the moving average of the gradient.
    first: Vec<f32>,
    /// v, the moving average of its square.
    second: Vec<f32>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    /// Where it lies in the flat parameters.
    theta: Range<usize>,
    /// Where its moments lie among those of this optimiser's tensors.
    moments: Range<usize>,
    decays: bool,
}

impl AdamW {
    /// Fresh moments for `tensors`, which lie in the flat parameters where their offsets say.
    pub fn new<'a>(tensors: impl IntoIterator<Item = &'a TensorSpec>, inner: &InnerSpec) -> Self {
        let mut end = 0;
        let place = |tensor: &TensorSpec| {
            let moments = end..end + tensor.len();
            end = moments.end;
            Place { theta: tensor.range(), moments, decays: tensor.shape.len() > 1 }
        };
        let tensors = tensors.into_iter().map(place).collect();
        Self {
            beta1: inner.beta1,
            beta2: inner.beta2,
            epsilon: inner.epsilon,
            weight_decay: inner.weight_decay,
            tensors,
            steps: 0,
            first: vec![0.0; end],
            second: vec![0.0; end],
        }
    }

    /// One step on its tensors in `theta` with the gradient `scale · gradient`.
    ///
    /// # Panics
    /// If `theta` or `gradient` are too short for the tensors.
    pub fn step(&mut self, theta: &mut [f32], gradient: &[f32], scale: f64, lr: f64) {
        self.steps += 1;
        let exponent = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let constants = Constants {
            scale: scale as f32,
            keep1: self.beta1 as f32,
            take1: (1.0 - self.beta1) as f32,
            keep2: self.beta2 as f32,
            take2: (1.0 - self.beta2) as f32,
            rate: (lr / (1.0 - self.beta1.powi(exponent))) as f32,
            correction2: (1.0 / (1.0 - self.beta2.powi(exponent))) as f32,
            epsilon: self.epsilon as f32,
            keep_theta: 1.0,
        };
        let decaying = Constants { keep_theta: (1.0 - lr * self.weight_decay) as f32, ..constants };
        for Place { theta: range, moments, decays } in &self.tensors {
            let constants = if *decays { decaying } else { constants };
            theta[range.clone()]
                .par_chunks_mut(CHUNK)
                .zip(gradient[range.clone()].par_chunks(CHUNK))
                .zip(self.first[moments.clone()].par_chunks_mut(CHUNK))
                .zip(self.second[moments.clone()].par_chunks_mut(CHUNK))
                .for_each(|(((theta, gradient), first), second)| constants.step(theta, gradient, first, second));
        }
    }

    /// Steps that the moments have seen.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// First and second moments of all tensors, and the steps that they have seen.
    pub(crate) fn state_mut(&mut self) -> (&mut u64, [&mut [f32]; 2]) {
        (&mut self.steps, [&mut self.first, &mut self.second])
    }

    /// First and second moments of all tensors.
    pub(crate) fn moments(&self) -> [&[f32]; 2] {
        [&self.first, &self.second]
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.steps = 0;
        self.first.fill(0.0);
        self.second.fill(0.0);
    }
}

/// What all elements of a tensor have in common in one step.
#[derive(Clone, Copy)]
struct Constants {
    scale: f32,
    keep1: f32,
    take1: f32,
    keep2: f32,
    take2: f32,
    /// lr with the bias correction of the first moment in it.
    rate: f32,
    correction2: f32,
    epsilon: f32,
    /// 1 − lr · wd.
    keep_theta: f32,
}

impl Constants {
    /// Sixteen elements are read before one is written, so that the compiler may use vectors.
    fn step(&self, theta: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let (theta, rest) = theta.as_chunks_mut::<LANES>();
        let (gradient, rest_gradient) = gradient.as_chunks::<LANES>();
        let ((first, rest_first), (second, rest_second)) =
            (first.as_chunks_mut::<LANES>(), second.as_chunks_mut::<LANES>());
        simd(
            #[inline(always)]
            || {
                for (((theta, gradient), m), v) in theta.iter_mut().zip(gradient).zip(first).zip(second) {
                    let mut new = (*theta, *m, *v);
                    for at in 0..LANES {
                        (new.0[at], new.1[at], new.2[at]) = self.element(theta[at], gradient[at], m[at], v[at]);
                    }
                    (*theta, *m, *v) = new;
                }
            },
        );
        for (((theta, gradient), m), v) in rest.iter_mut().zip(rest_gradient).zip(rest_first).zip(rest_second) {
            (*theta, *m, *v) = self.element(*theta, *gradient, *m, *v);
        }
    }

    /// θ, m and v of one parameter after the step.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it is the body of a vector loop")]
    fn element(&self, theta: f32, gradient: f32, m: f32, v: f32) -> (f32, f32, f32) {
        let g = gradient * self.scale;
        let m = self.keep1 * m + self.take1 * g;
        let v = self.keep2 * v + self.take2 * g * g;
        (self.keep_theta * theta - self.rate * m / ((v * self.correction2).sqrt() + self.epsilon), m, v)
    }
}

/// The global norm in f64. Sums are taken in fixed lanes within fixed chunks, so that neither threads nor vectors
/// change it.
pub fn global_norm(values: &[f32]) -> f64 {
    let sum = |chunk: &[f32]| {
        let (blocks, rest) = chunk.as_chunks::<LANES>();
        let mut lanes = [0.0; LANES];
        simd(
            #[inline(always)]
            || {
                for block in blocks {
                    for (lane, &x) in lanes.iter_mut().zip(block) {
                        *lane += f64::from(x) * f64::from(x);
                    }
                }
            },
        );
        lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    };
    let squares: Vec<f64> = values.par_chunks(CHUNK).map(sum).collect();
    squares.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use templar_protocol::layout::Layout;

    use super::*;

    fn layout() -> Layout {
        Layout::new([("matrix".to_owned(), vec![2, 2]), ("vector".to_owned(), vec![2])])
    }

    fn inner() -> InnerSpec {
        InnerSpec { weight_decay: 0.5, ..templar_model::presets::preset("nano").unwrap().inner }
    }

    proptest! {
        /// Compares with the textbook in f64, one parameter at a time.
        #[test]
        fn follows_the_textbook(gradients in prop::collection::vec(prop::array::uniform6(-2.0f32..2.0), 1..6)) {
            let (layout, inner) = (layout(), inner());
            let mut adamw = AdamW::new(layout.tensors(), &inner);
            let mut theta = vec![1.0f32; 6];
            for gradient in &gradients {
                adamw.step(&mut theta, gradient, 0.5, 0.01);
            }
            for at in 0..6 {
                let (mut expected, mut m, mut v) = (1.0, 0.0, 0.0);
                let decay = if at < 4 { inner.weight_decay } else { 0.0 };
                for (step, gradient) in (1..).zip(&gradients) {
                    let g = 0.5 * f64::from(gradient[at]);
                    m = inner.beta1 * m + (1.0 - inner.beta1) * g;
                    v = inner.beta2 * v + (1.0 - inner.beta2) * g * g;
                    let (m_hat, v_hat) = (m / (1.0 - inner.beta1.powi(step)), v / (1.0 - inner.beta2.powi(step)));
                    expected -= 0.01 * (m_hat / (v_hat.sqrt() + inner.epsilon) + decay * expected);
                }
                prop_assert!((f64::from(theta[at]) - expected).abs() < 2e-5, "{} {expected}", theta[at]);
            }
        }
    }
}
