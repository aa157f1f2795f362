//! Where this process may go on behalf of whoever enters a URL (issuers, channels, registries): anywhere but to this
//! machine, to its link, and to what a cloud tells its machines about themselves, unless the configuration allows it.
//! Private networks are allowed: that is where a company's own servers stand.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub mod http;

/// Metadata services outside of the link-local ranges: of Amazon over IPv6, and of Alibaba.
const METADATA: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200))];

/// The filter. By default nothing is exempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outgoing {
    exempt: Vec<IpNet>,
}

/// `URL_ALLOW_LOCAL`: addresses and networks, separated by commas, that may be reached although they are local.
impl FromStr for Outgoing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let read = |entry: &str| {
            let net = entry.parse::<IpNet>().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from));
            net.map_err(|_| {
                format!("`{entry}` is neither an address nor a network: write it such as 127.0.0.1 or 127.0.0.0/8")
            })
        };
        entries.map(read).collect::<Result<_, _>>().map(|exempt| Self { exempt })
    }
}

impl Outgoing {
    /// The name of the variable that says what is exempt.
    pub const VARIABLE: &str = "URL_ALLOW_LOCAL";

    /// This machine, too.
    #[must_use]
    pub fn with_this_machine(mut self) -> Self {
        let six = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128));
        self.exempt.extend([IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)), six]);
        self
    }

    /// Whether a connection may be made to `address`.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = embedded(address);
        !is_local(address) || self.exempt.iter().any(|net| net.contains(&address))
    }
}

/// The IPv4 address that an IPv6 address only wraps (mapped, compatible, 6to4, NAT64), else the address itself.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let [a, b, c, d, e, f, g, h] = six.segments();
    let four = |high: u16, low: u16| {
        let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => four(g, h),
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0] if g != 0 => four(g, h),
        [0x2002, high, low, _, _, _] => four(high, low),
        _ => address,
    }
}

fn is_local(address: IpAddr) -> bool {
    let kind = match address {
        IpAddr::V4(four) => {
            // 0.0.0.0/8 is this machine, and 240.0.0.0/4 is nobody.
            let [first, ..] = four.octets();
            four.is_loopback() || four.is_link_local() || four.is_multicast() || first == 0 || first >= 240
        }
        IpAddr::V6(six) => {
            six.is_loopback() || six.is_unspecified() || six.is_multicast() || six.is_unicast_link_local()
        }
    };
    kind || METADATA.contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(outgoing: &str, address: &str) -> bool {
        outgoing.parse::<Outgoing>().expect("good").permits(address.parse().expect("an address"))
    }

    #[test]
    fn local_addresses_are_refused_however_they_are_written() {
        for local in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.0.1",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
        ] {
            assert!(!permits("", local), "{local} passed");
        }
        for elsewhere in ["10.0.0.1", "172.16.0.1", "192.168.1.1", "192.0.2.1", "100.64.0.1", "fd12::1", "2001:db8::1"]
        {
            assert!(permits("", elsewhere), "{elsewhere} was refused");
        }
    }

    #[test]
    fn what_is_exempt_passes_and_nothing_beside_it() {
        assert!(permits("127.0.0.1", "127.0.0.1") && permits("10.0.0.0/8, 127.0.0.0/8 ,", "127.3.4.5"));
        assert!(permits("127.0.0.0/8", "::ffff:127.0.0.1") && permits("::1", "::1"));
        assert!(!permits("127.0.0.1", "127.0.0.2") && !permits("::1", "127.0.0.1"));
        for bad in ["localhost", "127.0.0.1/33", "127.0.0", "yes"] {
            let error = bad.parse::<Outgoing>().expect_err("refused");
            assert!(error.contains(bad), "{error}");
        }
    }
}
