//! `sluice health`.

use super::{
    exit::{Code, Failure},
    ui::Ui,
};
use crate::client::{self, Client, Health, Part};

pub(super) async fn run(client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.health().await?;
    let health: Health = client::read(answer.clone())?;
    if ui.json {
        ui.document(&answer)?;
    } else {
        ui.line(format!("sluice {}: {}", health.version, health.status))?;
        let parts = [
            ("postgres", &health.postgres),
            ("nats", &health.nats),
            ("docker", &health.docker),
            ("projector", &health.projector),
            ("watcher", &health.watcher),
        ];
        ui.table(["PART", "STATE", ""], parts.map(row).to_vec())?;
    }
    Ok(if health.status == "ok" { Code::Ok } else { Code::Failed })
}

fn row((name, part): (&str, &Part)) -> [String; 3] {
    let detail = match (&part.error, &part.version, part.lag, part.watchers) {
        (Some(error), _, _, _) => error.clone(),
        (None, Some(version), _, _) => version.clone(),
        (None, None, Some(lag), _) => format!("{lag} events behind"),
        (None, None, None, Some(watchers)) => format!("{watchers} running"),
        (None, None, None, None) => String::new(),
    };
    [name.to_owned(), if part.ok { "ok" } else { "away" }.to_owned(), detail]
}
