//! `sluice secret ...`: values come from a terminal or a pipe, never from the command line, which every user of the
//! machine can read.

use clap::{Args, Subcommand};
use domain::{Slug, env::is_secret_name};
use reqwest::Method;
use serde_json::json;

use super::{
    exit::{Code, Failure},
    people::People,
    prompt,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts, Project};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Set a secret of a project; its value is asked for, or read from a pipe
    Set(Secret),
    /// Names and versions; never values
    List { project: Slug },
    /// Forget a secret that nothing declared refers to
    Remove(Secret),
}

#[derive(Args)]
pub(crate) struct Secret {
    project: Slug,
    #[arg(value_parser = name)]
    name: String,
}

fn name(text: &str) -> Result<String, String> {
    if is_secret_name(text) { Ok(text.to_owned()) } else { Err("use 1 to 60 letters, digits, _ and -".to_owned()) }
}

impl Secret {
    fn path(&self) -> String {
        format!("/projects/{}/secrets/{}", self.project, self.name)
    }
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::Set(secret) => {
            let Secret { project, name } = &secret;
            let value = prompt::secret(&format!("value of {name}: ")).await?;
            let parts = Parts::body(json!({ "value": value }));
            let answer = client.change(Method::PUT, &secret.path(), parts, &format!("/projects/{project}")).await?;
            ui.result(&answer, || {
                format!("secret {name} of {project} is set: what is deployed from now on runs with it")
            })?;
            ui.note(format!("`sluice redeploy {project} STAGE` gives it to what runs already"));
        }
        Command::List { project } => list(&project, client, ui).await?,
        Command::Remove(secret) => {
            let Secret { project, name } = &secret;
            let effect = format!("/projects/{project}");
            let answer = client.change(Method::DELETE, &secret.path(), Parts::default(), &effect).await?;
            ui.result(&answer, || format!("secret {name} of {project} is forgotten"))?;
        }
    }
    Ok(Code::Ok)
}

async fn list(project: &Slug, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let answer = client.get(&format!("/projects/{project}"), &[]).await?;
    if ui.json {
        ui.document(&answer["secrets"])?;
        return Ok(());
    }
    let project: Project = client::read(People::new(client).named(answer).await)?;
    if project.secrets.is_empty() {
        ui.note(format!("no secrets yet: `sluice secret set {} NAME` sets one", project.slug));
        return Ok(());
    }
    let rows = project
        .secrets
        .into_iter()
        .map(|(name, secret)| [name, secret.version.to_string(), ui::date(secret.set_at), secret.set_by]);
    ui.table(["SECRET", "VERSION", "SET", "BY"], rows.collect())?;
    Ok(())
}
