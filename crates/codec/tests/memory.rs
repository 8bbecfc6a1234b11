//! Memory beyond inputs and outputs: a few chunks per thread, and a few words per segment of 65,536 parameters.
//!
//! A test binary of its own with one test, because its allocator counts what the whole process holds.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use rayon::ThreadPool;
use templar_codec::{Codec, Contribution, outer_step};
use templar_protocol::layout::Layout;
use templar_protocol::run::{CodecKind, CodecSpec, MeanOver, OuterSpec, Transform};

const CHUNK: usize = 4096;
const PEERS: usize = 20;
const SEGMENT_PARAMS: usize = 1 << 16;
/// Working memory of one thread. Encoding needs positions and magnitudes of the candidates, a whole chunk of them if
/// all values are equal. The outer step needs eight bytes per parameter of a chunk, a table of 8 KiB, and one chunk's
/// entries per peer.
const THREAD_BYTES: usize = 4 * CHUNK * size_of::<f32>();
/// What a transform adds: a square of f64 and one of f32 there, or two of i64 back where there is no other working memory.
const TRANSFORM_BYTES: usize = 3 * CHUNK * size_of::<f32>();
/// Two slices, a start, and a length or a checked sum.
const SEGMENT_BYTES: usize = 96;
/// A norm in each contribution, a clip factor for it, and the median.
const TENSOR_BYTES: usize = 32;

/// The system's allocator, with a count of the bytes held now and of their maximum.
struct Counting {
    held: AtomicUsize,
    most: AtomicUsize,
}

#[global_allocator]
static ALLOCATOR: Counting = Counting { held: AtomicUsize::new(0), most: AtomicUsize::new(0) };

// SAFETY: the system's allocator does the work, with the caller's arguments as they are. `realloc` is the trait's own, which
// allocates, copies and frees, so that a vector that grows is counted twice for a moment.
#[expect(unsafe_code, reason = "only an allocator sees every allocation")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        let held = self.held.fetch_add(block.size(), Relaxed) + block.size();
        self.most.fetch_max(held, Relaxed);
        // SAFETY: as this function's.
        unsafe { System.alloc(block) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, block: Block) {
        self.held.fetch_sub(block.size(), Relaxed);
        // SAFETY: as this function's; `pointer` is the system's.
        unsafe { System.dealloc(pointer, block) }
    }
}

/// The most bytes that `work` held at once beyond what was held before.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATOR.held.load(Relaxed);
    ALLOCATOR.most.store(before, Relaxed);
    let result = work();
    (ALLOCATOR.most.load(Relaxed) - before, result)
}

fn layout() -> Arc<Layout> {
    let shapes = [vec![1024, 1024], vec![1024, 1024], vec![300], vec![777, 1000], vec![60, 60], vec![5]];
    Arc::new(Layout::new(shapes.into_iter().enumerate().map(|(index, shape)| (format!("tensor{index}"), shape))))
}

fn check(kind: CodecKind, transform: Transform, pool: &ThreadPool, delta: &[f32]) {
    let threads = pool.current_num_threads();
    let codec =
        Codec::new(layout(), &CodecSpec { kind, chunk: 4096, k: 64, error_decay: 0.95, max_abs: 16.0, transform });
    let (tensors, params) = (codec.layout().tensors().len(), delta.len());
    // Each tensor may end in a segment of its own.
    let segments = params.div_ceil(SEGMENT_PARAMS) + 2 * tensors;
    let thread_bytes = THREAD_BYTES + if transform == Transform::Dct { TRANSFORM_BYTES } else { 0 };
    let bound = threads * thread_bytes + segments * SEGMENT_BYTES + tensors * TENSOR_BYTES * PEERS;
    assert!(bound < params / 8, "the bound rules out a copy of even one bit per parameter");
    let assert_bounded = |what: &str, extra: usize| {
        assert!(extra <= bound, "{what}, {kind:?}, {transform:?}, {threads} threads: {extra} bytes, more than {bound}");
    };

    let (mut e, mut theta) = (vec![0.0; params], vec![0.0; params]);
    let (peak, payload) = peak_bytes(|| pool.install(|| codec.encode(&mut e, delta).unwrap()));
    assert_bounded("encode", peak - payload.capacity());
    assert!(payload.capacity() as u64 <= codec.max_payload_bytes());
    let payload = Bytes::from(payload);
    let (peak, contribution) = peak_bytes(|| pool.install(|| codec.decode(payload.clone()).unwrap()));
    assert_bounded("decode", peak);
    let contributions: Vec<&Contribution> = vec![&contribution; PEERS];
    let outer = OuterSpec { rate: 1.0, mean_over: MeanOver::Senders, min_senders: 2 };
    let step = || pool.install(|| outer_step(codec.layout(), &mut theta, &contributions, &outer));
    assert_bounded("outer step", peak_bytes(step).0);
    let add = || pool.install(|| contribution.add_scaled(&mut theta, -1.0));
    assert_bounded("add_scaled", peak_bytes(add).0);
}

#[test]
fn no_step_needs_more_than_a_few_chunks_per_thread() {
    let varied: Vec<f32> = (0..layout().len()).map(|at| ((at * 7919 % 10_007) as f32 - 5003.0) * 1e-4).collect();
    // Every value of a chunk is a candidate.
    let equal = vec![1.0; varied.len()];
    // Both stay to the end: threads that start or stop in between would count.
    let pools = [1, 2].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    for pool in &pools {
        pool.broadcast(|_| ());
    }
    for (kind, transform) in [
        (CodecKind::TopkSign, Transform::None),
        (CodecKind::TopkTwoBit, Transform::None),
        (CodecKind::DenseF32, Transform::None),
        (CodecKind::TopkSign, Transform::Dct),
    ] {
        for pool in &pools {
            check(kind, transform, pool, &varied);
            check(kind, transform, pool, &equal);
        }
    }
}
