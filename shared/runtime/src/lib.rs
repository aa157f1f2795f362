//! What every role needs to be a process: telemetry, settings from the environment, the clock,
//! and an orderly end.
//!
//! Must never import: async-nats, sqlx, bollard, axum, or a service.

pub mod clock;
pub mod env;
pub mod files;
pub mod outgoing;
pub mod shutdown;
pub mod telemetry;
