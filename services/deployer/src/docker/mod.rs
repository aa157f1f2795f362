//! The engine: every call names its operation, has a deadline, and fails as transient (the engine is
//! away: try again) or for good.

mod containers;
mod images;
mod networks;

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::errors::Error as Cause;
use futures::future::BoxFuture;
use tokio_util::task::TaskTracker;

pub(crate) use containers::{Container, Facts};
pub(crate) use images::LocalImage;
pub(crate) use networks::{Address, Hindrance, Network};

use crate::Deadlines;

/// The oldest API that has what a deployer needs.
const OLDEST_API: (usize, usize) = (1, 41);
/// The client has a limit of its own, in whole seconds; ours comes first.
const LATER: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("{operation}: the Docker engine at {host} does not answer")]
    Unavailable { operation: String, host: String, source: Box<Cause> },
    #[error("{operation}: the Docker engine gave no answer within {}s", .limit.as_secs())]
    Deadline { operation: String, limit: Duration },
    #[error("{operation}: {message}")]
    Refused { operation: String, status: u16, message: String },
    #[error("the Docker engine speaks API {found}; 1.41 (Docker 20.10) or later is needed")]
    TooOld { found: String },
    #[error("{operation}: whether this worker still holds the deployment cannot be told")]
    Unsure { operation: String, source: eventlog::Error },
    #[error("{operation}: another has taken over")]
    Fenced { operation: String },
}

impl EngineError {
    /// Whether the same call may succeed a little later, with nothing changed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Deadline { .. } | Self::Unsure { .. } => true,
            Self::Refused { .. } | Self::TooOld { .. } | Self::Fenced { .. } => false,
        }
    }

    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unavailable { .. }
            | Self::Deadline { .. }
            | Self::TooOld { .. }
            | Self::Unsure { .. }
            | Self::Fenced { .. } => None,
        }
    }
}

/// Whether whoever holds a handle may still change something: asked before each change, for a worker may have slept
/// while another took over.
pub(crate) type Guard = Arc<dyn Fn() -> BoxFuture<'static, std::result::Result<bool, eventlog::Error>> + Send + Sync>;

type Result<T> = std::result::Result<T, EngineError>;

/// A handle to the engine; clones share the connection.
#[derive(Clone)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
    /// Changes that were begun through this handle. They run to their end even when the caller is
    /// dropped: a container that is half made cannot be found and removed.
    changes: TaskTracker,
    guard: Option<Guard>,
}

struct Shared {
    host: String,
    deadlines: Deadlines,
    client: Mutex<Option<bollard::Docker>>,
    /// As it was last told.
    version: Mutex<Option<Version>>,
    /// The engine takes a second network of the same name without complaint.
    networks: Arc<tokio::sync::Mutex<()>>,
    promised: networks::Promised,
    /// Addresses of containers that the engine forgot: their processes may still answer there.
    haunted: Mutex<HashSet<Ipv4Addr>>,
}

#[derive(Clone)]
pub(crate) struct Version {
    pub(crate) version: String,
    pub(crate) os: String,
    pub(crate) arch: String,
}

impl Engine {
    /// Connects with the first call.
    pub(crate) fn new(host: Option<String>, deadlines: Deadlines) -> Self {
        let host = host.unwrap_or_else(|| "unix:///var/run/docker.sock".into());
        let shared = Shared {
            host,
            deadlines,
            client: Mutex::default(),
            version: Mutex::default(),
            networks: Arc::default(),
            promised: Arc::default(),
            haunted: Mutex::default(),
        };
        Self { shared: Arc::new(shared), changes: TaskTracker::new(), guard: None }
    }

    /// A handle whose changes are counted apart from everybody else's, and made only while `guard` says that they may.
    pub(crate) fn guarded(&self, guard: Guard) -> Self {
        Self { shared: self.shared.clone(), changes: TaskTracker::new(), guard: Some(guard) }
    }

    /// Fails where the guard says that whoever holds this handle may change nothing any more, or says nothing.
    pub(crate) async fn allowed(&self, operation: &str) -> Result<()> {
        let Some(guard) = &self.guard else { return Ok(()) };
        match guard().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(EngineError::Fenced { operation: operation.to_owned() }),
            Err(source) => Err(EngineError::Unsure { operation: operation.to_owned(), source }),
        }
    }

    /// Waits for the changes begun through this handle by callers that did not stay.
    pub(crate) async fn settled(&self) {
        self.changes.close();
        self.changes.wait().await;
        self.changes.reopen();
    }

    /// The next call negotiates anew: the engine may have been replaced by another version.
    pub(crate) fn forget(&self) {
        *self.connected() = None;
    }

    fn connected(&self) -> std::sync::MutexGuard<'_, Option<bollard::Docker>> {
        self.shared.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> &Deadlines {
        &self.shared.deadlines
    }

    /// Several may connect at the same time: nobody has to wait behind another's deadline.
    async fn client(&self, operation: &str) -> Result<bollard::Docker> {
        if let Some(client) = &*self.connected() {
            return Ok(client.clone());
        }
        let fail = |cause| self.error(operation, cause);
        let fresh = bollard::Docker::connect_with_host(&self.shared.host).map_err(fail)?;
        let limit = self.limits().alive;
        let fresh = tokio::time::timeout(limit, fresh.negotiate_version())
            .await
            .map_err(|_| EngineError::Deadline { operation: operation.to_owned(), limit })?
            .map_err(fail)?;
        let api = fresh.client_version();
        if (api.major_version, api.minor_version) < OLDEST_API {
            return Err(EngineError::TooOld { found: format!("{}.{}", api.major_version, api.minor_version) });
        }
        let fresh = fresh.with_request_modifier(url_safe_credentials);
        Ok(self.connected().insert(fresh).clone())
    }

    async fn call<T, F>(&self, operation: String, limit: Duration, run: impl FnOnce(bollard::Docker) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Cause>>,
    {
        let asked = async {
            let client = self.client(&operation).await?.with_timeout(limit + LATER);
            run(client).await.map_err(|cause| self.error(&operation, cause))
        };
        let answer = tokio::time::timeout(limit, asked).await;
        answer.unwrap_or_else(|_| Err(EngineError::Deadline { operation: operation.clone(), limit }))
    }

    /// A call that changes something and is therefore carried to its end whatever happens to the caller.
    async fn change<T, F>(
        &self,
        operation: String,
        limit: Duration,
        run: impl FnOnce(bollard::Docker) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = std::result::Result<T, Cause>> + Send,
    {
        self.allowed(&operation).await?;
        let engine = self.clone();
        let lost = EngineError::Deadline { operation: operation.clone(), limit };
        self.changes.spawn(async move { engine.call(operation, limit, run).await }).await.unwrap_or(Err(lost))
    }

    fn error(&self, operation: &str, cause: Cause) -> EngineError {
        let operation = operation.to_owned();
        match cause {
            Cause::DockerResponseServerError { status_code, message } if status_code != 503 => {
                EngineError::Refused { operation, status: status_code, message: message.trim().to_owned() }
            }
            Cause::DockerStreamError { error } => EngineError::Refused { operation, status: 0, message: error },
            Cause::JsonDataError { message, .. } => EngineError::Refused { operation, status: 0, message },
            Cause::UnsupportedURISchemeError { uri } => EngineError::Refused {
                operation,
                status: 0,
                message: format!("DOCKER_HOST `{uri}` is not supported: use unix:///path or tcp://host:port"),
            },
            source => EngineError::Unavailable { operation, host: self.shared.host.clone(), source: Box::new(source) },
        }
    }

    pub(crate) async fn version(&self) -> Result<Version> {
        let limit = self.limits().alive;
        let found =
            self.call("asking for its version".into(), limit, |docker| async move { docker.version().await }).await?;
        let version = Version {
            version: found.version.unwrap_or_default(),
            os: found.os.unwrap_or_default(),
            arch: found.arch.unwrap_or_default(),
        };
        *self.known_version() = Some(version.clone());
        Ok(version)
    }

    /// What does not change while the engine is the same. Asking anew has it start two programs, for 10 ms and more.
    pub(crate) async fn platform(&self) -> Result<Version> {
        let known = self.known_version().clone();
        match known {
            Some(known) => Ok(known),
            None => self.version().await,
        }
    }

    fn known_version(&self) -> std::sync::MutexGuard<'_, Option<Version>> {
        self.shared.version.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine reads credentials as URL-safe base64; the client writes the standard kind, so that a
/// password with `?` or `~` in the wrong place would be taken for none.
fn url_safe_credentials(mut request: bollard::BollardRequest) -> bollard::BollardRequest {
    if let Some(header) = request.headers_mut().get_mut("x-registry-auth")
        && let Ok(text) = header.to_str()
        && let Ok(safe) = text.replace('+', "-").replace('/', "_").parse()
    {
        *header = safe;
    }
    request
}

fn none_if_missing<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

fn none_if_used(result: Result<()>) -> Result<()> {
    match result {
        // A network with containers is answered with 403, an image of one with 409.
        Err(error) if matches!(error.status(), Some(403 | 404 | 409)) => Ok(()),
        other => other,
    }
}
