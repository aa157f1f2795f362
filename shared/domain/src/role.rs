//! What a person or a program may do.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads everything.
    Viewer,
    /// Deploys, promotes, approves, rolls back, locks.
    Operator,
    /// Declares projects, keeps credentials, goes past gates.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}
