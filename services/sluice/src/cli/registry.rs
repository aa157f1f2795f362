//! `sluice registry ...`: passwords come from a terminal or a pipe, never from the command line,
//! which every user of the machine can read.

use clap::{Args, Subcommand};
use domain::{Span, image, registry::RegistrySettings};
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
    /// Keep a user name and password for a registry; the password is asked for, or read from a pipe
    Login(Login),
    /// Forget the password for a registry
    Logout {
        #[arg(value_parser = host)]
        host: String,
    },
    /// Say how a registry is reached and how often it is asked; what is left out is as by default
    Set(Set),
    /// Forget everything that is declared for a registry
    Remove {
        #[arg(value_parser = host)]
        host: String,
    },
    /// Registries that something is declared for
    List,
}

#[derive(Args)]
pub(crate) struct Set {
    /// Host and port, as the images of stages name it
    #[arg(value_parser = host)]
    host: String,
    /// Where its API is, where that is not at https://HOST; another one ends the password
    #[arg(long)]
    url: Option<String>,
    /// Who signs in; another name ends the password
    #[arg(short, long)]
    username: Option<String>,
    /// Time between two looks for new images, 0s for never
    #[arg(long, default_value_t = RegistrySettings::default().poll)]
    poll: Span,
}

#[derive(Args)]
pub(crate) struct Login {
    /// Host and port, e.g. registry.example.com or 127.0.0.1:5000
    #[arg(value_parser = host)]
    host: String,
    #[arg(short, long)]
    username: String,
}

fn host(text: &str) -> Result<String, String> {
    if image::valid_host(text) {
        Ok(text.to_owned())
    } else {
        Err("give host and port alone, such as registry.example.com or 127.0.0.1:5000".to_owned())
    }
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::Login(Login { host, username }) => {
            let password = prompt::password(&format!("password of {username} at {host}: ")).await?;
            let body = json!({ "username": username, "password": password });
            let answer = client.change(Method::PUT, &path(&host), Parts::body(body), "/registries").await?;
            ui.result(&answer, || format!("signed in to {host} as {username}: the next pull uses it"))?;
        }
        Command::Logout { host } => {
            let answer = client.change(Method::DELETE, &path(&host), Parts::default(), "/registries").await?;
            ui.result(&answer, || format!("signed out of {host}"))?;
        }
        Command::Set(Set { host, url, username, poll }) => {
            let settings = RegistrySettings { url, username, poll };
            let parts = Parts::body(json!(settings));
            let answer = client.change(Method::PUT, &format!("/registries/{host}"), parts, "/registries").await?;
            ui.result(&answer, || format!("{host} is declared"))?;
        }
        Command::Remove { host } => {
            let path = format!("/registries/{host}");
            let answer = client.change(Method::DELETE, &path, Parts::default(), "/registries").await?;
            ui.result(&answer, || format!("nothing is declared for {host} any more"))?;
        }
        Command::List => list(client, ui).await?,
    }
    Ok(Code::Ok)
}

fn path(host: &str) -> String {
    format!("/registries/{host}/credentials")
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let answer = client.get("/registries", &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(());
    }
    let registries: Vec<client::Registry> = client::read(answer)?;
    if registries.is_empty() {
        ui.note("no registry is declared: each is asked as by default, and `sluice registry login` keeps a password");
        return Ok(());
    }
    let now = runtime::clock::now();
    let rows = registries.into_iter().map(|registry| {
        let settings = registry.settings.unwrap_or_default();
        let user = match (settings.username, registry.signed_in) {
            (Some(user), true) => user,
            (Some(user), false) => format!("{user}, no password"),
            (None, _) => "-".to_owned(),
        };
        let pace = if settings.poll.is_zero() { "never".to_owned() } else { format!("each {}", settings.poll) };
        let last = registry.last_poll.as_ref().map_or_else(|| "-".to_owned(), |poll| ui::ago(now, poll.at));
        let problem = registry.last_poll.and_then(|poll| poll.problem).unwrap_or_else(|| "-".to_owned());
        [registry.host, user, pace, last, problem]
    });
    ui.table(["REGISTRY", "USER", "ASKED", "LAST", "PROBLEM"], rows.collect())?;
    Ok(())
}
