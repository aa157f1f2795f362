//! Every address of the API. One file per resource: its types, its description, its handlers.

mod auth;
mod codes;
mod configuration;
mod deployments;
mod drift;
mod events;
mod health;
mod hooks;
mod locks;
mod logs;
mod openapi;
mod projects;
mod promotions;
mod proxies;
mod registries;
mod secrets;
mod sessions;
mod sso;
mod stages;
mod tokens;
mod users;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use domain::{
    DeploymentId,
    Role::{Admin, Operator, Viewer},
    Slug,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

pub(crate) use openapi::document;

use crate::{
    auth::{
        Access::{Filtered, InProject, Needs, Public, Signed},
        Routes,
    },
    problem::Error,
};

/// All routes, each with what it asks of its caller.
pub(crate) fn all() -> Routes {
    Routes::new()
        .add(Public, routes!(health::health))
        .add(Filtered(Viewer), routes!(openapi::openapi))
        .add(Needs(Viewer), routes!(configuration::export))
        .add(Needs(Admin), routes!(configuration::plan))
        .add(Needs(Admin), routes!(configuration::apply))
        .add(Filtered(Viewer), routes!(projects::list))
        .add(InProject(Viewer), routes!(projects::get))
        .add(InProject(Admin), routes!(projects::apply))
        .add(InProject(Admin), routes!(projects::archive))
        .add(Filtered(Viewer), routes!(stages::overview))
        .add(InProject(Viewer), routes!(stages::list))
        .add(InProject(Viewer), routes!(stages::get))
        .add(InProject(Viewer), routes!(drift::get))
        .add(InProject(Admin), routes!(stages::apply))
        .add(InProject(Admin), routes!(stages::archive))
        .add(InProject(Viewer), routes!(stages::policy))
        .add(InProject(Operator), routes!(deployments::request))
        .add(InProject(Viewer), routes!(deployments::of_stage))
        .add(Filtered(Viewer), routes!(deployments::list))
        .add(InProject(Viewer), routes!(deployments::get))
        .add(InProject(Operator), routes!(deployments::cancel))
        .add(InProject(Admin), routes!(deployments::hotfix))
        .add(InProject(Operator), routes!(deployments::roll_back))
        .add(InProject(Operator), routes!(deployments::redeploy))
        .add(InProject(Viewer), routes!(promotions::preview))
        .add(InProject(Operator), routes!(promotions::request))
        .add(Filtered(Viewer), routes!(promotions::list))
        .add(InProject(Viewer), routes!(promotions::get))
        .add(InProject(Operator), routes!(promotions::approve))
        .add(InProject(Operator), routes!(promotions::withdraw))
        .add(InProject(Viewer), routes!(promotions::verify))
        .add(InProject(Viewer), routes!(logs::read))
        .add(InProject(Operator), routes!(locks::lock))
        .add(InProject(Operator), routes!(locks::unlock))
        .add(InProject(Operator), routes!(locks::hold))
        .add(InProject(Operator), routes!(locks::lift_hold))
        .add(Filtered(Viewer), routes!(events::list))
        .add(Filtered(Viewer), routes!(events::stream))
        .add(Needs(Viewer), routes!(registries::list))
        .add(Needs(Admin), routes!(registries::configure))
        .add(Needs(Admin), routes!(registries::remove))
        .add(Needs(Admin), routes!(registries::set_credentials))
        .add(Needs(Admin), routes!(registries::remove_credentials))
        .add(Needs(Viewer), routes!(hooks::list))
        .add(Needs(Admin), routes!(hooks::apply))
        .add(Needs(Admin), routes!(hooks::set_secret))
        .add(Needs(Admin), routes!(hooks::remove))
        .add_outside(Signed, routes!(crate::hooks::receive))
        .add(Needs(Viewer), routes!(proxies::list))
        .add(Needs(Admin), routes!(proxies::set))
        .add(Needs(Admin), routes!(proxies::sign_in))
        .add(Needs(Admin), routes!(proxies::remove))
        .add(Needs(Operator), routes!(proxies::drift))
        .add(Needs(Admin), routes!(proxies::repair))
        .add(InProject(Admin), routes!(secrets::set))
        .add(InProject(Admin), routes!(secrets::remove))
        .add(Filtered(Viewer), routes!(tokens::list))
        .add(Filtered(Viewer), routes!(tokens::create))
        .add(Filtered(Viewer), routes!(tokens::revoke))
        .add(Public, routes!(auth::login))
        .add(Public, routes!(auth::set_up))
        .add(Public, routes!(auth::token))
        .add(Public, routes!(codes::redeem))
        .add(Filtered(Viewer), routes!(codes::show))
        .add(Public, routes!(sso::methods))
        .add_outside(Public, routes!(sso::start))
        .add_outside(Public, routes!(sso::callback))
        .add(Needs(Admin), routes!(sso::get))
        .add(Needs(Admin), routes!(sso::configure))
        .add(Needs(Admin), routes!(sso::remove))
        .add(Needs(Admin), routes!(sso::set_secret))
        .add(Needs(Admin), routes!(sso::remove_secret))
        .add(Needs(Admin), routes!(sso::test))
        .add(Filtered(Viewer), routes!(auth::logout))
        .add(Filtered(Viewer), routes!(auth::me))
        .add(Filtered(Viewer), routes!(auth::password))
        .add(Filtered(Viewer), routes!(users::people))
        .add(Needs(Admin), routes!(users::list))
        .add(Needs(Admin), routes!(users::create))
        .add(Needs(Admin), routes!(users::get))
        .add(Needs(Admin), routes!(users::grant))
        .add(Needs(Admin), routes!(users::disable))
        .add(Needs(Admin), routes!(users::enable))
        .add(Needs(Admin), routes!(users::erase))
        .add(Needs(Admin), routes!(users::set_up))
        .add(Filtered(Viewer), routes!(sessions::list))
        .add(Filtered(Viewer), routes!(sessions::end))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct ProjectPath {
    /// Slug of the project.
    #[param(value_type = String, example = "shop")]
    project: Slug,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct StagePath {
    /// Slug of the project.
    #[param(value_type = String, example = "shop")]
    project: Slug,
    /// Slug of the stage.
    #[param(value_type = String, example = "dev")]
    stage: Slug,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct DeploymentPath {
    /// Id of the deployment.
    #[param(value_type = uuid::Uuid)]
    id: DeploymentId,
}

/// A query that only asks for one's own writes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AtLeast {
    /// Wait until what a mutation answered as `sequence` can be read.
    at_least: Option<u64>,
}

/// A mutation without parameters in its query.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NoQuery {}

/// The header that every mutation takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what `Asked` reads")]
struct IdempotencyKey {
    /// Makes a repetition safe: the same key from the same caller on the same address is carried
    /// out once and answered alike.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
}

/// A mutation was accepted.
#[derive(Debug, Serialize, ToSchema)]
struct Accepted {
    /// Position of its last event: `?at_least=<sequence>` reads what it wrote.
    sequence: u64,
}

const DEFAULT_PAGE: u16 = 50;
const LARGEST_PAGE: u16 = 500;

fn page_size(limit: Option<u16>) -> Result<u16, Error> {
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    if (1..=LARGEST_PAGE).contains(&limit) {
        Ok(limit)
    } else {
        Err(Error::invalid("limit", format!("must be from 1 to {LARGEST_PAGE}")))
    }
}

/// The body with status 202.
struct Taken<T>(T);

impl<T: Serialize> IntoResponse for Taken<T> {
    fn into_response(self) -> Response {
        (StatusCode::ACCEPTED, Json(self.0)).into_response()
    }
}
