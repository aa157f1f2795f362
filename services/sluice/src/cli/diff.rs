//! `sluice diff`: the file, what is declared, what was released and what runs, compared.

use std::path::PathBuf;

use clap::Args;
use domain::{
    Slug,
    difference::Difference,
    drift::{Found, FoundContainer},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    configuration::{self, Planned},
    exit::{Code, Failure},
    ui::{self, Ui},
};
use crate::client::{self, Client};

#[derive(Args)]
pub(crate) struct Diff {
    /// Only this project
    project: Option<Slug>,
    /// Only this stage of it
    stage: Option<Slug>,
    /// Compare this file with what is declared as well; `-` reads standard input
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// With a file: what it leaves out is a difference as well
    #[arg(long, requires = "file")]
    prune: bool,
}

#[derive(Debug, Deserialize)]
struct Stage {
    project: Slug,
    stage: Slug,
}

#[derive(Debug, Deserialize)]
struct Drift {
    project: String,
    stage: String,
    deployment: Option<String>,
    on_its_way: Option<String>,
    differs: bool,
    undeployed: Vec<Difference>,
    running: Found,
}

impl Diff {
    fn names(&self, project: &str, stage: Option<&str>) -> bool {
        let one = |wanted: &Option<Slug>, name: &str| wanted.as_ref().is_none_or(|wanted| wanted.as_str() == name);
        one(&self.project, project) && stage.map_or(self.stage.is_none(), |stage| one(&self.stage, stage))
    }

    /// Whether what is called `shop`, `shop/prod` or `registry.example.com` was asked about.
    fn covers(&self, name: &str) -> bool {
        match name.split_once('/') {
            Some((project, stage)) => self.names(project, Some(stage)),
            None => self.names(name, None),
        }
    }
}

pub(super) async fn run(args: Diff, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let file = match &args.file {
        Some(path) => {
            let (mut answer, _) = configuration::plan(path, args.prune, client).await?;
            if let Some(changes) = answer["changes"].as_array_mut() {
                changes.retain(|change| change["name"].as_str().is_some_and(|name| args.covers(name)));
            }
            Some(answer)
        }
        None => None,
    };
    let planned: Option<Planned> = file.clone().map(client::read).transpose()?;
    let mut differs = planned.as_ref().is_some_and(|planned| !planned.changes.is_empty());
    let stages: Vec<Stage> = client::read(client.get("/stages", &[]).await?)?;
    let asked: Vec<Stage> =
        stages.into_iter().filter(|at| args.names(at.project.as_str(), Some(at.stage.as_str()))).collect();
    if asked.is_empty() && planned.is_none() {
        if args.project.is_some() {
            return Err(Failure::new(Code::NotFound, "stage_not_found", "there is no such stage")
                .hint("`sluice status` lists them"));
        }
        ui.note("no stages yet: `sluice apply -f FILE` or `sluice project apply -f sluice.yaml` declares some");
    }
    if let Some(planned) = &planned
        && !ui.json
    {
        ui.line("file and what is declared:")?;
        configuration::show(planned, ui)?;
    }
    let mut answers = Vec::new();
    for Stage { project, stage } in asked {
        let answer = client.get(&format!("/projects/{project}/stages/{stage}/drift"), &[]).await?;
        let drift: Drift = client::read(answer.clone())?;
        differs |= drift.differs;
        if ui.json {
            answers.push(answer);
        } else {
            show(&drift, ui)?;
        }
    }
    if ui.json {
        ui.document(&json!({ "differs": differs, "file": file, "stages": Value::Array(answers) }))?;
    }
    Ok(if differs { Code::Differs } else { Code::Ok })
}

/// One line for a stage where nothing differs; else a line for each difference, by what differs from what.
fn show(drift: &Drift, ui: &Ui) -> Result<(), Failure> {
    let Drift { project, stage, deployment, on_its_way, differs, undeployed, running } = drift;
    let state = match (deployment, differs) {
        (_, true) => "differs",
        (Some(_), false) => "runs as declared",
        (None, false) => "nothing is deployed",
    };
    ui.line(format!("{project}/{stage}: {state}"))?;
    if let Some(deployment) = on_its_way {
        ui.note(format!("  deployment {deployment} is on its way: look again when it has ended"));
    }
    let list = |title: &str, differences: &[Difference]| {
        if differences.is_empty() {
            return Ok(());
        }
        ui.line(format!("  {title}"))?;
        differences.iter().try_for_each(|difference| ui.line(format!("    {}", ui::change(difference))))
    };
    list("declared since it was deployed (`sluice redeploy` carries it out):", undeployed)?;
    list("its containers together:", &running.differences)?;
    for FoundContainer { name, running, differences, .. } in &running.containers {
        let stopped = if *running { "" } else { ", which does not run" };
        if !differences.is_empty() || !running {
            ui.line(format!("  container {name}{stopped}{}", if differences.is_empty() { "" } else { ":" }))?;
            differences.iter().try_for_each(|difference| ui.line(format!("    {}", ui::change(difference))))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_covered_by_what_was_asked() {
        let asked = |project: Option<&str>, stage: Option<&str>| {
            let slug = |text: &str| text.parse().expect("a good name");
            Diff { project: project.map(slug), stage: stage.map(slug), file: None, prune: false }
        };
        let names = ["shop", "shop/dev", "shop/prod", "blog", "blog/dev", "r.test:5000"];
        let covered = |diff: Diff| names.into_iter().filter(|name| diff.covers(name)).collect::<Vec<_>>();
        assert_eq!(covered(asked(None, None)), names);
        assert_eq!(covered(asked(Some("shop"), None)), ["shop", "shop/dev", "shop/prod"]);
        assert_eq!(covered(asked(Some("shop"), Some("dev"))), ["shop/dev"]);
    }
}
