//! End to end: few, and each through the whole of it.

mod bad_input;
mod configuration;
mod deploy;
mod harness;
mod policies;
mod proxies;
mod release;
mod restart;
mod secrets;
