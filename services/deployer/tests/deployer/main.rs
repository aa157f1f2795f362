//! The deployer on real parts: NATS, Docker, a registry.
#![expect(clippy::wildcard_enum_match_arm, reason = "tests pick the events that they wait for")]

mod bad_input;
mod cancelling;
mod drift;
mod edge;
mod engine_hangs;
mod flips;
mod lab;
mod nats_hangs;
mod outages;
mod proxies;
mod queue;
mod registry_hangs;
mod rollouts;
mod two_workers;
mod watching;
