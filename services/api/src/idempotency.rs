//! `Idempotency-Key`: the same key from the same caller for the same address is the same command.
//!
//! Nothing is stored for it. The command's id follows from the key, ids made by the command follow
//! from its id, and the log refuses to carry out one command twice.

use domain::Context;
use http::request::Parts;
use uuid::{Uuid, uuid};

use crate::{
    auth::{People, Principal},
    problem::Error,
};

/// Header that makes a repetition safe.
pub(crate) const HEADER: &str = "idempotency-key";
const LONGEST: usize = 255;

/// Part of what every command's id is made of: never to be changed.
pub(crate) const NAMESPACE: Uuid = uuid!("6f1d4a3e-5b0c-4c1e-9a57-2d0c8e7b3f64");

/// The context of the events that this request causes.
pub(crate) fn context(parts: &Parts, caller: &Principal, people: &People, body: &[u8]) -> Result<Context, Error> {
    let mut context = runtime::clock::context(&*caller.actor);
    let Some(key) = key(parts)? else { return Ok(context) };
    let name = format!("{}\n{}\n{}\n{key}", caller.actor, parts.method, parts.uri.path());
    context.command_id = Uuid::new_v5(&NAMESPACE, name.as_bytes());
    context.correlation_id = context.command_id;
    // A body may hold a password, so its plain digest must not stand in the log.
    let query = parts.uri.query().unwrap_or_default();
    context.command_hash = Some(people.command(&[query.as_bytes(), body]));
    Ok(context)
}

/// The id that a command gives to `what`: the same one however often the command comes.
pub(crate) fn id(context: &Context, what: &str) -> Uuid {
    Uuid::new_v5(&context.command_id, what.as_bytes())
}

fn key(parts: &Parts) -> Result<Option<&str>, Error> {
    let Some(value) = parts.headers.get(HEADER) else { return Ok(None) };
    let problem = "must be 1 to 255 visible ASCII characters";
    let key = value.to_str().map_err(|_| Error::invalid("Idempotency-Key", problem))?;
    let good = (1..=LONGEST).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
    if good { Ok(Some(key)) } else { Err(Error::invalid("Idempotency-Key", problem)) }
}
