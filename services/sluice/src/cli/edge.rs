//! `sluice edge upgrade`: another process takes over from the edge that runs.

use std::process::ExitCode;

use clap::Subcommand;
use edge::{Answer, UpgradeError, Upgraded};

use super::{
    Globals,
    exit::{Code, Failure},
    ui::Ui,
};
use crate::roles;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Replace the edge that runs on this machine by this binary, with no failed request
    ///
    /// The new process takes over the listening socket once it has the routes, has probed the containers and follows
    /// NATS. The old one serves what is open on it, websockets too, for at most EDGE_DRAIN (30s), and ends. If the new
    /// one does not come up, the old one serves on.
    Upgrade,
}

pub(crate) fn main(command: Command, globals: &Globals) -> ExitCode {
    let Command::Upgrade = command;
    super::run_to_end(globals, async |ui| upgrade(ui).await)
}

async fn upgrade(ui: &Ui) -> Result<Code, Failure> {
    let data = runtime::env::data_dir().map_err(|error| Failure::invalid(format!("{error:#}")))?;
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(Code::Failed, "no_program", format!("this binary cannot be found: {error}")))?;
    let progress = |answer: &Answer| match answer {
        Answer::Started { pid } => ui.note(format!("process {pid} has been started")),
        Answer::Ready => ui.note("it has the routes and has probed the containers"),
        Answer::Done(_) | Answer::Refused { .. } | Answer::Failed { .. } => {}
    };
    let upgraded = edge::upgrade(&roles::edge_control(&data), &program, progress).await?;
    if ui.json {
        ui.document(&upgraded)?
    } else {
        ui.line(sentence(&upgraded))?
    }
    Ok(Code::Ok)
}

fn sentence(Upgraded { old_pid, new_pid, connections, until }: &Upgraded) -> String {
    let rest = match connections {
        0 => "has nothing open and ends".to_owned(),
        1 => format!("serves the connection open on it until {} at the latest", until.format("%T UTC")),
        many => format!("serves the {many} connections open on it until {} at the latest", until.format("%T UTC")),
    };
    format!("process {new_pid} serves; process {old_pid} {rest}")
}

impl From<UpgradeError> for Failure {
    fn from(error: UpgradeError) -> Self {
        let message = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        match error {
            UpgradeError::NoEdge { .. } => Self::new(Code::Unreachable, "no_edge", message).hint(
                "start one with `sluice up` or `sluice edge`, or set DATA_DIR to the directory of the one that runs",
            ),
            UpgradeError::Refused(_) => {
                Self::new(Code::Refused, "refused", message).hint("try again when the other one is done")
            }
            UpgradeError::Failed(_) => Self::new(Code::Failed, "upgrade_failed", message)
                .hint("look at the edge's log (edge.log in DATA_DIR under `sluice up`), then try again"),
            UpgradeError::NoAnswer => Self::new(Code::Failed, "no_answer", message)
                .hint("edge.pid in DATA_DIR names the process that serves; look at the edge's log, then try again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_upgrade_says_why_and_that_the_old_edge_serves_on() {
        let failure = Failure::from(UpgradeError::Failed("it ended with exit status: 1".into()));
        assert_eq!(failure.exit, Code::Failed);
        assert!(failure.message.contains("serves on") && failure.message.contains("exit status: 1"));
        assert_eq!(Failure::from(UpgradeError::Refused("busy".into())).exit, Code::Refused);
    }
}
