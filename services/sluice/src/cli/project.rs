//! `sluice project ...`

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, Subcommand};
use domain::{
    Slug,
    difference::{Difference, differences},
};
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    declaration,
    exit::{Code, Failure},
    ui::{self, Ui},
};
use crate::client::{self, Accepted, Client, Parts, Project};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a project, or change it to what a file declares; stages it leaves out stay as they are
    Apply(Apply),
    /// All projects
    List,
    /// A project as a file for `apply`, defaults filled in
    Show { project: Slug },
    /// End a project: what runs on its stages is removed, its name is not free again
    Archive { project: Slug },
}

#[derive(Args)]
pub(crate) struct Apply {
    /// The declaration; `-` reads standard input
    #[arg(short, long, default_value = "sluice.yaml")]
    file: PathBuf,
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::Apply(Apply { file }) => apply(&declaration::read(&file, declaration::LIMIT)?, client, ui).await,
        Command::List => list(client, ui).await,
        Command::Show { project } => show(&project, client, ui).await,
        Command::Archive { project } => archive(&project, client, ui).await,
    }
}

async fn apply(source: &declaration::Source, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let document = source.parse()?;
    let path = format!("/projects/{}", document.project);
    let before: Option<Project> = client.find(&path, &[]).await?.map(client::read).transpose()?;
    let body = json!(document.declaration());
    let sent = client.send(Method::PUT, &path, Parts::body(body)).await;
    let answer = sent.map_err(|error| source.refused(error))?;
    let accepted: Accepted = client::read(answer.clone())?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(Code::Ok);
    }
    let project: Project = client::read(client.get(&path, &accepted.seen()).await?)?;
    let (what, changes) = match &before {
        None => ("created", project.stages.keys().map(|stage| format!("+ stage {stage}")).collect()),
        Some(before) => ("changed", changes(before, &project)),
    };
    if before.is_some() && changes.is_empty() {
        ui.line(format!("project {}: nothing to change", document.project))?;
    } else {
        ui.line(format!("project {}: {what}", document.project))?;
        changes.iter().try_for_each(|change| ui.line(format!("  {change}")))?;
    }
    for stage in project.stages.keys().filter(|stage| !document.stages.keys().any(|slug| slug.as_str() == *stage)) {
        ui.note(format!(
            "stage {stage} is not in the file and stays as it is: `sluice stage archive {} {stage}` ends it",
            document.project
        ));
    }
    Ok(Code::Ok)
}

/// What is another than before, by its path; a new stage is one line.
fn changes(before: &Project, after: &Project) -> Vec<String> {
    let mut lines = Vec::new();
    if before.name != after.name {
        lines.push(format!("~ name: {} -> {}", before.name, after.name));
    }
    if before.auto_promote != after.auto_promote {
        lines.push(format!("~ auto_promote: {} -> {}", before.auto_promote, after.auto_promote));
    }
    lines.extend(fields("env", &json!(before.env), &json!(after.env)));
    for (stage, settings) in &after.stages {
        let Some(earlier) = before.stages.get(stage) else {
            lines.push(format!("+ stage {stage}"));
            continue;
        };
        lines.extend(fields(&format!("stages.{stage}"), earlier, settings));
    }
    lines
}

fn fields(path: &str, before: &Value, after: &Value) -> Vec<String> {
    let under = |Difference { field, from, to }| Difference { field: format!("{path}.{field}"), from, to };
    differences(before, after).into_iter().map(|difference| ui::change(&under(difference))).collect()
}

async fn list(client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.get("/projects", &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(Code::Ok);
    }
    let projects: Vec<Project> = client::read(answer)?;
    if projects.is_empty() {
        ui.note("no projects yet: create one with `sluice project apply -f sluice.yaml`");
        return Ok(Code::Ok);
    }
    let now = runtime::clock::now();
    let rows = projects
        .into_iter()
        .map(|project| {
            let stages = project.stages.into_keys().collect::<Vec<_>>().join(", ");
            [project.slug, project.name, stages, ui::ago(now, project.changed_at)]
        })
        .collect();
    ui.table(["PROJECT", "NAME", "STAGES", "CHANGED"], rows)?;
    Ok(Code::Ok)
}

/// As [`declaration::Document`] reads it, with the stages as the server has them: they may know more settings.
#[derive(Serialize)]
struct Shown<'a> {
    project: &'a str,
    name: &'a str,
    auto_promote: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: &'a BTreeMap<String, Value>,
    stages: &'a BTreeMap<String, Value>,
}

async fn show(project: &Slug, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.get(&format!("/projects/{project}"), &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(Code::Ok);
    }
    let Project { slug, name, auto_promote, env, stages, archived, .. } = client::read(answer)?;
    if archived {
        ui.note("this project is archived");
    }
    let shown = Shown { project: &slug, name: &name, auto_promote, env: &env, stages: &stages };
    let yaml = serde_saphyr::to_string(&shown)
        .map_err(|error| Failure::new(Code::Failed, "yaml", format!("cannot be shown as YAML: {error}")))?;
    ui.raw(&yaml)?;
    Ok(Code::Ok)
}

async fn archive(project: &Slug, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer =
        client.change(Method::POST, &format!("/projects/{project}/archive"), Parts::default(), "/projects").await?;
    ui.result(&answer, || format!("project {project} is archived; what runs on its stages is being removed"))?;
    Ok(Code::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(stages: Value) -> Project {
        let changed_at = chrono::DateTime::UNIX_EPOCH;
        let answer =
            json!({"slug": "shop", "name": "Shop", "archived": false, "changed_at": changed_at, "stages": stages});
        client::read(answer).expect("a project")
    }

    #[test]
    fn changes_are_shown_by_path_with_old_and_new() {
        let before = project(json!({"dev": {"replicas": 1, "resources": {}, "env": {"A": "x"}}}));
        let after =
            project(json!({"dev": {"replicas": 2, "route": {"host": "h", "path": "/"}}, "prod": {"replicas": 1}}));
        assert_eq!(changes(&before, &before), Vec::<String>::new());
        assert_eq!(
            changes(&before, &after),
            [
                "- stages.dev.env.A: x",
                "~ stages.dev.replicas: 1 -> 2",
                "+ stages.dev.route.host: h",
                "+ stages.dev.route.path: /",
                "+ stage prod"
            ]
        );
    }

    #[test]
    fn what_is_shown_can_be_applied() {
        let settings = json!(domain::settings::StageSettings::default());
        let Project { slug, name, auto_promote, mut env, stages, .. } = project(json!({"dev": settings}));
        env.insert("PASSWORD".into(), json!({"secret": "db"}));
        let shown = Shown { project: &slug, name: &name, auto_promote, env: &env, stages: &stages };
        let yaml = serde_saphyr::to_string(&shown).expect("YAML");
        let document: declaration::Document = serde_saphyr::from_str(&yaml).expect("a declaration");
        assert_eq!(document.stages.into_values().collect::<Vec<_>>(), [domain::settings::StageSettings::default()]);
    }
}
