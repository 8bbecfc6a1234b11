//! A [`Chain`] on the other end of a WebSocket, that survives restarts of the server.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use borsh::BorshDeserialize;
use futures::stream::{BoxStream, StreamExt};
use jsonrpsee::{
    core::{
        ClientError,
        client::{ClientT, Subscription, SubscriptionClientT},
        params::ArrayParams,
    },
    rpc_params,
    ws_client::{PingConfig, WsClient, WsClientBuilder},
};
use serde::de::DeserializeOwned;
use templar_protocol::{
    hash::Hash32,
    keys::{Hotkey, Keypair},
    roster::{Snapshot, Uid},
};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    error::RpcError,
    wire::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, method, refusal},
};
use crate::{
    call::{Call, SignedCall, with_next_nonce},
    chain::{Chain, Head, Hyperparams},
    dev::NeuronInfo,
    error::ChainError,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call is retried over lost connections.
const RETRY_FOR: Duration = Duration::from_secs(20);
/// Longest time for a request, whether it waits for its last attempt or for another caller that is connecting.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(40);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Pauses between attempts to reach a chain that was down at the start.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A client of a dev chain's [`super::RpcServer`]. Clones share one connection.
///
/// Every call has a time limit and, if the connection breaks, is repeated over a new one for a bounded time. A call
/// that changes the chain can thus arrive twice; the chain takes repetitions of paces and of calls still in its pool,
/// and includes a commitment a second time at worst.
#[derive(Clone, Debug)]
pub struct RpcChain {
    shared: Arc<Shared>,
}

/// The chain did not answer, and will be asked again. [`RpcChain::wait_for`] reports it.
#[derive(Debug)]
pub struct Absent<'a> {
    pub url: &'a str,
    pub reason: &'a ChainError,
    /// How long until the next attempt.
    pub pause: Duration,
}

impl std::fmt::Display for Absent<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url, reason, pause } = self;
        write!(f, "the chain at {url} does not answer ({reason}); trying again in {} s", pause.as_secs())
    }
}

#[derive(Debug)]
struct Shared {
    url: String,
    genesis: Hash32,
    client: Mutex<Arc<WsClient>>,
}

impl RpcChain {
    /// Connects, and waits as long as it takes for the chain at `url` to answer, with growing pauses between
    /// attempts. `tell` is called after every failed attempt. Dropping the future stops the wait and leaves nothing
    /// behind. Ends with an error only where waiting is useless: the URL is wrong, or something else answers there.
    pub async fn wait_for(url: &str, mut tell: impl FnMut(&Absent<'_>)) -> Result<Self, ChainError> {
        check_url(url)?;
        let mut pause = WAIT_FIRST;
        loop {
            match open(url).await {
                Ok((client, genesis)) => return Ok(Self::new(url, client, genesis)),
                Err(reason) if is_lost(&reason) => tell(&Absent { url, reason: &reason, pause }),
                Err(error) => return Err(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(WAIT_MAX);
        }
    }

    /// Connects, and waits a bounded time for a server that is not there yet.
    pub async fn connect(url: &str) -> Result<Self, ChainError> {
        check_url(url)?;
        let (mut retry, mut told) = (Attempts::new(), false);
        let (client, genesis) = loop {
            match open(url).await {
                Ok(connection) => break connection,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "waiting for the chain at {url}");
                    }
                    retry.pause(error).await?;
                }
            }
        };
        Ok(Self::new(url, client, genesis))
    }

    fn new(url: &str, client: WsClient, genesis: Hash32) -> Self {
        Self { shared: Arc::new(Shared { url: url.to_owned(), genesis, client: Mutex::new(Arc::new(client)) }) }
    }

    /// Every neuron and what it was paid, in the order of uids. Only a development chain has this method.
    pub async fn neurons(&self) -> Result<Vec<NeuronInfo>, ChainError> {
        self.request(method::NEURONS, rpc_params![]).await
    }

    async fn request<T: DeserializeOwned>(&self, name: &'static str, params: ArrayParams) -> Result<T, ChainError> {
        self.retried(name, |client| {
            let params = params.clone();
            async move { client.request(name, params).await }
        })
        .await
    }

    async fn subscribe(&self) -> Result<Subscription<Head>, ChainError> {
        self.retried(method::SUBSCRIBE_HEADS, |client| async move {
            client.subscribe(method::SUBSCRIBE_HEADS, rpc_params![], method::UNSUBSCRIBE_HEADS).await
        })
        .await
    }

    /// Asks until there is an answer, over as many connections as it takes, for a bounded time.
    async fn retried<T, F>(&self, name: &str, mut ask: impl FnMut(Arc<WsClient>) -> F) -> Result<T, ChainError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let url = &self.shared.url;
        let asking = async {
            let mut retry = Attempts::new();
            loop {
                let error = match self.client().await {
                    Ok(client) => match ask(client).await {
                        Ok(answer) => return Ok(answer),
                        Err(error) => failure(url, name, error),
                    },
                    Err(error) => error,
                };
                retry.pause(error).await?;
            }
        };
        let (url, method, waited_s) = (url.clone(), name.to_owned(), REQUEST_TIME_MAX.as_secs());
        timeout(REQUEST_TIME_MAX, asking)
            .await
            .unwrap_or_else(|_| Err(RpcError::Timeout { url, method, waited_s }.into()))
    }

    /// The connection, or a new one if it was lost. The lock is held while connecting, so that many callers make one.
    async fn client(&self) -> Result<Arc<WsClient>, ChainError> {
        let mut client = self.shared.client.lock().await;
        if !client.is_connected() {
            let url = &self.shared.url;
            let (fresh, found) = open(url).await?;
            if found != self.shared.genesis {
                return Err(RpcError::OtherChain { url: url.clone(), expected: self.shared.genesis, found }.into());
            }
            *client = Arc::new(fresh);
        }
        Ok(client.clone())
    }

    /// This hotkey has nothing to do before block `through_block` ends ([`crate::Pacer`]).
    pub async fn pace(&self, hotkey: &Hotkey, through_block: u64) -> Result<(), ChainError> {
        self.request(method::PACE, rpc_params![hotkey, through_block]).await
    }

    async fn submit(&self, key: &Keypair, netuid: u16, call: &Call) -> Result<(), ChainError> {
        with_next_nonce(
            || self.request(method::NONCE, rpc_params![key.hotkey()]),
            |nonce| {
                let signed = SignedCall::sign(key, self.shared.genesis, netuid, nonce, call.clone());
                self.request(method::SUBMIT, rpc_params![hex::encode(signed.encode())])
            },
        )
        .await
    }
}

#[async_trait]
impl Chain for RpcChain {
    async fn genesis(&self) -> Result<Hash32, ChainError> {
        Ok(self.shared.genesis)
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.request(method::HEAD, rpc_params![]).await
    }

    async fn heads(&self) -> Result<BoxStream<'static, Head>, ChainError> {
        let mut subscription = self.subscribe().await?;
        let Some(Ok(first)) = timeout(REQUEST_TIMEOUT, subscription.next()).await.ok().flatten() else {
            let (url, reason) = (self.shared.url.clone(), "the subscription gave no head".to_owned());
            return Err(RpcError::Connection { url, reason }.into());
        };
        let (newest, heads) = watch::channel(first);
        // Drains the subscription at once whatever the reader does: an unread one would be closed as lagging.
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = newest.closed() => return,
                    head = subscription.next() => match head {
                        Some(Ok(head)) => _ = newest.send_replace(head),
                        _ => return,
                    },
                }
            }
        });
        Ok(head_stream(heads))
    }

    async fn block_hash(&self, number: u64) -> Result<Hash32, ChainError> {
        self.request(method::BLOCK_HASH, rpc_params![number]).await
    }

    async fn snapshot(&self, netuid: u16, block: u64) -> Result<Snapshot, ChainError> {
        let text: String = self.request(method::SNAPSHOT, rpc_params![netuid, block]).await?;
        let garbled = |reason: String| {
            let (url, method) = (self.shared.url.clone(), method::SNAPSHOT.to_owned());
            RpcError::Protocol { url, method, reason }
        };
        let bytes = hex::decode(text).map_err(|error| garbled(error.to_string()))?;
        let snapshot = Snapshot::try_from_slice(&bytes).map_err(|error| garbled(error.to_string()))?;
        if snapshot.block != block {
            return Err(garbled(format!("block {} instead of {block}", snapshot.block)).into());
        }
        Ok(snapshot)
    }

    async fn hyperparams(&self, netuid: u16) -> Result<Hyperparams, ChainError> {
        self.request(method::HYPERPARAMS, rpc_params![netuid]).await
    }

    async fn submit_commitment(&self, key: &Keypair, netuid: u16, fields: Vec<Vec<u8>>) -> Result<(), ChainError> {
        // Checked before sending: what is too long for the chain is too long for the server, whose refusal would not
        // say why.
        crate::call::commitment_cost_bytes(&fields)?;
        self.submit(key, netuid, &Call::Commit { fields }).await
    }

    async fn submit_weights(
        &self,
        key: &Keypair,
        netuid: u16,
        weights: Vec<(Uid, u16)>,
        version_key: u64,
    ) -> Result<(), ChainError> {
        let neurons = u64::from(crate::call::UIDS_MAX);
        if weights.len() as u64 > neurons {
            return Err(ChainError::TooManyWeights { weights: weights.len() as u64, neurons });
        }
        let weights = weights.into_iter().map(|(uid, weight)| (uid.0, weight)).collect();
        self.submit(key, netuid, &Call::SetWeights { weights, version_key }).await
    }
}

fn check_url(url: &str) -> Result<(), RpcError> {
    let rest = ["ws://", "wss://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    // Without a host nobody ever answers.
    let valid = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with([':', '/', '?', '#']));
    if valid { Ok(()) } else { Err(RpcError::InvalidUrl { url: url.to_owned() }) }
}

/// A connection, and which chain is at its other end.
async fn open(url: &str) -> Result<(WsClient, Hash32), ChainError> {
    let client = WsClientBuilder::new()
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(REQUEST_TIMEOUT)
        .max_request_size(REQUEST_BYTES_MAX)
        .max_response_size(RESPONSE_BYTES_MAX)
        .enable_ws_ping(PingConfig::new().ping_interval(Duration::from_secs(10)))
        .build(url)
        .await
        .map_err(|error| RpcError::Connection { url: url.to_owned(), reason: error.to_string() })?;
    let genesis = client.request(method::GENESIS, rpc_params![]).await;
    let genesis = genesis.map_err(|error| failure(url, method::GENESIS, error))?;
    Ok((client, genesis))
}

/// The server's refusal, or what went wrong on the way.
fn failure(url: &str, method: &str, error: ClientError) -> ChainError {
    let (url, method) = (url.to_owned(), method.to_owned());
    match error {
        ClientError::Call(error) => refusal(&error).unwrap_or_else(|| {
            let reason = format!("{} (code {})", error.message(), error.code());
            RpcError::Protocol { url, method, reason }.into()
        }),
        ClientError::ParseError(error) => RpcError::Protocol { url, method, reason: error.to_string() }.into(),
        ClientError::RequestTimeout => RpcError::Timeout { url, method, waited_s: REQUEST_TIMEOUT.as_secs() }.into(),
        error => RpcError::Connection { url, reason: error.to_string() }.into(),
    }
}

/// Whether the connection failed, rather than the chain.
fn is_lost(error: &ChainError) -> bool {
    matches!(error.adapter_error(), Some(RpcError::Connection { .. } | RpcError::Timeout { .. }))
}

/// A bounded series of attempts with growing pauses.
struct Attempts {
    until: Instant,
    backoff: Duration,
}

impl Attempts {
    fn new() -> Self {
        Self { until: Instant::now() + RETRY_FOR, backoff: FIRST_BACKOFF }
    }

    /// Waits before the next attempt; returns the error if another attempt is useless or too late.
    async fn pause(&mut self, error: ChainError) -> Result<(), ChainError> {
        if !is_lost(&error) || Instant::now() + self.backoff > self.until {
            return Err(error);
        }
        tracing::debug!(%error, "asking the chain again");
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        Ok(())
    }
}

/// The newest head so far, then each newer one for which the reader is ready. Ends with the sender.
fn head_stream(mut heads: watch::Receiver<Head>) -> BoxStream<'static, Head> {
    heads.mark_changed();
    futures::stream::unfold(heads, |mut heads| async move {
        heads.changed().await.ok()?;
        let head = *heads.borrow_and_update();
        Some((head, heads))
    })
    .boxed()
}
