//! `sluice token ...`.

use clap::{Args, Subcommand, ValueEnum};
use domain::{Slug, TokenId};
use reqwest::Method;
use serde_json::json;

use super::{
    exit::{Code, Failure},
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
    #[arg(long)]
    role: Role,
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
        Command::Create(Create { name, role }) => {
            let body = json!({ "name": name, "role": domain::Role::from(role) });
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
    let tokens: Vec<client::Token> = client::read(answer)?;
    if tokens.is_empty() {
        ui.note("no tokens yet: `sluice token create NAME --role operator` makes one");
        return Ok(());
    }
    let rows = tokens
        .into_iter()
        .map(|t| [t.name, t.role.to_string(), ui::date(t.created_at), t.created_by, t.id.to_string()]);
    ui.table(["NAME", "ROLE", "CREATED", "BY", "TOKEN-ID"], rows.collect())?;
    Ok(())
}
