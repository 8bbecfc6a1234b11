use std::path::Path;

use templar_chain::{
    Chain, ChainError, ChainLayer, DevChain, DevConfig, DevError,
    call::{Call, SignedCall},
    conformance,
};
use templar_protocol::roster::Uid;

use super::{NETUID, chain_with, config, key};

/// Whether the chain refused with just this error.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ChainError>, wanted: &ChainError) {
    assert_eq!(format!("{:?}", result.unwrap_err()), format!("{wanted:?}"));
}

fn dev(error: &ChainError) -> &DevError {
    error.adapter_error().unwrap_or_else(|| panic!("the dev chain itself does not refuse: {error}"))
}

fn commit(byte: u8) -> Call {
    Call::Commit { fields: vec![vec![byte]] }
}

#[tokio::test]
async fn conforms_in_process() {
    let chain = DevChain::open(None, config()).unwrap();
    conformance::check_chain(&chain, &chain, NETUID).await;
}

/// Changes nothing.
struct Clear(DevChain);

impl ChainLayer for Clear {
    fn inner(&self) -> &dyn Chain {
        &self.0
    }
}

#[tokio::test]
async fn a_layer_that_overrides_nothing_is_the_chain_below() {
    let chain = DevChain::open(None, config()).unwrap();
    conformance::check_chain(&Clear(chain.clone()), &chain, NETUID).await;
}

#[tokio::test]
async fn the_emission_of_an_epoch_by_hand() {
    // 1000 rao a block; tempo 10; stakes 600 and 400 that judge the two miners as in the example of `yuma`.
    let config = DevConfig { tempo_blocks: 10, emission_rao_per_block: 1000, weights_rate_limit_blocks: 0, ..config() };
    let neurons = [("a", 600), ("b", 400), ("good", 0), ("poor", 0)];
    let chain = chain_with(config, &neurons);
    let (good, poor) = (Uid(2), Uid(3));
    chain.submit_weights(&key("a"), NETUID, vec![(good, 4), (poor, 1)], 0).await.unwrap();
    // The chain scales to the largest, so B's weights are any multiple of (1, 4).
    chain.submit_weights(&key("b"), NETUID, vec![(good, 16_000), (poor, 64_000)], 0).await.unwrap();
    while chain.newest().number < 10 {
        chain.produce_block().unwrap();
    }
    // Block 1 gave the permits and its 1000 to the owner; blocks 2 to 10 emitted 9000: 1620 to the owner, 3690 each
    // to miners at 14/19 and 5/19 and to validators at 15/19 and 4/19, rounded down.
    let paid: Vec<u64> = chain.emissions().iter().map(|neuron| neuron.emission_rao).collect();
    assert_eq!(paid, [2913, 776, 2718, 971]);
    assert_eq!(chain.owner_emission_rao(), 10_000 - paid.iter().sum::<u64>(), "every rao is somebody's");
    let snapshot = chain.snapshot(NETUID, 10).await.unwrap();
    let incentive: Vec<u16> = snapshot.neurons.iter().map(|neuron| neuron.incentive).collect();
    assert_eq!(incentive[..2], [0, 0]);
    // 14/19 of 65535 = 48288.9; scaling the weights to u16 shifts it by less than one.
    assert!(incentive[2].abs_diff(48_288) <= 1 && incentive[3].abs_diff(17_246) <= 1, "{incentive:?}");
    let before = chain.snapshot(NETUID, 9).await.unwrap();
    assert!(before.neurons.iter().all(|neuron| neuron.incentive == 0));
}

#[test]
fn a_call_is_valid_once_here_and_for_its_signer_only() {
    let chain = chain_with(config(), &[("a", 0), ("b", 0)]);
    let genesis = chain.genesis_hash();
    let signed = SignedCall::sign(&key("a"), genesis, NETUID, 5, commit(1));
    let stale = |next| ChainError::StaleNonce { hotkey: key("a").hotkey(), nonce: 5, next };
    let unsigned = |name| ChainError::BadSignature { hotkey: key(name).hotkey() };

    let stolen = SignedCall { hotkey: key("b").hotkey(), ..signed.clone() };
    refused(chain.submit(stolen), &unsigned("b"));
    let altered = SignedCall { call: commit(2), ..signed };
    refused(chain.submit(altered), &unsigned("a"));
    let elsewhere = SignedCall::sign(
        &key("a"),
        DevChain::open(None, DevConfig { seed: 8, ..config() }).unwrap().genesis_hash(),
        NETUID,
        5,
        commit(1),
    );
    refused(chain.submit(elsewhere), &unsigned("a"));

    chain.submit(signed.clone()).unwrap();
    chain.submit(signed.clone()).expect("repeating what is in the pool changes nothing");
    let same_nonce = SignedCall::sign(&key("a"), genesis, NETUID, 5, commit(3));
    refused(chain.submit(same_nonce), &stale(6));
    chain.produce_block().unwrap();
    refused(chain.submit(signed), &stale(6));
    assert_eq!(chain.next_nonce(&key("a").hotkey()).unwrap(), 6);
}

#[tokio::test]
async fn a_reused_uid_inherits_nothing_and_old_calls_stay_dead() {
    let config = DevConfig {
        max_uids: 4,
        max_validators: 1,
        immunity_blocks: 5,
        tempo_blocks: 10,
        weights_rate_limit_blocks: 0,
        ..config()
    };
    let chain = chain_with(config, &[("validator", 9), ("best", 0), ("worst", 0), ("middle", 0)]);
    let full = chain.register(key("newcomer").hotkey(), 0).expect_err("everybody is immune");
    assert_eq!(dev(&full), &DevError::SubnetFull { uids: 4 });

    let old_call = SignedCall::sign(&key("worst"), chain.genesis_hash(), NETUID, 0, commit(1));
    chain.submit(old_call.clone()).unwrap();
    let weights = vec![(Uid(1), 9), (Uid(2), 1), (Uid(3), 4)];
    chain.submit_weights(&key("validator"), NETUID, weights, 0).await.unwrap();
    while chain.newest().number < 10 {
        chain.produce_block().unwrap();
    }
    let newcomer = chain.register(key("newcomer").hotkey(), 0).unwrap();
    assert_eq!(newcomer, Uid(2), "the lowest incentive of those without a permit");
    assert_eq!(chain.register(key("newcomer").hotkey(), 7).unwrap(), newcomer, "again is the same, with the new stake");
    // What the replaced one still has in the pool dies with its place.
    chain.submit_commitment(&key("worst"), NETUID, vec![vec![2]]).await.unwrap();
    let block = chain.produce_block().unwrap().number;

    let neuron = chain.snapshot(NETUID, block).await.unwrap().neurons[2].clone();
    assert_eq!((neuron.entry.hotkey, neuron.entry.registered_at_block), (key("newcomer").hotkey(), block));
    assert_eq!((neuron.stake_rao, neuron.incentive, neuron.commitment), (7, 0, None));
    assert_eq!(chain.emissions()[2].emission_rao, 0);
    let before = chain.snapshot(NETUID, block - 1).await.unwrap().neurons[2].clone();
    assert_eq!(before.entry.hotkey, key("worst").hotkey());
    assert_eq!(before.commitment.unwrap().fields, [[1]]);

    // The weights that the former neuron got are not the newcomer's.
    while chain.newest().number < 20 {
        chain.produce_block().unwrap();
    }
    assert_eq!(chain.emissions()[2].incentive, 0);

    // Back again in another place, but its used calls are not valid again.
    let back = chain.register(key("worst").hotkey(), 0).unwrap();
    assert_eq!(back, Uid(2), "the newcomer earned nothing and its immunity is over");
    chain.produce_block().unwrap();
    assert!(matches!(chain.submit(old_call), Err(ChainError::StaleNonce { nonce: 0, .. })));
}

#[tokio::test]
async fn the_quota_counts_what_blocks_include() {
    // However often a hotkey changes its mind before a block: the pool holds its newest, and only that costs.
    let config = DevConfig { commitment_quota_bytes: 200, tempo_blocks: 1000, ..config() };
    let chain = chain_with(config, &[("a", 5)]);
    for byte in 0..20 {
        chain.submit_commitment(&key("a"), NETUID, vec![vec![byte]]).await.unwrap();
    }
    chain.produce_block().unwrap();
    chain.submit_commitment(&key("a"), NETUID, vec![vec![77; 100]]).await.unwrap();
    chain.produce_block().unwrap();
    let third = chain.submit_commitment(&key("a"), NETUID, vec![vec![1]]).await;
    let (cost_bytes, used_bytes, quota_bytes, resets_at_block) = (100, 200, 200, 1000);
    refused(third, &ChainError::QuotaExceeded { cost_bytes, used_bytes, quota_bytes, resets_at_block });
}

#[tokio::test]
async fn a_reopened_chain_goes_on_and_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chain.sqlite");
    let open = |config: DevConfig| DevChain::open(Some(&path), config);
    let chain = open(config()).unwrap();
    for (name, stake_rao) in [("a", 50), ("b", 0)] {
        chain.register(key(name).hotkey(), stake_rao).unwrap();
    }
    chain.produce_block().unwrap();
    chain.submit_commitment(&key("b"), NETUID, vec![vec![1], vec![2]]).await.unwrap();
    chain.submit_weights(&key("a"), NETUID, vec![(Uid(1), 1)], 0).await.unwrap();
    for _ in 0..30 {
        chain.produce_block().unwrap();
    }
    chain.submit_commitment(&key("b"), NETUID, vec![vec![3]]).await.unwrap();
    let last = chain.produce_block().unwrap();
    let (known, nonce) = (chain.emissions(), chain.next_nonce(&key("b").hotkey()).unwrap());
    assert!(known.iter().all(|neuron| neuron.emission_rao > 0));
    let second = open(config()).expect_err("one process makes a chain's blocks");
    assert!(matches!(dev(&second), DevError::Storage { .. }), "{second}");
    drop((chain, second));

    let refused = open(DevConfig { tempo_blocks: 99, ..config() }).unwrap_err();
    assert!(
        matches!(dev(&refused), DevError::OtherConfig { differing, .. } if differing == "tempo_blocks = 20 there, 99 given"),
        "{refused:?}"
    );
    drop(refused);
    let chain = open(config()).unwrap();
    assert_eq!(chain.newest(), last);
    assert_eq!(chain.emissions(), known);
    assert_eq!(chain.next_nonce(&key("b").hotkey()).unwrap(), nonce);
    let commitments = [2, last.number].map(|block| futures::executor::block_on(chain.snapshot(NETUID, block)).unwrap());
    let fields = commitments.map(|snapshot| snapshot.neurons[1].commitment.clone().unwrap().fields);
    assert_eq!(fields, [vec![vec![1], vec![2]], vec![vec![3]]]);
    assert_eq!(chain.produce_block().unwrap().number, last.number + 1);
    assert_eq!(chain.emissions()[1].hotkey, key("b").hotkey());
}

#[test]
fn what_is_no_chain_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, vec![7; 5000]).unwrap();
    let missing = folder.path().join("no folder/chain");
    let open = |path: &Path| DevChain::open(Some(path), config()).unwrap_err();
    assert!(matches!(dev(&open(&garbage)), DevError::NotADevChain { .. }));
    assert!(matches!(dev(&open(&missing)), DevError::Storage { .. }));
    let refused = DevChain::open(None, DevConfig { max_uids: 300, ..config() }).unwrap_err();
    assert!(matches!(dev(&refused), DevError::InvalidConfig { setting, .. } if setting == "max_uids"));
    let chain = DevChain::open(None, config()).unwrap();
    let refused = chain.register(key("a").hotkey(), u64::MAX).unwrap_err();
    assert!(matches!(dev(&refused), DevError::StakeTooHigh { .. }));
}
