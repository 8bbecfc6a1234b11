//! Serves a [`DevChain`]. Everything that arrives comes from strangers: sizes, connections, subscriptions and waits
//! have limits, and arguments are decoded before the chain sees them.

use std::{net::SocketAddr, time::Duration};

use futures::StreamExt;
use jsonrpsee::{
    PendingSubscriptionSink, RpcModule,
    core::RegisterMethodError,
    server::{BatchRequestConfig, PingConfig, Server, ServerConfig, ServerHandle, SubscriptionMessage},
    types::{ErrorObjectOwned, Params},
};
use serde_json::value::to_raw_value;
use templar_protocol::keys::Hotkey;

use super::{
    error::RpcError,
    wire::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, method},
};
use crate::{
    call::{MalformedCall, SignedCall},
    chain::Chain,
    dev::DevChain,
    error::ChainError,
};

/// Two per neuron of a full subnet, and some for people.
const CONNECTIONS_MAX: u32 = 544;
const SUBSCRIPTIONS_PER_CONNECTION_MAX: u32 = 8;
/// Messages that may wait for a slow reader before the chain stops answering it.
const MESSAGES_BUFFERED: u32 = 64;
/// A subscriber that reads nothing for this long is dropped.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long `stop` waits for requests in progress.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

type Answer<T> = Result<T, ErrorObjectOwned>;

/// A running server. Dropping it stops it too, without waiting.
#[derive(Debug)]
pub struct RpcServer {
    address: SocketAddr,
    handle: ServerHandle,
}

impl RpcServer {
    /// Listens at `address`; port 0 takes a free one.
    pub async fn start(chain: DevChain, address: SocketAddr) -> Result<Self, ChainError> {
        let bind = |reason: String| RpcError::Bind { address: address.to_string(), reason };
        let ping = PingConfig::new().ping_interval(Duration::from_secs(10)).inactive_limit(Duration::from_secs(40));
        let config = ServerConfig::builder()
            .max_request_body_size(REQUEST_BYTES_MAX)
            .max_response_body_size(RESPONSE_BYTES_MAX)
            .max_connections(CONNECTIONS_MAX)
            .max_subscriptions_per_connection(SUBSCRIPTIONS_PER_CONNECTION_MAX)
            .set_message_buffer_capacity(MESSAGES_BUFFERED)
            .set_batch_request_config(BatchRequestConfig::Disabled)
            .enable_ws_ping(ping)
            .build();
        let server =
            Server::builder().set_config(config).build(address).await.map_err(|error| bind(error.to_string()))?;
        let address = server.local_addr().map_err(|error| bind(error.to_string()))?;
        let module = methods(chain).expect("each method is registered once");
        Ok(Self { address, handle: server.start(module) })
    }

    /// Where clients connect: `ws://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Closes every connection; afterwards the address is free again.
    pub async fn stop(self) {
        // An error means that it has already stopped.
        let _ = self.handle.stop();
        if tokio::time::timeout(STOP_TIMEOUT, self.handle.stopped()).await.is_err() {
            tracing::warn!(address = %self.address, "the chain's server stopped without waiting longer for its clients");
        }
    }
}

fn methods(chain: DevChain) -> Result<RpcModule<DevChain>, RegisterMethodError> {
    let mut module = RpcModule::new(chain);
    read_methods(&mut module)?;
    dev_methods(&mut module)?;
    module.register_method(method::SUBMIT, |params, chain, _| -> Answer<()> {
        let text: String = params.one()?;
        let bytes = hex::decode(&text).map_err(|error| {
            let (bytes, reason) = (text.len() as u64 / 2, error.to_string());
            ChainError::from(MalformedCall { bytes, reason })
        })?;
        Ok(chain.submit(SignedCall::decode(&bytes).map_err(ChainError::from)?)?)
    })?;
    module.register_subscription(
        method::SUBSCRIBE_HEADS,
        method::NEW_HEAD,
        method::UNSUBSCRIBE_HEADS,
        |_, pending, chain, _| async move { serve_heads(pending, &chain).await },
    )?;
    Ok(module)
}

/// Methods that any chain could answer. The chain's reads never wait, so their futures are ready at once.
fn read_methods(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    module.register_method(method::GENESIS, |_, chain, _| Answer::Ok(chain.genesis_hash()))?;
    module.register_method(method::HEAD, |_, chain, _| Answer::Ok(chain.newest()))?;
    module.register_async_method(method::BLOCK_HASH, |params, chain, _| async move {
        let number: u64 = params.one()?;
        Answer::Ok(chain.block_hash(number).await?)
    })?;
    module.register_async_method(method::SNAPSHOT, |params, chain, _| async move {
        let (netuid, block): (u16, u64) = params.parse()?;
        let snapshot = chain.snapshot(netuid, block).await?;
        Answer::Ok(hex::encode(borsh::to_vec(&snapshot).expect("memory accepts every byte")))
    })?;
    module.register_async_method(method::HYPERPARAMS, |params, chain, _| async move {
        let netuid: u16 = params.one()?;
        Answer::Ok(chain.hyperparams(netuid).await?)
    })?;
    Ok(())
}

/// Methods that only this chain has.
fn dev_methods(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    module.register_method(method::NONCE, |params: Params<'_>, chain, _| -> Answer<u64> {
        let hotkey: Hotkey = params.one()?;
        Ok(chain.next_nonce(&hotkey)?)
    })?;
    module.register_method(method::PACE, |params: Params<'_>, chain, _| -> Answer<()> {
        let (hotkey, through_block): (Hotkey, u64) = params.parse()?;
        Ok(chain.pace(hotkey, through_block)?)
    })?;
    module.register_method(method::NEURONS, |_, chain, _| Answer::Ok(chain.emissions()))?;
    Ok(())
}

/// Sends heads until the subscriber leaves or stops reading. A slow one misses heads instead of piling them up.
async fn serve_heads(pending: PendingSubscriptionSink, chain: &DevChain) {
    let mut heads = chain.head_stream();
    let Ok(sink) = pending.accept().await else { return };
    loop {
        let head = tokio::select! {
            biased;
            () = sink.closed() => return,
            head = heads.next() => head,
        };
        let Some(head) = head else { return };
        let message = SubscriptionMessage::from(to_raw_value(&head).expect("a head has nothing that JSON lacks"));
        if sink.send_timeout(message, SEND_TIMEOUT).await.is_err() {
            return;
        }
    }
}
