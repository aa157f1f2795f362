//! `sluice session ...`.

use clap::Subcommand;
use domain::SessionId;
use reqwest::Method;

use super::{
    exit::{Code, Failure},
    people::People,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Open sessions: an administrator sees all of them, everybody else their own
    List,
    /// End a session, at once
    End {
        #[arg(value_name = "SESSION-ID")]
        id: SessionId,
    },
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::List => list(client, ui).await?,
        Command::End { id } => {
            let path = format!("/sessions/{id}");
            let answer = client.change(Method::DELETE, &path, Parts::default(), "/sessions").await?;
            ui.result(&answer, || format!("session {id} has ended"))?;
        }
    }
    Ok(Code::Ok)
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let answer = client.get("/sessions", &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(());
    }
    let sessions: Vec<client::Session> = client::read(answer)?;
    let (mut people, mut rows) = (People::new(client), Vec::new());
    for session in sessions {
        let (opened, ends) = (ui::date(session.opened_at), ui::date(session.expires_at));
        rows.push([people.name(session.user_id).await, session.method, opened, ends, session.id.to_string()]);
    }
    ui.table(["USER", "BY", "OPENED", "ENDS", "SESSION-ID"], rows)?;
    Ok(())
}
