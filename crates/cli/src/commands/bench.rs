//! `templar bench`: one module per measured part.

mod codec;
mod data;
mod strategies;
mod train;

use clap::Subcommand;
use color_eyre::eyre::Result;

use crate::end::End;

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// The codec: bytes on real pseudo-gradients, speed against this machine's copy bandwidth; or what it costs in
    /// loss.
    Codec(codec::Codec),
    /// Datasets: text to tokens per second, against the tokenizers crate's own speed, and how fast they are checked.
    Data(data::Data),
    /// Ways of training on several machines (data parallel, DiLoCo, MuLoCo, SparseLoCo, ours), each at its best rates:
    /// the loss after equal tokens. Takes hours; goes on from --file.
    Strategies(strategies::Strategies),
    /// The built-in engine: tokens per second of training and of evaluation, and where the time goes.
    Train(train::Train),
}

impl Bench {
    pub(crate) fn run(self) -> Result<End> {
        match self {
            Self::Codec(codec) => codec.run(),
            Self::Data(data) => data.run(),
            Self::Strategies(strategies) => strategies.run(),
            Self::Train(train) => train.run(),
        }
    }
}
