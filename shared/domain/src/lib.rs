//! The pure core of Sluice: aggregates, their events and commands, and the rollout plan.
//!
//! Owns: what may happen (`decide`), what has happened (`evolve`), what comes next
//! ([`stage::rollout::next_step`]), and the names under which events are stored for ever.
//!
//! Must never import: anything that does IO, reads a clock or draws a random number. Time, ids
//! and randomness arrive inside commands, so that the same history always gives the same answer.

pub mod address;
pub mod administrators;
pub mod configuration;
pub mod difference;
pub mod drift;
pub mod env;
pub mod handle;
pub mod hook;
pub mod image;
pub mod login;
pub mod node;
pub mod policy;
pub mod project;
pub mod promotion;
pub mod proxy;
pub mod push;
pub mod registry;
pub mod route;
pub mod session;
pub mod settings;
pub mod sso;
pub mod stage;
pub mod throttle;
pub mod token;
pub mod traffic;
pub mod user;

mod event;
mod field;
mod grant;
mod name;
mod role;
mod unit;

pub use event::{Context, DecodeError, Event, Recorded, decode, decode_as, encode};
pub use field::FieldError;
pub use grant::Grant;
pub use name::{BadName, DeploymentId, PromotionId, SessionId, Slug, TokenId, UserId};
pub use role::Role;
pub use unit::{Bytes, Cpus, Span};

use serde::{Serialize, de::DeserializeOwned};

/// Something whose history is a sequence of events and which alone decides what may happen next.
///
/// Two laws, property-tested for every aggregate: deciding the same command again, after its
/// events were folded in, has no second effect; and folding never fails, whatever the order in
/// which newer events were added.
pub trait Aggregate: Clone + Default + Send + Sync + 'static {
    /// First token of the subject behind `sluice.events.`, and of the event type behind `dev.sluice.`.
    const NAME: &'static str;

    type Event: Serialize + DeserializeOwned + Clone + Into<Event> + Send + Sync + 'static;
    type Command: Clone + Send + Sync + 'static;
    type Rejection: std::error::Error + Send + Sync + 'static;

    /// What happens if `command` is carried out now. An empty list means it already happened.
    fn decide(&self, command: Self::Command) -> Result<Vec<Self::Event>, Self::Rejection>;

    fn evolve(&mut self, event: &Self::Event);

    /// Tokens that follow the event's name in its subject, so that the server can route by them.
    fn subject_suffix(_event: &Self::Event) -> Option<&str> {
        None
    }
}

/// Identifies one aggregate: its key tokens joined by dots, e.g. `shop.prod`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key<A> {
    tokens: String,
    aggregate: std::marker::PhantomData<fn() -> A>,
}

impl<A: Aggregate> Key<A> {
    /// Callers build keys from tokens that cannot hold a dot or a wildcard ([`Slug`], encoded
    /// hosts); each aggregate offers the constructor for its own.
    pub(crate) fn new(tokens: String) -> Self {
        Self { tokens, aggregate: std::marker::PhantomData }
    }

    pub fn as_str(&self) -> &str {
        &self.tokens
    }

    /// The subject filter that holds exactly this aggregate's events.
    pub fn filter(&self) -> String {
        format!("{}.>", self.prefix())
    }

    fn prefix(&self) -> String {
        format!("sluice.events.{}.{}", A::NAME, self.tokens)
    }
}
