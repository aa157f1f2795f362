//! The deployer on real parts: NATS, Docker, a registry.
#![expect(clippy::wildcard_enum_match_arm, reason = "tests pick the events that they wait for")]

mod bad_input;
mod edge;
mod lab;
mod outages;
mod rollouts;
mod watching;
