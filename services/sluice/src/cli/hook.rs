//! `sluice hook ...`.

use clap::{Args, Subcommand, ValueEnum};
use domain::{
    Slug,
    hook::{self, HookSettings},
};
use reqwest::Method;
use serde_json::json;

use super::{
    exit::{Code, Failure},
    prompt,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a webhook, or change it; a new one's address and secret are printed
    Set(Set),
    /// Give a webhook another secret: one that is made here and printed, or with --stdin your own
    Secret(Secret),
    /// The webhooks
    List,
    /// Remove a webhook
    Remove { name: Slug },
}

#[derive(Args)]
pub(crate) struct Set {
    /// Part of the address that is sent to
    name: Slug,
    /// Who sends
    #[arg(long)]
    source: Source,
    /// Host of the registry that it tells of, as the images of stages name it; dockerhub and github know their own
    #[arg(long)]
    registry: Option<String>,
    /// With --source plain: the stage that it deploys to, as PROJECT/STAGE
    #[arg(long, value_name = "PROJECT/STAGE", value_parser = stage)]
    stage: Option<(Slug, Slug)>,
}

#[derive(Args)]
pub(crate) struct Secret {
    name: Slug,
    /// Ask for the secret, or read it from a pipe
    #[arg(long)]
    stdin: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Source {
    /// Notifications of the CNCF registry
    Distribution,
    Dockerhub,
    Github,
    /// Gitea and Forgejo
    Gitea,
    Harbor,
    /// A program that says what to deploy
    Plain,
}

impl From<Source> for hook::Source {
    fn from(source: Source) -> Self {
        match source {
            Source::Distribution => Self::Distribution,
            Source::Dockerhub => Self::Dockerhub,
            Source::Github => Self::Github,
            Source::Gitea => Self::Gitea,
            Source::Harbor => Self::Harbor,
            Source::Plain => Self::Plain,
        }
    }
}

fn stage(text: &str) -> Result<(Slug, Slug), String> {
    let (project, stage) = text.split_once('/').ok_or("give it as PROJECT/STAGE, such as shop/dev")?;
    let slug = |text: &str| text.parse::<Slug>().map_err(|error| error.to_string());
    Ok((slug(project)?, slug(stage)?))
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::Set(args) => set(args, client, ui).await?,
        Command::Secret(Secret { name, stdin }) => {
            let given = if stdin { Some(prompt::secret(&format!("secret of {name}: ")).await?) } else { None };
            secret(&name, given, client, ui).await?;
        }
        Command::List => list(client, ui).await?,
        Command::Remove { name } => {
            let answer = client.change(Method::DELETE, &path(&name), Parts::default(), "/hooks").await?;
            ui.result(&answer, || format!("hook {name} is removed"))?;
        }
    }
    Ok(Code::Ok)
}

fn path(name: &Slug) -> String {
    format!("/hooks/{name}")
}

async fn set(Set { name, source, registry, stage }: Set, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let (project, stage) = stage.unzip();
    let settings = HookSettings { source: source.into(), registry, project, stage };
    let answer = client.change(Method::PUT, &path(&name), Parts::body(json!(settings)), "/hooks").await?;
    let known: Vec<client::Hook> = client::read(client.get("/hooks", &client::seen(&answer)).await?)?;
    if known.iter().any(|hook| hook.name == name.as_str() && hook.has_secret) {
        ui.result(&answer, || format!("hook {name} is changed; its secret stays"))?;
        return Ok(());
    }
    ui.note(format!("{name} takes what is sent to /hooks/{}/{name}", hook::Source::from(source).name()));
    secret(&name, None, client, ui).await
}

async fn secret(name: &Slug, given: Option<String>, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let own = given.is_some();
    let parts = given.map_or_else(Parts::default, |secret| Parts::body(json!({ "secret": secret })));
    let answer = client.change(Method::PUT, &format!("{}/secret", path(name)), parts, "/hooks").await?;
    match answer["secret"].as_str().map(str::to_owned) {
        Some(secret) => {
            ui.result(&answer, || secret)?;
            ui.note("this is its secret; it is not shown again");
        }
        None if own => ui.result(&answer, || format!("hook {name} has its new secret"))?,
        None => {
            let lost = "the secret was made, but its text got lost on the way";
            return Err(Failure::new(Code::Failed, "secret_lost", lost)
                .hint(format!("`sluice hook secret {name}` makes another")));
        }
    }
    Ok(())
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let answer = client.get("/hooks", &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(());
    }
    let hooks: Vec<client::Hook> = client::read(answer)?;
    if hooks.is_empty() {
        ui.note("no webhooks yet: `sluice hook set NAME --source github` makes one");
        return Ok(());
    }
    let now = runtime::clock::now();
    let rows = hooks.into_iter().filter_map(|hook| {
        let settings = hook.settings?;
        let about = match (&settings.project, &settings.stage) {
            (Some(project), Some(stage)) => format!("{project}/{stage}"),
            (Some(_), None) | (None, _) => settings.registry().unwrap_or_default().to_owned(),
        };
        let address = format!("/hooks/{}/{}", settings.source.name(), hook.name);
        let secret = if hook.has_secret { "set" } else { "none: it takes nothing" };
        Some([hook.name, about, address, secret.to_owned(), ui::ago(now, hook.changed_at)])
    });
    ui.table(["HOOK", "ABOUT", "ADDRESS", "SECRET", "CHANGED"], rows.collect())?;
    Ok(())
}
