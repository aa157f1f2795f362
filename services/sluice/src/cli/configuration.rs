//! `sluice export` and `sluice apply`: everything that is declared, as one file.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;
use domain::configuration::{Action, Change, Configuration, Kind, Named};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    declaration::{self, Source},
    exit::{Code, Failure},
    prompt,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts};

/// The largest file; the API's own limit.
const LIMIT: u64 = 16 << 20;

#[derive(Args)]
pub(crate) struct Export {
    /// Write to this file, in place of what it holds, instead of standard output
    #[arg(short, long)]
    output: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Apply {
    /// What `sluice export` writes; `-` reads standard input
    #[arg(short, long)]
    file: PathBuf,
    /// Remove what the file leaves out: projects and stages are archived, registries forgotten
    #[arg(long)]
    prune: bool,
    /// Only show what would change (exit code 8 where something would)
    #[arg(long, conflicts_with = "yes")]
    plan: bool,
    /// Do not ask; without a terminal nobody is asked
    #[arg(short, long)]
    yes: bool,
}

/// As the API plans it.
#[derive(Debug, Deserialize)]
pub(super) struct Planned {
    pub(super) changes: Vec<Change>,
    left_alone: Vec<Named>,
    secrets_missing: Vec<MissingSecret>,
    #[serde(default)]
    passwords_missing: Vec<String>,
    #[serde(default)]
    hooks_without_secret: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct MissingSecret {
    project: String,
    secret: String,
}

#[derive(Debug, Deserialize)]
struct Applied {
    sequence: u64,
    events: usize,
}

pub(super) async fn export(args: Export, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.get("/configuration", &[]).await?;
    let configuration: Configuration = client::read(answer)?;
    let text = if ui.json {
        let written = serde_json::to_string_pretty(&configuration);
        written.map_err(|error| unwritten("JSON", error))? + "\n"
    } else {
        yaml(&configuration)?
    };
    match args.output {
        None => ui.raw(&text)?,
        Some(path) => {
            write(&path, &text).map_err(|error| {
                let message = format!("{} cannot be written: {error}", path.display());
                Failure::new(Code::Failed, "output", message).hint("give a file in a directory that you may write to")
            })?;
            let (projects, stages) = (configuration.projects.len(), configuration.stages().count());
            ui.note(format!("wrote {}: {projects} projects with {stages} stages", path.display()));
        }
    }
    Ok(Code::Ok)
}

/// In one step, so that a file that is there is whole at any moment.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside = directory.map_or_else(|| PathBuf::from(&name), |directory| directory.join(&name));
    let mut file = std::fs::File::create(&beside)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.and_then(|()| std::fs::rename(&beside, path)).inspect_err(|_| {
        std::fs::remove_file(&beside).ok();
    })
}

fn yaml(configuration: &impl Serialize) -> Result<String, Failure> {
    serde_saphyr::to_string(configuration).map_err(|error| unwritten("YAML", error))
}

fn unwritten(form: &str, error: impl std::error::Error) -> Failure {
    Failure::new(Code::Failed, "form", format!("the configuration cannot be written as {form}: {error}"))
}

/// A file, to be asked about.
pub(super) struct Asked {
    source: Source,
    wanted: Configuration,
    prune: bool,
}

impl Asked {
    async fn send(&self, client: &Client, method: Method, path: &str) -> Result<Value, Failure> {
        let query = [("prune", self.prune.to_string())];
        let parts = Parts { query: &query, body: Some(json!(self.wanted)), ..Parts::default() };
        client.send(method, path, parts).await.map_err(|error| self.source.refused(error))
    }
}

/// What applying the file at `path` would change, as the API says it.
pub(super) async fn plan(path: &Path, prune: bool, client: &Client) -> Result<(Value, Asked), Failure> {
    let source = declaration::read(path, LIMIT)?;
    let wanted = source.read()?;
    let asked = Asked { source, wanted, prune };
    Ok((asked.send(client, Method::POST, "/configuration/plan").await?, asked))
}

pub(super) async fn apply(args: Apply, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let (answer, asked) = plan(&args.file, args.prune, client).await?;
    let planned: Planned = client::read(answer.clone())?;
    if args.plan {
        if ui.json {
            ui.document(&answer)?
        } else {
            show(&planned, ui)?
        }
        return Ok(if planned.changes.is_empty() { Code::Ok } else { Code::Differs });
    }
    if !ui.json {
        show(&planned, ui)?;
        if !planned.changes.is_empty() && !args.yes && !prompt::agreed("Make these changes?").await? {
            return Err(Failure::new(Code::Interrupted, "interrupted", "nothing was changed"));
        }
    }
    if planned.changes.is_empty() && !ui.json {
        return Ok(Code::Ok);
    }
    let answer = asked.send(client, Method::PUT, "/configuration").await?;
    let applied: Applied = client::read(answer.clone())?;
    // What the next command reads, it shall see.
    client.get("/configuration", &[("at_least", applied.sequence.to_string())]).await.ok();
    ui.result(&answer, || format!("applied: {} events", applied.events))?;
    Ok(Code::Ok)
}

/// One line for each thing that changes, and under it one for each of its fields.
pub(super) fn show(planned: &Planned, ui: &Ui) -> Result<(), Failure> {
    for Change { action, kind, name, fields } in &planned.changes {
        let sign = match action {
            Action::Create => '+',
            Action::Change => '~',
            Action::Remove => '-',
        };
        ui.line(format!("{sign} {} {name}", word(*kind)))?;
        fields.iter().try_for_each(|field| ui.line(format!("    {}", ui::change(field))))?;
    }
    let count = |wanted: Action| planned.changes.iter().filter(|change| change.action == wanted).count();
    if planned.changes.is_empty() {
        ui.line("everything is as the file says")?;
    } else {
        let [create, change, remove] = [Action::Create, Action::Change, Action::Remove].map(count);
        ui.line(format!("{create} to create, {change} to change, {remove} to remove"))?;
    }
    let archived = |change: &&Change| (change.action, change.kind) == (Action::Remove, Kind::Project);
    for Change { name, .. } in planned.changes.iter().filter(archived) {
        ui.note(format!("project {name} is archived: what runs on its stages is removed, its name is not free again"));
    }
    for Named { kind, name } in &planned.left_alone {
        ui.note(format!("{} {name} is not in the file and stays as it is: `--prune` removes it", word(*kind)));
    }
    for MissingSecret { project, secret } in &planned.secrets_missing {
        ui.note(format!("the secret `{secret}` has no value yet: `sluice secret set {project} {secret}`"));
    }
    for host in &planned.passwords_missing {
        ui.note(format!("no password is kept for {host} yet: `sluice registry login {host} --username USER`"));
    }
    for hook in &planned.hooks_without_secret {
        ui.note(format!("hook {hook} takes nothing before it has a secret: `sluice hook secret {hook}`"));
    }
    Ok(())
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Registry => "registry",
        Kind::Hook => "hook",
        Kind::Proxy => "proxy",
        Kind::Project => "project",
        Kind::Stage => "stage",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_as_yaml_reads_back_whatever_it_holds() {
        for text in [
            "",
            " ",
            "yes",
            "null",
            "~",
            "1",
            "1e3",
            "0x10",
            "012",
            "1_000",
            "2026-01-01",
            "a: b",
            "- a",
            "#x",
            "a #b",
            "{a}",
            "[a",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a`",
            "'",
            "\"",
            "\\n",
            "a\nb",
            "a\n",
            "\n",
            "a\n\n",
            "  a\n b",
            "\ta",
            "a ",
            "\u{fc}\u{1f600}",
            "\u{85}",
            "\u{2028}",
            "\u{feff}",
            "=",
            "<<",
            "...",
            "---",
            "? a",
            "|",
            ">",
            "12:30:45",
            ".inf",
            "NaN",
            "true",
            "Off",
            "a\r\nb",
            "\u{7}",
        ] {
            let document = json!({"projects": {"on": {"name": text, "env": {"NO": text}, "stages": {
                "y": {"env": {"A": text, "B": {"secret": "1"}}, "resources": {"cpus": 0.5, "memory": "64MiB"}},
            }}}});
            let configuration: Configuration = serde_json::from_value(document).expect("a configuration");
            let written = yaml(&configuration).expect("YAML");
            let back: Configuration = serde_saphyr::from_str(&written)
                .unwrap_or_else(|error| panic!("{text:?} cannot be read back: {error}\n{written}"));
            assert_eq!(back, configuration, "{text:?}:\n{written}");
            assert_eq!(yaml(&back).expect("YAML"), written);
        }
    }
}
