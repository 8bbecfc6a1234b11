//! Writes a small random model and its logits in Hugging Face's layout, for `tools/check_hf.py`:
//! `cargo run --release -p templar-model --example export_hf -- FOLDER [tied]`.

use std::env;
use std::error::Error;
use std::path::PathBuf;

use templar_model::{hf, presets};
use templar_protocol::layout::{Layout, ModelSpec};

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = env::args_os().nth(1).ok_or("which folder?")?.into();
    let tied_embeddings = env::args().nth(2).is_some_and(|word| word == "tied");
    let preset = presets::preset("nano").ok_or("the nano preset is gone")?;
    let spec = ModelSpec { tied_embeddings, rope_theta: 500_000.0, ..preset.model };
    // The norms stay 1. All other parameters get five times θ₀'s spread, so that attention and gates are far from
    // linear. At ten times, the f32 rounding of either side (1e-4 against an exact computation) would hide a
    // difference.
    let mut theta = Layout::llama(&spec).theta0(&spec, 5);
    theta.iter_mut().filter(|value| **value < 1.0).for_each(|value| *value *= 5.0);
    hf::export(&folder, &spec, &theta, Some(256))?;
    let tokens: Vec<u32> = (0..2 * spec.seq_len).map(|at| at * at % 257).collect();
    hf::export_logits(&folder, &spec, &theta, &tokens, 2)?;
    Ok(())
}
