//! What the API asks the deployer of a node, by request and reply: only that one talks to Docker.

use serde::{Deserialize, Serialize};

use crate::{Slug, drift::Found, image::Image, proxy::Drift};

/// Subject of a [`Resolve`] request; the reply is a [`Resolved`].
pub fn resolve_subject(node: &str) -> String {
    format!("sluice.node.{node}.resolve")
}

/// Subject of an empty request; the reply is a [`NodeHealth`].
pub fn health_subject(node: &str) -> String {
    format!("sluice.node.{node}.health")
}

/// Subject of an [`Inspect`] request; the reply is an [`Inspected`].
pub fn inspect_subject(node: &str) -> String {
    format!("sluice.node.{node}.inspect")
}

/// What is on the node of a stage, beside what its release says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inspect {
    pub project: Slug,
    pub stage: Slug,
}

pub type Inspected = Result<Found, ResolveError>;

/// Subject of a [`ProxyQuestion`]; the reply is a [`ProxyCompared`].
pub fn proxy_subject(node: &str) -> String {
    format!("sluice.node.{node}.proxy")
}

/// What a proxy holds beside what it should; with `repair` the difference is set right.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProxyQuestion {
    pub proxy: Slug,
    pub repair: bool,
}

pub type ProxyCompared = Result<Vec<Drift>, ResolveError>;

/// Which bytes a reference means at this moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolve {
    pub reference: String,
}

pub type Resolved = Result<Image, ResolveError>;

/// Why a question could not be answered, in words for the person who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ResolveError {
    /// Stable, for scripts: `image_not_found`, `registry_unauthorized`, `registry_unreachable`,
    /// `wrong_platform`, `engine_unavailable`, ...
    pub code: String,
    pub message: String,
    pub hint: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeHealth {
    /// The engine's version; none when it does not answer.
    pub docker: Option<String>,
    pub error: Option<String>,
}
