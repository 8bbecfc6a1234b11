use std::{net::SocketAddr, time::Duration};

use futures::StreamExt;
use jsonrpsee::{
    core::{ClientError, client::ClientT},
    rpc_params,
    ws_client::WsClientBuilder,
};
use templar_chain::{Chain, DevChain, DevConfig, Pacer, RpcChain, RpcError, RpcServer, conformance};
use templar_protocol::roster::Uid;
use tokio::time::timeout;

use super::{NETUID, chain_with, config, key};

async fn serve(chain: &DevChain) -> RpcServer {
    RpcServer::start(chain.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap()
}

fn address(server: &RpcServer) -> SocketAddr {
    server.url().strip_prefix("ws://").unwrap().parse().unwrap()
}

#[tokio::test]
async fn conforms_over_loopback() {
    let chain = DevChain::open(None, config()).unwrap();
    let server = serve(&chain).await;
    let client = RpcChain::connect(&server.url()).await.unwrap();
    conformance::check_chain(&client, &chain, NETUID).await;
    server.stop().await;
}

#[tokio::test]
async fn hostile_requests_are_refused_and_change_nothing() {
    let chain = chain_with(config(), &[("a", 0)]);
    let server = serve(&chain).await;
    let raw = WsClientBuilder::new().build(server.url()).await.unwrap();
    let code = |answer: Result<serde_json::Value, ClientError>| match answer {
        Err(ClientError::Call(error)) => error.code(),
        other => panic!("not refused: {other:?}"),
    };
    let long = "00".repeat(3000);
    assert_eq!(code(raw.request("subnet_submit", rpc_params![long]).await), 1104);
    assert_eq!(code(raw.request("subnet_submit", rpc_params!["not hex"]).await), 1104);
    assert_eq!(code(raw.request("subnet_submit", rpc_params![7]).await), -32602);
    assert_eq!(code(raw.request("subnet_snapshot", rpc_params![3, -1]).await), -32602);
    assert_eq!(code(raw.request("subnet_snapshot", rpc_params![3, u64::MAX]).await), 1001);
    assert_eq!(code(raw.request("dev_pace", rpc_params!["ab", 1]).await), -32602);
    // Nobody registers, or stakes, over the wire.
    assert_eq!(code(raw.request("dev_register", rpc_params![key("b").hotkey(), 1]).await), -32601);
    let mut codes = Vec::new();
    for n in 0..300u64 {
        let hotkey = key(&format!("stranger {n}")).hotkey();
        if let Err(ClientError::Call(error)) = raw.request::<(), _>("dev_pace", rpc_params![hotkey, u64::MAX]).await {
            codes.push(error.code());
        }
    }
    assert_eq!(codes, [1505; 300 - 256], "strangers' paces are bounded");
    // Too large to be read at all: the server answers or hangs up, but goes on.
    let huge = "00".repeat(20_000);
    assert!(raw.request::<(), _>("subnet_submit", rpc_params![huge]).await.is_err());
    let client = RpcChain::connect(&server.url()).await.unwrap();
    assert_eq!(client.head().await.unwrap(), chain.newest());
    Pacer::Rpc(client).pace(&key("a").hotkey(), 1).await.expect("a registered hotkey always has room");
    assert_eq!(chain.next_nonce(&key("a").hotkey()).unwrap(), 0);
}

#[tokio::test]
async fn a_client_outlives_its_server() {
    let chain = chain_with(config(), &[("a", 0)]);
    let server = serve(&chain).await;
    let address = address(&server);
    let client = RpcChain::connect(&server.url()).await.unwrap();
    let mut heads = client.heads().await.unwrap();
    assert_eq!(heads.next().await, Some(chain.newest()));
    timeout(Duration::from_secs(4), server.stop()).await.expect("stopping does not wait for subscribers");
    let end = timeout(Duration::from_secs(5), heads.next()).await;
    assert_eq!(end, Ok(None), "the stream ends with the connection");

    // Asked while nobody listens; answered when somebody does again.
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.submit_commitment(&key("a"), NETUID, vec![vec![4]]).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let server = RpcServer::start(chain.clone(), address).await.unwrap();
    asking.await.unwrap().unwrap();
    let mut heads = client.heads().await.unwrap();
    heads.next().await.unwrap();
    let head = chain.produce_block().unwrap();
    assert_eq!(heads.next().await, Some(head));
    let snapshot = client.snapshot(NETUID, head.number).await.unwrap();
    assert_eq!(snapshot.neurons[0].commitment.as_ref().unwrap().fields, [[4]]);
    server.stop().await;

    // Another chain at the same address is not taken for ours.
    let other = DevChain::open(None, DevConfig { seed: 1000, ..config() }).unwrap();
    let _server = RpcServer::start(other, address).await.unwrap();
    let refused = client.head().await.unwrap_err();
    assert!(matches!(refused.adapter_error(), Some(RpcError::OtherChain { .. })), "{refused:?}");
    assert!(!refused.is_transient());
}

#[tokio::test]
async fn bad_addresses_are_named() {
    for url in ["http://127.0.0.1:1", "127.0.0.1:99", ""] {
        let refused = RpcChain::connect(url).await.unwrap_err();
        assert_eq!(refused.adapter_error(), Some(&RpcError::InvalidUrl { url: url.to_owned() }));
        let refused = RpcChain::wait_for(url, |_| panic!("nothing to wait for")).await.unwrap_err();
        assert_eq!(refused.adapter_error(), Some(&RpcError::InvalidUrl { url: url.to_owned() }));
    }
    let chain = DevChain::open(None, config()).unwrap();
    let server = serve(&chain).await;
    let taken = RpcServer::start(chain, address(&server)).await.unwrap_err();
    assert!(matches!(taken.adapter_error(), Some(RpcError::Bind { .. })));
}

#[tokio::test(start_paused = true)]
async fn connecting_to_nobody_ends() {
    let free = free_address();
    let started = tokio::time::Instant::now();
    let refused = RpcChain::connect(&format!("ws://{free}")).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    assert!(started.elapsed() <= Duration::from_secs(30));
}

/// A port that was free a moment ago.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_chain_that_is_down_is_waited_for_and_told_of() {
    let address = free_address();
    let url = format!("ws://{address}");
    let chain = chain_with(config(), &[("a", 0)]);
    let (told, mut telling) = tokio::sync::mpsc::unbounded_channel();
    let waiting = tokio::spawn({
        let url = url.clone();
        async move { RpcChain::wait_for(&url, |absent| told.send(absent.to_string()).unwrap()).await }
    });
    let first = telling.recv().await.unwrap();
    assert!(first.starts_with(&format!("the chain at {url} does not answer (")), "{first}");
    assert!(first.ends_with("; trying again in 1 s"), "{first}");
    let server = RpcServer::start(chain.clone(), address).await.unwrap();
    let client = timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(client.head().await.unwrap(), chain.newest());
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn waiting_grows_to_half_a_minute_and_ends_when_it_is_dropped() {
    let url = format!("ws://{}", free_address());
    let mut pauses = Vec::new();
    let waiting = RpcChain::wait_for(&url, |absent| pauses.push(absent.pause.as_secs()));
    assert!(timeout(Duration::from_mins(5), waiting).await.is_err());
    assert_eq!(pauses[..7], [1, 2, 4, 8, 16, 30, 30]);
    assert!(pauses.len() < 20, "{pauses:?}");
}

#[tokio::test]
async fn neurons_and_what_validators_think_of_them_are_told() {
    let chain = chain_with(config(), &[("validator", 1_000_000_000_000), ("good", 0), ("bad", 0)]);
    let server = serve(&chain).await;
    let client = RpcChain::connect(&server.url()).await.unwrap();
    let set = chain.submit_weights(&key("validator"), NETUID, vec![(Uid(1), 40), (Uid(2), 10)], 0).await;
    set.unwrap();
    chain.produce_block().unwrap();
    let neurons = client.neurons().await.unwrap();
    assert_eq!(neurons, chain.emissions());
    let ratings: Vec<u16> = neurons.iter().map(|neuron| neuron.rating).collect();
    // Scaled to the largest, to the nearest: 65535 · 10 / 40 = 16383.75.
    assert_eq!(ratings, [0, u16::MAX, 16_384]);
    server.stop().await;
}
