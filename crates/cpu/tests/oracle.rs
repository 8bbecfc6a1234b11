//! The engine against the plain reference: losses, logits, every gradient; and the reference against finite differences.

use proptest::prelude::*;
use templar_cpu::Engine;
use templar_cpu::oracle::Oracle;
use templar_protocol::hash::{Hasher, Stream};
use templar_protocol::layout::{Layout, ModelSpec};

fn spec(heads: u32, kv_heads: u32, tied_embeddings: bool) -> ModelSpec {
    ModelSpec {
        vocab_size: 83,
        hidden_size: heads * 6,
        layers: 2,
        heads,
        kv_heads,
        ffn_size: 20,
        seq_len: 80,
        rope_theta: 50.0,
        norm_eps: 1e-3,
        tied_embeddings,
        qk_norm: false,
    }
}

/// Parameters far larger than θ₀'s, so that attention and gates are far from linear.
fn lively_theta(layout: &Layout, stream: &mut Stream) -> Vec<f32> {
    let mut uniform = || stream.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0;
    let scale = |one_dimensional| if one_dimensional { (1.0, 0.5) } else { (0.0, 0.4) };
    let tensors = layout.tensors().iter().map(|tensor| (tensor.len(), scale(tensor.shape.len() == 1)));
    tensors.flat_map(|(len, scale)| vec![scale; len]).map(|(centre, spread)| centre + spread * uniform()).collect()
}

fn tokens(spec: &ModelSpec, count: usize, stream: &mut Stream) -> Vec<u32> {
    (0..count).map(|_| stream.below(u64::from(spec.vocab_size)) as u32).collect()
}

fn widened(theta: &[f32]) -> Vec<f64> {
    theta.iter().map(|&x| f64::from(x)).collect()
}

/// Compares `engine` with the reference for one batch.
fn assert_agreement(engine: &mut Engine, theta: &[f32], sequences: usize, tokens: &[u32]) {
    let spec = engine.spec().clone();
    let layout = Layout::llama(&spec);
    let oracle = Oracle { spec: &spec, layout: &layout, theta: &widened(theta), z_loss: 0.0 };
    let length = tokens.len() / sequences;
    let rows = || tokens.chunks_exact(length);

    let logits = engine.logits(theta, tokens, sequences);
    for (found, expected) in logits.iter().zip(rows().flat_map(|row| oracle.logits(row)).flatten()) {
        assert!((f64::from(*found) - expected).abs() < 5e-5 * (1.0 + expected.abs()), "{found} {expected}");
    }
    let last = engine.next_logits(theta, &tokens[..length]);
    for (found, expected) in last.iter().zip(&logits[(length - 1) * spec.vocab_size as usize..]) {
        assert!((found - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{found} {expected}");
    }

    // Half of the mean's gradient, on top of ones.
    let mut gradient = vec![1.0; theta.len()];
    let losses = engine.gradient(theta, tokens, sequences, 0.5, &mut gradient, true);
    assert_eq!(losses, engine.losses(theta, tokens, sequences));
    let mut expected = vec![0.0; theta.len()];
    for (found, row) in losses.iter().zip(rows()) {
        let (loss, part) = oracle.loss_gradient(row);
        assert!((found - loss).abs() < 2e-5, "{found} {loss}");
        expected.iter_mut().zip(part).for_each(|(sum, part)| *sum += part / sequences as f64);
    }
    let worst = expected.iter().fold(0.0f64, |worst, x| worst.max(x.abs()));
    for (at, (found, expected)) in gradient.iter().zip(&expected).enumerate() {
        let found = 2.0 * (f64::from(*found) - 1.0);
        assert!((found - expected).abs() < 2e-5 * (1.0 + worst), "{at}: {found} {expected}");
    }
    // Replacing gives the same as adding to zeros.
    let (mut replaced, mut added) = (vec![f32::NAN; theta.len()], vec![0.0; theta.len()]);
    engine.gradient(theta, tokens, sequences, 1.0, &mut replaced, false);
    engine.gradient(theta, tokens, sequences, 1.0, &mut added, true);
    assert!(replaced == added, "replacing the gradient differs from adding to zeros");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// One engine for two shapes of batch, so that memory of the first is used again by the second.
    #[test]
    fn engine_agrees_with_the_reference(
        seed in any::<u64>(),
        (heads, kv_heads) in prop::sample::select(vec![(1, 1), (4, 1), (4, 2), (3, 3)]),
        tied in any::<bool>(),
        qk_norm in any::<bool>(),
        shapes in prop::array::uniform2((1usize..4, prop::sample::select(vec![2usize, 3, 16, 64, 65, 67, 80]))),
    ) {
        let spec = ModelSpec { qk_norm, ..spec(heads, kv_heads, tied) };
        let mut stream = Hasher::new("oracle").update_value(&seed).clone().into_stream();
        let theta = lively_theta(&Layout::llama(&spec), &mut stream);
        let mut engine = Engine::new(&spec);
        for (sequences, length) in shapes {
            let tokens = tokens(&spec, sequences * length, &mut stream);
            assert_agreement(&mut engine, &theta, sequences, &tokens);
        }
    }
}

/// Large enough that everything is cut: 316 rows are two blocks, so that norms' gradients have two parts; the vocabulary has
/// three blocks; weights have several tasks, and products several tiles. The loss in chunks is among the gradient checks.
#[test]
fn engine_agrees_with_the_reference_where_work_is_cut() {
    for (tied, qk_norm) in [(false, false), (true, false), (false, true)] {
        let spec = ModelSpec { qk_norm, hidden_size: 96, ffn_size: 300, vocab_size: 1200, ..spec(6, 3, tied) };
        let mut stream = Hasher::new("oracle, cut").into_stream();
        let theta = lively_theta(&Layout::llama(&spec), &mut stream);
        let tokens = tokens(&spec, 4 * 80, &mut stream);
        assert_agreement(&mut Engine::new(&spec), &theta, 4, &tokens);
    }
}

/// Five parameters of every kind of tensor, by central differences: in f64 a step of 1e-5 leaves an error of about 1e-10.
#[test]
fn reference_agrees_with_finite_differences() {
    for (tied, qk_norm) in [(false, false), (true, false), (false, true)] {
        let spec = ModelSpec { qk_norm, ..spec(4, 2, tied) };
        let layout = Layout::llama(&spec);
        let mut stream = Hasher::new("oracle gradient").into_stream();
        let mut theta = widened(&lively_theta(&layout, &mut stream));
        let tokens = tokens(&spec, 9, &mut stream);
        let (_, gradient) = Oracle { spec: &spec, layout: &layout, theta: &theta, z_loss: 0.0 }.loss_gradient(&tokens);
        let mut loss_at = |at: usize, step: f64| {
            let before = theta[at];
            theta[at] += step;
            let loss = Oracle { spec: &spec, layout: &layout, theta: &theta, z_loss: 0.0 }.loss(&tokens);
            theta[at] = before;
            loss
        };
        for tensor in layout.tensors() {
            for _ in 0..5 {
                let at = tensor.range().start + stream.below(tensor.len() as u64) as usize;
                let expected = (loss_at(at, 1e-5) - loss_at(at, -1e-5)) / 2e-5;
                let error = (gradient[at] - expected).abs();
                assert!(error < 1e-8 + 1e-6 * expected.abs(), "{}: {} {expected}", tensor.name, gradient[at]);
            }
        }
    }
}

#[test]
fn hostile_tokens_are_refused() {
    let spec = spec(2, 1, false);
    let theta = Layout::llama(&spec).theta0(&spec, 1);
    for (tokens, sequences) in [(vec![83, 0], 1), (vec![0, 0, 0], 2), (vec![], 1), (vec![0], 0)] {
        let result = std::panic::catch_unwind(|| Engine::new(&spec).logits(&theta, &tokens, sequences));
        assert!(result.is_err(), "{tokens:?} in {sequences} sequences");
    }
}

/// A vocabulary and a batch large enough that every kind of work is cut, in chunks of the loss too, and a tensor of more than
/// 4 Mi elements: the same bits with one, two and five threads.
#[test]
fn threads_change_no_bit() {
    let wide = ModelSpec { vocab_size: 140_000, layers: 1, ..spec(6, 3, false) };
    let deep =
        ModelSpec { hidden_size: 96, ffn_size: 300, vocab_size: 700, layers: 3, qk_norm: true, ..spec(6, 3, true) };
    let large = Layout::llama(&wide).tensors()[0].len();
    assert!(large > 4 << 20, "{large}");
    for (spec, sequences) in [(wide, 2), (deep, 9)] {
        let layout = Layout::llama(&spec);
        let mut stream = Hasher::new("threads").into_stream();
        let theta = lively_theta(&layout, &mut stream);
        let tokens = tokens(&spec, sequences * 80, &mut stream);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut engine, mut gradient) = (Engine::new(&spec), vec![0.0; theta.len()]);
                let losses = engine.gradient(&theta, &tokens, sequences, 1.0, &mut gradient, false);
                (losses, gradient.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5), "the bits depend on the number of threads");
    }
}
