//! `sluice token ...`.

use chrono::TimeDelta;
use clap::{Args, Subcommand, ValueEnum};
use domain::{Grant, Slug, TokenId};
use reqwest::Method;
use serde_json::json;

use super::{
    exit::{Code, Failure},
    people::People,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a token for a program or a person; it is printed this once
    Create(Create),
    /// The tokens that are good for something
    List,
    /// Make a token useless, at once
    Revoke {
        #[arg(value_name = "TOKEN-ID")]
        id: TokenId,
    },
}

#[derive(Args)]
pub(crate) struct Create {
    /// Who holds it: the actor of everything that is done with it
    name: Slug,
    #[command(flatten)]
    grant: GrantArgs,
    /// How long it is good, such as 90d or 12h
    #[arg(long, value_parser = ahead)]
    expires: Option<TimeDelta>,
    /// Your own: it acts in your name, and ends when you are disabled or change your password
    #[arg(long)]
    personal: bool,
}

/// What somebody may do.
#[derive(Args)]
pub(crate) struct GrantArgs {
    #[arg(long)]
    role: Role,
    /// Only on this project; may be given again
    #[arg(long = "project", value_name = "PROJECT")]
    projects: Vec<Slug>,
}

impl From<GrantArgs> for Grant {
    fn from(GrantArgs { role, projects }: GrantArgs) -> Self {
        let projects = (!projects.is_empty()).then(|| projects.into_iter().collect());
        Self { role: role.into(), projects }
    }
}

/// A time from now on: days, hours or minutes.
fn ahead(text: &str) -> Result<TimeDelta, String> {
    let bad = || format!("`{text}` is not a time: write a whole number and a unit, such as 90d, 12h or 30m");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    let number: i64 = number.parse().map_err(|_| bad())?;
    let span = match unit {
        "d" => TimeDelta::try_days(number),
        "h" => TimeDelta::try_hours(number),
        "m" => TimeDelta::try_minutes(number),
        _ => None,
    };
    span.filter(|span| *span > TimeDelta::zero()).ok_or_else(bad)
}

/// Each includes the ones before it.
#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Viewer,
    Operator,
    Admin,
}

impl From<Role> for domain::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::Create(Create { name, grant, expires, personal }) => {
            let Grant { role, projects } = grant.into();
            let expires_at = expires.map(|expires| runtime::clock::now() + expires);
            let body = json!({
                "name": name, "role": role, "projects": projects, "personal": personal, "expires_at": expires_at,
            });
            let answer = client.change(Method::POST, "/tokens", Parts::body(body), "/tokens").await?;
            let Some(token) = answer["token"].as_str() else {
                return Err(Failure::new(
                    Code::Failed,
                    "token_lost",
                    "the token was made, but its text got lost on the way",
                )
                .hint("`sluice token list` shows it: revoke it and make another"));
            };
            ui.result(&answer, || token.to_owned())?;
            ui.note(format!("{name} signs in with it as API_TOKEN; it is not shown again"));
        }
        Command::List => list(client, ui).await?,
        Command::Revoke { id } => {
            let answer = client.change(Method::DELETE, &format!("/tokens/{id}"), Parts::default(), "/tokens").await?;
            ui.result(&answer, || format!("token {id} is revoked"))?;
        }
    }
    Ok(Code::Ok)
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let answer = client.get("/tokens", &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(());
    }
    let mut people = People::new(client);
    let tokens: Vec<client::Token> = client::read(people.named(answer).await)?;
    if tokens.is_empty() {
        ui.note("no tokens yet: `sluice token create NAME --role operator` makes one");
        return Ok(());
    }
    let mut rows = Vec::new();
    for t in tokens {
        let grant = Grant { role: t.role, projects: t.projects }.to_string();
        let owner = match t.owner {
            Some(owner) => people.name(owner).await,
            None => "-".to_owned(),
        };
        let end = t.expires_at.map_or_else(|| "never".to_owned(), ui::date);
        let used = t.last_used_at.map_or_else(|| "never".to_owned(), ui::date);
        rows.push([t.name, grant, owner, end, used, ui::date(t.created_at), t.created_by, t.id.to_string()]);
    }
    ui.table(["NAME", "GRANT", "OWNER", "EXPIRES", "USED", "CREATED", "BY", "TOKEN-ID"], rows)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_ahead_is_a_number_and_a_unit() {
        assert_eq!(ahead("90d"), Ok(TimeDelta::days(90)));
        assert_eq!(ahead("12h"), Ok(TimeDelta::hours(12)));
        for bad in ["", "d", "90", "0d", "-1d", "1w", "9999999999999999d", "ä"] {
            assert!(ahead(bad).is_err(), "{bad:?} passed");
        }
    }
}
