//! Which servers a node contacts on a stranger's say-so.
//!
//! A bucket locator on chain is a request to connect somewhere. Followed blindly, it makes every validator a proxy into
//! its own network (server-side request forgery). So a stranger's endpoint is an `https` URL of a public address,
//! unless the operator vouches for it; names are checked again when they are resolved ([`super::http`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use templar_protocol::bucket::BucketLocator;
use url::{Host, Url};

use crate::StoreError;

/// How far an endpoint is trusted, and so which HTTP client talks to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Named by a stranger: contacted at public addresses only.
    Public,
    /// Vouched for by the operator, or on loopback in a local network: contacted wherever it leads.
    Vouched,
}

/// Judges the endpoint of `locator`, and returns it in its canonical form.
pub(super) fn judge(
    locator: &BucketLocator,
    allow_http_loopback: bool,
    vouched: &[String],
) -> Result<(Url, Trust), StoreError> {
    let refuse = |reason| StoreError::RefusedBucket {
        endpoint: locator.endpoint.chars().take(128).collect(),
        bucket: locator.bucket.chars().take(128).collect(),
        reason,
    };
    check_names(locator).map_err(refuse)?;
    let url = Url::parse(&locator.endpoint).map_err(|_| refuse("its endpoint is not a URL"))?;
    let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !bare || !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("its endpoint has more than scheme, host and port"));
    }
    let secure = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err(refuse("its endpoint is neither http nor https")),
    };
    if vouched.contains(&locator.endpoint) {
        return Ok((url, Trust::Vouched));
    }
    let host = url.host().ok_or_else(|| refuse("its endpoint has no host"))?;
    let public = match host {
        // What a name leads to is checked when it is resolved.
        Host::Domain(_) => true,
        Host::Ipv4(ip) => is_public(ip.into()),
        Host::Ipv6(ip) => is_public(ip.into()),
    };
    match (on_loopback(&host), public, secure) {
        (true, ..) if allow_http_loopback => Ok((url, Trust::Vouched)),
        (true, ..) => Err(refuse("it is on this machine, and the run is not a local one")),
        (_, false, _) => Err(refuse("its address is not a public one")),
        (_, _, false) => Err(refuse("it does not speak https")),
        (false, true, true) => Ok((url, Trust::Public)),
    }
}

/// What is wrong with the text of an endpoint, wherever it leads, if something is.
pub fn endpoint_fault(endpoint: &str) -> Option<&'static str> {
    let Ok(url) = Url::parse(endpoint) else { return Some("it is not a URL, such as https://s3.example.com") };
    if !matches!(url.scheme(), "http" | "https") {
        return Some("it is neither http nor https");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Some("it has no host");
    }
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    let is_bare = is_bare && url.username().is_empty() && url.password().is_none();
    (!is_bare).then_some("it has more than scheme, host and port")
}

/// What is wrong with a bucket's name by S3's rules, if something is.
pub fn bucket_name_fault(name: &str) -> Option<&'static str> {
    (!s3s::path::check_bucket_name(name)).then_some("it is not a valid S3 bucket name")
}

/// Whether `endpoint` is on this machine's loopback, where nobody but a local network has its buckets.
pub fn is_loopback(endpoint: &str) -> bool {
    Url::parse(endpoint).is_ok_and(|url| url.host().is_some_and(|host| on_loopback(&host)))
}

fn on_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost",
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
    }
}

/// Bucket names by S3's rules (the path of a URL is made of them), and texts that fit into HTTP headers.
fn check_names(locator: &BucketLocator) -> Result<(), &'static str> {
    if !s3s::path::check_bucket_name(&locator.bucket) {
        return Err("its name is not a valid S3 bucket name");
    }
    let texts = [&locator.region, &locator.access_key_id, &locator.secret_access_key];
    let plain = |text: &&String| (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !texts.iter().all(plain) {
        return Err("its region or credential is empty, too long or not printable ASCII");
    }
    Ok(())
}

/// Whether `ip` is an address of the public internet (IANA's special-purpose registries, without their exceptions).
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || a == 0
        || a >= 224 // multicast, reserved, broadcast
        || (a == 100 && (64..128).contains(&b)) // carrier-grade NAT
        || (a == 192 && b == 0 && c == 0) // protocol assignments
        || (a == 192 && b == 88 && c == 99) // 6to4 relays
        || (a == 198 && (b == 18 || b == 19)); // benchmarks
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let embedded_v4 = Ipv4Addr::from((u32::from(s[6]) << 16) | u32::from(s[7]));
    if s[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        return is_public_v4(embedded_v4); // NAT64: how networks without IPv4 reach IPv4
    }
    let global_unicast = s[0] & 0xe000 == 0x2000;
    let special = (s[0] == 0x2001 && (s[1] < 0x200 || s[1] == 0xdb8)) // protocol assignments, Teredo; documentation
        || s[0] == 0x2002 // 6to4
        || (s[0] == 0x3fff && s[1] < 0x1000); // documentation
    global_unicast && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_an_address_and_not_a_scheme() {
        for here in ["http://127.0.0.1:9000", "http://localhost", "https://[::1]:1", "http://127.3.2.1"] {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in ["http://minio.lan:9000", "http://10.0.0.7", "https://s3.example.com", "127.0.0.1", ""] {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }

    fn locator(endpoint: &str) -> BucketLocator {
        BucketLocator {
            endpoint: endpoint.into(),
            bucket: "bucket".into(),
            region: "local".into(),
            access_key_id: "id".into(),
            secret_access_key: "secret".into(),
        }
    }

    fn trust(endpoint: &str, local: bool) -> Option<Trust> {
        judge(&locator(endpoint), local, &["http://10.0.0.7:9000".into()]).ok().map(|(_, trust)| trust)
    }

    #[test]
    fn only_https_to_public_addresses() {
        for good in ["https://s3.eu-central-1.amazonaws.com", "https://8.8.8.8", "https://[2606:4700::1]:8443/"] {
            assert_eq!(trust(good, false), Some(Trust::Public), "{good}");
        }
        let private = [
            "https://10.0.0.1",
            "https://172.16.3.4",
            "https://192.168.0.1",
            "https://169.254.169.254",
            "https://0.0.0.0",
            "https://100.64.0.1",
            "https://224.0.0.1",
            "https://255.255.255.255",
            "https://[fe80::1]",
            "https://[fd00::1]",
            "https://[::ffff:10.0.0.1]",
            "https://[64:ff9b::a00:1]",
            "https://[2002:a00:1::]",
            "https://[::]",
            "https://0x0a000001",
            "https://167772161",
            "https://10.1",
        ];
        let malformed = [
            "ftp://example.com",
            "https://",
            "example.com",
            "https://user@example.com",
            "https://example.com/path",
            "https://example.com?query",
            "https://example.com#fragment",
            "http://example.com",
            "http://8.8.8.8",
            "file:///etc",
        ];
        for bad in private.iter().chain(&malformed) {
            assert_eq!(trust(bad, false), None, "{bad}");
            assert_eq!(trust(bad, true), None, "{bad} in a local network");
        }
    }

    #[test]
    fn loopback_only_in_a_local_network_and_other_places_only_by_the_operators_word() {
        for loopback in
            ["http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9", "https://127.1", "http://2130706433"]
        {
            assert_eq!(trust(loopback, false), None, "{loopback}");
            assert_eq!(trust(loopback, true), Some(Trust::Vouched), "{loopback}");
        }
        assert_eq!(trust("http://10.0.0.7:9000", false), Some(Trust::Vouched));
        assert_eq!(trust("http://10.0.0.7:9001", false), None);
    }

    #[test]
    fn names_that_would_change_the_request_are_refused() {
        for bucket in ["..", "a", "a/../b", "A-bucket", "bucket?x", ""] {
            let odd = BucketLocator { bucket: bucket.into(), ..locator("https://example.com") };
            assert!(judge(&odd, true, &[]).is_err(), "{bucket:?}");
        }
        let header = BucketLocator { region: "local\r\nx: y".into(), ..locator("https://example.com") };
        assert!(judge(&header, true, &[]).is_err());
    }
}
