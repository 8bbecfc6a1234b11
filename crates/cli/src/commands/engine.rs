//! Options of engines, shared by all verbs that train.

use std::path::PathBuf;

use clap::Args;
use templar_sim::engine::{Engine, EngineName};
use templar_train::TorchOptions;

/// Options of the engine on PyTorch. The built-in engine needs none.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine on PyTorch")]
pub(crate) struct TorchArgs {
    /// The Python interpreter that has `templar_torch`.
    #[arg(long, env = "TEMPLAR_PYTHON", default_value = "python3", value_name = "PATH")]
    python: PathBuf,
    /// Processes of a worker, one for each GPU.
    #[arg(long, env = "TEMPLAR_NPROC", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    nproc: u16,
    /// Where to train, as PyTorch names it: auto, cpu, cuda, cuda:1 or mps. AMD's GPUs are cuda there.
    #[arg(long, env = "TEMPLAR_DEVICE", default_value = "auto")]
    device: String,
    /// Threads of each process on CPUs.
    #[arg(long, env = "TEMPLAR_THREADS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Keep the optimiser's moments in host memory between two windows.
    #[arg(long, env = "TEMPLAR_OFFLOAD_OPTIMISER")]
    offload_optimiser: bool,
}

impl TorchArgs {
    /// The engine of that name. `threads` is for those who did not say how many.
    pub(crate) fn engine(&self, name: EngineName, threads: Option<u32>) -> Engine {
        match name {
            EngineName::BuiltIn => Engine::BuiltIn,
            EngineName::Torch => Engine::Torch(TorchOptions {
                python: self.python.clone(),
                ranks: self.nproc,
                device: self.device.clone(),
                threads: self.threads.or(threads),
                offload_optimiser: self.offload_optimiser,
                ..TorchOptions::default()
            }),
        }
    }
}
