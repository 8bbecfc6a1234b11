//! The HTTP clients under `object_store`: no redirects, no proxies, no endless error pages, and for strangers' servers
//! no private addresses.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::StatusCode;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{DATE, HeaderMap};

use crate::s3::endpoint::{Trust, is_public};

/// A server that sends nothing for this long is cut off.
const STALL: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);
const IDLE_PER_HOST_MAX: usize = 8;
/// Error pages are read up to this length: S3's own have a few hundred bytes, a hostile one could be endless.
const ERROR_BODY_BYTES_MAX: usize = 4096;

/// Hands `object_store` a client made here, shared by all buckets of one [`Trust`].
#[derive(Clone, Debug)]
pub(super) struct Connector(HttpClient);

impl Connector {
    pub(super) fn new(trust: Trust) -> Result<Self, reqwest::Error> {
        let builder = reqwest::Client::builder()
            // A redirect would lead past the endpoint policy.
            .redirect(reqwest::redirect::Policy::none())
            // A proxy would resolve names itself, past the check of addresses; and loopback needs none.
            .no_proxy()
            // Sizes are checked on the wire; compression would make them another number.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connect_timeout(CONNECT)
            .read_timeout(STALL)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .pool_idle_timeout(STALL)
            .user_agent(concat!("templar/", env!("CARGO_PKG_VERSION")));
        let client = match trust {
            Trust::Public => builder.https_only(true).dns_resolver(PublicOnly).build()?,
            Trust::Vouched => builder.build()?,
        };
        Ok(Self(HttpClient::new(BoundedErrors(client))))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

/// The server denies access. For some operations `object_store` reports that like any other error, so it is marked
/// here, for all of them.
#[derive(Debug, thiserror::Error)]
#[error("the server denies access")]
pub(super) struct Denied;

/// The server refuses a request because of its time.
#[derive(Debug, thiserror::Error)]
#[error("this machine's clock and the server's are too far apart")]
pub(super) struct ClockSkew {
    /// This machine's clock minus the server's; none if the server does not give its time.
    pub(super) ahead_s: Option<i64>,
}

impl ClockSkew {
    /// S3's code for it; the server's time is in the `Date` of its answer.
    fn of(answer: &str, headers: &HeaderMap, now: SystemTime) -> Option<Self> {
        if !answer.contains("<Code>RequestTimeTooSkewed</Code>") {
            return None;
        }
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        Some(Self { ahead_s: date.map(|date| seconds(now).saturating_sub(seconds(date))) })
    }
}

/// Cuts the bodies of error answers, which `object_store` reads whole.
#[derive(Debug)]
struct BoundedErrors(reqwest::Client);

#[async_trait]
impl HttpService for BoundedErrors {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.call(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let mut chunks = body.bytes_stream();
        let mut text = Vec::new();
        while text.len() < ERROR_BODY_BYTES_MAX
            && let Some(Ok(chunk)) = chunks.next().await
        {
            text.extend_from_slice(&chunk[..chunk.len().min(ERROR_BODY_BYTES_MAX - text.len())]);
        }
        // A page that is not text would turn the status into a decoding error.
        let text: String =
            String::from_utf8_lossy(&text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if matches!(parts.status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
            tracing::debug!(status = %parts.status, text, "storage denies access");
            if let Some(skew) = ClockSkew::of(&text, &parts.headers, SystemTime::now()) {
                return Err(HttpError::new(HttpErrorKind::Unknown, skew));
            }
            return Err(HttpError::new(HttpErrorKind::Unknown, Denied));
        }
        Ok(HttpResponse::from_parts(parts, text.into()))
    }
}

/// Resolves names to public addresses only, whatever their owners write into the DNS.
#[derive(Debug)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err("the name has no public address".into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_followed() {
        let resolved = PublicOnly.resolve("localhost".parse().unwrap()).await;
        assert!(resolved.is_err_and(|error| error.to_string().contains("no public address")));
    }
}
