//! The filter where an HTTP client goes: at the moment of the connection, for whoever controls a name controls what it
//! means, and may change it between two looks.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use reqwest::{Url, dns};

use super::Outgoing;

#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    #[error("the name stands for local addresses only, which are refused unless {} has them", Outgoing::VARIABLE)]
    Refused,
    #[error("the name is not known")]
    Unknown(#[source] io::Error),
}

/// Resolves names, and forgets the addresses that nobody may be sent to.
pub struct Filtered(pub Arc<Outgoing>);

impl dns::Resolve for Filtered {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        let outgoing = self.0.clone();
        Box::pin(async move {
            let found = lookup(name.as_str(), &outgoing).await?;
            Ok(Box::new(found.into_iter()) as dns::Addrs)
        })
    }
}

/// The addresses of a name that may be gone to.
pub async fn lookup(name: &str, outgoing: &Outgoing) -> Result<Vec<SocketAddr>, Unresolved> {
    let found = tokio::net::lookup_host((name, 0)).await.map_err(Unresolved::Unknown)?;
    let permitted: Vec<_> = found.filter(|address| outgoing.permits(address.ip())).collect();
    if permitted.is_empty() { Err(Unresolved::Refused) } else { Ok(permitted) }
}

/// The address that stands in a URL itself, which no resolver gets to see.
pub fn address(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

impl Outgoing {
    /// Whether the URL itself names an address that nobody may be sent to.
    pub fn refuses(&self, url: &Url) -> bool {
        address(url).is_some_and(|address| !self.permits(address))
    }

    /// The filter for what an administrator has declared at `url`: with this machine, where the URL may well mean it. That
    /// is its address, or a name without a dot, which nobody outside can give a meaning to. Whoever answers elsewhere
    /// sends nobody here.
    #[must_use]
    pub fn towards(&self, url: &Url) -> Self {
        let near = |host: &str| !host.contains(['.', ':']) || host.ends_with(".localhost");
        let named = url.host_str().is_some_and(near);
        if named || address(url).is_some_and(|address| super::embedded(address).is_loopback()) {
            self.clone().with_this_machine()
        } else {
            self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    #[test]
    fn this_machine_is_meant_where_it_is_named_and_its_surroundings_never() {
        for here in
            ["http://127.0.0.1:5000", "http://localhost:5000", "http://[::1]/", "http://r.localhost", "http://vm"]
        {
            let outgoing = Outgoing::default().towards(&url(here));
            assert!(!outgoing.refuses(&url(here)) && !outgoing.refuses(&url("http://127.0.0.1:81")), "{here}");
            for surroundings in ["http://169.254.169.254/", "http://[fe80::1]/", "http://[fd00:ec2::254]/"] {
                assert!(outgoing.refuses(&url(surroundings)), "{surroundings} from {here}");
            }
        }
        for elsewhere in ["https://registry.example", "http://10.0.0.1", "http://localhost.example", "http://0.0.0.0"] {
            let outgoing = Outgoing::default().towards(&url(elsewhere));
            assert!(outgoing.refuses(&url("http://127.0.0.1:81")), "{elsewhere}");
        }
    }

    #[tokio::test]
    async fn a_name_is_judged_by_what_it_means() {
        let strict = lookup("localhost", &Outgoing::default()).await;
        assert!(matches!(strict, Err(Unresolved::Refused)), "{strict:?}");
        assert!(!lookup("localhost", &Outgoing::default().with_this_machine()).await.expect("found").is_empty());
        let unknown = lookup("name.invalid", &Outgoing::default()).await;
        assert!(matches!(unknown, Err(Unresolved::Unknown(_))), "{unknown:?}");
    }
}
