//! How a command ends: the exit codes that scripts may trust, and failures in words for people.

use std::io;

use serde::Serialize;

use crate::client;

/// Shown at the end of `--help`; one line per [`Code`].
pub(crate) const HELP: &str = "\
Exit codes:
    0  done; a followed deployment succeeded
    1  it failed: a followed deployment ended as failed, or something broke
    2  the command line or the input is wrong, nothing was changed
    3  no such project, stage, deployment or registry
    4  refused by the state of things: locked, already ended, taken by another
    5  Sluice or a part it needs cannot be reached, or the token is not accepted
    6  a followed deployment was rolled back
    7  a followed deployment was cancelled or superseded
    8  there are differences: `apply --plan` or `diff` found some
  130  interrupted; a followed deployment goes on
  141  the reader of the output went away

Environment:
  API_URL    where Sluice answers; by default what `sluice up` wrote down, else http://127.0.0.1:7070
  API_TOKEN  the token to come with; by default the one that `sluice login` keeps
  DATA_DIR   where `sluice up` keeps its state";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    Failed = 1,
    Invalid = 2,
    NotFound = 3,
    Refused = 4,
    Unreachable = 5,
    RolledBack = 6,
    Cancelled = 7,
    Differs = 8,
    Interrupted = 130,
    Pipe = 141,
}

/// Why a command could not be carried out, and what to do next.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    #[serde(skip)]
    pub(crate) exit: Code,
    /// Stable, for scripts that read `--json`.
    pub(crate) code: Box<str>,
    pub(crate) message: String,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) errors: Vec<client::FieldProblem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// For the operator's search in the logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Code, code: &str, message: impl Into<String>) -> Self {
        Self { exit, code: code.into(), message: message.into(), errors: vec![], hint: None, request_id: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, "invalid_input", message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Only writing to standard output fails with a bare io error; anything else says what it was about.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Code::Pipe, "broken_pipe", "the reader of the output went away");
        }
        Self::new(Code::Failed, "output", format!("cannot write the output: {error}"))
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let message = error.to_string();
        match error {
            client::Error::Address { .. } => Self::invalid(message),
            client::Error::NotSignedIn { .. } => Self::new(Code::Unreachable, "not_signed_in", message)
                .hint("sign in with `sluice login NAME`; a program sets API_TOKEN"),
            client::Error::Unreachable { .. } => Self::new(Code::Unreachable, "unreachable", message)
                .hint("start it with `sluice up`, or set API_URL to where it answers"),
            client::Error::Unreadable { .. } | client::Error::Misunderstood(_) => {
                Self::new(Code::Failed, "unreadable_answer", message)
                    .hint("check with `sluice health` that API_URL leads to a Sluice of this version")
            }
            client::Error::Refused(problem) => problem.into(),
        }
    }
}

impl From<Box<client::Problem>> for Failure {
    fn from(problem: Box<client::Problem>) -> Self {
        let exit = match problem.status {
            400 | 405 | 411 | 413 | 414 | 415 | 422 | 431 => Code::Invalid,
            401 | 502 | 503 | 504 => Code::Unreachable,
            403 | 409 | 412 | 423 | 429 => Code::Refused,
            404 | 410 => Code::NotFound,
            _ => Code::Failed,
        };
        // What the API advises is meant for programs that speak to it; here a person types commands.
        let hint = match problem.code.as_str() {
            "unauthorized" => {
                Some("sign in with `sluice login NAME`; a program sets API_TOKEN to a token of this installation")
            }
            "timed_out" | "log_unavailable" => {
                Some("it may have been carried out: look at `sluice status`, and at `sluice health` for what is away")
            }
            "not_yet_visible" | "database_unavailable" | "stream_stopped" => {
                Some("try again; `sluice health` says which part is away")
            }
            "internal" => Some("look for the request id in Sluice's own log"),
            _ => problem.hint.as_deref(),
        };
        let hint = hint.map(str::to_owned);
        Self {
            exit,
            code: problem.code.into(),
            message: if problem.detail.is_empty() { problem.title } else { problem.detail },
            errors: problem.errors,
            hint,
            request_id: problem.request_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_of(status: u16) -> Code {
        let problem = client::Problem { status, ..client::Problem::default() };
        Failure::from(Box::new(problem)).exit
    }

    #[test]
    fn a_script_can_tell_bad_input_absence_refusal_and_outage_apart() {
        let exits = [422, 404, 409, 423, 401, 503, 500].map(exit_of);
        let wanted = [
            Code::Invalid,
            Code::NotFound,
            Code::Refused,
            Code::Refused,
            Code::Unreachable,
            Code::Unreachable,
            Code::Failed,
        ];
        assert_eq!(exits, wanted);
    }

    #[test]
    fn the_help_names_every_code() {
        let codes = [
            Code::Ok,
            Code::Failed,
            Code::Invalid,
            Code::NotFound,
            Code::Refused,
            Code::Unreachable,
            Code::RolledBack,
            Code::Cancelled,
            Code::Differs,
            Code::Interrupted,
            Code::Pipe,
        ];
        for code in codes {
            assert!(HELP.lines().any(|line| line.trim_start().starts_with(&format!("{} ", code as u8))), "{code:?}");
        }
    }
}
