//! Development only: the real parts that tests run against, each private to its test or shared by one test run.
//!
//! Owns the start and the certain end of nats-server, PostgreSQL, dockerd, docker-registry and proxies, the sample application
//! and its images, the load generator, identity providers (one hostile, one certified), and the relay that disturbs the traffic between parts. Must never be a
//! dependency of anything that ships (only a `dev-dependency`), and must never import a service: a test that needs one
//! brings it along.

mod certified;
mod cleanup;
mod disk;
mod docker;
mod images;
mod load;
mod nats;
mod postgres;
mod process;
mod provider;
mod proxies;
mod registry;
mod relay;
mod sluice;
mod sockets;
mod websocket;

pub use certified::CertifiedProvider;
pub use disk::{LossyDisk, Luck, Names};
pub use docker::Docker;
pub use images::{SampleImage, sample_program};
pub use load::{Load, Report, Running};
pub use nats::{Nats, nats_server};
pub use postgres::{Database, Postgres};
pub use process::{find_program, free_port};
pub use provider::{Fault, HostileProvider, Leg, Signing};
pub use proxies::{NpmStandIn, UserProxy};
pub use registry::Registry;
pub use relay::{Direction, Flow, Relay};
pub use sluice::Sluice;
pub use sockets::{Chat, Ended, Sockets};
pub use websocket::WebSocket;
