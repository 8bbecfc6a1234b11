//! What a miner owes, and what a window adds to it.

use templar_protocol::run::Transform;

use crate::dct;

/// Error feedback and what is added to it.
pub(crate) struct Feedback<'a> {
    pub(crate) e: &'a mut [f32],
    pub(crate) delta: &'a [f32],
    /// β.
    pub(crate) decay: f64,
}

impl<'a> Feedback<'a> {
    /// The same, chunk by chunk.
    #[inline(always)]
    pub(crate) fn chunks(self, chunk_len: usize) -> impl Iterator<Item = Feedback<'a>> {
        let (chunks, decay) = (self.e.chunks_mut(chunk_len).zip(self.delta.chunks(chunk_len)), self.decay);
        chunks.map(move |(e, delta)| Feedback { e, delta, decay })
    }

    /// e ← β·e + Δ (SparseLoCo, eq. 2): product and sum in f64, rounded to f32 once. Δ is transformed first.
    #[inline(always)]
    pub(crate) fn accumulate(&mut self, transform: Transform, scratch: &mut dct::Scratch) {
        let delta = match transform {
            Transform::None => self.delta,
            Transform::Dct => dct::forward(self.delta, scratch),
        };
        for (e, &delta) in self.e.iter_mut().zip(delta) {
            *e = (self.decay * f64::from(*e) + f64::from(delta)) as f32;
        }
    }
}
