//! `sluice registry ...`: passwords come from a terminal or a pipe, never from the command line,
//! which every user of the machine can read.

use clap::{Args, Subcommand};
use domain::image;
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
    /// Registries that a password is kept for
    List,
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
        ui.note("no passwords are kept: `sluice registry login HOST --username USER` adds one");
        return Ok(());
    }
    let now = runtime::clock::now();
    let rows = registries
        .into_iter()
        .map(|r| [r.host, r.username.unwrap_or_default(), r.changed_by, ui::ago(now, r.changed_at)])
        .collect();
    ui.table(["REGISTRY", "USER", "SET BY", "CHANGED"], rows)?;
    Ok(())
}
