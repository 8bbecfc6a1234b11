//! Rotary position embedding by rotated halves, as Hugging Face's Llama has it.

use templar_protocol::layout::ModelSpec;

/// cos and sin of position · base^(−2i/dim), one row of dim/2 values per position.
pub(crate) struct Rotation {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    pub(crate) fn new(spec: &ModelSpec, positions: usize) -> Self {
        let dim = spec.head_dim() as usize;
        let half = dim / 2;
        let angle = |at: usize| {
            let (position, i) = (at / half, at % half);
            position as f64 * spec.rope_theta.powf(-2.0 * i as f64 / dim as f64)
        };
        let table = |function: fn(f64) -> f64| (0..positions * half).map(|at| function(angle(at)) as f32).collect();
        Self { half, cos: table(f64::cos), sin: table(f64::sin) }
    }

    pub(crate) fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Takes the row of position t to row t of `out` by `copy`, and leaves it there rotated and times `scale`. Rows of `x`
    /// are `stride` apart.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it is part of a vector kernel")]
    pub(crate) fn forward(
        &self,
        out: &mut [f32],
        x: &[f32],
        stride: usize,
        scale: f32,
        copy: impl Fn(&mut [f32], &[f32]),
    ) {
        let rows = out.chunks_exact_mut(2 * self.half).zip(x.chunks(stride));
        for ((out, x), (cos, sin)) in rows.zip(self.rows()) {
            copy(out, &x[..2 * self.half]);
            turn(out, cos, sin, |a, b, cos, sin| ((a * cos - b * sin) * scale, (b * cos + a * sin) * scale));
        }
    }

    /// Takes gradients of rotated rows back to those of the rows themselves, in place.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it is part of a vector kernel")]
    pub(crate) fn backward(&self, d: &mut [f32], scale: f32) {
        for (d, (cos, sin)) in d.chunks_exact_mut(2 * self.half).zip(self.rows()) {
            turn(d, cos, sin, |a, b, cos, sin| ((a * cos + b * sin) * scale, (b * cos - a * sin) * scale));
        }
    }

    fn rows(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        self.cos.chunks_exact(self.half).zip(self.sin.chunks_exact(self.half))
    }
}

/// Replaces the elements of both halves of `x` in pairs, eight pairs at a time.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is part of a vector kernel")]
fn turn(x: &mut [f32], cos: &[f32], sin: &[f32], new: impl Fn(f32, f32, f32, f32) -> (f32, f32)) {
    let (a, b) = x.split_at_mut(cos.len());
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks_mut::<8>(), b.as_chunks_mut::<8>());
    let ((cos, rest_cos), (sin, rest_sin)) = (cos.as_chunks::<8>(), sin.as_chunks::<8>());
    for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(cos.iter().zip(sin)) {
        let (mut new_a, mut new_b) = (*a, *b);
        for at in 0..8 {
            (new_a[at], new_b[at]) = new(a[at], b[at], cos[at], sin[at]);
        }
        (*a, *b) = (new_a, new_b);
    }
    for ((a, b), (cos, sin)) in rest_a.iter_mut().zip(rest_b).zip(rest_cos.iter().zip(rest_sin)) {
        (*a, *b) = new(*a, *b, *cos, *sin);
    }
}
