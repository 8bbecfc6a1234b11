//! Which engine a node trains and evaluates with.

use std::fmt;
use std::str::FromStr;

use templar_train::TorchOptions;

/// An engine, and how to run it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Engine {
    /// In this process, on the CPU.
    #[default]
    BuiltIn,
    /// PyTorch, in a process of its own.
    Torch(TorchOptions),
}

/// An engine's name on a command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineName {
    #[default]
    BuiltIn,
    Torch,
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "builtin",
            Self::Torch => "torch",
        })
    }
}

impl FromStr for EngineName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = [Self::BuiltIn, Self::Torch].into_iter().find(|name| name.to_string() == text);
        known.ok_or_else(|| format!("engine {text:?} does not exist; use builtin or torch"))
    }
}

impl Engine {
    /// The engine of the `nth` node: one each, and the last one for all further nodes.
    pub fn of_node(engines: &[Self], nth: usize) -> Self {
        engines.get(nth).or(engines.last()).cloned().unwrap_or_default()
    }

    /// The options with which a node's verb uses this engine.
    pub fn arguments(&self) -> Vec<String> {
        let Self::Torch(torch) = self else {
            return vec!["--engine".to_owned(), EngineName::BuiltIn.to_string()];
        };
        let options = [
            ("--engine", EngineName::Torch.to_string()),
            ("--python", torch.python.display().to_string()),
            ("--nproc", torch.ranks.to_string()),
            ("--device", torch.device.clone()),
        ];
        let threads = torch.threads.map(|threads| ("--threads", threads.to_string()));
        let valued = options.into_iter().chain(threads).flat_map(|(option, value)| [option.to_owned(), value]);
        let flags = [("--offload-optimiser", torch.offload_optimiser), ("--deterministic", torch.deterministic)];
        let flags = flags.into_iter().filter(|(_, is_set)| *is_set).map(|(option, _)| option.to_owned());
        valued.chain(flags).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_further_nodes_get_the_last_engine() {
        let torch = Engine::Torch(TorchOptions::default());
        let engines = [Engine::BuiltIn, torch.clone()];
        let chosen: Vec<Engine> = (0..4).map(|nth| Engine::of_node(&engines, nth)).collect();
        assert_eq!(chosen, [Engine::BuiltIn, torch.clone(), torch.clone(), torch]);
        assert_eq!(Engine::of_node(&[], 3), Engine::BuiltIn);
        assert!("burn".parse::<EngineName>().is_err());
    }
}
