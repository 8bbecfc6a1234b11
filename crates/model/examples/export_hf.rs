//! Writes a small random model and its logits in Hugging Face's layout, for `tools/check_hf.py`:
//! `cargo run --release -p templar-model --example export_hf -- FOLDER [tied] [qk-norm]`.

use std::env;
use std::error::Error;
use std::path::PathBuf;

use templar_model::{hf, presets};
use templar_protocol::layout::{Layout, ModelSpec};

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = env::args_os().nth(1).ok_or("which folder?")?.into();
    let is_asked = |option: &str| env::args().skip(2).any(|word| word == option);
    let (tied_embeddings, qk_norm) = (is_asked("tied"), is_asked("qk-norm"));
    let preset = presets::preset("nano").ok_or("the nano preset is gone")?;
    let spec = ModelSpec { tied_embeddings, qk_norm, rope_theta: 500_000.0, ..preset.model };
    // Norms become other than 1, in the order of their elements. All other parameters get five times θ₀'s spread, so that attention and gates are far from
    // linear. At ten times, the f32 rounding of either side (1e-4 against an exact computation) would hide a
    // difference.
    let layout = Layout::llama(&spec);
    let mut theta = layout.theta0(&spec, 5);
    for tensor in layout.tensors() {
        let values = theta[tensor.range()].iter_mut().enumerate();
        let is_norm = tensor.shape.len() == 1;
        values.for_each(|(at, value)| *value *= if is_norm { 0.7 + 0.1 * (at % 7) as f32 } else { 5.0 });
    }
    hf::export(&folder, &spec, &theta, Some(256))?;
    let tokens: Vec<u32> = (0..2 * spec.seq_len).map(|at| at * at % 257).collect();
    hf::export_logits(&folder, &spec, &theta, &tokens, 2)?;
    Ok(())
}
