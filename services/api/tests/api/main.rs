//! The API from outside, on real parts.

mod access;
mod app;
mod archive;
mod bad_input;
mod configuration;
mod deployments;
mod events;
mod hooks;
mod identity;
mod limiter;
mod matrix;
#[path = "../oidc/browser.rs"]
mod oidc_browser;
mod openapi;
mod parts;
mod projects;
mod promotions;
mod provider;
mod proxies;
mod registries;
mod revocation;
mod secrets;
