//! What is declared, what was released and what runs, compared field by field.
//!
//! No difference ever holds the value of a secret: it is named, and said to be another.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::{
    DeploymentId, Slug,
    difference::{Difference, differences},
    env::{Env, EnvValue, SecretRef},
    project::{Project, Rejection},
    promotion::Gates,
    settings::StageSettings,
};

/// What the node found of a stage. In each difference `from` is what the release says, `to` is what is there.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Found {
    /// Of the set as a whole: `replicas`.
    pub differences: Vec<Difference>,
    pub containers: Vec<FoundContainer>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FoundContainer {
    pub name: String,
    #[schema(value_type = uuid::Uuid)]
    pub deployment: DeploymentId,
    /// From 1.
    pub replica: u16,
    pub running: bool,
    /// The hash of the specification that it was made from comes first, then `image`, `env.NAME`, `port`,
    /// `ports_published`, `networks` and `resources`. Nothing where it is as the release says.
    pub differences: Vec<Difference>,
}

impl Found {
    pub fn differs(&self) -> bool {
        !self.differences.is_empty() || self.containers.iter().any(|container| !container.differences.is_empty())
    }
}

/// What a release that runs with `released` would get if its stage was deployed again: `from` is what it runs with,
/// `to` is what is declared.
pub fn undeployed(released: &StageSettings, project: &Project, stage: &Slug) -> Result<Vec<Difference>, Rejection> {
    let declared = match project.release(stage) {
        // A deployment would be refused; what it lacks is told here as well.
        Err(Rejection::SecretsMissing(_)) => {
            let mut settings = project.stage(stage)?.clone();
            let mut env = project.env.clone();
            env.append(&mut settings.env);
            StageSettings { env, ..settings }
        }
        release => release?,
    };
    Ok(differences(&shown(released.clone()), &shown(declared)))
}

/// What of the settings a deployment carries out: the rest is looked at before one, in the project itself.
fn shown(settings: StageSettings) -> Value {
    let env: Env = settings.env.iter().map(|(name, value)| (name.clone(), EnvValue::Plain(spoken(value)))).collect();
    json!(StageSettings { env, image: None, policy: None, promote_from: None, gates: Gates::default(), ..settings })
}

/// A value of a variable as it may be shown.
pub fn spoken(value: &EnvValue) -> String {
    match value {
        EnvValue::Plain(text) => text.clone(),
        EnvValue::Secret(SecretRef { secret, version: Some(version), .. }) => format!("secret {secret}, {version}"),
        EnvValue::Secret(SecretRef { secret, version: None, .. }) => format!("secret {secret}, which has no value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Aggregate, project::Command};

    fn slug(text: &str) -> Slug {
        text.parse().expect("a good name")
    }

    fn project(commands: Vec<Command>) -> Project {
        commands.into_iter().fold(Project::default(), |mut project, command| {
            let events = project.decide(command).expect("accepted");
            events.iter().for_each(|event| project.evolve(event));
            project
        })
    }

    #[test]
    fn what_was_declared_since_the_release_is_told_and_gates_are_not() {
        let apply = |declaration: Value| Command::Apply {
            slug: slug("shop"),
            declaration: serde_json::from_value(declaration).expect("a declaration"),
            prune: false,
        };
        let secret = |vault: &str| Command::SetSecret { name: "db".into(), vault: vault.into() };
        let stages =
            |replicas: u16| json!({ "test": {}, "dev": { "replicas": replicas, "env": { "P": { "secret": "db" } } } });
        let mut commands = vec![apply(json!({ "stages": stages(1) })), secret("one")];
        let dev = slug("dev");
        let released = project(commands.clone()).release(&dev).expect("all is known");
        assert_eq!(undeployed(&released, &project(commands.clone()), &dev), Ok(vec![]));

        let mut later = stages(2);
        later["dev"]["promote_from"] = json!("test");
        later["dev"]["gates"] = json!({ "soak": "30m" });
        commands.extend([apply(json!({ "env": { "REGION": "eu" }, "stages": later })), secret("two")]);
        let told = undeployed(&released, &project(commands), &dev).expect("known");
        let told: Vec<_> = told.into_iter().map(|d| (d.field, json!([d.from, d.to]))).collect();
        assert_eq!(
            told,
            [
                ("env.P".to_owned(), json!(["secret db, 1", "secret db, 2"])),
                ("env.REGION".to_owned(), json!([null, "eu"])),
                ("replicas".to_owned(), json!([1, 2])),
            ]
        );
        let nothing = project(vec![apply(json!({ "stages": stages(1) }))]);
        let told = undeployed(&released, &nothing, &dev).expect("known");
        assert_eq!(told[0].to, Some(json!("secret db, which has no value")));
        assert_eq!(undeployed(&released, &nothing, &slug("none")), Err(Rejection::UnknownStage));
    }
}
