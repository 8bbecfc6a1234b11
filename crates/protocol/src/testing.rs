//! Plain values for tests, here and in the crates above.

use crate::bucket::BucketLocator;
use crate::candidates::Candidate;
use crate::hash::Hash32;
use crate::keys::Keypair;
use crate::layout::ModelSpec;
use crate::roster::{EntryId, Miner, Roster, Uid, Validator};
use crate::run::{
    ChainSpec, CodecKind, CodecSpec, DataSpec, InnerSpec, MUON_LR, MUON_MOMENTUM, MUON_WEIGHT_DECAY, MeanOver,
    Optimiser, OuterSpec, PROTOCOL_VERSION, RosterSpec, RunSpec, ScoringSpec, Theta0Source, Theta0Spec, Transform,
    WindowSpec,
};

/// A small valid run.
pub fn spec() -> RunSpec {
    let model = ModelSpec {
        vocab_size: 272,
        hidden_size: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn_size: 64,
        seq_len: 32,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        tied_embeddings: true,
        qk_norm: false,
    };
    RunSpec {
        protocol: PROTOCOL_VERSION,
        name: "test".into(),
        chain: ChainSpec { genesis: Hash32::of(b"genesis"), netuid: 3, start_block: 40 },
        model,
        theta0: Theta0Spec { seed: 1, root: Hash32::of(b"theta0"), source: Theta0Source::Seed },
        data: DataSpec { manifest: Hash32::of(b"manifest"), seed: 1 },
        codec: CodecSpec {
            kind: CodecKind::TopkSign,
            chunk: 4096,
            k: 64,
            error_decay: 0.95,
            max_abs: 1.0,
            transform: Transform::None,
        },
        inner: InnerSpec {
            steps: 4,
            batch_sequences: 8,
            micro_batch_sequences: 8,
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            warmup_steps: 10,
            decay_steps: 1000,
            final_lr_fraction: 0.1,
            optimiser: Optimiser::Adamw,
            muon_lr: MUON_LR,
            muon_momentum: MUON_MOMENTUM,
            muon_weight_decay: MUON_WEIGHT_DECAY,
            reset_every_windows: 0,
            reset_warmup_steps: 0,
            anneal_from_window: 0,
            anneal_windows: 0,
            anneal_steps: 0,
            z_loss: 0.0,
        },
        outer: OuterSpec { rate: 1.0, mean_over: MeanOver::Peers, min_senders: 1 },
        windows: WindowSpec {
            blocks: 20,
            snapshot_lag_blocks: 2,
            put_block: 10,
            vote_block: 16,
            delay_windows: 0,
            checkpoint_every_windows: 4,
        },
        roster: RosterSpec {
            gather: 20,
            reserve: 10,
            validator_stake_rao: 1,
            active_blocks: 100,
            stake_age_blocks: 10,
            exclusion_windows: 5,
            silent_windows: 8,
        },
        scoring: ScoringSpec {
            draws: 8,
            sequences: 4,
            step_fraction: 0.5,
            memory: 0.8,
            budget_tokens: 20 * 4 * 8 * 32,
            burn_uid: 0,
            weights_every_windows: 2,
        },
    }
}

/// A model of a few thousand parameters.
pub fn tiny_model() -> ModelSpec {
    ModelSpec {
        vocab_size: 32,
        hidden_size: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn_size: 24,
        seq_len: 8,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        tied_embeddings: false,
        qk_norm: false,
    }
}

pub fn entry(uid: u16) -> EntryId {
    EntryId { uid: Uid(uid), hotkey: Keypair::insecure_dev(0, &uid.to_string()).hotkey(), registered_at_block: 1 }
}

/// A bucket of Cloudflare R2, whose account numbers and keys are hexadecimal.
pub fn r2_bucket(bucket: &str) -> BucketLocator {
    BucketLocator {
        endpoint: format!("https://{}.r2.cloudflarestorage.com", "0123456789abcdef".repeat(2)),
        bucket: bucket.into(),
        region: "auto".into(),
        access_key_id: "fedcba9876543210".repeat(2),
        secret_access_key: "00ff".repeat(16),
    }
}

pub fn bucket() -> BucketLocator {
    BucketLocator {
        endpoint: "http://127.0.0.1:9000".into(),
        bucket: "b".into(),
        region: "r".into(),
        access_key_id: "a".into(),
        secret_access_key: "s".into(),
    }
}

/// `miners` miners from uid 0, then `validators` validators of stake 100 each.
pub fn roster(miners: usize, validators: usize) -> Roster {
    let miner = |uid: usize| Miner { entry: entry(uid as u16), incentive: 0, work_class: 0, bucket: bucket() };
    let validator = |uid: usize| Validator { entry: entry(uid as u16), stake_rao: 100, bucket: bucket() };
    Roster {
        miners: (0..miners).map(miner).collect(),
        validators: (miners..miners + validators).map(validator).collect(),
        malformed: Vec::new(),
    }
}

/// Candidates from uid 0.
pub fn candidates(count: usize) -> Vec<Candidate> {
    (0..count).map(|uid| Candidate { entry: entry(uid as u16), bucket: bucket().identity() }).collect()
}
