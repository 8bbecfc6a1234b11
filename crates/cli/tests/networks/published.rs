//! A node whose operator mixed up two credentials.

use std::fs;
use std::net::Ipv4Addr;

use serde_json::Value;
use templar_chain::{Chain, DevChain, DevConfig, RpcServer};
use templar_data::{Dataset, Grammar, PrepareOptions, prepare_text};
use templar_host::home::{BucketFile, LocatorFile};
use templar_node::frame::dataset;
use templar_protocol::hash::Hash32;
use templar_protocol::keys::Keypair;
use templar_protocol::testing;
use templar_store::{BucketSpec, OwnBucket, S3Options, S3Server, S3Store, Store, dev_credentials};

use super::common::{templar, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_key_in_the_public_half_of_bucket_toml_is_refused_before_it_is_on_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let keypair = Keypair::insecure_dev(1, "careless");
    let mut spec = testing::spec();
    let chain = DevChain::open(None, DevConfig { netuid: spec.chain.netuid, ..DevConfig::default() }).unwrap();
    chain.register(keypair.hotkey(), 1_000_000).unwrap();
    chain.produce_block().unwrap();
    let rpc = RpcServer::start(chain.clone(), (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let bucket = |name: &str| {
        let (write, read) = dev_credentials(1, name);
        BucketSpec { name: name.to_owned(), write, read }
    };
    let buckets = ["careless", "data"].map(bucket).to_vec();
    let s3 = S3Server::start(&at("s3"), (Ipv4Addr::LOCALHOST, 0).into(), buckets).await.unwrap();
    let options = PrepareOptions { seq_len: spec.model.seq_len, ..PrepareOptions::default() };
    prepare_text(Grammar::new(1).documents(1, 100_000), &at("dataset"), &options, &mut |_| ()).unwrap();
    let prepared = Dataset::open(&at("dataset")).unwrap();
    let data = s3.own_bucket("data").unwrap();
    dataset::publish(&S3Store::new(data.clone(), S3Options::default()).unwrap(), &prepared).await.unwrap();
    spec.chain.genesis = chain.genesis_hash();
    spec.data.manifest = prepared.manifest().hash();
    spec.theta0.root = spec.layout().theta0_root(&spec.model, spec.theta0.seed);
    fs::write(at("run.toml"), spec.to_toml()).unwrap();
    fs::write(at("key.hex"), Hash32(*keypair.seed()).to_string()).unwrap();
    let toml = |file: LocatorFile| toml::to_string(&file).unwrap();
    fs::write(at("data.toml"), toml(data.locator.into())).unwrap();

    let own = s3.own_bucket("careless").unwrap();
    let mut locator = own.locator.clone();
    locator.access_key_id.clone_from(&own.write.access_key_id);
    locator.secret_access_key.clone_from(&own.write.secret_access_key);
    let mixed_up = BucketFile::from(OwnBucket { locator, write: own.write.clone() });
    fs::write(at("bucket.toml"), toml::to_string(&mixed_up).unwrap()).unwrap();

    let paths: Vec<String> = ["run.toml", "key.hex", "bucket.toml", "data.toml", "state", "fetched"]
        .map(|name| at(name).display().to_string())
        .to_vec();
    let url = rpc.url();
    let mut command = templar(&["validator", "--json", "--chain", &url, "--run", &paths[0], "--key", &paths[1]]);
    command.args(["--bucket", &paths[2], "--data-bucket", &paths[3], "--state-folder", &paths[4]]);
    command.args(["--data-folder", &paths[5]]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap().to_owned();
    let document: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(document["error"]["code"], "credentials", "{document}");
    let message = document["error"]["message"].as_str().unwrap();
    for part in ["anybody could overwrite", "careless", "[public]", &own.write.access_key_id, "may only read"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!text(&output).contains(&own.write.secret_access_key), "a secret is never told");

    // The chain has heard nothing of it, and the probe is gone.
    chain.produce_block().unwrap();
    let snapshot = chain.snapshot(spec.chain.netuid, chain.newest().number).await.unwrap();
    assert!(snapshot.neurons[0].commitment.is_none(), "{snapshot:?}");
    let left = S3Store::new(own, S3Options::default()).unwrap().list("", 10).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    rpc.stop().await;
    s3.shutdown().await;
}
