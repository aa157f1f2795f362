//! End to end: few, and each through the whole of it.

mod bad_input;
mod deploy;
mod harness;
mod proxies;
mod release;
mod restart;
mod secrets;
