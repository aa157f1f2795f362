//! The engine: every call names its operation, has a deadline, and fails as transient (the engine is
//! away: try again) or for good.

mod containers;
mod images;

use std::{sync::Arc, time::Duration};

use bollard::errors::Error as Cause;
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

pub(crate) use containers::Container;
pub(crate) use images::LocalImage;

/// The oldest API that has what a deployer needs.
const OLDEST_API: (usize, usize) = (1, 41);
/// For calls that only move metadata.
const QUICK: Duration = Duration::from_secs(30);
/// For calls that may have to wait for disks.
const SLOW: Duration = Duration::from_secs(120);

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
}

impl EngineError {
    /// Whether the same call may succeed a little later, with nothing changed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Deadline { .. } => true,
            Self::Refused { .. } | Self::TooOld { .. } => false,
        }
    }

    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unavailable { .. } | Self::Deadline { .. } | Self::TooOld { .. } => None,
        }
    }
}

type Result<T> = std::result::Result<T, EngineError>;

/// A handle to the engine; clones share the connection.
#[derive(Clone)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
    /// Changes that were begun through this handle. They run to their end even when the caller is
    /// dropped: a container that is half made cannot be found and removed.
    changes: TaskTracker,
}

struct Shared {
    host: String,
    client: Mutex<Option<bollard::Docker>>,
    /// The engine takes a second network of the same name without complaint.
    networks: Mutex<()>,
}

pub(crate) struct Version {
    pub(crate) version: String,
    pub(crate) os: String,
    pub(crate) arch: String,
}

impl Engine {
    /// Connects with the first call.
    pub(crate) fn new(host: Option<String>) -> Self {
        let host = host.unwrap_or_else(|| "unix:///var/run/docker.sock".into());
        let shared = Shared { host, client: Mutex::new(None), networks: Mutex::new(()) };
        Self { shared: Arc::new(shared), changes: TaskTracker::new() }
    }

    /// A handle whose changes are counted apart from everybody else's.
    pub(crate) fn apart(&self) -> Self {
        Self { shared: self.shared.clone(), changes: TaskTracker::new() }
    }

    /// Waits for the changes begun through this handle by callers that did not stay.
    pub(crate) async fn settled(&self) {
        self.changes.close();
        self.changes.wait().await;
        self.changes.reopen();
    }

    /// The next call negotiates anew: the engine may have been replaced by another version.
    pub(crate) async fn forget(&self) {
        *self.shared.client.lock().await = None;
    }

    async fn client(&self, operation: &str) -> Result<bollard::Docker> {
        let mut client = self.shared.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let fail = |cause| self.error(operation, cause);
        let fresh = bollard::Docker::connect_with_host(&self.shared.host).map_err(fail)?;
        let fresh = tokio::time::timeout(QUICK, fresh.negotiate_version())
            .await
            .map_err(|_| EngineError::Deadline { operation: operation.to_owned(), limit: QUICK })?
            .map_err(fail)?;
        let api = fresh.client_version();
        if (api.major_version, api.minor_version) < OLDEST_API {
            return Err(EngineError::TooOld { found: format!("{}.{}", api.major_version, api.minor_version) });
        }
        let fresh = fresh.with_request_modifier(url_safe_credentials);
        Ok(client.insert(fresh).clone())
    }

    async fn call<T, F>(&self, operation: String, limit: Duration, run: impl FnOnce(bollard::Docker) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Cause>>,
    {
        let client = self.client(&operation).await?.with_timeout(limit);
        match tokio::time::timeout(limit, run(client)).await {
            Ok(answer) => answer.map_err(|cause| self.error(&operation, cause)),
            Err(_) => Err(EngineError::Deadline { operation, limit }),
        }
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
        let found =
            self.call("asking for its version".into(), Duration::from_secs(5), |docker| async move {
                docker.version().await
            })
            .await?;
        Ok(Version {
            version: found.version.unwrap_or_default(),
            os: found.os.unwrap_or_default(),
            arch: found.arch.unwrap_or_default(),
        })
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
