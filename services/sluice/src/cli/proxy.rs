//! `sluice proxy ...`: reverse proxies of the user's own, in front of stages.

use clap::{Args, Subcommand, ValueEnum};
use domain::{
    Slug,
    proxy::{Drift, Driver, Guarantee, Mode, Settings, State},
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
    /// Declare a proxy, or change it; a stage lies behind it by `route: { host: ..., proxy: NAME }`
    Set(Set),
    /// The proxies that are declared
    List,
    /// One proxy
    Show { name: Slug },
    /// Keep user and password for a proxy's admin API; the password is asked for, or read from a pipe
    Login {
        name: Slug,
        #[arg(short, long)]
        username: String,
    },
    /// Forget a proxy that no stage lies behind
    Remove { name: Slug },
    /// What the proxy holds beside what it should
    Drift { name: Slug },
    /// Set right what somebody changed or the proxy lost
    Repair { name: Slug },
}

#[derive(Args)]
pub(crate) struct Set {
    name: Slug,
    #[arg(long)]
    driver: DriverName,
    /// Let every deployment change the proxy's upstreams, rather than pointing it at the edge once
    #[arg(long)]
    direct: bool,
    /// Its admin API, e.g. http://127.0.0.1:2019
    #[arg(long)]
    url: Option<String>,
    /// IP:PORT at which it takes plain HTTP requests: asked to confirm each switch
    #[arg(long)]
    address: Option<String>,
    /// HOST:PORT at which it reaches the edge; not with --direct
    #[arg(long)]
    edge: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DriverName {
    /// Nginx Proxy Manager
    Npm,
    Caddy,
    Traefik,
}

impl From<DriverName> for Driver {
    fn from(name: DriverName) -> Self {
        match name {
            DriverName::Npm => Self::Npm,
            DriverName::Caddy => Self::Caddy,
            DriverName::Traefik => Self::Traefik,
        }
    }
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::Set(Set { name, driver, direct, url, address, edge }) => {
            let mode = if direct { Mode::Direct } else { Mode::ViaEdge };
            let settings = Settings { driver: driver.into(), mode, url, address, edge };
            let answer = client.change(Method::PUT, &path(&name), Parts::body(json!(settings)), "/proxies").await?;
            ui.result(&answer, || format!("proxy {name}: {}", guarantee(&settings)))?;
            if settings.driver == Driver::Npm && settings.url.is_some() {
                ui.note(format!(
                    "`sluice proxy login {name} --username USER` keeps its password, if that is not done yet"
                ));
            }
        }
        Command::List => list(client, ui).await?,
        Command::Show { name } => show(&name, client, ui).await?,
        Command::Login { name, username } => {
            let password = prompt::password(&format!("password of {username} at {name}: ")).await?;
            let body = Parts::body(json!({ "username": username, "password": password }));
            let answer = client.change(Method::PUT, &format!("{}/credentials", path(&name)), body, "/proxies").await?;
            ui.result(&answer, || format!("the next change of {name} is made as {username}"))?;
        }
        Command::Remove { name } => {
            let answer = client.change(Method::DELETE, &path(&name), Parts::default(), "/proxies").await?;
            ui.result(&answer, || format!("proxy {name} is forgotten; it was left as it is"))?;
        }
        Command::Drift { name } => {
            let drifts = client.get(&format!("{}/drift", path(&name)), &[]).await?;
            return compared(drifts, ui);
        }
        Command::Repair { name } => {
            let drifts = client.send(Method::POST, &format!("{}/repair", path(&name)), Parts::default()).await?;
            return compared(drifts, ui);
        }
    }
    Ok(Code::Ok)
}

fn path(name: &Slug) -> String {
    format!("/proxies/{name}")
}

/// What a switch costs the clients, in words for whoever is about to make one.
fn guarantee(settings: &Settings) -> &'static str {
    match (settings.guarantee(), settings.mode) {
        (Guarantee::Lossless, Mode::ViaEdge) => "lossless: the edge switches, and the proxy is not touched",
        (Guarantee::Lossless, Mode::Direct) => "lossless: the proxy switches without closing a connection",
        (Guarantee::Reloading, _) => {
            "reloading: a switch may reset connections that are kept alive just as they are used"
        }
    }
}

async fn known(client: &Client) -> Result<(serde_json::Value, Vec<client::Proxy>), Failure> {
    let answer = client.get("/proxies", &[]).await?;
    Ok((answer.clone(), client::read(answer)?))
}

/// What leads requests to a stage, and what a switch costs them.
pub(super) async fn in_front_of(stage: &client::Stage, client: &Client) -> Result<Option<String>, Failure> {
    let Some(route) = &stage.settings.route else { return Ok(None) };
    let Some(name) = &route.proxy else { return Ok(Some("lossless: the edge switches".into())) };
    let proxy = known(client).await?.1.into_iter().find(|proxy| proxy.name == name.as_str());
    Ok(Some(match proxy {
        Some(proxy) => format!("{} (behind the proxy {name})", guarantee(&proxy.settings)),
        None => format!("the proxy {name} is not declared: `sluice proxy set {name}` declares it"),
    }))
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let (answer, proxies) = known(client).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(());
    }
    if proxies.is_empty() {
        ui.note("no proxies: requests come straight to the edge; `sluice proxy set NAME --driver ...` declares one");
        return Ok(());
    }
    let now = runtime::clock::now();
    let rows = proxies.into_iter().map(|proxy| {
        let client::Proxy { name, settings, username, changed_by, changed_at } = proxy;
        let guarantee = guarantee(&settings).split(':').next().unwrap_or_default().to_owned();
        let (driver, mode) = (word(&settings.driver), word(&settings.mode));
        let leads = settings.edge.or(settings.url).unwrap_or_default();
        [name, driver, mode, guarantee, leads, username.unwrap_or_default(), changed_by, ui::ago(now, changed_at)]
    });
    ui.table(["PROXY", "DRIVER", "MODE", "SWITCHES", "EDGE OR API", "USER", "SET BY", "CHANGED"], rows.collect())?;
    Ok(())
}

/// A name as it is declared.
fn word(of: &impl serde::Serialize) -> String {
    json!(of).as_str().unwrap_or_default().to_owned()
}

async fn show(name: &Slug, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let (answer, _) = known(client).await?;
    let proxies = answer.as_array().into_iter().flatten();
    let Some(found) = proxies.into_iter().find(|proxy| proxy["name"] == name.as_str()).cloned() else {
        return Err(Failure::new(Code::NotFound, "proxy_not_found", format!("no proxy {name} is declared"))
            .hint("`sluice proxy list` shows those that are"));
    };
    if ui.json {
        ui.document(&found)?;
        return Ok(());
    }
    let client::Proxy { settings, username, .. } = client::read(found)?;
    let line = |field: &str, value: Option<String>| [field.to_owned(), value.unwrap_or_else(|| "-".into())];
    let rows = vec![
        line("driver", Some(word(&settings.driver))),
        line("mode", Some(word(&settings.mode))),
        line("switches", Some(guarantee(&settings).to_owned())),
        line("admin API", settings.url),
        line("signs in as", username),
        line("probed at", settings.address),
        line("leads to the edge at", settings.edge),
    ];
    ui.table(["PROXY", name.as_str()], rows)?;
    Ok(())
}

/// Fails where something differs and was not set right, for scripts.
fn compared(answer: serde_json::Value, ui: &Ui) -> Result<Code, Failure> {
    let drifts: Vec<Drift> = client::read(answer.clone())?;
    let open = drifts.iter().any(|drift| drift.state != State::AsDeclared && !drift.repaired);
    if ui.json {
        ui.document(&answer)?;
    } else if drifts.is_empty() {
        ui.note("no stage that is deployed lies behind it");
    } else {
        let rows = drifts.into_iter().map(|drift| {
            let state = match (drift.state, drift.repaired) {
                (State::AsDeclared, _) => "as it should be".to_owned(),
                (State::Missing, false) => "missing".to_owned(),
                (State::Changed, false) => "changed".to_owned(),
                (State::Missing, true) => "was missing, put back".to_owned(),
                (State::Changed, true) => "was changed, set right".to_owned(),
            };
            [
                format!("{}{}", drift.host, drift.path),
                drift.upstreams.join(", "),
                state,
                drift.found.unwrap_or_default(),
            ]
        });
        ui.table(["ROUTE", "SHOULD LEAD TO", "IS", "FOUND"], rows.collect())?;
    }
    Ok(if open { Code::Failed } else { Code::Ok })
}
