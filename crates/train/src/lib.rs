//! Training behind one seam: [`Trainer`] takes parameters and batches and returns the pseudo-gradient Δ and statistics.
//!
//! | what | module |
//! |---|---|
//! | the seam: job, outcome, errors | [`trainer`] |
//! | a trainer over another trainer that changes one thing | [`layer`] |
//! | tokens of one inner step | [`batch`] |
//! | learning rate by global inner step | [`schedule`] |
//! | which tensor gets which optimiser | [`optimiser`] |
//! | AdamW | [`adamw`] |
//! | Muon, for the matrices of the layers | [`muon`] |
//! | an optimiser's moments as bytes | `state` |
//! | FLOPs per token, and memory in use | [`speed`] |
//! | the built-in engine, on this machine's processor | [`cpu_trainer`] |
//! | the PyTorch engine, in a process of its own | [`worker`] |
//! | a cheap problem for simulations of the protocol | [`synthetic`] |
//! | what every engine must do | [`conformance`] |
//!
//! The inner training may differ in its last bits from device to device: nodes agree on parameters, never on gradients.
//!
//! ```
//! use std::ops::ControlFlow;
//! use templar_model::presets;
//! use templar_protocol::layout::Layout;
//! use templar_train::{CpuTrainer, Moments, TokenBatch, TrainJob, Trainer};
//!
//! let preset = presets::preset("nano").unwrap();
//! let theta = Layout::llama(&preset.model).theta0(&preset.model, 7);
//! let batches = [TokenBatch::new(2, 8, (0..16).collect()).unwrap()];
//! let mut trainer = CpuTrainer::new(&preset.model, &preset.inner);
//! let job = TrainJob { theta: &theta, batches: &batches, first_step: 0, moments: Moments::Carried };
//! let outcome = trainer.train(&job, &mut |_| ControlFlow::Continue(())).unwrap();
//! assert_eq!(outcome.delta.len(), theta.len());
//! ```

pub mod adamw;
pub mod batch;
pub mod conformance;
pub mod cpu_trainer;
pub mod layer;
pub mod muon;
pub mod optimiser;
pub mod schedule;
pub mod speed;
mod state;
pub mod synthetic;
pub mod trainer;
pub mod worker;

pub use batch::{BatchError, TokenBatch};
pub use cpu_trainer::CpuTrainer;
pub use layer::TrainerLayer;
pub use schedule::learning_rate;
pub use synthetic::SyntheticTrainer;
pub use trainer::{Moments, StepStats, TrainError, TrainJob, TrainOutcome, Trainer};
pub use worker::{TorchOptions, TorchTrainer, WorkerError};
