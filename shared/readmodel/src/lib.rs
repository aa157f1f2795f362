//! The read models: what queries answer from. Everything here can be rebuilt from the event log.
//!
//! Owns: PostgreSQL, its schema (`migrations/`), and all SQL. A read model is one file with its row, its fold, its
//! queries and their tests, one migration, and one line in [`MODELS`].
//!
//! Must never import: async-nats, `eventlog`, bollard, axum, or a service. Events come in as values; the projector
//! brings the log and the read models together.

pub mod deployments;
pub mod events;
pub mod hooks;
pub mod instances;
pub mod projects;
pub mod promotions;
pub mod proxies;
pub mod registries;
pub mod sessions;
pub mod stages;
pub mod tokens;
pub mod users;

mod checksum;
mod connection;
mod fold;
#[cfg(feature = "memory")]
pub mod memory;
mod progress;
mod rebuild;
#[cfg(test)]
mod testing;
mod writer;

pub use checksum::{Checksum, checksum};
pub use connection::{ConnectError, connect, healthy, migrate};
pub use progress::{NotYet, Progress, State, record_error, state};
pub use rebuild::{RebuildError, rebuild};
pub use sqlx::PgPool;
pub use writer::Writer;

use domain::Recorded;
use futures::future::BoxFuture;
use sqlx::PgConnection;
use uuid::Uuid;

/// A read model: a table of its own, fed by events alone.
pub struct Model {
    /// Of the table, too.
    pub name: &'static str,
    apply: Apply,
    /// A quicker way, where applying looks nothing up: into a copy that gets its indexes only when it is full.
    fill: Option<Apply>,
}

type Apply = for<'a> fn(&'a mut PgConnection, &'a [Recorded]) -> BoxFuture<'a, sqlx::Result<()>>;

/// Every read model.
pub static MODELS: [Model; 12] = [
    projects::MODEL,
    stages::MODEL,
    deployments::MODEL,
    promotions::MODEL,
    instances::MODEL,
    registries::MODEL,
    proxies::MODEL,
    tokens::MODEL,
    users::MODEL,
    sessions::MODEL,
    hooks::MODEL,
    events::MODEL,
];

/// All read models, or the one with this name.
pub fn models(name: Option<&str>) -> Result<&'static [Model], UnknownModel> {
    match name {
        None => Ok(&MODELS),
        Some(name) => MODELS
            .iter()
            .find(|model| model.name == name)
            .map(std::slice::from_ref)
            .ok_or_else(|| UnknownModel(name.to_owned())),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no read model `{0}`; there are: {names}", names = MODELS.each_ref().map(|model| model.name).join(", "))]
pub struct UnknownModel(String);

/// What went wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing}")]
    Database { doing: &'static str, source: sqlx::Error },
    /// Sequences of one log mean nothing in another.
    #[error(
        "the read models of this database (DATABASE_URL) were built from another event log ({built_from}) than the one at NATS_URL ({given}): correct the one or the other, or build them anew with `sluice projector rebuild`"
    )]
    OtherLog { built_from: Uuid, given: Uuid },
}

impl Error {
    /// Whether the database was away, rather than unwilling.
    pub fn outage(&self) -> bool {
        /// SQLSTATE classes: connection, resources, operator intervention, system.
        const CLASSES: [&str; 4] = ["08", "53", "57", "58"];
        match self {
            Self::Database { source, .. } => source.as_database_error().is_none_or(|error| {
                error.code().is_some_and(|code| CLASSES.iter().any(|class| code.starts_with(class)))
            }),
            Self::OtherLog { .. } => false,
        }
    }

    pub(crate) fn during(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { doing, source }
    }
}
