//! The description of the API, made from the code.

use std::sync::LazyLock;

use axum::response::IntoResponse;
use http::header;
use utoipa::{
    OpenApi,
    openapi::{
        self,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use crate::{auth::SCHEME, problem::Problem};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluice",
        description = "Deployments to Docker, as events.\n\n\
            Mutations answer 202 with the `sequence` of their last event and take an `Idempotency-Key`; reads take \
            `at_least=<sequence>`. Errors are problem details (RFC 9457) with a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(Problem))
)]
struct Outline;

/// What stands in the document besides the routes.
fn outline() -> openapi::OpenApi {
    let mut document = Outline::openapi();
    let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_default().add_security_scheme(SCHEME, scheme);
    document
}

/// The whole document as JSON.
pub(crate) fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        let document = super::all().document(outline());
        // It is made of strings and maps alone, which always have a JSON form.
        document.to_pretty_json().unwrap_or_default()
    });
    &DOCUMENT
}

/// This document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "meta",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value))
)]
pub(crate) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document())
}
