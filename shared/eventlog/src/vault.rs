//! Secrets: sealed under a master key before they leave this process, kept in a bucket with no history.

use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};

use crate::{Bucket, EventLog, error::Error};

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// First byte of a sealed value: how the rest is sealed.
const FORMAT: u8 = 1;

/// Bytes that never show in a log line or an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes themselves: hand them on to their one use, and keep no copy.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("no master key is configured")]
    NoKey,
    #[error("master key {path}: {reason}")]
    Key { path: PathBuf, reason: String },
    #[error("`{name}` cannot be unsealed: it was sealed under another master key, or was tampered with")]
    Unsealable { name: String },
    #[error("`{name}` could not be sealed")]
    Unsealed { name: String },
}

/// The vault. Usable only where the log was opened with a master key.
#[derive(Clone)]
pub struct Vault {
    log: EventLog,
    bucket: Bucket,
}

impl EventLog {
    pub fn vault(&self) -> Vault {
        Vault { log: self.clone(), bucket: self.bucket("vault") }
    }
}

impl Vault {
    /// Keeps `secret` under `name` and returns its version; what was there before is gone.
    pub async fn put(&self, name: &str, secret: &Secret) -> Result<u64, Error> {
        let sealed = self.cipher()?.seal(name, secret)?;
        self.bucket.put(name, sealed).await
    }

    pub async fn get(&self, name: &str) -> Result<Option<Secret>, Error> {
        Ok(self.entry(name).await?.map(|(secret, _)| secret))
    }

    /// Keeps `secret` under `name` where nothing is yet; else [`Error::WrongRevision`].
    pub async fn create(&self, name: &str, secret: &Secret) -> Result<u64, Error> {
        let sealed = self.cipher()?.seal(name, secret)?;
        self.bucket.create(name, sealed).await
    }

    /// Keeps `secret` under `name` where `version` is the newest; else [`Error::WrongRevision`].
    pub async fn replace(&self, name: &str, secret: &Secret, version: u64) -> Result<u64, Error> {
        let sealed = self.cipher()?.seal(name, secret)?;
        self.bucket.update(name, sealed, version).await
    }

    /// What lies under `name`, with its version.
    pub async fn entry(&self, name: &str) -> Result<Option<(Secret, u64)>, Error> {
        let cipher = self.cipher()?;
        let entry = self.bucket.get(name).await?;
        Ok(entry.map(|entry| Ok::<_, Problem>((cipher.unseal(name, &entry.value)?, entry.revision))).transpose()?)
    }

    /// Of everything that is kept, each with its version.
    pub async fn names(&self) -> Result<Vec<(String, u64)>, Error> {
        self.bucket.revisions().await
    }

    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        self.bucket.delete(name, None).await
    }

    /// Deletes what lies under `name` where `version` is the newest; else [`Error::WrongRevision`].
    pub async fn delete_version(&self, name: &str, version: u64) -> Result<(), Error> {
        self.bucket.delete(name, Some(version)).await
    }

    fn cipher(&self) -> Result<&Cipher, Problem> {
        self.log.inner.cipher.as_ref().ok_or(Problem::NoKey)
    }
}

/// Makes a master key file (mode 0600) where there is none yet. Whoever loses it loses every secret.
pub fn create_key(path: &Path) -> Result<(), Problem> {
    let problem = |e: std::io::Error| Problem::Key { path: path.to_owned(), reason: e.to_string() };
    // Written beside its place and linked there whole, so that two at once and a crash leave one good key.
    let draft = path.with_extension(format!("{:016x}", rand::random::<u64>()));
    let written =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).and_then(|mut file| {
            file.write_all(&rand::random::<[u8; KEY_BYTES]>())?;
            file.sync_all()?;
            std::fs::hard_link(&draft, path)
        });
    let removed = std::fs::remove_file(&draft);
    match written {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(problem(e)),
        // Another's may not be durable yet.
        Err(_) | Ok(()) => {}
    }
    removed.map_err(problem)?;
    // Whatever is sealed under the key outlives a power failure, so its name has to.
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(above).and_then(|directory| directory.sync_all()).map_err(problem)
}

/// Seals what is kept outside of the vault under a key that is in it: whoever deletes the key erases what it sealed.
pub struct Sealer(Cipher);

impl Sealer {
    /// A key of 32 bytes.
    pub fn new(key: &Secret) -> Result<Self, Problem> {
        let key: [u8; KEY_BYTES] =
            key.expose().try_into().map_err(|_| Problem::Unsealable { name: "a key of its own".into() })?;
        Ok(Self(Cipher(XChaCha20Poly1305::new(&key.into()))))
    }

    /// The `name` is authenticated: what is sealed under one cannot pose as another's.
    pub fn seal(&self, name: &str, secret: &Secret) -> Result<Vec<u8>, Problem> {
        self.0.seal(name, secret)
    }

    pub fn unseal(&self, name: &str, sealed: &[u8]) -> Result<Secret, Problem> {
        self.0.unseal(name, sealed)
    }
}

pub(crate) struct Cipher(XChaCha20Poly1305);

impl Cipher {
    pub(crate) fn read(path: &Path) -> Result<Self, Problem> {
        let problem = |reason: String| Problem::Key { path: path.to_owned(), reason };
        let mut file = std::fs::File::open(path).map_err(|e| problem(e.to_string()))?;
        let mode = file.metadata().map_err(|e| problem(e.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(problem(format!("others may read it (mode {:03o}): chmod 600", mode & 0o777)));
        }
        let mut key = [0; KEY_BYTES];
        let whole = file.read_exact(&mut key).and_then(|()| file.read(&mut [0]));
        match whole {
            Ok(0) => Ok(Self(XChaCha20Poly1305::new(&key.into()))),
            Ok(_) | Err(_) => Err(problem(format!("it must hold exactly {KEY_BYTES} bytes"))),
        }
    }

    /// Format, nonce, ciphertext. The name is authenticated: a sealed value cannot pose as another's.
    fn seal(&self, name: &str, secret: &Secret) -> Result<Vec<u8>, Problem> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let payload = Payload { msg: &secret.0, aad: name.as_bytes() };
        let sealed =
            self.0.encrypt(&XNonce::from(nonce), payload).map_err(|_| Problem::Unsealed { name: name.into() })?;
        Ok([&[FORMAT][..], &nonce, &sealed].concat())
    }

    fn unseal(&self, name: &str, sealed: &[u8]) -> Result<Secret, Problem> {
        let unsealable = || Problem::Unsealable { name: name.to_owned() };
        let (nonce, ciphertext) = sealed
            .strip_prefix(&[FORMAT])
            .and_then(|rest| rest.split_first_chunk::<NONCE_BYTES>())
            .ok_or_else(unsealable)?;
        let payload = Payload { msg: ciphertext, aad: name.as_bytes() };
        self.0.decrypt(&XNonce::from(*nonce), payload).map(Secret).map_err(|_| unsealable())
    }
}
