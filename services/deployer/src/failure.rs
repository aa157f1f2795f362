//! Failures in words for the person who has to act: what happened, and what to do next.

use std::time::Duration;

use domain::stage::{Failure, Step};

use crate::docker::EngineError;

/// What went wrong in a step, before it is known which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable, for scripts.
    pub code: &'static str,
    pub message: String,
    pub hint: String,
    /// Last lines of the container's output.
    pub log: Vec<String>,
}

/// Why a step did not come to its end.
#[derive(Debug)]
pub enum StepError {
    /// Engine or event log is away: the step is run again until its deadline.
    Transient(Problem),
    Failed(Problem),
    /// Another worker has written what this one would overwrite.
    Fenced,
}

impl Problem {
    pub(crate) fn new(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into(), log: vec![] }
    }

    pub(crate) fn with_log(self, log: Vec<String>) -> Self {
        Self { log, ..self }
    }

    pub(crate) fn deadline(step: Step, limit: Duration, last: Option<&Problem>) -> Self {
        let seconds = limit.as_secs();
        let message = match last {
            Some(last) => format!("{step:?} was not done within {seconds}s; the last trouble was: {}", last.message),
            None => format!("{step:?} was not done within {seconds}s"),
        };
        let hint = last.map_or("look at the node's load and at `docker events`, then deploy again", |last| &last.hint);
        Self::new("deadline", message, hint)
    }

    pub(crate) fn at(self, step: Step) -> Failure {
        let Self { code, message, hint, log } = self;
        Failure { step, code: code.into(), message, hint, log }
    }
}

impl From<Problem> for StepError {
    fn from(problem: Problem) -> Self {
        Self::Failed(problem)
    }
}

impl From<EngineError> for StepError {
    fn from(error: EngineError) -> Self {
        if let EngineError::Fenced { .. } = error {
            return Self::Fenced;
        }
        let transient = error.is_transient();
        let problem = engine(&error);
        if transient { Self::Transient(problem) } else { Self::Failed(problem) }
    }
}

impl From<eventlog::Error> for StepError {
    fn from(error: eventlog::Error) -> Self {
        use eventlog::Error::{
            Ahead, BadKey, Closed, Decode, Encode, Gap, NobodyAnswers, Protocol, Refused, Unavailable, Vault,
            WrongRevision,
        };
        let message = chain(&error);
        match error {
            Unavailable { .. } | NobodyAnswers { .. } | Refused { .. } | WrongRevision { .. } | Closed => {
                Self::Transient(Problem::new("event_log", message, "check that NATS runs and has disk space left"))
            }
            Vault(_) => Self::Failed(Problem::new(
                "vault",
                message,
                "start the deployer with the master key that `sluice up` made",
            )),
            Protocol { .. } | Decode(_) | Encode(_) | Gap { .. } | Ahead { .. } | BadKey { .. } => {
                Self::Failed(Problem::new(
                    "event_log",
                    message,
                    "look at the deployer's log; upgrade sluice where the message says so",
                ))
            }
        }
    }
}

/// What an error of the event log means, whoever met it.
pub(crate) fn log(error: eventlog::Error) -> Problem {
    match StepError::from(error) {
        StepError::Transient(problem) | StepError::Failed(problem) => problem,
        StepError::Fenced => Problem::new("internal", "fenced", "try again"),
    }
}

/// Errors of the engine itself, whatever it was asked.
pub(crate) fn engine(error: &EngineError) -> Problem {
    let message = chain(error);
    match error {
        EngineError::Unavailable { .. } | EngineError::Deadline { .. } => Problem::new(
            "engine_unavailable",
            message,
            "check that Docker runs on the node (`docker info`) and that the deployer may use its socket",
        ),
        EngineError::Unsure { .. } | EngineError::Fenced { .. } => {
            Problem::new("event_log", message, "check that NATS runs and has disk space left")
        }
        EngineError::TooOld { .. } => {
            Problem::new("engine_too_old", message, "upgrade Docker on the node to 20.10 or later")
        }
        EngineError::Refused { message: said, .. } => {
            let said = said.to_ascii_lowercase();
            if let Some(problem) = no_space(&said, &message) {
                return problem;
            }
            if said.contains("address pool") {
                let hint = "remove networks that nobody uses (`docker network prune`), or widen the engine's `default-address-pools`";
                return Problem::new("no_network_left", message, hint);
            }
            Problem::new(
                "engine_refused",
                message,
                "the message is the engine's own; mend what it names and deploy again",
            )
        }
    }
}

/// Errors of a registry, as the engine passes them on. `reference` is what was asked for.
pub(crate) fn registry(error: &EngineError, reference: &str, registry: &str) -> Problem {
    let EngineError::Refused { message: said, .. } = error else { return engine(error) };
    let lower = said.to_ascii_lowercase();
    let has = |any: &[&str]| any.iter().any(|part| lower.contains(part));
    if let Some(problem) = no_space(&lower, &format!("pulling {reference}: {said}")) {
        return problem;
    }
    if has(&["no matching manifest", "does not match the specified platform", "cannot be used on this platform"]) {
        return Problem::new(
            "wrong_platform",
            format!("{reference} is not built for this node: {said}"),
            "build the image for the node's platform (`docker buildx build --platform ...`)",
        );
    }
    // Before "not found": Docker Hub answers both at once, and a name without credentials may be either.
    if has(&[
        "unauthorized",
        "no basic auth",
        "authentication required",
        "incorrect username or password",
        "forbidden",
        "denied:",
    ]) {
        let unknown_or_private = has(&["repository does not exist"]);
        let message = if unknown_or_private {
            format!("{registry} knows no public image {reference}")
        } else {
            format!("{registry} refused to give {reference}: {said}")
        };
        let hint = format!(
            "check the image's name, and sign in to the registry: `sluice registry login {registry} --username NAME`"
        );
        let code = if unknown_or_private { "image_not_found" } else { "registry_unauthorized" };
        return Problem::new(code, message, hint);
    }
    if has(&["manifest unknown", "name unknown", "not found", "name_unknown", "manifest_unknown"])
        && !has(&["no such host"])
    {
        return Problem::new(
            "image_not_found",
            format!("{registry} has no image {reference}"),
            "check repository and tag, and that the image was pushed",
        );
    }
    if has(&["toomanyrequests", "too many requests", "rate limit"]) {
        return Problem::new(
            "registry_rate_limited",
            format!("{registry} allows no more pulls for now: {said}"),
            format!("wait, or store credentials for {registry}"),
        );
    }
    if has(&[
        "connection refused",
        "no such host",
        "i/o timeout",
        "timeout",
        "deadline exceeded",
        "no route to host",
        "network is unreachable",
        "tls",
        "x509",
        "http response to https client",
        "connection reset",
        "eof",
        "temporary failure",
        "proxyconnect",
        "dial tcp",
    ]) {
        let plain = has(&["http response to https client"]);
        let hint = if plain {
            format!(
                "{registry} speaks plain HTTP: add it to the engine's `insecure-registries`, or give it a certificate"
            )
        } else {
            format!("check the name {registry} and that the node reaches it (`docker pull {reference}` on the node)")
        };
        return Problem::new("registry_unreachable", format!("{registry} cannot be reached: {said}"), hint);
    }
    Problem::new(
        "registry_error",
        format!("{registry} could not give {reference}: {said}"),
        format!("the message is the registry's own; `docker pull {reference}` on the node shows the same"),
    )
}

/// A registry that took a question and went silent. Not worth another try within the same step: it may take as long
/// again.
pub(crate) fn registry_silent(reference: &str, registry: &str, limit: Duration) -> Problem {
    Problem::new(
        "registry_unreachable",
        format!("{registry} has sent nothing of {reference} for {}s", limit.as_secs_f32()),
        format!(
            "check that registry and the way to it (`docker pull {reference}` on the node hangs too), then try again"
        ),
    )
}

/// A container that the engine could not bring to life. `said` is the engine's explanation.
pub(crate) fn start(name: &str, said: &str) -> Problem {
    let lower = said.to_ascii_lowercase();
    let has = |any: &[&str]| any.iter().any(|part| lower.contains(part));
    let message = format!("container {name} could not be started: {said}");
    if let Some(problem) = no_space(&lower, &message) {
        return problem;
    }
    if has(&["exec format error"]) {
        let hint = "its program is built for another processor: build the image for the node's platform";
        return Problem::new("wrong_platform", message, hint);
    }
    if has(&["executable file not found", "no such file or directory", "no command specified", "permission denied"]) {
        let hint =
            "the image's ENTRYPOINT or CMD cannot be run: check that the program is in the image, and executable";
        return Problem::new("bad_command", message, hint);
    }
    if has(&["cannot allocate memory", "minimum memory", "memory limit", "range of cpus"]) {
        return Problem::new("bad_resources", message, "change the stage's `resources`, or free some on the node");
    }
    Problem::new("start_failed", message, "the message is the engine's own; mend what it names and deploy again")
}

/// A container that ended by itself.
pub(crate) fn exited(name: &str, exit_code: i64, oom_killed: bool, when: &str) -> Problem {
    if oom_killed {
        return Problem::new(
            "oom_killed",
            format!("container {name} was killed {when}: it needed more memory than it may have"),
            "raise the stage's `resources.memory`, or let the program need less",
        );
    }
    Problem::new(
        "exited",
        format!("container {name} ended {when} with exit code {exit_code}"),
        "its last output is below; `sluice logs` has more",
    )
}

fn no_space(lower: &str, message: &str) -> Option<Problem> {
    (lower.contains("no space left on device") || lower.contains("disk quota exceeded")).then(|| {
        Problem::new(
            "no_space_left",
            message,
            "free disk space on the node (`docker system df` shows what takes it; `docker image prune` frees unused images)",
        )
    })
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // A transparent wrapper repeats its cause word by word.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(message: &str) -> EngineError {
        EngineError::Refused { operation: "pulling".into(), status: 500, message: message.into() }
    }

    fn code(message: &str) -> &'static str {
        registry(&refused(message), "r:5000/shop:v1", "r:5000").code
    }

    #[test]
    fn what_registries_say_is_told_apart() {
        for (said, expected) in [
            ("manifest for r:5000/shop:v1 not found: manifest unknown: manifest unknown", "image_not_found"),
            (
                "pull access denied for shop, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
                "image_not_found",
            ),
            ("Get \"http://r:5000/v2/shop/manifests/v1\": no basic auth credentials", "registry_unauthorized"),
            ("unauthorized: authentication required", "registry_unauthorized"),
            (
                "Get \"https://r:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused",
                "registry_unreachable",
            ),
            ("Get \"https://r:5000/v2/\": dial tcp: lookup r: no such host", "registry_unreachable"),
            ("Get \"https://r:5000/v2/\": http: server gave HTTP response to HTTPS client", "registry_unreachable"),
            ("Get \"https://r:5000/v2/\": x509: certificate signed by unknown authority", "registry_unreachable"),
            ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", "no_space_left"),
            (
                "failed to register layer: Error processing tar file(exit status 1): write /app: no space left on device",
                "no_space_left",
            ),
            ("no matching manifest for linux/amd64 in the manifest list entries", "wrong_platform"),
            ("toomanyrequests: You have reached your pull rate limit", "registry_rate_limited"),
            ("received unexpected HTTP status: 500 Internal Server Error", "registry_error"),
        ] {
            assert_eq!(code(said), expected, "{said}");
        }
    }

    #[test]
    fn what_keeps_a_container_from_starting_is_told_apart() {
        for (said, expected) in [
            ("OCI runtime create failed: exec: \"/app\": stat /app: no such file or directory: unknown", "bad_command"),
            ("No command specified", "bad_command"),
            ("standard_init_linux.go:228: exec user process caused: exec format error", "wrong_platform"),
            ("mkdir /var/lib/docker/overlay2/x: no space left on device", "no_space_left"),
            ("Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", "bad_resources"),
            ("something new", "start_failed"),
        ] {
            assert_eq!(start("shop-dev-1", said).code, expected, "{said}");
        }
    }

    #[test]
    fn only_an_engine_that_is_away_is_worth_another_try() {
        assert!(matches!(StepError::from(refused("conflict")), StepError::Failed(_)));
        let away = EngineError::Deadline { operation: "x".into(), limit: Duration::from_secs(1) };
        assert!(matches!(StepError::from(away), StepError::Transient(problem) if problem.code == "engine_unavailable"));
    }

    #[test]
    fn every_problem_says_what_to_do() {
        let problem = Problem::deadline(Step::Pull, Duration::from_secs(600), Some(&engine(&refused("boom"))));
        assert!(problem.message.contains("600s") && problem.message.contains("boom"), "{problem:?}");
        assert!(!problem.hint.is_empty());
        assert_eq!(exited("a", 137, true, "at once").code, "oom_killed");
    }
}
