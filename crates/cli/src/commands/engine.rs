//! Options of engines, shared by all verbs that train.

use std::path::PathBuf;

use clap::Args;
use color_eyre::eyre::{Result, bail};
use templar_host::engine::{Engine, EngineName};
use templar_train::TorchOptions;

use crate::numbers::whole;

/// Options of the engine on PyTorch. The built-in engine takes none.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine on PyTorch (--engine torch)")]
pub(crate) struct TorchArgs {
    /// The Python interpreter that has `templar_torch`; python3 if not given.
    #[arg(long, env = "TEMPLAR_PYTHON", value_name = "PATH")]
    python: Option<PathBuf>,
    /// Processes of a worker, one per GPU; 1 if not given.
    #[arg(long, env = "TEMPLAR_NPROC", value_parser = whole::<u16>(1..=64))]
    nproc: Option<u16>,
    /// Where to train, as PyTorch names it: auto (if not given), cpu, cuda, cuda:1 or mps. AMD's GPUs are cuda there.
    #[arg(long, env = "TEMPLAR_DEVICE")]
    device: Option<String>,
    /// Threads of each process on CPUs.
    #[arg(long, env = "TEMPLAR_THREADS", value_parser = whole::<u32>(1..=1024))]
    threads: Option<u32>,
    /// Keep the optimiser's moments in host memory between windows.
    #[arg(long, env = "TEMPLAR_OFFLOAD_OPTIMISER")]
    offload_optimiser: bool,
    /// Compute the same bits each time, on GPUs too, which costs some speed there.
    #[arg(long, env = "TEMPLAR_DETERMINISTIC")]
    deterministic: bool,
}

impl TorchArgs {
    /// The engines of these names. `threads` applies if the user did not say how many. Fails if an option was given
    /// that no engine here reads: a user who names a GPU must not end up training on the CPU.
    pub(crate) fn engines(&self, names: &[EngineName], threads: Option<u32>) -> Result<Vec<Engine>> {
        if !names.contains(&EngineName::Torch)
            && let Some(option) = self.not_for_cpu()
        {
            bail!(
                "{option} applies to PyTorch only, which no node here uses: the built-in engine trains in the node's \
                 process, on the CPU. Add --engine torch, or leave {option} out (on the command line, in --config and \
                 in the environment)"
            );
        }
        let torch = || {
            Engine::Torch(TorchOptions {
                python: self.python.clone().unwrap_or_else(|| "python3".into()),
                ranks: self.nproc.unwrap_or(1),
                device: self.device.clone().unwrap_or_else(|| "auto".to_owned()),
                threads: self.threads.or(threads),
                offload_optimiser: self.offload_optimiser,
                deterministic: self.deterministic,
                ..TorchOptions::default()
            })
        };
        let engine = |name: &EngineName| match name {
            EngineName::BuiltIn => Engine::BuiltIn,
            EngineName::Torch => torch(),
        };
        Ok(names.iter().map(engine).collect())
    }

    /// An option that was given, and that the built-in engine does not have.
    fn not_for_cpu(&self) -> Option<&'static str> {
        let elsewhere = |device: &String| !matches!(device.as_str(), "cpu" | "auto");
        let given = [
            ("--device", self.device.as_ref().is_some_and(elsewhere)),
            ("--python", self.python.is_some()),
            ("--nproc", self.nproc.is_some()),
            ("--threads", self.threads.is_some()),
            ("--offload-optimiser", self.offload_optimiser),
            ("--deterministic", self.deterministic),
        ];
        given.into_iter().find_map(|(option, is_given)| is_given.then_some(option))
    }
}
