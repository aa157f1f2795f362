//! `sluice user ...`.

use clap::{Args, Subcommand};
use domain::{Grant, UserId};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    exit::{Code, Failure},
    token::GrantArgs,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Everybody, and how they stand
    List,
    /// Let somebody in: prints, this once, what they choose their password by
    Create(Create),
    /// Change what somebody may do
    Grant {
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        grant: GrantArgs,
    },
    /// Lock somebody out, at once: their sessions and personal tokens are over
    Disable(Who),
    /// Let somebody in again
    Enable(Who),
    /// Make it impossible, for good, to learn who somebody was
    Erase(Who),
    /// A new setup link; the one before is good for nothing
    SetupLink(Who),
}

#[derive(Args)]
pub(crate) struct Create {
    /// What they sign in with
    name: String,
    #[command(flatten)]
    grant: GrantArgs,
    /// What others see
    #[arg(long)]
    display_name: Option<String>,
    #[arg(long)]
    email: Option<String>,
}

#[derive(Args)]
pub(crate) struct Who {
    /// Name or id
    user: String,
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::List => list(client, ui).await?,
        Command::Create(Create { name, grant, display_name, email }) => {
            let grant = Grant::from(grant);
            let body = json!({ "name": name, "display_name": display_name, "email": email, "grant": grant });
            let answer = client.change(Method::POST, "/users", Parts::body(body), "/users").await?;
            link(&answer, &format!("{name} was let in"), ui)?;
        }
        Command::Grant { who, grant } => {
            let grant = Grant::from(grant);
            let sentence = format!("{} is {grant} now", who.user);
            act(client, ui, &who, (Method::PUT, "grant"), Parts::body(json!(grant)), &sentence).await?;
        }
        Command::Disable(who) => {
            let sentence = format!("{} is locked out", who.user);
            act(client, ui, &who, (Method::POST, "disable"), Parts::default(), &sentence).await?;
        }
        Command::Enable(who) => {
            let sentence = format!("{} may sign in again", who.user);
            act(client, ui, &who, (Method::POST, "enable"), Parts::default(), &sentence).await?;
        }
        Command::Erase(who) => {
            let sentence = format!("nobody can tell any more who {} was", who.user);
            act(client, ui, &who, (Method::POST, "erase"), Parts::default(), &sentence).await?;
        }
        Command::SetupLink(who) => {
            let path = format!("/users/{}/setup", find(client, &who).await?);
            let answer = client.change(Method::POST, &path, Parts::default(), "/users").await?;
            link(&answer, &format!("a new link for {}", who.user), ui)?;
        }
    }
    Ok(Code::Ok)
}

async fn act(
    client: &Client,
    ui: &Ui,
    who: &Who,
    (method, what): (Method, &str),
    parts: Parts<'_>,
    sentence: &str,
) -> Result<(), Failure> {
    let path = format!("/users/{}/{what}", find(client, who).await?);
    let answer = client.change(method, &path, parts, "/users").await?;
    ui.result(&answer, || sentence.to_owned())?;
    Ok(())
}

/// Names are not in addresses: what people are called stays out of logs.
async fn find(client: &Client, who: &Who) -> Result<UserId, Failure> {
    if let Ok(id) = who.user.parse() {
        return Ok(id);
    }
    let users: Vec<client::User> = client::read(client.get("/users", &[]).await?)?;
    let named = |user: &client::User| user.name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(&who.user));
    users.iter().find(|user| named(user)).map(|user| user.id).ok_or_else(|| {
        Failure::new(Code::NotFound, "user_not_found", format!("nobody is called {}", ui::clean(&who.user)))
            .hint("`sluice user list` shows everybody")
    })
}

fn link(answer: &Value, sentence: &str, ui: &Ui) -> Result<(), Failure> {
    let setup = &answer["setup"];
    let Some(token) = setup["token"].as_str() else {
        return Err(Failure::new(Code::Failed, "link_lost", "it was done, but the setup link got lost on the way")
            .hint("`sluice user setup-link` makes another"));
    };
    ui.result(answer, || setup["url"].as_str().unwrap_or(token).to_owned())?;
    ui.note(format!("{sentence}: it is good once, for an hour, and is not shown again"));
    Ok(())
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let answer = client.get("/users", &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(());
    }
    let users: Vec<client::User> = client::read(answer)?;
    let rows = users.into_iter().map(|user| {
        let name = user.name.map_or_else(|| "erased user".to_owned(), |name| ui::clean(&name));
        let shown = user.display_name.map_or_else(|| "-".to_owned(), |name| ui::clean(&name));
        let seen = user.signed_in_at.map_or_else(|| "never".to_owned(), ui::date);
        [name, shown, user.grant.to_string(), user.standing, seen, user.id.to_string()]
    });
    ui.table(["NAME", "SHOWN AS", "GRANT", "STANDING", "SIGNED IN", "USER-ID"], rows.collect())?;
    Ok(())
}
