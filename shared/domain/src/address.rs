//! Where a request comes from, behind proxies or not.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// An address, or all that begin with the same bits: `10.0.0.1`, `10.0.0.0/8`, `fd00::/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither an address nor a network: write them like 10.0.0.1 or 10.0.0.0/8")]
pub struct BadNetwork(String);

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let bad = || BadNetwork(text.chars().take(60).collect());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = width(address);
        let digits = |bits: &str| !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        let bits = match bits {
            None => most,
            Some(bits) if digits(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(bad)?,
            Some(_) => return Err(bad()),
        };
        let folded = fold(address);
        // What is mapped into IPv6 keeps the bits of its IPv4 part.
        let mapped = most - width(folded);
        Ok(Self { address: folded, bits: bits.checked_sub(mapped).ok_or_else(bad)? })
    }
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, fold(address)) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                let differs = u32::from(one) ^ u32::from(other);
                differs.leading_zeros() >= self.bits.into()
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => {
                let differs = u128::from(one) ^ u128::from(other);
                differs.leading_zeros() >= self.bits.into()
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// A list such as `10.0.0.1, fd00::/8`. Nothing is no network.
pub fn networks(text: &str) -> Result<Vec<Network>, BadNetwork> {
    if text.trim().is_empty() {
        return Ok(vec![]);
    }
    text.split(',').map(|entry| entry.trim().parse()).collect()
}

fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// IPv4 that travels as IPv6 is IPv4.
fn fold(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// What is counted together: one IPv4 address, or the IPv6 network that one customer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl Source {
    pub fn of(address: IpAddr) -> Self {
        Self(match fold(address) {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

/// Who really asks: `peer`, unless it is one of the `trusted` proxies. Then it is the right-most address of
/// `forwarded` (the values of every `X-Forwarded-For` header, in order) that is not trusted itself: everything to the
/// left of it may have been made up. Without one it is `real` (`X-Real-IP`), and without that the proxy.
pub fn client<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a str>,
    real: Option<&str>,
    trusted: &[Network],
) -> IpAddr {
    let is_trusted = |address| trusted.iter().any(|network| network.contains(address));
    if !is_trusted(peer) {
        return fold(peer);
    }
    for entry in forwarded.rev().flat_map(|value| value.rsplit(',')) {
        match parse(entry) {
            Some(address) if is_trusted(address) => {}
            Some(address) => return address,
            // Who wrote what cannot be read cannot be told, nor what stands before it.
            None => break,
        }
    }
    real.and_then(parse).unwrap_or_else(|| fold(peer))
}

/// An address, perhaps with a port, as proxies write it.
fn parse(entry: &str) -> Option<IpAddr> {
    let entry = entry.trim();
    let bare = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']')).unwrap_or(entry);
    let address = bare.parse::<IpAddr>().ok();
    address.or_else(|| entry.parse::<SocketAddr>().ok().map(|socket| socket.ip())).map(fold)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn resolved(peer: &str, forwarded: &[&str], real: Option<&str>) -> String {
        let trusted = networks("10.0.0.0/8, 192.0.2.7, fd00::/8").expect("good");
        client(ip(peer), forwarded.iter().copied(), real, &trusted).to_string()
    }

    #[test]
    fn a_peer_that_is_not_trusted_is_who_asks_whatever_it_says() {
        assert_eq!(resolved("203.0.113.9", &["1.2.3.4"], Some("5.6.7.8")), "203.0.113.9");
        assert_eq!(resolved("::ffff:203.0.113.9", &["1.2.3.4"], None), "203.0.113.9");
        assert_eq!(resolved("192.0.2.8", &["1.2.3.4"], None), "192.0.2.8");
    }

    #[test]
    fn behind_trusted_proxies_the_right_most_address_that_is_not_trusted_counts() {
        for (forwarded, real, expected) in [
            (&["1.2.3.4"][..], None, "1.2.3.4"),
            (&["6.6.6.6, 1.2.3.4"], None, "1.2.3.4"),
            (&["6.6.6.6, 1.2.3.4, 10.9.9.9"], None, "1.2.3.4"),
            (&["6.6.6.6", "1.2.3.4", "10.9.9.9,192.0.2.7"], None, "1.2.3.4"),
            (&["1.2.3.4:5678"], None, "1.2.3.4"),
            (&["[2001:db8::1]:443"], None, "2001:db8::1"),
            (&["[2001:db8::1]"], None, "2001:db8::1"),
            (&["::ffff:1.2.3.4"], None, "1.2.3.4"),
            (&["1.2.3.4, fd00::7"], None, "1.2.3.4"),
            (&["10.1.1.1"], Some("1.2.3.4"), "1.2.3.4"),
            (&[], Some("1.2.3.4"), "1.2.3.4"),
            (&[], Some("nonsense"), "10.0.0.1"),
            (&[], None, "10.0.0.1"),
            (&["1.2.3.4, nonsense"], None, "10.0.0.1"),
            (&["1.2.3.4, "], None, "10.0.0.1"),
            (&["nonsense, 1.2.3.4"], None, "1.2.3.4"),
        ] {
            assert_eq!(resolved("10.0.0.1", forwarded, real), expected, "{forwarded:?} {real:?}");
        }
    }

    #[test]
    fn one_customer_is_one_source() {
        let source = |text| Source::of(ip(text)).to_string();
        assert_eq!(source("::ffff:1.2.3.4"), source("1.2.3.4"));
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_ne!(source("1.2.3.4"), source("1.2.3.5"));
        assert_eq!(source("2001:db8:1:2::1"), "2001:db8:1:2::/64");
    }

    #[test]
    fn a_bad_entry_is_refused_and_named() {
        for bad in ["x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.1,", "a.example", "10.0.0/8"] {
            assert!(networks(bad).is_err(), "{bad:?} passed");
        }
        assert_eq!(networks(" "), Ok(vec![]));
        assert!(networks("1.2.3.4,x").expect_err("bad").to_string().contains("`x`"));
        let mapped: Network = "::ffff:10.0.0.0/104".parse().expect("a mapped network");
        assert!(mapped.contains(ip("10.200.0.1")) && !mapped.contains(ip("11.0.0.1")));
        let everything: Network = "0.0.0.0/0".parse().expect("good");
        assert!(everything.contains(ip("8.8.8.8")) && !everything.contains(ip("::1")));
    }

    proptest! {
        #[test]
        fn what_a_client_puts_in_front_changes_nothing(
            forged in proptest::collection::vec("[0-9a-f:., \\[\\]x]{0,20}", 0..5), client in any::<u32>(),
        ) {
            let client = IpAddr::from(client.to_be_bytes());
            prop_assume!(!networks("10.0.0.0/8,192.0.2.7").expect("good").iter().any(|n| n.contains(client)));
            // A trusted proxy appends the one it saw.
            let mut values = forged;
            let last = match values.pop() {
                Some(value) => format!("{value}, {client}"),
                None => client.to_string(),
            };
            values.push(last);
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            prop_assert_eq!(resolved("10.0.0.1", &values, None), client.to_string());
        }

        #[test]
        fn forged_headers_of_one_peer_are_one_source(values in proptest::collection::vec(".{0,40}", 0..4)) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            prop_assert_eq!(resolved("203.0.113.9", &values, values.first().copied()), "203.0.113.9");
        }
    }
}
