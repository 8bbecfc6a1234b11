//! Tokens per second of the built-in engine: `cargo run --release -p templar-train --example speed -- [PRESET] [STEPS] [MICRO]`.
//!
//! Eight sequences of the preset's length a step, in micro-batches of MICRO or as the preset has it. Compare with `RAYON_NUM_THREADS=1` for the cost of one core.
#![expect(clippy::print_stdout, reason = "a measurement is for people")]

use std::{env, error::Error, ops::ControlFlow, time::Instant};

use templar_model::presets;
use templar_protocol::layout::Layout;
use templar_train::{CpuTrainer, TrainJob, Trainer, conformance};

fn main() -> Result<(), Box<dyn Error>> {
    let name = env::args().nth(1).unwrap_or_else(|| "nano".to_owned());
    let steps = env::args().nth(2).map_or(Ok(20), |text| text.parse())?;
    let mut preset =
        presets::preset(&name).ok_or_else(|| format!("no preset {name:?}; there are {:?}", presets::names()))?;
    if let Some(text) = env::args().nth(3) {
        preset.inner.micro_batch_sequences = text.parse()?;
    }
    let layout = Layout::llama(&preset.model);
    let theta = layout.theta0(&preset.model, 1);
    let batches = conformance::batches(&preset.model, steps, 8, "speed");
    let mut trainer = CpuTrainer::new(&preset.model, &preset.inner);

    let warm_up = TrainJob { theta: &theta, batches: &batches[..1], first_step: 0 };
    trainer.train(&warm_up, &mut |_| ControlFlow::Continue(()))?;
    let start = Instant::now();
    let job = TrainJob { batches: &batches, ..warm_up };
    let outcome = trainer.train(&job, &mut |_| ControlFlow::Continue(()))?;
    let train_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for batch in &batches {
        trainer.evaluate(&theta, batch)?;
    }
    let evaluate_s = start.elapsed().as_secs_f64();
    println!("{name}: {} parameters, {} threads", layout.len(), rayon::current_num_threads());
    println!("train    {:>8.0} tokens/s", outcome.tokens as f64 / train_s);
    println!("evaluate {:>8.0} tokens/s", outcome.tokens as f64 / evaluate_s);
    Ok(())
}
