//! What somebody may do, and where.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{FieldError, Role, Slug};

/// A role, everywhere or on some projects only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub role: Role,
    /// The projects that the role is good for, 1 to 100 of them; left out, it is good for the whole installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["shop"]))]
    pub projects: Option<BTreeSet<Slug>>,
}

/// More are the sign of a role that is meant for everything.
const MOST_PROJECTS: usize = 100;

impl Grant {
    /// On the whole installation.
    pub const fn everywhere(role: Role) -> Self {
        Self { role, projects: None }
    }

    /// Whether it is good for what needs `role` on `project`; without a project, for what concerns all of them.
    pub fn covers(&self, role: Role, project: Option<&Slug>) -> bool {
        self.role >= role && self.reaches(project)
    }

    /// Whether `project` lies in it; without a project, whether everything does.
    pub fn reaches(&self, project: Option<&Slug>) -> bool {
        match (&self.projects, project) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(projects), Some(project)) => projects.contains(project),
        }
    }

    /// What both allow.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let projects = match (&self.projects, &other.projects) {
            (None, None) => None,
            (Some(projects), None) | (None, Some(projects)) => Some(projects.clone()),
            (Some(one), Some(other)) => Some(one & other),
        };
        Self { role: self.role.min(other.role), projects }
    }

    /// Whether `other` allows everything that this one does.
    pub fn within(&self, other: &Self) -> bool {
        self.and(other) == *self
    }

    /// An administrator can let others in, so there must always be one.
    pub fn administers(&self) -> bool {
        self.covers(Role::Admin, None)
    }

    /// Everything that is wrong with it.
    pub fn check(&self) -> Vec<FieldError> {
        let good = self.projects.as_ref().is_none_or(|projects| (1..=MOST_PROJECTS).contains(&projects.len()));
        let problem = || FieldError {
            field: "projects".into(),
            problem: format!("must name 1 to {MOST_PROJECTS} projects; leave it out for all of them"),
        };
        (!good).then(problem).into_iter().collect()
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.role.fmt(f)?;
        let Some(projects) = &self.projects else { return Ok(()) };
        let names: Vec<_> = projects.iter().map(Slug::as_str).collect();
        write!(f, " of {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slug() -> impl Strategy<Value = Slug> {
        prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(|name| name.parse().expect("a good name"))
    }

    fn role() -> impl Strategy<Value = Role> {
        prop_oneof![Just(Role::Viewer), Just(Role::Operator), Just(Role::Admin)]
    }

    fn grant() -> impl Strategy<Value = Grant> {
        let projects = proptest::option::of(proptest::collection::btree_set(slug(), 0..3));
        (role(), projects).prop_map(|(role, projects)| Grant { role, projects })
    }

    proptest! {
        #[test]
        fn two_grants_together_allow_what_each_allows(
            one in grant(), other in grant(), role in role(), project in proptest::option::of(slug()),
        ) {
            let project = project.as_ref();
            let both = one.and(&other);
            prop_assert_eq!(both.covers(role, project), one.covers(role, project) && other.covers(role, project));
            prop_assert_eq!(&both, &other.and(&one));
            prop_assert!(both.within(&one) && both.within(&other) && one.within(&one));
        }
    }

    #[test]
    fn a_narrowed_administrator_is_none() {
        let shop = Grant { role: Role::Admin, projects: Some(["shop".parse().expect("a good name")].into()) };
        assert!(!shop.administers() && Grant::everywhere(Role::Admin).administers());
        assert!(shop.covers(Role::Admin, Some(&"shop".parse().expect("a good name"))));
        assert!(!shop.covers(Role::Viewer, None) && !shop.covers(Role::Viewer, Some(&"other".parse().expect("good"))));
    }

    #[test]
    fn a_grant_of_nothing_is_refused() {
        let nothing = Grant { role: Role::Viewer, projects: Some(BTreeSet::new()) };
        assert_eq!(nothing.check()[0].field, "projects");
        assert_eq!(Grant::everywhere(Role::Viewer).check(), []);
    }
}
