//! Where a request comes from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::ConnectInfo;
use domain::address::{Network, Source, client};
use http::{HeaderMap, request::Parts};

/// Whom to believe about who asks.
pub(crate) struct Addresses {
    trusted: Vec<Network>,
}

impl Addresses {
    pub(crate) fn new(trusted: Vec<Network>) -> Self {
        Self { trusted }
    }

    pub(crate) fn source(&self, parts: &Parts) -> Source {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
        // Whoever cannot be told apart is counted together.
        self.of(peer.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), &parts.headers)
    }

    fn of(&self, peer: IpAddr, headers: &HeaderMap) -> Source {
        // A value that is no text breaks the chain like any other that cannot be read.
        let forwarded: Vec<&str> =
            headers.get_all("x-forwarded-for").iter().map(|value| value.to_str().unwrap_or("?")).collect();
        let real = headers.get("x-real-ip").and_then(|value| value.to_str().ok());
        Source::of(client(peer, forwarded.into_iter(), real, &self.trusted))
    }
}

#[cfg(test)]
mod tests {
    use domain::address::networks;

    use super::*;

    #[test]
    fn ten_thousand_forged_headers_from_one_peer_are_one_source() {
        let addresses = Addresses::new(networks("10.0.0.0/8").expect("good"));
        let peer: IpAddr = "203.0.113.9".parse().expect("an address");
        for n in 0..10_000_u32 {
            let mut headers = HeaderMap::new();
            let forged = Ipv4Addr::from(n.wrapping_mul(2_654_435_761)).to_string();
            headers.insert("x-forwarded-for", forged.parse().expect("a header"));
            headers.insert("x-real-ip", forged.parse().expect("a header"));
            assert_eq!(addresses.of(peer, &headers), Source::of(peer));
        }
    }

    #[test]
    fn several_headers_are_one_chain() {
        let addresses = Addresses::new(networks("10.0.0.0/8").expect("good"));
        let mut headers = HeaderMap::new();
        for value in ["6.6.6.6", "1.2.3.4, 10.0.0.2"] {
            headers.append("x-forwarded-for", value.parse().expect("a header"));
        }
        let proxy = "10.0.0.1".parse().expect("an address");
        assert_eq!(addresses.of(proxy, &headers).to_string(), "1.2.3.4");
    }
}
