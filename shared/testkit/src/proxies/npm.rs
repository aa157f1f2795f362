//! A stand-in for Nginx Proxy Manager, which cannot be installed here.
//!
//! What forwards is a real nginx, configured by the same parts as the manager's templates make: custom locations take
//! their advanced configuration, and the default location sets a header of its own. The API behaves as the manager's
//! source and what was measured of version 2.15 say, faults included: a bad sign-in is 400 and no token 404; a write
//! takes the host's file away, writes it anew, tests and reloads, answers 200 or 201 even where nginx refused it
//! (`meta.nginx_err`; the host is gone from nginx then), and nothing keeps two writes apart, so that the reload of one
//! falls into the gap of the other; a new host answers 403 for a moment; a domain in use is 400.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinSet,
};

use super::{READY, command};
use crate::process::{Server, free_port, random_secret};

/// For how long a new host answers 403.
const NEW: Duration = Duration::from_millis(200);

/// The manager and its nginx, until dropped.
pub struct NpmStandIn {
    pub username: String,
    pub password: String,
    admin: u16,
    inner: Arc<Inner>,
    nginx: Option<Server>,
    api: JoinSet<()>,
    _directory: TempDir,
}

struct Inner {
    directory: PathBuf,
    port: u16,
    identity: (String, String),
    token: String,
    hosts: Mutex<BTreeMap<u64, Value>>,
    last: AtomicU64,
    /// nginx will refuse the next file.
    spoil: AtomicBool,
    /// Writes that were under way while another one was.
    busy: AtomicU64,
    overlaps: AtomicU64,
}

type Answer = std::result::Result<Json<Value>, Response>;

impl NpmStandIn {
    pub async fn start() -> Result<NpmStandIn> {
        let directory = TempDir::with_prefix("sluice-npm-").context("a directory for nginx")?;
        // Started by root, nginx serves as somebody else.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).context("opening nginx's directory")?;
        fs::create_dir(directory.path().join("hosts")).context("a directory for hosts")?;
        let (username, password) = ("admin@example.com".to_owned(), random_secret());
        let inner = Arc::new(Inner {
            directory: directory.path().to_owned(),
            port: free_port(),
            identity: (username.clone(), password.clone()),
            token: random_secret(),
            hosts: Mutex::default(),
            last: AtomicU64::new(0),
            spoil: AtomicBool::new(false),
            busy: AtomicU64::new(0),
            overlaps: AtomicU64::new(0),
        });
        fs::write(inner.directory.join("nginx.conf"), inner.main()).context("writing nginx.conf")?;
        let admin = free_port();
        let mut npm =
            NpmStandIn { username, password, admin, inner, nginx: None, api: JoinSet::new(), _directory: directory };
        npm.up().await?;
        Ok(npm)
    }

    /// Of the admin API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }

    /// Where nginx takes requests.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.inner.port)
    }

    /// nginx will refuse what the next write makes of a host; the write is answered as every other.
    pub fn spoil_next_write(&self) {
        self.inner.spoil.store(true, Ordering::SeqCst);
    }

    /// How often a write came while another was under way.
    pub fn overlaps(&self) -> u64 {
        self.inner.overlaps.load(Ordering::SeqCst)
    }

    /// A change by somebody else's hand: `fields` of the host for `domain`, as its form in the browser would send them.
    pub async fn edit(&self, domain: &str, fields: &Value) -> Result<()> {
        let id = self.inner.named(domain).context("no such host")?;
        self.inner.merge(id, fields);
        self.inner.configure(id, false).await;
        Ok(())
    }

    pub fn hosts(&self) -> Vec<Value> {
        self.inner.hosts().values().cloned().collect()
    }

    /// Ends API and nginx.
    pub async fn down(&mut self) {
        self.api.shutdown().await;
        self.nginx = None;
    }

    /// Starts them again; the hosts are kept, as the manager's database keeps them.
    pub async fn up(&mut self) -> Result<()> {
        let mut nginx = command("nginx")?;
        let path = &self.inner.directory;
        nginx.arg("-c").arg(path.join("nginx.conf")).arg("-p").arg(path).args(["-e", "stderr"]);
        let mut server = Server::spawn("nginx", &mut nginx, path.join("log"), Signal::TERM)?;
        let port = self.inner.port;
        server.ready(READY, async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await?;
        self.nginx = Some(server);
        let listener = TcpListener::bind(("127.0.0.1", self.admin)).await.context("the manager's port")?;
        let router = Router::new()
            .route("/api/tokens", post(sign_in))
            .route("/api/nginx/proxy-hosts", get(list).post(create))
            .route("/api/nginx/proxy-hosts/{id}", get(one).put(update).delete(remove))
            .route("/api/nginx/proxy-hosts/{id}/enable", post(enable))
            .route("/api/nginx/proxy-hosts/{id}/disable", post(disable))
            .with_state(self.inner.clone());
        self.api.spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(())
    }
}

async fn sign_in(State(inner): State<Arc<Inner>>, Json(body): Json<Value>) -> Answer {
    let (identity, secret) = &inner.identity;
    if body["identity"] != identity.as_str() || body["secret"] != secret.as_str() {
        return Err(error(StatusCode::BAD_REQUEST, "Invalid email or password"));
    }
    Ok(Json(json!({ "token": inner.token, "expires": "2099-01-01T00:00:00.000Z" })))
}

async fn list(State(inner): State<Arc<Inner>>, headers: HeaderMap) -> Answer {
    inner.signed_in(&headers)?;
    Ok(Json(inner.hosts().values().cloned().collect()))
}

async fn one(State(inner): State<Arc<Inner>>, Path(id): Path<u64>, headers: HeaderMap) -> Answer {
    inner.signed_in(&headers)?;
    inner.host(id).map(Json)
}

async fn create(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> std::result::Result<(StatusCode, Json<Value>), Response> {
    inner.signed_in(&headers)?;
    for required in ["domain_names", "forward_scheme", "forward_host", "forward_port"] {
        if body[required].is_null() {
            return Err(error(StatusCode::BAD_REQUEST, &format!("data must have required property '{required}'")));
        }
    }
    inner.free(&body, None)?;
    let _write = inner.writing();
    let id = inner.last.fetch_add(1, Ordering::SeqCst) + 1;
    let host = json!({
        "id": id, "domain_names": [], "enabled": true, "locations": [], "advanced_config": "", "meta": {},
        "certificate_id": 0, "access_list_id": 0, "ssl_forced": false, "allow_websocket_upgrade": false,
    });
    inner.hosts().insert(id, host);
    inner.merge(id, &body);
    inner.configure(id, true).await;
    let answer = inner.host(id)?;
    let later = inner.clone();
    tokio::spawn(async move {
        tokio::time::sleep(NEW).await;
        // Only where it was accepted and nobody has changed or removed it since.
        if later.host(id).is_ok_and(|host| host["meta"]["new"] == true) {
            later.merge(id, &json!({ "meta": { "nginx_online": true, "nginx_err": null } }));
            let host = later.host(id).unwrap_or_default();
            let _ = fs::write(later.file(id), later.server(&host, false));
            let _ = later.nginx(&["-s", "reload"]).await;
        }
    });
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn update(
    State(inner): State<Arc<Inner>>,
    Path(id): Path<u64>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Answer {
    inner.signed_in(&headers)?;
    let host = inner.host(id)?;
    inner.free(&body, Some(id))?;
    let _write = inner.writing();
    inner.merge(id, &body);
    if host["enabled"] == true {
        inner.configure(id, false).await;
    }
    inner.host(id).map(Json)
}

async fn remove(State(inner): State<Arc<Inner>>, Path(id): Path<u64>, headers: HeaderMap) -> Answer {
    inner.signed_in(&headers)?;
    inner.host(id)?;
    let _write = inner.writing();
    inner.hosts().remove(&id);
    inner.take_away(id).await;
    Ok(Json(true.into()))
}

async fn enable(State(inner): State<Arc<Inner>>, Path(id): Path<u64>, headers: HeaderMap) -> Answer {
    inner.signed_in(&headers)?;
    if inner.host(id)?["enabled"] == true {
        return Err(error(StatusCode::BAD_REQUEST, "Host is already enabled"));
    }
    inner.merge(id, &json!({ "enabled": true }));
    inner.configure(id, false).await;
    Ok(Json(true.into()))
}

async fn disable(State(inner): State<Arc<Inner>>, Path(id): Path<u64>, headers: HeaderMap) -> Answer {
    inner.signed_in(&headers)?;
    inner.merge(id, &json!({ "enabled": false }));
    inner.take_away(id).await;
    Ok(Json(true.into()))
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": status.as_u16(), "message": message } }))).into_response()
}

/// A write that is under way.
struct Writing<'a>(&'a Inner);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Inner {
    fn writing(&self) -> Writing<'_> {
        if self.busy.fetch_add(1, Ordering::SeqCst) > 0 {
            self.overlaps.fetch_add(1, Ordering::SeqCst);
        }
        Writing(self)
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<u64, Value>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[expect(clippy::result_large_err, reason = "an answer, not passed on")]
    fn signed_in(&self, headers: &HeaderMap) -> std::result::Result<(), Response> {
        let given = headers.get("authorization").and_then(|value| value.to_str().ok());
        if given == Some(&format!("Bearer {}", self.token)) {
            Ok(())
        } else {
            Err(error(StatusCode::NOT_FOUND, "Not Found"))
        }
    }

    #[expect(clippy::result_large_err, reason = "an answer, not passed on")]
    fn host(&self, id: u64) -> std::result::Result<Value, Response> {
        self.hosts().get(&id).cloned().ok_or_else(|| error(StatusCode::NOT_FOUND, &format!("Not Found - {id}")))
    }

    fn named(&self, domain: &str) -> Option<u64> {
        let has = |host: &Value| host["domain_names"].as_array().is_some_and(|names| names.iter().any(|n| n == domain));
        self.hosts().iter().find(|(_, host)| has(host)).map(|(id, _)| *id)
    }

    #[expect(clippy::result_large_err, reason = "an answer, not passed on")]
    fn free(&self, body: &Value, own: Option<u64>) -> std::result::Result<(), Response> {
        for domain in body["domain_names"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if self.named(domain).is_some_and(|id| Some(id) != own) {
                return Err(error(StatusCode::BAD_REQUEST, &format!("{domain} is already in use")));
            }
        }
        Ok(())
    }

    fn merge(&self, id: u64, fields: &Value) {
        if let (Some(host), Some(fields)) = (self.hosts().get_mut(&id), fields.as_object()) {
            for (name, value) in fields {
                host[name] = value.clone();
            }
        }
    }

    /// As the manager does it: the file goes, comes anew, nginx judges it, and is told to reload whatever it said.
    async fn configure(&self, id: u64, new: bool) {
        let (file, host) = (self.file(id), self.hosts().get(&id).cloned().unwrap_or_default());
        let _ = fs::remove_file(&file);
        let _ = self.nginx(&["-t", "-q"]).await;
        let _ = fs::write(&file, self.server(&host, new));
        let mut meta = json!({ "nginx_online": true, "nginx_err": null, "new": new });
        if let Err(refused) = self.nginx(&["-t", "-q"]).await {
            meta = json!({ "nginx_online": false, "nginx_err": refused });
            let _ = fs::rename(&file, file.with_extension("conf.err"));
        }
        self.merge(id, &json!({ "meta": meta }));
        let _ = self.nginx(&["-s", "reload"]).await;
    }

    async fn take_away(&self, id: u64) {
        let _ = fs::remove_file(self.file(id));
        let _ = self.nginx(&["-s", "reload"]).await;
    }

    fn file(&self, id: u64) -> PathBuf {
        self.directory.join(format!("hosts/{id}.conf"))
    }

    /// What it said against it.
    async fn nginx(&self, arguments: &[&str]) -> std::result::Result<(), String> {
        let mut nginx = Command::from(command("nginx").map_err(|error| error.to_string())?);
        nginx.args(arguments).arg("-c").arg(self.directory.join("nginx.conf")).arg("-p").arg(&self.directory);
        let output =
            nginx.args(["-e", "stderr"]).kill_on_drop(true).output().await.map_err(|error| error.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn main(&self) -> String {
        let directory = self.directory.display();
        format!(
            "worker_processes 2; daemon off; pid {directory}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_timeout 75s; keepalive_requests 1000000; server_names_hash_bucket_size 128;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{ listen 127.0.0.1:{} default_server backlog=4096; location / {{ return 404; }} }}
    include {directory}/hosts/*.conf;
}}
",
            self.port
        )
    }

    /// By the manager's `proxy_host.conf`, `_location.conf` and `proxy.conf`.
    fn server(&self, host: &Value, new: bool) -> String {
        const HEADERS: &str = "proxy_set_header Host $host; proxy_set_header X-Forwarded-Scheme $scheme;
            proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Real-IP $remote_addr;";
        const UPGRADE: &str = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $http_connection;
            proxy_http_version 1.1;";
        let text = |of: &Value, field: &str| of[field].as_str().map_or_else(|| of[field].to_string(), str::to_owned);
        let names: Vec<_> = host["domain_names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let upgrade = if host["allow_websocket_upgrade"] == true { UPGRADE } else { "" };
        let custom: Vec<&Value> = host["locations"].as_array().into_iter().flatten().collect();
        let mut locations: String = custom
            .iter()
            .map(|location| {
                let own = location["advanced_config"].as_str().unwrap_or_default();
                format!(
                    "    location {} {{\n        {own}\n        {HEADERS}\n        proxy_pass {}://{}:{};\n        {upgrade}\n    }}\n",
                    text(location, "path"),
                    text(location, "forward_scheme"),
                    text(location, "forward_host"),
                    text(location, "forward_port"),
                )
            })
            .collect();
        if !custom.iter().any(|location| location["path"] == "/") {
            locations += &format!(
                "    location / {{\n        {upgrade}\n        add_header X-Served-By $host;\n        {HEADERS}\n        \
                 proxy_pass $forward_scheme://$server:$port$request_uri;\n    }}\n"
            );
        }
        let spoilt = if self.spoil.swap(false, Ordering::SeqCst) { "spoilt_by_the_test on;" } else { "" };
        let forbidden = if new { "return 403;" } else { "" };
        format!(
            "server {{
    set $forward_scheme {}; set $server \"{}\"; set $port {};
    listen 127.0.0.1:{}; server_name {};
    {forbidden} {spoilt}
    {}
{locations}}}
",
            text(host, "forward_scheme"),
            text(host, "forward_host"),
            text(host, "forward_port"),
            self.port,
            names.join(" "),
            host["advanced_config"].as_str().unwrap_or_default(),
        )
    }
}
