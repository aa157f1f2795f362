//! Who may do what: the one choke point. Asks the event log about every request: a token that was revoked is good for
//! nothing from then on.
//!
//! A route exists only through [`Routes::add`], which takes what it asks for. The guard lets a
//! request through to a route that it finds in that table and to nothing else, so what declares no
//! permission cannot be reached.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use domain::{Key, Role, TokenId};
use eventlog::EventLog;
use http::{HeaderMap, Method, StatusCode, header};
use sha2::{Digest, Sha256};
use utoipa::openapi::{
    Content, OpenApi, Ref, RefOr, Response as Documented,
    path::{Operation, PathItem},
    security::SecurityRequirement,
};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use crate::{Api, problem::Error};

/// Base of every address.
pub(crate) const BASE: &str = "/api/v1";
/// Name of the bearer scheme in the OpenAPI document.
pub(crate) const SCHEME: &str = "bearer";
/// What every API token begins with, so that scanners for lost secrets know one when they see it.
const PREFIX: &str = "sluice_";

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Public,
    /// The message itself proves where it comes from: its handler sees to that.
    Signed,
    Needs(Role),
}

/// Who asks: found by the guard, read by handlers from the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    /// The actor of events.
    pub(crate) name: Arc<str>,
    pub(crate) role: Role,
}

/// The administrator's token, as a digest: all that is needed to recognise it.
#[derive(Clone)]
pub(crate) struct Token([u8; 32]);

impl Token {
    pub(crate) fn new(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Digests hide where the two differ, and their length.
    fn matches(&self, presented: &str) -> bool {
        same(&self.0, &Sha256::digest(presented))
    }

    /// A digest of `parts` that nobody without the token can compute or guess from: it may stand in
    /// the event log, even where the parts hold a password.
    pub(crate) fn seal(&self, parts: &[&[u8]]) -> String {
        let mut inner = Sha256::new();
        for part in parts {
            inner.update((part.len() as u64).to_be_bytes());
            inner.update(part);
        }
        let outer = Sha256::new().chain_update(self.0).chain_update(inner.finalize()).finalize();
        hex::encode(outer)
    }
}

/// The router under construction, with the access of every operation.
pub(crate) struct Routes {
    /// Under [`BASE`].
    router: OpenApiRouter<Api>,
    /// Elsewhere.
    outside: OpenApiRouter<Api>,
    /// By method and path, as in `GET /api/v1/stages`.
    access: BTreeMap<String, Access>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self { router: OpenApiRouter::default(), outside: OpenApiRouter::default(), access: BTreeMap::new() }
    }

    /// The only way to add a route.
    #[must_use]
    pub(crate) fn add(mut self, access: Access, route: UtoipaMethodRouter<Api>) -> Self {
        let route = self.declare(access, BASE, route);
        self.router = self.router.routes(route);
        self
    }

    /// The only way to add one that others than our own clients know.
    #[must_use]
    pub(crate) fn add_outside(mut self, access: Access, route: UtoipaMethodRouter<Api>) -> Self {
        let route = self.declare(access, "", route);
        self.outside = self.outside.routes(route);
        self
    }

    fn declare(
        &mut self,
        access: Access,
        base: &str,
        (schemas, mut paths, methods): UtoipaMethodRouter<Api>,
    ) -> UtoipaMethodRouter<Api> {
        for (path, item) in &mut paths.paths {
            for (method, operation) in operations(item) {
                document(operation, access);
                self.access.insert(format!("{method} {base}{path}"), access);
            }
        }
        (schemas, paths, methods)
    }

    /// The guarded router.
    pub(crate) fn router(self, api: Api) -> Router {
        let guard = Guard { token: api.token.clone(), log: api.log.clone(), access: Arc::new(self.access) };
        let (router, _) = OpenApiRouter::default().nest(BASE, self.router).merge(self.outside).split_for_parts();
        router
            .fallback(|| async { Error::NoSuchPath })
            .layer(middleware::from_fn_with_state(guard, check))
            .with_state(api)
    }

    /// The description of all of them, within `outline`.
    pub(crate) fn document(self, outline: OpenApi) -> OpenApi {
        OpenApiRouter::<Api>::with_openapi(outline).nest(BASE, self.router).merge(self.outside).into_openapi()
    }
}

#[derive(Clone)]
struct Guard {
    token: Token,
    log: EventLog,
    access: Arc<BTreeMap<String, Access>>,
}

impl Guard {
    /// None for whom nobody knows. An error means that nobody can say.
    async fn authenticate(&self, headers: &HeaderMap) -> Result<Option<Principal>, Error> {
        let Some(presented) = bearer(headers) else { return Ok(None) };
        if self.token.matches(presented) {
            return Ok(Some(Principal { name: "admin".into(), role: Role::Admin }));
        }
        let Some(id) = token_id(presented) else { return Ok(None) };
        let token = self.log.fold(&Key::<domain::token::Token>::token(id)).await?;
        let Some(holder) = token.state.valid(runtime::clock::now()) else { return Ok(None) };
        // What narrows a token is not yet looked at here.
        if holder.owner.is_some() || holder.grant.projects.is_some() {
            return Ok(None);
        }
        let Some(digest) = self.log.vault().get(&holder.secret).await? else { return Ok(None) };
        let good = same(digest.expose(), &Sha256::digest(presented));
        Ok(good.then(|| Principal { name: holder.name.as_str().into(), role: holder.grant.role }))
    }
}

fn access(table: &BTreeMap<String, Access>, path: &str, method: &Method) -> Option<Access> {
    // GET routes answer HEAD too.
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    table.get(&format!("{method} {path}")).copied()
}

async fn check(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let access = path.and_then(|path| access(&guard.access, path, request.method()));
    let caller = match (access, guard.authenticate(request.headers()).await) {
        (_, Ok(caller)) => caller,
        (Some(Access::Public | Access::Signed), Err(_)) => None,
        (Some(Access::Needs(_)) | None, Err(error)) => return error.into_response(),
    };
    if let Err(refused) = admit(access, path.is_some(), caller.as_ref()) {
        return refused.into_response();
    }
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    next.run(request).await
}

/// Lets a request through only to what a route declares, and only whom it declares it for. What
/// there is at all, only those learn who may know.
fn admit(access: Option<Access>, known_path: bool, caller: Option<&Principal>) -> Result<(), Error> {
    match (access, caller) {
        (Some(Access::Public | Access::Signed), _) => Ok(()),
        (Some(Access::Needs(_)) | None, None) => Err(Error::Unauthorized),
        (Some(Access::Needs(role)), Some(caller)) if caller.role < role => Err(Error::Forbidden(role)),
        (Some(Access::Needs(_)), Some(_)) => Ok(()),
        (None, Some(_)) if known_path => Err(Error::MethodNotAllowed),
        (None, Some(_)) => Err(Error::NoSuchPath),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, presented) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| presented.trim())
}

/// A new API token for the holder that `id` names. 256 random bits stand behind the id.
pub(crate) fn new_token(id: TokenId) -> String {
    format!("{PREFIX}{}_{}", id.0.simple(), random_secret())
}

/// What of a token is kept.
pub(crate) fn digest(token: &str) -> Vec<u8> {
    Sha256::digest(token).to_vec()
}

fn token_id(presented: &str) -> Option<TokenId> {
    let (id, _) = presented.strip_prefix(PREFIX)?.split_once('_')?;
    id.parse().ok()
}

/// 256 random bits, in hexadecimal.
pub(crate) fn random_secret() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// Whether the two are the same; their digests hide where they differ, and their length.
pub(crate) fn same_secret(one: &[u8], other: &[u8]) -> bool {
    same(&Sha256::digest(one), &Sha256::digest(other))
}

/// Takes the same time wherever the two differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("GET", &mut item.get),
        ("PUT", &mut item.put),
        ("POST", &mut item.post),
        ("DELETE", &mut item.delete),
        ("PATCH", &mut item.patch),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Writes into a route's description what it asks for and what holds for all.
fn document(operation: &mut Operation, access: Access) {
    let problem = Content::new(Some(Ref::from_schema_name("Problem")));
    let problem = Documented::builder().description("What went wrong").content("application/problem+json", problem);
    operation.responses.responses.insert("default".into(), RefOr::T(problem.build()));
    let (security, sentence) = match access {
        Access::Public => (SecurityRequirement::default(), "Public.".to_owned()),
        Access::Signed => (SecurityRequirement::default(), "Takes what its sender has signed.".to_owned()),
        Access::Needs(role) => {
            (SecurityRequirement::new(SCHEME, Vec::<String>::new()), format!("Needs the role `{role}`."))
        }
    };
    operation.security = Some(vec![security]);
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            response.description = status_in_words(status);
        }
    }
    operation.description = Some(match operation.description.take() {
        Some(text) if !text.is_empty() => format!("{text}\n\n{sentence}"),
        Some(_) | None => sentence,
    });
}

/// The standard asks for a description of every answer.
fn status_in_words(status: &str) -> String {
    let known = status.parse::<StatusCode>().ok().and_then(|status| status.canonical_reason());
    known.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_recognised() {
        let token = Token::new("secret");
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
            bearer(&headers).is_some_and(|presented| token.matches(presented))
        };
        assert!(with("Bearer secret") && with("bearer secret"));
        for bad in ["secret", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret", "Bearer SECRET"] {
            assert!(!with(bad), "{bad:?} passed");
        }
        assert!(bearer(&HeaderMap::new()).is_none());
    }

    #[test]
    fn a_token_names_its_holder() {
        let id = TokenId(uuid::Uuid::from_u128(7));
        let (one, other) = (new_token(id), new_token(id));
        assert_eq!((token_id(&one), token_id(&other)), (Some(id), Some(id)));
        assert!(one != other && !same(&digest(&one), &digest(&other)));
        for bad in ["", "sluice_", "sluice__", "sluice_x_y", &one[PREFIX.len()..]] {
            assert_eq!(token_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_seal_depends_on_the_token_and_on_where_parts_begin() {
        let token = Token::new("secret");
        assert_eq!(token.seal(&[b"a", b"b"]), token.seal(&[b"a", b"b"]));
        assert_ne!(token.seal(&[b"a", b"b"]), token.seal(&[b"ab", b""]));
        assert_ne!(token.seal(&[b"a"]), Token::new("other").seal(&[b"a"]));
    }

    #[test]
    fn what_no_route_declares_is_let_through_to_nobody() {
        let routes = crate::routes::all();
        let to = |path, method| access(&routes.access, path, &method);
        assert_eq!(to("/api/v1/projects", Method::HEAD), Some(Access::Needs(Role::Viewer)));
        assert_eq!(to("/api/v1/projects", Method::PATCH), None);
        assert_eq!(to("/api/v1/other", Method::GET), None);
    }

    #[test]
    fn a_caller_gets_as_far_as_its_permission() {
        use Role::{Admin, Operator, Viewer};
        for (has, needs, good) in [
            (Viewer, Viewer, true),
            (Viewer, Operator, false),
            (Viewer, Admin, false),
            (Operator, Viewer, true),
            (Operator, Operator, true),
            (Operator, Admin, false),
            (Admin, Admin, true),
        ] {
            let caller = Principal { name: "somebody".into(), role: has };
            let admitted = admit(Some(Access::Needs(needs)), true, Some(&caller));
            assert_eq!(admitted.is_ok(), good, "{has} at {needs}");
            assert!(matches!(admit(Some(Access::Needs(needs)), true, None), Err(Error::Unauthorized)));
            assert!(matches!(admit(None, true, Some(&caller)), Err(Error::MethodNotAllowed)));
        }
        assert!(matches!(admit(None, false, None), Err(Error::Unauthorized)));
        assert!(admit(Some(Access::Public), true, None).is_ok());
    }
}
