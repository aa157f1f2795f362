//! Reading requests: path, query and body, each refused with the name of the field that is wrong.

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
};
use domain::{Context, FieldError, address::Source};
use futures::StreamExt;
use http::{HeaderMap, header, request::Parts};
use serde::{
    Deserialize,
    de::{DeserializeOwned, value::MapDeserializer},
};

use crate::{Api, auth::Principal, idempotency, problem::Error, rim::RequestId};

/// Largest body, where nothing else is said.
const LIMIT: usize = 1 << 20;
/// A larger body is read to its end and thrown away up to here, so that its sender gets to read
/// the answer instead of a broken connection.
const PATIENCE: usize = 32 << 20;

/// The variable parts of the address.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Error> {
        let raw = RawPathParams::from_request_parts(parts, api).await;
        let raw = raw.map_err(|rejection| Error::Malformed(rejection.body_text()))?;
        let source = MapDeserializer::<_, serde::de::value::Error>::new(raw.iter());
        serde_path_to_error::deserialize(source).map(Self).map_err(refused)
    }
}

/// What stands behind the `?`. Unknown parameters are refused by the types themselves.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Error> {
        let pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let source = serde_urlencoded::Deserializer::new(pairs);
        serde_path_to_error::deserialize(source).map(Self).map_err(refused)
    }
}

/// What a caller wants done: the body, of at most `MOST` bytes, the context its events will carry, and who asks.
pub(crate) struct Asked<T, const MOST: usize = LIMIT> {
    pub(crate) body: T,
    pub(crate) context: Context,
    pub(crate) caller: Principal,
}

impl<T: DeserializeOwned, const MOST: usize> FromRequest<Api> for Asked<T, MOST> {
    type Rejection = Error;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        let caller = parts.extensions.get::<Principal>().cloned().ok_or(Error::Unauthorized)?;
        let bytes = read(body, MOST).await?;
        let mut context = idempotency::context(&parts, &caller, &api.auth.people, &bytes)?;
        context.request_id = parts.extensions.get::<RequestId>().map(|id| id.0.to_string());
        Ok(Self { body: parse(&parts.headers, &bytes)?, context, caller })
    }
}

/// What somebody says who has not signed in: the body, and where it comes from.
pub(crate) struct Said<T> {
    pub(crate) body: T,
    pub(crate) source: Source,
    pub(crate) parts: Parts,
    pub(crate) request_id: String,
}

/// What people type to sign in is short.
const SHORT: usize = 16 << 10;

impl<T: DeserializeOwned> FromRequest<Api> for Said<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &Api) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        let source = parts.extensions.get::<Source>().copied().ok_or(Error::Panicked)?;
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.to_string()).unwrap_or_default();
        let bytes = read(body, SHORT).await?;
        Ok(Self { body: parse(&parts.headers, &bytes)?, source, parts, request_id })
    }
}

/// The body of a request that says everything by its address.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// A body of at most `most` bytes.
pub(crate) async fn read(body: Body, most: usize) -> Result<Bytes, Error> {
    let mut kept = Vec::new();
    let mut length = 0;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Error::Malformed("the body ended early".into()))?;
        length += chunk.len();
        if length <= most {
            kept.extend_from_slice(&chunk);
        } else if length > PATIENCE {
            break;
        }
    }
    if length > most { Err(Error::TooLarge { limit: most }) } else { Ok(kept.into()) }
}

fn parse<T: DeserializeOwned>(headers: &HeaderMap, bytes: &[u8]) -> Result<T, Error> {
    // No body says as much as an empty object.
    let bytes = if bytes.is_empty() {
        b"{}"
    } else {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        // Browsers send this type across origins only after asking: a form cannot forge it.
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Error::NotJson);
        }
        bytes
    };
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut source).map_err(|error| {
        if error.inner().is_data() { refused(error) } else { Error::Malformed(format!("not JSON: {}", error.inner())) }
    })?;
    source.end().map_err(|error| Error::Malformed(format!("not JSON: {error}")))?;
    Ok(parsed)
}

/// Names the field that was refused.
fn refused<E: std::error::Error>(error: serde_path_to_error::Error<E>) -> Error {
    let field = error.path().to_string();
    let problem = error.into_inner().to_string();
    Error::Invalid(vec![FieldError { field, problem }])
}
