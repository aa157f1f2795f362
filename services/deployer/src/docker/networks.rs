//! Networks, and the addresses on them.
//!
//! A container keeps its address for life. The engine by itself gives a container whichever address is free whenever it
//! starts: after its own restart that may be the one at which the edge still knows another stage's. It keeps to an
//! address that it is told only on a network whose subnet it was told as well, so networks are made that way.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::{
    models::{Ipam, IpamConfig, NetworkCreateRequest, NetworkInspect},
    query_parameters as query,
};
use futures::future::join_all;
use tokio::{net::TcpStream, time::timeout};
use uuid::Uuid;

use super::{Engine, EngineError, Result, none_if_missing, none_if_used};

/// Says that the subnet was named when the network was made.
const SUBNET: &str = "dev.sluice.subnet";
/// A port at which hardly anybody listens.
const DISCARD: u16 = 9;

/// A network that containers are made on.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) id: String,
    name: String,
    /// None on a network that was not made by this code: there the engine chooses each address itself.
    subnet: Option<Subnet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subnet {
    first: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
}

/// Addresses that are promised to containers which do not exist yet.
pub(super) type Promised = Arc<Mutex<HashSet<Ipv4Addr>>>;

/// An address for one container, promised until dropped.
pub(crate) struct Address {
    pub(crate) ip: Ipv4Addr,
    promised: Promised,
}

impl Drop for Address {
    fn drop(&mut self) {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ip);
    }
}

/// What the containers of a network have.
#[derive(Default)]
struct Taken {
    /// By one that runs, or may at any moment.
    firmly: HashSet<Ipv4Addr>,
    /// By one that stands still. It would have to be made anew should another have its address when it is to run.
    loosely: HashSet<Ipv4Addr>,
}

/// What keeps the engine from starting a container, but not from starting another in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// The runtime holds the process of an earlier start. The engine was killed in it: it does not know that process,
    /// and does not end it.
    Forgotten,
    /// It stood still when all other addresses were taken.
    AddressTaken,
}

impl Hindrance {
    /// `message` is what the engine said as it refused.
    pub(crate) fn of(message: &str) -> Option<Self> {
        if message.contains("already exists") || message.contains("id already in use") {
            return Some(Self::Forgotten);
        }
        // A port that something else on the host listens at would be taken for another container as well.
        let taken = message.to_lowercase().contains("address already in use") && !message.contains("bind:");
        taken.then_some(Self::AddressTaken)
    }
}

impl Engine {
    /// The network `name`, which is created where there is none.
    pub(crate) async fn ensure_network(&self, name: &str, labels: HashMap<String, String>) -> Result<Network> {
        let one_at_a_time = self.shared.networks.clone().lock_owned().await;
        if let Some(found) = self.network(name).await? {
            return Ok(found);
        }
        let of = name.to_owned();
        let made = self.change(format!("creating network {name}"), self.limits().slow, |docker| async move {
            let made = create(&docker, &of, labels).await;
            // Held until there is an answer, even where the caller did not stay for it.
            drop(one_at_a_time);
            made
        });
        described(made.await?).ok_or_else(|| EngineError::Refused {
            operation: format!("creating network {name}"),
            status: 0,
            message: "the engine does not describe the network that it made".into(),
        })
    }

    /// None where there is none of that name.
    pub(crate) async fn network(&self, name: &str) -> Result<Option<Network>> {
        let filters = HashMap::from([("name", vec![name])]);
        let options = query::ListNetworksOptionsBuilder::default().filters(&filters).build();
        let found = self
            .call("listing networks".into(), self.limits().quick, |docker| async move {
                docker.list_networks(Some(options)).await
            })
            .await?;
        // The filter takes any name that contains it.
        let found = found.into_iter().find(|network| network.name.as_deref() == Some(name));
        Ok(found.and_then(|network| {
            let fixed = network.labels.is_some_and(|labels| labels.contains_key(SUBNET));
            let subnet = network.ipam.filter(|_| fixed).and_then(|ipam| subnet(&ipam));
            Some(Network { id: network.id?, name: network.name?, subnet })
        }))
    }

    /// Does nothing where it is gone, or where something still uses it.
    pub(crate) async fn remove_network(&self, name: &str) -> Result<()> {
        let _one_at_a_time = self.shared.networks.lock().await;
        let Some(Network { id, .. }) = self.network(name).await? else { return Ok(()) };
        let removed = self
            .change(format!("removing network {name}"), self.limits().quick, |docker| async move {
                docker.remove_network(&id).await
            })
            .await;
        none_if_used(removed)
    }

    /// An address on `network` for each of `names`; none where the engine has to choose.
    pub(crate) async fn addresses(&self, network: &Network, names: &[String]) -> Result<Vec<Option<Address>>> {
        let Some(subnet) = network.subnet else { return Ok(names.iter().map(|_| None).collect()) };
        if names.is_empty() {
            return Ok(vec![]);
        }
        let _one_at_a_time = self.shared.networks.lock().await;
        if let Some(promised) = self.promise(network, subnet, names).await? {
            return Ok(promised);
        }
        self.release_haunted().await;
        self.promise(network, subnet, names).await?.ok_or_else(|| EngineError::Refused {
            operation: format!("choosing an address on network {}", network.name),
            status: 0,
            message:
                "all of them are taken: archive stages of the project, or remove other containers from its network"
                    .into(),
        })
    }

    /// None where there are too few.
    async fn promise(
        &self,
        network: &Network,
        subnet: Subnet,
        names: &[String],
    ) -> Result<Option<Vec<Option<Address>>>> {
        // Before the list: what is promised no more by then is on it.
        let mut taken = Taken { firmly: self.promised().clone(), loosely: HashSet::new() };
        taken.firmly.extend(self.haunted().iter());
        self.list_addresses(network, &mut taken).await?;
        let promise = |name: &String| {
            let ip = subnet.choose(name, &taken)?;
            taken.firmly.insert(ip);
            self.promised().insert(ip);
            Some(Some(Address { ip, promised: self.shared.promised.clone() }))
        };
        Ok(names.iter().map(promise).collect())
    }

    /// Lets go of the addresses of forgotten processes that have none any more: an engine that starts takes down what
    /// its former self had half built.
    async fn release_haunted(&self) {
        let haunted = self.haunted().clone();
        let looks = haunted.into_iter().map(async |ip| deserted(ip).await.then_some(ip));
        for ip in join_all(looks).await.into_iter().flatten() {
            self.haunted().remove(&ip);
        }
    }

    /// Removes a container that cannot be started, so that another can be made in its place.
    pub(crate) async fn give_up(&self, container: &str, hindrance: Hindrance) -> Result<()> {
        match hindrance {
            // It may still answer at its address: nobody else is given that as long as it does.
            Hindrance::Forgotten => self.haunt(container).await?,
            Hindrance::AddressTaken => {}
        }
        self.remove(container).await
    }

    async fn haunt(&self, container: &str) -> Result<()> {
        let id = container.to_owned();
        let found = self
            .call(format!("inspecting container {container}"), self.limits().quick, |docker| async move {
                docker.inspect_container(&id, None).await
            })
            .await;
        let settings = none_if_missing(found)?.and_then(|found| found.network_settings);
        for endpoint in settings.and_then(|settings| settings.networks).unwrap_or_default().into_values() {
            let told = endpoint.ipam_config.and_then(|ipam| ipam.ipv4_address);
            self.haunted().extend(told.and_then(|ip| ip.parse::<Ipv4Addr>().ok()));
        }
        Ok(())
    }

    async fn list_addresses(&self, network: &Network, taken: &mut Taken) -> Result<()> {
        // One that has not run yet knows the network by its name only.
        let filters = HashMap::from([("network", vec![network.name.as_str(), network.id.as_str()])]);
        let options = query::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self
            .call(
                format!("listing the containers on network {}", network.name),
                self.limits().quick,
                |docker| async move { docker.list_containers(Some(options)).await },
            )
            .await?;
        for container in found {
            let still = container.state.is_some_and(|state| state.to_string() == "exited");
            let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
            for endpoint in networks.into_values() {
                let told = endpoint.ipam_config.and_then(|ipam| ipam.ipv4_address);
                let ips =
                    [told, endpoint.ip_address].into_iter().flatten().filter_map(|ip| ip.parse::<Ipv4Addr>().ok());
                if still { taken.loosely.extend(ips) } else { taken.firmly.extend(ips) }
            }
        }
        Ok(())
    }

    fn haunted(&self) -> std::sync::MutexGuard<'_, HashSet<Ipv4Addr>> {
        self.shared.haunted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn promised(&self) -> std::sync::MutexGuard<'_, HashSet<Ipv4Addr>> {
        self.shared.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the network knows nobody at `ip`. It asks for the owner three times, a second apart; who is there refuses or
/// takes a connection at once. Where this process cannot reach the network, nothing is known.
async fn deserted(ip: Ipv4Addr) -> bool {
    let connected = timeout(Duration::from_secs(5), TcpStream::connect((ip, DISCARD))).await;
    matches!(connected, Ok(Err(error)) if error.kind() == io::ErrorKind::HostUnreachable)
}

/// The engine knows best which subnet is free: it chooses one for a network that is removed again, and the real one is
/// made under it.
async fn create(
    docker: &bollard::Docker,
    name: &str,
    mut labels: HashMap<String, String>,
) -> std::result::Result<NetworkInspect, bollard::errors::Error> {
    let draft = format!("{name}-draft");
    let request = |name: &str, labels: &HashMap<String, String>, ipam| NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".into()),
        labels: Some(labels.clone()),
        ipam,
        ..Default::default()
    };
    // Left by a crash in the middle.
    docker.remove_network(&draft).await.ok();
    let drafted = docker.create_network(request(&draft, &labels, None)).await?.id;
    let chosen = docker.inspect_network(&drafted, None).await?.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    docker.remove_network(&drafted).await?;
    let config: Vec<IpamConfig> = chosen
        .into_iter()
        .map(|one| IpamConfig { subnet: one.subnet, gateway: one.gateway, ..Default::default() })
        .collect();
    labels.insert(SUBNET.into(), "fixed".into());
    let ipam = Ipam { config: Some(config), ..Default::default() };
    let made = docker.create_network(request(name, &labels, Some(ipam))).await?.id;
    docker.inspect_network(&made, None).await
}

fn described(network: NetworkInspect) -> Option<Network> {
    Some(Network { id: network.id?, name: network.name?, subnet: network.ipam.as_ref().and_then(subnet) })
}

fn subnet(ipam: &Ipam) -> Option<Subnet> {
    ipam.config.iter().flatten().find_map(|config| {
        let (first, prefix) = config.subnet.as_ref()?.split_once('/')?;
        let gateway = config.gateway.as_ref().and_then(|gateway| gateway.parse().ok());
        Some(Subnet {
            first: first.parse().ok()?,
            prefix: prefix.parse().ok().filter(|prefix| *prefix <= 30)?,
            gateway,
        })
    })
}

impl Subnet {
    /// An address that nobody has, else one of a container that stands still. Where to begin follows from the name, so
    /// that the address of one that has just gone is rarely the next one's.
    fn choose(&self, name: &str, taken: &Taken) -> Option<Ipv4Addr> {
        let hosts = (1_u32 << (32 - self.prefix)) - 2;
        let start = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).as_u128() % u128::from(hosts);
        let start = u32::try_from(start).unwrap_or_default();
        let all = || {
            (0..hosts)
                .map(|step| Ipv4Addr::from_bits(self.first.to_bits() + 1 + (start + step) % hosts))
                .filter(|ip| Some(*ip) != self.gateway && !taken.firmly.contains(ip))
        };
        all().find(|ip| !taken.loosely.contains(ip)).or_else(|| all().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet() -> Subnet {
        Subnet { first: Ipv4Addr::new(10, 0, 0, 0), prefix: 29, gateway: Some(Ipv4Addr::new(10, 0, 0, 1)) }
    }

    #[test]
    fn every_address_but_the_gateways_is_given_once() {
        let mut taken = Taken::default();
        let mut given = HashSet::new();
        for number in 0..5 {
            let ip = subnet().choose(&format!("c{number}"), &taken).expect("one is free");
            taken.firmly.insert(ip);
            assert!(given.insert(ip), "{ip} twice");
        }
        let expected: HashSet<Ipv4Addr> = (2..=6).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        assert_eq!(given, expected);
        assert_eq!(subnet().choose("another", &taken), None);
    }

    #[test]
    fn one_that_stands_still_gives_its_address_only_when_no_other_is_left() {
        let ip = |last| Ipv4Addr::new(10, 0, 0, last);
        let mut taken = Taken { firmly: [ip(2), ip(3), ip(4)].into(), loosely: [ip(5)].into() };
        for name in ["a", "b", "c"] {
            assert_eq!(subnet().choose(name, &taken), Some(ip(6)));
        }
        taken.firmly.insert(ip(6));
        assert_eq!(subnet().choose("a", &taken), Some(ip(5)));
    }

    #[tokio::test]
    async fn an_address_whose_owner_answers_is_not_deserted() {
        assert!(!deserted(Ipv4Addr::LOCALHOST).await);
    }

    #[test]
    fn only_a_refusal_that_another_container_would_escape_is_a_hindrance() {
        let said = [
            ("OCI runtime create failed: container with id exists: file already exists", Some(Hindrance::Forgotten)),
            ("OCI runtime create failed: container with given ID: id already in use", Some(Hindrance::Forgotten)),
            ("Address already in use", Some(Hindrance::AddressTaken)),
            ("error starting userland proxy: listen tcp4 0.0.0.0:80: bind: address already in use", None),
            ("exec: \"/app\": stat /app: no such file or directory", None),
        ];
        for (message, hindrance) in said {
            assert_eq!(Hindrance::of(message), hindrance, "{message}");
        }
    }
}
