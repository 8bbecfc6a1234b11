//! The initial parameters θ₀ and their root, computed on all cores; the root alone takes a few megabytes of memory.
//!
//! The elements of a tensor come from one stream of BLAKE3 output, 16 bytes each. Any position in that stream can be
//! reached directly, so blocks of a tensor are computed in parallel. The bits depend on neither threads nor block
//! lengths.

use std::convert::Infallible;
use std::ops::ControlFlow;

use rayon::prelude::*;

use crate::hash::{Hash32, Hasher, OutputReader};
use crate::layout::{Layout, ModelSpec, PartHasher, TensorSpec};

/// Bytes of the stream per element.
const DRAWN_BYTES: usize = 16;
/// Elements that a thread computes from one piece of the stream: 16 KiB, which stay in a core's first-level cache.
const PIECE_VALUES: usize = 1024;
/// Elements that a thread computes before it looks for other work: 256 KiB of the stream.
const TASK_VALUES: usize = 16 * PIECE_VALUES;
/// Elements between two calls of a watch: a fraction of a second on one core.
const WATCHED_VALUES: usize = 4 << 20;

impl Layout {
    /// The initial parameters θ₀, from integers and + − × only, so that every platform produces the same bits.
    ///
    /// Norm weights are 1. Every other element is the centred sum of eight uniform 16-bit integers, scaled to a
    /// standard deviation of 0.02; projections that write into the residual stream (`o_proj`, `down_proj`) are
    /// divided by √(2·layers), as GPT-2 does.
    pub fn theta0(&self, model: &ModelSpec, seed: u64) -> Vec<f32> {
        let watch = |_| ControlFlow::<Infallible>::Continue(());
        let ControlFlow::Continue(theta) = self.theta0_watched(model, seed, watch);
        theta
    }

    /// [`Layout::theta0`] that reports to `watch` now and then how many parameters are done, and ends early if it
    /// breaks.
    pub fn theta0_watched<B>(
        &self,
        model: &ModelSpec,
        seed: u64,
        mut watch: impl FnMut(u64) -> ControlFlow<B>,
    ) -> ControlFlow<B, Vec<f32>> {
        let mut theta = vec![0.0; self.len()];
        for tensor in self.tensors() {
            let generator = Generator::new(model, seed, tensor);
            for (nth, block) in theta[tensor.range()].chunks_mut(WATCHED_VALUES).enumerate() {
                let first = nth * WATCHED_VALUES;
                block.par_chunks_mut(TASK_VALUES).enumerate().for_each(|(task, values)| {
                    generator.make(first + task * TASK_VALUES, values, |value| value);
                });
                watch(tensor.offset + (first + block.len()) as u64)?;
            }
        }
        ControlFlow::Continue(theta)
    }

    /// [`Layout::state_root`] of [`Layout::theta0`] without keeping θ₀: for models larger than memory.
    pub fn theta0_root(&self, model: &ModelSpec, seed: u64) -> Hash32 {
        let watch = |_| ControlFlow::<Infallible>::Continue(());
        let ControlFlow::Continue(root) = self.theta0_root_watched(model, seed, watch);
        root
    }

    /// [`Layout::theta0_root`] that reports to `watch` now and then how many of [`Layout::len`] parameters are done,
    /// and ends early if it breaks.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// # use templar_protocol::layout::{Layout, ModelSpec};
    /// # let model = ModelSpec {
    /// #     vocab_size: 32, hidden_size: 16, layers: 2, heads: 4, kv_heads: 2, ffn_size: 24, seq_len: 8,
    /// #     rope_theta: 10_000.0, norm_eps: 1e-5, tied_embeddings: false, qk_norm: false,
    /// # };
    /// let layout = Layout::llama(&model);
    /// let root = layout.theta0_root_watched(&model, 7, |done| {
    ///     if done < 1_000_000 { ControlFlow::Continue(()) } else { ControlFlow::Break("this takes too long") }
    /// });
    /// assert_eq!(root, ControlFlow::Continue(layout.theta0_root(&model, 7)));
    /// ```
    pub fn theta0_root_watched<B>(
        &self,
        model: &ModelSpec,
        seed: u64,
        mut watch: impl FnMut(u64) -> ControlFlow<B>,
    ) -> ControlFlow<B, Hash32> {
        let mut parts = PartHasher::default();
        let longest = self.tensors().iter().map(TensorSpec::len).max().unwrap_or(0);
        let mut bytes = vec![[0; 4]; longest.min(WATCHED_VALUES)];
        for tensor in self.tensors() {
            let generator = Generator::new(model, seed, tensor);
            for first in (0..tensor.len()).step_by(WATCHED_VALUES) {
                let block = &mut bytes[..WATCHED_VALUES.min(tensor.len() - first)];
                block.par_chunks_mut(TASK_VALUES).enumerate().for_each(|(task, values)| {
                    generator.make(first + task * TASK_VALUES, values, f32::to_le_bytes);
                });
                parts.update(block);
                watch(tensor.offset + (first + block.len()) as u64)?;
            }
        }
        ControlFlow::Continue(self.root_of_parts(&parts.finish()))
    }
}

/// Computes the elements of one tensor, from any place on.
enum Generator {
    Ones,
    /// Centred sums of the stream, times the scale.
    Drawn {
        stream: OutputReader,
        scale: f64,
    },
}

impl Generator {
    fn new(model: &ModelSpec, seed: u64, tensor: &TensorSpec) -> Self {
        if tensor.shape.len() == 1 {
            return Self::Ones;
        }
        // Variance of a uniform 16-bit integer: (2^32 − 1) / 12; eight of them add up.
        let unit = (8.0 * (4_294_967_296.0 - 1.0) / 12.0_f64).sqrt();
        let residual = (2.0 * f64::from(model.layers)).sqrt();
        let writes_residual = tensor.name.ends_with("o_proj.weight") || tensor.name.ends_with("down_proj.weight");
        let scale = 0.02 / unit / if writes_residual { residual } else { 1.0 };
        let mut hasher = Hasher::new("templar v1 theta0");
        Self::Drawn { stream: hasher.update_value(&seed).update_value(&tensor.name).clone().into_output(), scale }
    }

    /// Computes `out.len()` elements from the tensor's element `first` on, each converted by `to`.
    fn make<T: Copy>(&self, first: usize, out: &mut [T], to: impl Fn(f32) -> T) {
        let Self::Drawn { stream, scale } = self else { return out.fill(to(1.0)) };
        let mut stream = stream.clone();
        stream.set_position((DRAWN_BYTES * first) as u64);
        let mut drawn = [[0; DRAWN_BYTES]; PIECE_VALUES];
        for piece in out.chunks_mut(PIECE_VALUES) {
            let drawn = &mut drawn[..piece.len()];
            stream.fill(drawn.as_flattened_mut());
            for (value, bytes) in piece.iter_mut().zip(drawn) {
                *value = to((f64::from(centred_sum(*bytes)) * scale) as f32);
            }
        }
    }
}

/// Sum of eight uniform 16-bit integers less its mean (8 · 65535 / 2, an integer): exact in f64.
fn centred_sum(drawn: [u8; DRAWN_BYTES]) -> i32 {
    // Both halves of a 32-bit word at once: four words of at most 65 535 + 65 535.
    let words = drawn.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
    words.map(|word| (word & 0xffff) + (word >> 16)).sum::<u32>() as i32 - 8 * 65_535 / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_model;

    /// The rule of the specification, as plainly as possible: one element after the other.
    fn plain(layout: &Layout, model: &ModelSpec, seed: u64) -> Vec<f32> {
        let mut theta = Vec::new();
        for tensor in layout.tensors() {
            let mut hasher = Hasher::new("templar v1 theta0");
            let mut stream = hasher.update_value(&seed).update_value(&tensor.name).clone().into_stream();
            let residual = ["o_proj.weight", "down_proj.weight"].iter().any(|end| tensor.name.ends_with(end));
            let divisor = if residual { (2.0 * f64::from(model.layers)).sqrt() } else { 1.0 };
            let scale = 0.02 / (8.0 * 4_294_967_295.0 / 12.0_f64).sqrt() / divisor;
            for _ in 0..tensor.len() {
                let words = [stream.next_u64(), stream.next_u64()];
                let parts = words.iter().flat_map(|word| (0..4).map(move |part| (word >> (16 * part) & 0xffff) as i64));
                let sum = parts.sum::<i64>() - 262_140;
                theta.push(if tensor.shape.len() == 1 { 1.0 } else { (sum as f64 * scale) as f32 });
            }
        }
        theta
    }

    fn bits(theta: &[f32]) -> Vec<u32> {
        theta.iter().map(|value| value.to_bits()).collect()
    }

    fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    #[test]
    fn theta0_has_its_golden_root_and_spread() {
        let (model, layout) = (tiny_model(), Layout::llama(&tiny_model()));
        let theta = layout.theta0(&model, 7);
        let embedding = &theta[layout.tensors()[0].range()];
        let mean = embedding.iter().map(|&x| f64::from(x)).sum::<f64>() / embedding.len() as f64;
        let deviation = (embedding.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / embedding.len() as f64).sqrt();
        assert!(mean.abs() < 0.003 && (deviation - 0.02).abs() < 0.002, "{mean} {deviation}");
        assert_ne!(layout.theta0(&model, 8), theta);
        let root = layout.state_root(&theta).to_string();
        assert_eq!(root, "2769ecf3a9e9eeecf692b73e8b257c6e8d169472ad08c0a030a154ad08e24bf8");
        assert_eq!(layout.theta0_root(&model, 7).to_string(), root);
    }

    /// Tensors that end within a piece, a task and a watched block, and a name longer than a block of the hash.
    #[test]
    fn blocks_and_threads_change_no_bit() {
        let lengths = [1, PIECE_VALUES + 1, 3 * TASK_VALUES - 5, WATCHED_VALUES + TASK_VALUES + 7].map(|n| n as u64);
        let name = |nth: usize| format!("{}.{nth}.{}", "layers".repeat(20 * nth), ["up_proj", "o_proj"][nth % 2]);
        let shapes =
            lengths.iter().enumerate().map(|(nth, &length)| (format!("{}.weight", name(nth)), vec![1, length]));
        let layout = Layout::new(shapes.chain([("norm".to_owned(), vec![9])]));
        let model = tiny_model();
        let expected = plain(&layout, &model, 3);
        let root = layout.root_of_parts(&layout.part_hashes(&expected));
        for threads in [1, 3] {
            let theta = on_threads(threads, || layout.theta0(&model, 3));
            assert!(bits(&theta) == bits(&expected), "{threads} threads");
            assert_eq!(on_threads(threads, || layout.state_root(&theta)), root);
            assert_eq!(on_threads(threads, || layout.theta0_root(&model, 3)), root);
        }
    }

    #[test]
    fn a_watch_sees_progress_and_can_break_off() {
        let layout = Layout::new([("a".to_owned(), vec![2, WATCHED_VALUES as u64]), ("b".to_owned(), vec![5])]);
        let (model, step) = (tiny_model(), WATCHED_VALUES as u64);
        let mut seen = Vec::new();
        let all = layout.theta0_root_watched(&model, 1, |done| {
            seen.push(done);
            ControlFlow::<()>::Continue(())
        });
        assert_eq!(
            (all, &seen[..]),
            (ControlFlow::Continue(layout.theta0_root(&model, 1)), &[step, 2 * step, 2 * step + 5][..])
        );
        let breaks = |done| if done == step { ControlFlow::Break(done) } else { panic!("it went on to {done}") };
        assert_eq!(layout.theta0_root_watched(&model, 1, breaks), ControlFlow::Break(step));
        assert_eq!(layout.theta0_watched(&model, 1, breaks), ControlFlow::Break(step));
    }
}
