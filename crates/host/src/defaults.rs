//! The defaults of a run, all in one place.

use templar_model::presets::Preset;
use templar_protocol::hash::Hash32;
use templar_protocol::run::{
    ChainSpec, CodecKind, CodecSpec, DataSpec, MeanOver, OuterSpec, PROTOCOL_VERSION, RosterSpec, RunSpec, ScoringSpec,
    Theta0Source, Theta0Spec, Transform, WindowSpec,
};

/// Stake of each validator in a local network. A neuron needs half of it to be a validator.
pub const VALIDATOR_STAKE_RAO: u64 = 1_000_000_000_000;

/// Contributions that count in a window.
const GATHER: u32 = 20;

/// The windows of Covenant-72B: 115 blocks of 12 s, of which some 70 s for puts; the next window trains meanwhile.
pub fn mainnet_windows() -> WindowSpec {
    WindowSpec {
        blocks: 115,
        snapshot_lag_blocks: 10,
        put_block: 100,
        vote_block: 150,
        delay_windows: 1,
        checkpoint_every_windows: 10,
    }
}

/// A run with this project's defaults, including the root of its θ₀.
pub fn run_spec(
    name: &str,
    preset: &Preset,
    chain: ChainSpec,
    data: DataSpec,
    theta0_seed: u64,
    windows: WindowSpec,
) -> RunSpec {
    let mut spec = run_defaults(name, preset, chain, data, theta0_seed, windows);
    spec.theta0.root = spec.layout().theta0_root(&spec.model, theta0_seed);
    spec
}

/// [`run_spec`] with zeros for the root of θ₀, whose computation takes minutes for large models.
pub fn run_defaults(
    name: &str,
    preset: &Preset,
    chain: ChainSpec,
    data: DataSpec,
    theta0_seed: u64,
    windows: WindowSpec,
) -> RunSpec {
    let stake_age_blocks = 360.min(chain.start_block / 4);
    let mut spec = RunSpec {
        protocol: PROTOCOL_VERSION,
        name: name.to_owned(),
        model: preset.model.clone(),
        theta0: Theta0Spec { seed: theta0_seed, root: Hash32::default(), source: Theta0Source::Seed },
        data,
        codec: CodecSpec {
            kind: CodecKind::TopkSign,
            chunk: 4096,
            k: 64,
            error_decay: 0.95,
            max_abs: 16.0,
            transform: Transform::None,
        },
        inner: preset.inner.clone(),
        outer: OuterSpec { rate: 1.0, mean_over: MeanOver::Senders, min_senders: 2 },
        roster: RosterSpec {
            gather: GATHER,
            reserve: 10,
            validator_stake_rao: VALIDATOR_STAKE_RAO / 2,
            active_blocks: 10 * windows.blocks,
            stake_age_blocks,
            exclusion_windows: 10,
            silent_windows: 8,
        },
        windows,
        scoring: ScoringSpec {
            draws: 8,
            sequences: 8,
            step_fraction: 0.5,
            memory: 0.8,
            budget_tokens: 0,
            burn_uid: 0,
            weights_every_windows: 1,
        },
        chain,
    };
    spec.scoring.budget_tokens = budget_tokens(&spec);
    spec
}

/// Tokens of a window in which every contribution that counts is whole: what the whole emission pays for.
pub fn budget_tokens(spec: &RunSpec) -> u64 {
    u64::from(spec.roster.gather).saturating_mul(spec.slice_tokens(0))
}
