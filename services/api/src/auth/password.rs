//! Passwords: which are taken, and how they are kept. argon2id, as OWASP asks for; at most a few at a time, so that a
//! flood of sign-ins cannot take every processor from everybody else.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
};

use anyhow::anyhow;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version, password_hash::phc::PasswordHash};
use tokio::sync::Semaphore;

use crate::problem::Error;

/// KiB, passes and lanes.
const COST: (u32, u32, u32) = (19_456, 2, 1);
/// Passwords that may wait for their turn; more are told to come again.
const WAITING: usize = 64;
const SHORTEST: usize = 8;
const LONGEST: usize = 128;

/// The 6,000 that are used most, of those that are long enough: of the lists of zxcvbn (MIT licence).
static COMMON: LazyLock<HashSet<&str>> = LazyLock::new(|| include_str!("common-passwords.txt").lines().collect());

/// What is guessed first of whoever runs this.
const OBVIOUS: [&str; 9] =
    ["sluice", "admin", "administrator", "operator", "viewer", "deploy", "deployer", "deployment", "controller"];

/// What is wrong with a password that somebody chose, who is called `name`.
pub(crate) fn problem(password: &str, name: Option<&str>) -> Option<&'static str> {
    let folded = password.to_lowercase();
    let words: String = folded.chars().filter(|letter| letter.is_alphabetic()).collect();
    if !(SHORTEST..=LONGEST).contains(&password.chars().count()) {
        Some("must be 8 to 128 characters")
    } else if COMMON.contains(folded.as_str()) {
        Some("is one of those that are tried first: choose another")
    } else if OBVIOUS.contains(&words.as_str()) {
        Some("is what is guessed first here: choose another")
    } else if name.is_some_and(|name| name.to_lowercase() == folded) {
        Some("must not be the name")
    } else {
        None
    }
}

pub(crate) fn require(field: &str, password: &str, name: Option<&str>) -> Result<(), Error> {
    problem(password, name).map_or(Ok(()), |problem| Err(Error::invalid(field, problem)))
}

pub(crate) struct Hasher {
    turns: Arc<Semaphore>,
    waiting: Semaphore,
    /// Of a password that nobody has.
    nobody: String,
    #[cfg(test)]
    computed: Arc<std::sync::atomic::AtomicUsize>,
}

impl Hasher {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let nobody = hash(&super::random_secret()).map_err(|error| anyhow!("hashing a password: {error}"))?;
        let turns = Arc::new(Semaphore::new((processors / 2).clamp(1, 4)));
        Ok(Self {
            turns,
            waiting: Semaphore::new(WAITING),
            nobody,
            #[cfg(test)]
            computed: Arc::default(),
        })
    }

    /// Whether the next one would be told to come again.
    pub(super) fn crowded(&self) -> bool {
        self.waiting.available_permits() == 0
    }

    /// How often argon2id was computed.
    #[cfg(test)]
    pub(super) fn computed(&self) -> usize {
        self.computed.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Takes every place in the queue.
    #[cfg(test)]
    pub(super) fn crowd(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.waiting.try_acquire_many(WAITING as u32).expect("nobody waits")
    }

    /// As it is kept, with its salt and its cost.
    pub(crate) async fn hash(&self, password: &str) -> Result<String, Error> {
        let password = password.to_owned();
        self.work(move || hash(&password).ok()).await?.ok_or(Error::Panicked)
    }

    /// Whether `kept` is this password's. Where nothing is kept the work is the same.
    pub(crate) async fn verify(&self, password: &str, kept: Option<&[u8]>) -> Result<bool, Error> {
        // Longer ones were never taken, and need not be looked at.
        let password: String = password.chars().take(LONGEST + 1).collect();
        let known = kept.map(|kept| String::from_utf8_lossy(kept).into_owned());
        let (kept, exists) = (known.clone().unwrap_or_else(|| self.nobody.clone()), known.is_some());
        #[cfg(test)]
        let computed = self.computed.clone();
        let same = self
            .work(move || {
                #[cfg(test)]
                computed.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                verify(&password, &kept)
            })
            .await?;
        Ok(same && exists)
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let _place = self.waiting.try_acquire().map_err(|_| Error::TooManySignIns)?;
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| Error::Panicked)?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        done.await.map_err(|_| Error::Panicked)
    }
}

fn argon2() -> Result<Argon2<'static>, argon2::Error> {
    let (memory, passes, lanes) = COST;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(memory, passes, lanes, None)?))
}

fn hash(password: &str) -> Result<String, argon2::password_hash::Error> {
    let argon2 = argon2().map_err(|_| argon2::password_hash::Error::Internal)?;
    Ok(argon2.hash_password(password.as_bytes())?.to_string())
}

fn verify(password: &str, kept: &str) -> bool {
    let parsed = PasswordHash::new(kept);
    parsed.is_ok_and(|kept| argon2().is_ok_and(|argon2| argon2.verify_password(password.as_bytes(), &kept).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_long_or_common_is_refused() {
        let long = "x".repeat(129);
        for bad in [
            "",
            "1234567",
            "password",
            "PassWord",
            "1234567890",
            "trustno1",
            "ann.smith",
            "Sluice2026!",
            "_admin_1234",
            &long,
        ] {
            assert!(problem(bad, Some("Ann.Smith")).is_some(), "{bad:?} passed");
        }
        for good in ["correct horse", "äöüßäöüß", "        ", "sluice gates open", "1029384756!", &"x".repeat(128)]
        {
            assert_eq!(problem(good, Some("ann")), None, "{good:?} was refused");
        }
        assert!(COMMON.len() > 3000 && COMMON.iter().all(|word| word.len() >= SHORTEST));
    }

    #[tokio::test]
    async fn a_password_is_known_by_its_hash_and_nobodys_by_none() {
        let hasher = Hasher::new().expect("a hasher");
        let kept = hasher.hash("correct horse").await.expect("hashed");
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert_ne!(kept, hasher.hash("correct horse").await.expect("hashed"), "salted");
        assert!(hasher.verify("correct horse", Some(kept.as_bytes())).await.expect("verified"));
        for (password, kept) in [("correct horsf", Some(kept.as_bytes())), ("x", Some(b"junk")), ("x", None)] {
            assert!(!hasher.verify(password, kept).await.expect("verified"));
        }
    }

    #[tokio::test]
    async fn more_than_can_wait_are_told_so_at_once() {
        let hasher = Hasher::new().expect("a hasher");
        let all = futures::future::join_all((0..WAITING + 10).map(|_| hasher.verify("x", None))).await;
        let refused = all.iter().filter(|done| matches!(done, Err(Error::TooManySignIns))).count();
        assert_eq!((refused, all.len() - refused), (10, WAITING));
    }
}
