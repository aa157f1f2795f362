//! Where a release goes.

use std::fmt;

use domain::{Key, Recorded, Slug, stage::Stage};

/// A stage of a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) project: Slug,
    pub(crate) stage: Slug,
}

impl Place {
    /// The stage that an event is about.
    pub(crate) fn of(recorded: &Recorded) -> Option<Self> {
        // Both were slugs when they were written.
        Some(Self { project: recorded.project()?.parse().ok()?, stage: recorded.stage()?.parse().ok()? })
    }

    pub(crate) fn key(&self) -> Key<Stage> {
        Key::stage(&self.project, &self.stage)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.stage)
    }
}
