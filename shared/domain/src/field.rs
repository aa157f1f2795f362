//! What is told of a field that was refused.

use serde::Serialize;
use utoipa::ToSchema;

/// A field that was refused, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// e.g. `stages.dev.health.path`.
    pub field: String,
    pub problem: String,
}

impl FieldError {
    /// The same error in a larger document, where its part stands at `path`.
    #[must_use]
    pub fn under(self, path: &str) -> Self {
        Self { field: format!("{path}.{}", self.field), problem: self.problem }
    }
}
