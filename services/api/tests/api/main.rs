//! The API from outside, on real parts.

mod access;
mod app;
mod archive;
mod bad_input;
mod deployments;
mod events;
mod openapi;
mod parts;
mod projects;
mod promotions;
mod proxies;
mod registries;
mod secrets;
