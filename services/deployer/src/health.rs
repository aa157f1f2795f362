//! Whether containers are fit to take traffic.

use std::time::{Duration, Instant};

use domain::{
    settings::{Check, HealthCheck},
    stage::Spec,
};
use futures::future::try_join_all;
use tokio::net::TcpStream;

use crate::{
    docker::{Container, EngineError, LocalImage},
    failure::{self, Problem, StepError},
    job::Job,
    logs,
};

/// The first pause between probes: most programs are up in a moment, and a deployment waits for them.
const QUICKEST: Duration = Duration::from_millis(50);

/// How much later than its clients a busy engine may notice the end of a program.
const LAST_GASP: Duration = Duration::from_secs(3);

/// How health is found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probe {
    Http {
        path: String,
        status: Option<u16>,
    },
    /// What the image's HEALTHCHECK runs.
    Command(Vec<String>),
    Tcp,
    /// It does not end.
    Running,
}

/// The probe that `check` means for an image.
pub(crate) fn choose(check: &HealthCheck, image: &LocalImage, port: Option<u16>) -> Result<Probe, Problem> {
    let own = image.healthcheck.as_deref().map(|test| command(test, image.shell.as_deref()));
    match check.check {
        Check::Http => Ok(Probe::Http { path: check.path.clone().unwrap_or_else(|| "/".into()), status: check.status }),
        Check::Tcp => Ok(Probe::Tcp),
        Check::Running => Ok(Probe::Running),
        Check::Image => own.map(Probe::Command).ok_or_else(|| {
            Problem::new(
                "no_healthcheck",
                "the stage asks for the image's own HEALTHCHECK, and the image has none",
                "add HEALTHCHECK to the image, or set the stage's `health.check` to http, tcp or running",
            )
        }),
        Check::Auto => Ok(match (own, port) {
            (Some(own), _) => Probe::Command(own),
            (None, Some(_)) => Probe::Tcp,
            (None, None) => Probe::Running,
        }),
    }
}

/// Docker's form of a test (`CMD`, `CMD-SHELL`) as a command.
fn command(test: &[String], shell: Option<&[String]>) -> Vec<String> {
    match test {
        [kind, rest @ ..] if kind == "CMD-SHELL" => {
            let shell = shell.map_or_else(|| vec!["/bin/sh".into(), "-c".into()], <[String]>::to_vec);
            [shell, rest.to_vec()].concat()
        }
        [kind, rest @ ..] if kind == "CMD" => rest.to_vec(),
        other => other.to_vec(),
    }
}

/// Ends well when each of `containers` has passed a probe; with the first that has not in time, or
/// that ended.
pub(crate) async fn await_all(job: &Job, containers: &[Container], spec: &Spec) -> Result<(), StepError> {
    let probe = &probe_of(job, containers, spec).await?;
    let passing = containers.iter().map(|container| {
        unless_it_ends(job, container, "before it was healthy", pass_once(job, container, spec, probe))
    });
    try_join_all(passing).await.map(drop)
}

const WATCHED: &str = "while it was watched after the switch";

/// Ends well when none of `containers` failed for as long as the stage's `bake` says.
pub(crate) async fn watch_all(job: &Job, containers: &[Container], spec: &Spec) -> Result<(), StepError> {
    let probe = &probe_of(job, containers, spec).await?;
    let watching = try_join_all(containers.iter().map(|container| {
        let failing = async { Err::<(), _>(fail_often(job, container, spec, probe).await) };
        unless_it_ends(job, container, WATCHED, failing)
    }));
    match tokio::time::timeout(spec.settings.bake.duration(), watching).await {
        // One may have ended of which a busy engine has not told yet.
        Err(_over) => all_run(job, &job.containers(job.rollout.set).await?, WATCHED).await,
        Ok(ended) => ended.map(drop),
    }
}

/// Whether all of `containers` run, as they were listed. Says which does not, and how it ended.
pub(crate) async fn all_run(job: &Job, containers: &[Container], when: &str) -> Result<(), StepError> {
    match containers.iter().find(|container| !container.running) {
        Some(container) => Err(ended(job, container, None, when).await?.into()),
        None => Ok(()),
    }
}

/// What `probing` comes to; but a container that ended is said to have ended, whoever noticed first.
async fn unless_it_ends(
    job: &Job,
    container: &Container,
    when: &str,
    probing: impl Future<Output = Result<(), StepError>>,
) -> Result<(), StepError> {
    let mut exited = std::pin::pin!(job.engine.exited(&container.id));
    let code = tokio::select! {
        code = &mut exited => code?,
        probed = probing => match probed {
            Ok(()) => return Ok(()),
            Err(failed) if listens(container).await => return Err(failed),
            Err(failed) => match tokio::time::timeout(LAST_GASP, &mut exited).await {
                Ok(code) => code?,
                Err(_) => return Err(failed),
            },
        },
    };
    Err(ended(job, container, code, when).await?.into())
}

async fn listens(container: &Container) -> bool {
    let Some(address) = container.address() else { return false };
    matches!(tokio::time::timeout(QUICKEST, TcpStream::connect(address)).await, Ok(Ok(_)))
}

async fn probe_of(job: &Job, containers: &[Container], spec: &Spec) -> Result<Probe, StepError> {
    if let Some(missing) = (1..=spec.settings.replicas).find(|n| !containers.iter().any(|c| c.labels.replica == *n)) {
        let message = format!("container {missing} of {} is gone", spec.settings.replicas);
        return Err(Problem::new("container_gone", message, "someone removed it: deploy again").into());
    }
    let image = job.engine.image(&spec.image.pinned()).await?.unwrap_or_default();
    let port = containers.first().and_then(|container| container.labels.port);
    Ok(choose(&spec.settings.health, &image, port)?)
}

async fn pass_once(job: &Job, container: &Container, spec: &Spec, probe: &Probe) -> Result<(), StepError> {
    let check = &spec.settings.health;
    let interval = check.interval.duration();
    if *probe == Probe::Running {
        tokio::time::sleep(interval * u32::from(check.retries)).await;
        return Ok(());
    }
    let began = Instant::now();
    let mut pause = QUICKEST;
    let mut failures = 0;
    let mut told = String::new();
    loop {
        let Err(said) = try_once(job, container, spec, probe).await? else { return Ok(()) };
        if said != told {
            job.note(format!("{} is not healthy yet: {said}", container.name));
            told.clone_from(&said);
        }
        // Failures count only once the container has had its time to start.
        if began.elapsed() >= check.start_period.duration() {
            failures += 1;
            pause = interval;
            if failures >= check.retries {
                let when = format!("within {}s", began.elapsed().as_secs());
                return Err(unhealthy(job, container, &when, &said).await);
            }
        }
        let left = check.start_period.duration().saturating_sub(began.elapsed());
        tokio::time::sleep(if left.is_zero() { interval } else { pause.min(interval).min(left) }).await;
        pause = (pause * 3 / 2).min(interval);
    }
}

/// Ends when the container has failed as many probes in a row as make it unhealthy.
async fn fail_often(job: &Job, container: &Container, spec: &Spec, probe: &Probe) -> StepError {
    let check = &spec.settings.health;
    let mut failures = 0;
    loop {
        tokio::time::sleep(check.interval.duration()).await;
        match try_once(job, container, spec, probe).await {
            Ok(Ok(())) => failures = 0,
            Ok(Err(said)) => {
                failures += 1;
                if failures >= check.retries {
                    return unhealthy(job, container, "any more after the switch", &said).await;
                }
            }
            Err(error) => return error,
        }
    }
}

/// One probe: passed, or what was seen instead.
async fn try_once(
    job: &Job,
    container: &Container,
    spec: &Spec,
    probe: &Probe,
) -> Result<Result<(), String>, StepError> {
    let limit = spec.settings.health.timeout.duration();
    let Some(address) = container.address() else {
        return Ok(match probe {
            Probe::Command(command) => run_command(job, container, command, limit).await?,
            Probe::Running => Ok(()),
            Probe::Http { .. } | Probe::Tcp => Err("it has no address".into()),
        });
    };
    Ok(match probe {
        Probe::Command(command) => run_command(job, container, command, limit).await?,
        Probe::Running => Ok(()),
        Probe::Tcp => match tokio::time::timeout(limit, TcpStream::connect(&address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("connecting to {address}: {error}")),
            Err(_) => Err(format!("connecting to {address}: no answer within {}ms", limit.as_millis())),
        },
        Probe::Http { path, status } => {
            let mut request = job.node.http.get(format!("http://{address}{path}")).timeout(limit);
            if let Some(route) = &spec.settings.route {
                // As it will come through the edge: some programs answer only to their own name.
                request = request.header("host", &route.host);
            }
            match request.send().await {
                Ok(answer) if passes(answer.status().as_u16(), *status) => Ok(()),
                Ok(answer) => Err(format!("GET {path} answered {}", answer.status().as_u16())),
                Err(error) if error.is_timeout() => {
                    Err(format!("GET {path}: no answer within {}ms", limit.as_millis()))
                }
                Err(error) => Err(format!("GET {path}: {}", failure::chain(&error.without_url()))),
            }
        }
    })
}

fn passes(status: u16, wanted: Option<u16>) -> bool {
    wanted.map_or((200..400).contains(&status), |wanted| status == wanted)
}

async fn run_command(
    job: &Job,
    container: &Container,
    command: &[String],
    limit: Duration,
) -> Result<Result<(), String>, StepError> {
    let name = &container.name;
    match job.engine.exec(&container.id, command.to_vec(), limit).await {
        Ok((0, _)) => Ok(Ok(())),
        Ok((code, output)) if output.is_empty() => Ok(Err(format!("the image's HEALTHCHECK ended with {code}"))),
        Ok((code, output)) => {
            let last: String = output.lines().next_back().unwrap_or_default().chars().take(200).collect();
            Ok(Err(format!("the image's HEALTHCHECK ended with {code}: {last}")))
        }
        Err(EngineError::Deadline { .. }) => {
            // Where the engine hangs, nothing was learnt of the container.
            job.engine.version().await?;
            Ok(Err(format!("the image's HEALTHCHECK in {name} was not done within {}ms", limit.as_millis())))
        }
        // It ended in between, which its own watcher notices with the better words.
        Err(EngineError::Refused { message, .. }) => Ok(Err(message)),
        Err(error) => Err(error.into()),
    }
}

async fn unhealthy(job: &Job, container: &Container, when: &str, said: &str) -> StepError {
    let name = &container.name;
    let problem = Problem::new(
        "unhealthy",
        format!("container {name} was not healthy {when}: {said}"),
        "its last output is below; check the stage's `health` and `port`, and give a slow starter a longer `start_period`",
    );
    problem.with_log(logs::tail(&job.engine, &container.id).await).into()
}

/// Why a container that should run does not. `code` is what it ended with, where that is known
/// better than the engine knows it now: it may have been started again.
pub(crate) async fn ended(
    job: &Job,
    container: &Container,
    code: Option<i64>,
    when: &str,
) -> Result<Problem, StepError> {
    let name = &container.name;
    let Some(ended) = job.engine.ended(&container.id).await? else {
        let message = format!("container {name} was removed {when}");
        return Ok(Problem::new("container_gone", message, "someone removed it: deploy again"));
    };
    let log = logs::tail(&job.engine, &container.id).await;
    let problem = if log.iter().any(|line| line.contains("exec format error")) {
        failure::start(name, "exec format error")
    } else if ended.error.is_empty() {
        failure::exited(name, code.unwrap_or(ended.exit_code), ended.oom_killed, when)
    } else {
        failure::start(name, &ended.error)
    };
    Ok(problem.with_log(log))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(test: Option<&[&str]>) -> LocalImage {
        let healthcheck = test.map(|test| test.iter().map(|part| (*part).to_owned()).collect());
        LocalImage { healthcheck, ..LocalImage::default() }
    }

    fn check(check: Check) -> HealthCheck {
        HealthCheck { check, ..HealthCheck::default() }
    }

    #[test]
    fn auto_takes_the_images_own_check_then_the_port_then_life_itself() {
        let own = Probe::Command(vec!["/bin/sh".into(), "-c".into(), "true".into()]);
        assert_eq!(choose(&check(Check::Auto), &image(Some(&["CMD-SHELL", "true"])), Some(80)), Ok(own));
        assert_eq!(choose(&check(Check::Auto), &image(None), Some(80)), Ok(Probe::Tcp));
        assert_eq!(choose(&check(Check::Auto), &image(None), None), Ok(Probe::Running));
    }

    #[test]
    fn a_check_the_image_does_not_have_is_an_error() {
        assert_eq!(choose(&check(Check::Image), &image(None), Some(80)).expect_err("none").code, "no_healthcheck");
        let own = Probe::Command(vec!["/app".into(), "check".into()]);
        assert_eq!(choose(&check(Check::Image), &image(Some(&["CMD", "/app", "check"])), None), Ok(own));
    }

    #[test]
    fn a_redirect_is_healthy_unless_one_status_is_asked_for() {
        assert!(passes(302, None) && passes(204, None) && !passes(404, None) && !passes(500, None));
        assert!(passes(401, Some(401)) && !passes(200, Some(401)));
    }
}
