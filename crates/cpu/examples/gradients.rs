//! Losses and gradients of small random models as JSON, for `tools/check_gradients.py`:
//! `cargo run --release -p templar-cpu --example gradients > gradients.json`.
#![expect(clippy::print_stdout, reason = "its output is a file for another program")]

use serde_json::json;
use templar_cpu::Engine;
use templar_protocol::hash::Hasher;
use templar_protocol::layout::{Layout, ModelSpec};

fn main() {
    let case = |(heads, kv_heads, tied_embeddings, qk_norm): (u32, u32, bool, bool)| {
        let spec = ModelSpec {
            vocab_size: 300,
            hidden_size: 16 * heads,
            layers: 3,
            heads,
            kv_heads,
            ffn_size: 100,
            seq_len: 130,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            tied_embeddings,
            qk_norm,
        };
        let layout = Layout::llama(&spec);
        // Five times θ₀'s spread, so that attention and gates are far from linear.
        let mut theta = layout.theta0(&spec, 3);
        theta.iter_mut().filter(|value| **value < 1.0).for_each(|value| *value *= 5.0);
        let mut stream = Hasher::new("gradients").into_stream();
        let tokens: Vec<u32> = (0..4 * 130).map(|_| stream.below(300) as u32).collect();
        let mut gradient = vec![0.0; theta.len()];
        let losses = Engine::new(&spec).gradient(&theta, &tokens, 4, 1.0, &mut gradient, false);
        json!({
            "spec": spec,
            "tensors": layout.tensors().iter().map(|tensor| json!([tensor.name, tensor.shape])).collect::<Vec<_>>(),
            "theta": theta,
            "tokens": tokens.chunks(130).collect::<Vec<_>>(),
            "loss": losses.iter().sum::<f64>() / 4.0,
            "gradient": gradient,
        })
    };
    let cases: Vec<_> = [(4, 4, false, false), (4, 2, false, true), (4, 1, true, false)].map(case).into();
    println!("{}", json!(cases));
}
