//! What the deployer tells the edges (the `routes` bucket) and what they tell it back.
//!
//! Routes are effects, not truth: they can be written again from the stages' events at any time.

use serde::{Deserialize, Serialize};

use crate::{DeploymentId, Slug, Span, proxy::Mode, settings::HealthCheck};

/// Bucket that holds one [`Route`] per stage, under the key `<project>.<stage>`.
pub const ROUTES: &str = "routes";
/// Bucket in which every living edge keeps an [`EdgePresence`] under its id; entries expire.
pub const EDGES: &str = "edges";

/// Request header that asks the edge to name the deployment that answers; its value is the
/// edge's [`EdgePresence::probe_token`].
pub const PROBE_HEADER: &str = "sluice-probe";
/// Response header to a probe: the id of the deployment that answered.
pub const DEPLOYMENT_HEADER: &str = "sluice-deployment";

/// Where an edge answers a status request: a core NATS subject; the reply is an [`EdgeStatus`].
pub fn status_subject(edge: &str) -> String {
    format!("sluice.edge.status.{edge}")
}

/// One stage's traffic: which host and path, and which set of containers answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub project: Slug,
    pub stage: Slug,
    /// Lower case, without port.
    pub host: String,
    /// Prefix by whole segments; `/` takes all.
    pub path: String,
    pub target: Target,
    /// Fencing token: the sequence of the event that entitles the writer. A route with a smaller
    /// one never replaces it.
    pub fence: u64,
    /// None where clients come straight to the edges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front: Option<Front>,
}

/// The proxy of the user's own that a route lies behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Front {
    pub proxy: Slug,
    pub mode: Mode,
    /// Where the proxy reaches the edge, as it was declared when it was pointed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<String>,
}

impl Route {
    /// The proxy that leads to the containers itself: such a route is none of the edges' business.
    pub fn direct(&self) -> Option<&Slug> {
        self.front.as_ref().filter(|front| front.mode == Mode::Direct).map(|front| &front.proxy)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Target {
    /// Requests go to this set.
    Live(UpstreamSet),
    /// Requests wait, at most `limit`, until the route is live again (then they proceed), or
    /// fail with 504 at the limit.
    Held { limit: Span },
}

/// The containers of one deployment, switched to as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamSet {
    pub deployment: DeploymentId,
    pub upstreams: Vec<Upstream>,
    /// How the edge re-probes what it restored and keeps probing what it serves.
    pub health: HealthCheck,
    /// How long a replaced set's requests and websockets may live on.
    pub drain: Span,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Container name.
    pub instance: String,
    /// `ip:port`.
    pub address: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgePresence {
    pub id: String,
    pub version: String,
    /// `ip:port` at which the deployer can probe through this edge.
    pub address: String,
    pub probe_token: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeStatus {
    pub id: String,
    /// Every route this edge serves now.
    pub routes: Vec<RouteStatus>,
    /// Sets that are no longer routed to but still have requests or websockets in flight.
    pub draining: Vec<SetStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// `<project>.<stage>`.
    pub key: String,
    /// Revision of the routes bucket entry that is in force.
    pub revision: u64,
    pub host: String,
    pub path: String,
    pub held: bool,
    /// Requests waiting on a held route.
    pub waiting: u64,
    pub live: Option<SetStatus>,
    pub counters: Counters,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetStatus {
    pub deployment: DeploymentId,
    pub in_flight: u64,
    pub upstreams: Vec<UpstreamStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    pub instance: String,
    pub address: String,
    pub healthy: bool,
    pub in_flight: u64,
}

/// Since this edge started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub requests: u64,
    /// Answered by the edge itself because no upstream could (502, 503, 504).
    pub failed: u64,
    /// Answered 5xx by the upstream.
    pub upstream_errors: u64,
    pub websockets: u64,
}
