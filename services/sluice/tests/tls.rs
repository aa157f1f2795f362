//! A registry behind TLS whose certificate a private authority has given: the watcher, as a process of its own, trusts
//! whom `SSL_CERT_FILE` names, and says what to do about any other.

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use domain::{
    Key, Span,
    policy::TagPolicy,
    project::{self, Declaration, Project},
    push::{Finding, LOOKS, Look, stage_key},
    registry::{self, RegistrySettings},
    settings::StageSettings,
};
use eventlog::{Config, EventLog};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use testkit::Nats;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::{Child, Command},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed"))
    }

    /// A server's side of TLS, with a certificate for `localhost` alone.
    fn acceptor(&self) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".into()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.into()], key);
        TlsAcceptor::from(Arc::new(config.expect("a good certificate")))
    }
}

/// Serves the tags of a repository, over TLS; the port.
async fn registry(acceptor: TlsAcceptor, tasks: &mut JoinSet<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Whoever does not trust it hangs up.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let body = r#"{"name":"shop","tags":["1.0.0"]}"#;
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

struct Lab {
    nats: Nats,
    log: EventLog,
    directory: TempDir,
}

impl Lab {
    async fn new() -> Lab {
        let nats = Nats::start().await.expect("nats-server starts");
        let directory = tempfile::tempdir().expect("a directory");
        let master_key = directory.path().join("master.key");
        eventlog::vault::create_key(&master_key).expect("a master key");
        let config = Config { url: nats.url().into(), name: "test".into(), master_key: Some(master_key) };
        let log = EventLog::connect(&config).await.expect("connected");
        Lab { nats, log, directory }
    }

    /// A stage that follows a repository of the registry `host`, whose API is at `url`.
    async fn follow(&self, stage: &str, host: &str, url: String) {
        let context = runtime::clock::context("test");
        let settings = RegistrySettings { url: Some(url), poll: Span::secs(1), ..RegistrySettings::default() };
        let command = registry::Command::Configure { host: host.into(), settings };
        self.log.execute(&Key::registry(host).expect("a registry"), command, &context).await.expect("declared");
        // Takes none of its tags: to know that, they have to be read.
        let policy = TagPolicy { semver: Some(">=2".into()), ..TagPolicy::default() };
        let settings = StageSettings {
            image: Some(format!("{host}/shop")),
            policy: Some(Box::new(policy)),
            ..StageSettings::default()
        };
        let stages = [(stage.parse().expect("a slug"), settings)].into();
        let declaration = Declaration { stages, ..Declaration::default() };
        let slug = "shop".parse().expect("a slug");
        let key = Key::<Project>::project(&slug);
        let command = project::Command::Apply { slug, declaration, prune: false };
        self.log.execute(&key, command, &context).await.expect("declared");
    }

    /// A watcher that trusts the authorities in `trusted`.
    fn watch(&self, trusted: &Path) -> Child {
        Command::new(env!("CARGO_BIN_EXE_sluice"))
            .arg("watcher")
            .env("DATA_DIR", self.directory.path())
            .env("NATS_URL", self.nats.url())
            .env("SSL_CERT_FILE", trusted)
            .env_remove("SSL_CERT_DIR")
            .env_remove("NODE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the watcher starts")
    }

    /// Waits until a look at `stage` finds what `wanted` takes.
    async fn found(&self, stage: &str, wanted: impl Fn(&Finding) -> bool) -> Finding {
        let key = stage_key(&"shop".parse().expect("a slug"), &stage.parse().expect("a slug"));
        let mut last = None;
        let found = timeout(PATIENCE, async {
            loop {
                let entry = self.log.bucket(LOOKS).get(&key).await.expect("read");
                last = entry.map(|entry| serde_json::from_slice::<Look>(&entry.value).expect("a look").finding);
                if let Some(found) = last.clone().filter(&wanted) {
                    return found;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("that was not found on {stage}, but {last:?}"),
        }
    }
}

fn failed(found: &Finding, said: &str) -> bool {
    matches!(found, Finding::Failed { code, reason } if code == "registry_unreachable" && reason.contains(said))
}

#[tokio::test]
async fn a_private_authority_is_trusted_by_the_environment_and_another_is_told_with_what_to_do() {
    let lab = Lab::new().await;
    let mut tasks = JoinSet::new();
    let ours = Authority::new("ours");
    let port = registry(ours.acceptor(), &mut tasks).await;
    lab.follow("dev", "named.test", format!("https://localhost:{port}")).await;
    lab.follow("qa", "numbered.test", format!("https://127.0.0.1:{port}")).await;
    let trusted = |name: &str, authority: &Authority| {
        let path = lab.directory.path().join(name);
        std::fs::write(&path, authority.0.pem()).expect("written");
        path
    };

    let mut watcher = lab.watch(&trusted("ours.pem", &ours));
    lab.found("dev", |found| matches!(found, Finding::NoMatch)).await;
    // The same certificate under a name that it is not for.
    lab.found("qa", |found| failed(found, "`sluice registry set HOST --url")).await;
    watcher.kill().await.expect("killed");

    // Another one, and one that has its name.
    for (file, name) in [("other.pem", "other"), ("renewed.pem", "ours")] {
        let mut watcher = lab.watch(&trusted(file, &Authority::new(name)));
        for stage in ["dev", "qa"] {
            lab.found(stage, |found| failed(found, "SSL_CERT_FILE")).await;
        }
        watcher.kill().await.expect("killed");
        // What stands there is of this one: the next has to find it again.
        for stage in ["dev", "qa"] {
            let key = stage_key(&"shop".parse().expect("a slug"), &stage.parse().expect("a slug"));
            lab.log.bucket(LOOKS).delete(&key, None).await.expect("deleted");
        }
    }
}
