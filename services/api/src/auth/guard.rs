//! The one choke point. Asks the event log about every request: what was revoked is good for nothing from then on.
//!
//! A route exists only through [`Routes::add`], which takes what it asks for. The guard lets a
//! request through to a route that it finds in that table and to nothing else, so what declares no
//! permission cannot be reached.

use std::{collections::BTreeMap, fmt, sync::Arc};

use axum::{
    Router,
    extract::{MatchedPath, RawPathParams, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use domain::{Role, Slug, stage};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use utoipa::openapi::{
    Content, OpenApi, Ref, RefOr, Response as Documented,
    path::{Operation, PathItem},
    security::SecurityRequirement,
};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use super::{Principal, csrf};
use crate::{Api, problem::Error};

/// Base of every address.
const BASE: &str = "/api/v1";
/// Name of the bearer scheme in the OpenAPI document.
pub(crate) const SCHEME: &str = "bearer";

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Public,
    /// The message itself proves where it comes from: its handler sees to that.
    Signed,
    /// The role, on the whole installation.
    Needs(Role),
    /// The role on the project that the address names, or in which the thing is that it names.
    InProject(Role),
    /// The role anywhere: the handler shows only what lies in the grant.
    Filtered(Role),
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::Signed => f.write_str("signed"),
            Self::Needs(role) => write!(f, "needs {role}"),
            Self::InProject(role) => write!(f, "in_project {role}"),
            Self::Filtered(role) => write!(f, "filtered {role}"),
        }
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
        let guard = Guard { api: api.clone(), access: Arc::new(self.access) };
        let (router, _) = OpenApiRouter::default().nest(BASE, self.router).merge(self.outside).split_for_parts();
        router
            .fallback(|| async { Error::NoSuchPath })
            .layer(middleware::from_fn_with_state(guard, check))
            .with_state(api)
    }

    /// What each operation asks for, by method and path.
    pub(crate) fn table(self) -> BTreeMap<String, Access> {
        self.access
    }

    /// The description of all of them, within `outline`.
    pub(crate) fn document(self, outline: OpenApi) -> OpenApi {
        OpenApiRouter::<Api>::with_openapi(outline).nest(BASE, self.router).merge(self.outside).into_openapi()
    }
}

#[derive(Clone)]
struct Guard {
    api: Api,
    access: Arc<BTreeMap<String, Access>>,
}

impl Guard {
    /// None for whom nobody knows. An error means that nobody can say. With it the cookie to go on with, where the one
    /// that was sent gets old.
    async fn authenticate(&self, parts: &Parts) -> Result<Option<(Principal, Option<HeaderValue>)>, Error> {
        let auth = &self.api.auth;
        let now = runtime::clock::now();
        if parts.headers.contains_key(header::AUTHORIZATION) {
            let Some(presented) = bearer(&parts.headers) else { return Ok(None) };
            return Ok(auth.bearer(presented, now).await?.map(|principal| (principal, None)));
        }
        let Some(handle) = auth.cookies.read(&parts.headers) else { return Ok(None) };
        let Some((principal, renewed)) = auth.session(handle, now).await? else { return Ok(None) };
        csrf::check(parts, auth.public_url())?;
        Ok(Some((principal, renewed.and_then(|handle| auth.cookies.set(&handle)))))
    }

    /// Whether what the address names lies in the caller's grant. Of what does not, nobody learns whether it is there.
    async fn in_project(&self, request: &mut Parts, path: &str, caller: &Principal, role: Role) -> Result<(), Error> {
        if caller.grant.role < role {
            return Err(Error::Forbidden(role));
        }
        if caller.grant.projects.is_none() {
            return Ok(());
        }
        let params = axum::RequestPartsExt::extract_with_state::<RawPathParams, _>(request, &self.api).await;
        let params = params.map_err(|rejection| Error::Malformed(rejection.body_text()))?;
        let param = |wanted: &str| params.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned());
        if let Some(project) = param("project") {
            let slug = project.parse::<Slug>().ok();
            return match slug.filter(|slug| caller.grant.reaches(Some(slug))) {
                Some(_) => Ok(()),
                None => Err(Error::OutsideGrant),
            };
        }
        let Some(id) = param("id") else { return Err(Error::OutsideGrant) };
        // What is no id is refused by the handler, in better words.
        let Ok(id) = id.parse() else { return Ok(()) };
        let query = form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes());
        let at_least = query.into_iter().find(|(name, _)| name == "at_least").and_then(|(_, value)| value.parse().ok());
        self.api.visible(at_least).await?;
        let (found, unknown) = if path.starts_with("/api/v1/deployments/") {
            let found = readmodel::deployments::get(&self.api.pool, id).await?;
            (found.map(|found| found.project), Error::Stage(stage::Rejection::UnknownDeployment))
        } else if path.starts_with("/api/v1/promotions/") {
            let found = readmodel::promotions::get(&self.api.pool, id).await?;
            (found.map(|found| found.project), Error::Stage(stage::Rejection::UnknownPromotion))
        } else {
            (None, Error::OutsideGrant)
        };
        if found.is_some_and(|project| caller.sees(Some(&project))) { Ok(()) } else { Err(unknown) }
    }

    /// Lets a request through only to what a route declares, and only whom it declares it for. What
    /// there is at all, only those learn who may know.
    async fn admit(
        &self,
        request: &mut Parts,
        path: Option<&str>,
        access: Option<Access>,
        caller: Option<&Principal>,
    ) -> Result<(), Error> {
        let Some(caller) = caller else {
            return match access {
                Some(Access::Public) => self.api.auth.limiter.request(self.source(request)),
                // Counted once it has proved nothing.
                Some(Access::Signed) => self.api.auth.limiter.allowed(self.source(request)),
                Some(Access::Needs(_) | Access::InProject(_) | Access::Filtered(_)) | None => {
                    self.api.auth.limiter.request(self.source(request))?;
                    Err(Error::Unauthorized)
                }
            };
        };
        match access {
            Some(Access::Public | Access::Signed) => Ok(()),
            Some(Access::Needs(role) | Access::Filtered(role)) if caller.grant.role < role => {
                Err(Error::Forbidden(role))
            }
            Some(Access::Needs(_)) if caller.grant.projects.is_some() => Err(Error::OutsideGrant),
            Some(Access::Needs(_) | Access::Filtered(_)) => Ok(()),
            Some(Access::InProject(role)) => {
                Box::pin(self.in_project(request, path.unwrap_or_default(), caller, role)).await
            }
            None if path.is_some() => Err(Error::MethodNotAllowed),
            None => Err(Error::NoSuchPath),
        }
    }

    fn source(&self, request: &Parts) -> domain::address::Source {
        self.api.auth.addresses.source(request)
    }
}

fn access(table: &BTreeMap<String, Access>, path: &str, method: &Method) -> Option<Access> {
    // GET routes answer HEAD too.
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    table.get(&format!("{method} {path}")).copied()
}

async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = parts.extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let access = path.as_deref().and_then(|path| access(&guard.access, path, &parts.method));
    let open = matches!(access, Some(Access::Public | Access::Signed));
    let source = guard.source(&parts);
    let span = tracing::Span::current();
    span.record("source", tracing::field::display(source));
    let (caller, renewed) = match guard.authenticate(&parts).await {
        Ok(found) => found.unzip(),
        Err(_) if open => (None, None),
        Err(error) => return error.into_response(),
    };
    if let Some(caller) = &caller {
        span.record("actor", &*caller.actor);
    }
    if let Err(refused) = guard.admit(&mut parts, path.as_deref(), access, caller.as_ref()).await {
        return refused.into_response();
    }
    parts.extensions.insert(source);
    if let Some(caller) = caller {
        parts.extensions.insert(caller);
    }
    let mut response = next.run(Request::from_parts(parts, body)).await;
    if access == Some(Access::Signed) && response.status() == StatusCode::UNAUTHORIZED {
        // The answer stands; it is the next that may be one too many.
        guard.api.auth.limiter.request(source).ok();
    }
    // A sign-in or a sign-out has set its own.
    if let Some(cookie) = renewed.flatten()
        && !response.headers().contains_key(header::SET_COOKIE)
    {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, presented) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| presented.trim())
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
        Access::Needs(role) => (signed_in(), format!("Needs the role `{role}` on the whole installation.")),
        Access::InProject(role) => (signed_in(), format!("Needs the role `{role}` on the project.")),
        Access::Filtered(role) => {
            (signed_in(), format!("Needs the role `{role}` anywhere; concerns only what the caller may see."))
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

fn signed_in() -> SecurityRequirement {
    SecurityRequirement::new(SCHEME, Vec::<String>::new())
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
    fn a_token_comes_after_its_scheme_and_not_otherwise() {
        let sent = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
            bearer(&headers).map(str::to_owned)
        };
        for good in ["Bearer secret", "bearer secret", "BEARER  secret"] {
            assert_eq!(sent(good).as_deref(), Some("secret"), "{good:?}");
        }
        for bad in ["secret", "Bearer", "Basic secret", "Bearersecret"] {
            assert_eq!(sent(bad), None, "{bad:?}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn what_no_route_declares_is_let_through_to_nobody() {
        let table = crate::routes::all().table();
        let to = |path, method| access(&table, path, &method);
        assert_eq!(to("/api/v1/projects", Method::HEAD), Some(Access::Filtered(Role::Viewer)));
        assert_eq!(to("/api/v1/projects", Method::PATCH), None);
        assert_eq!(to("/api/v1/other", Method::GET), None);
    }
}
