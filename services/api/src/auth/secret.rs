//! Random secrets, their digests, and where those are kept.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use domain::TokenId;
use eventlog::{EventLog, Secret, Vault};
use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::problem::Error;

/// What every API token begins with, so that scanners for lost secrets know one when they see it.
const PREFIX: &str = "sluice_";
/// Secrets of the vault that are kept at hand.
const CACHED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// A new API token for the holder that `id` names. 256 random bits stand behind the id.
pub(crate) fn new_token(id: TokenId) -> String {
    format!("{PREFIX}{}_{}", id.0.simple(), random_secret())
}

/// What of a token is kept.
pub(crate) fn digest(token: &str) -> Vec<u8> {
    Sha256::digest(token).to_vec()
}

pub(super) fn token_id(presented: &str) -> Option<TokenId> {
    let (id, _) = presented.strip_prefix(PREFIX)?.split_once('_')?;
    id.parse().ok()
}

/// 256 random bits, in hexadecimal.
pub(crate) fn random_secret() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// Whether the two are the same; their digests hide where they differ, and their length.
pub(crate) fn same_secret(one: &[u8], other: &[u8]) -> bool {
    same(&Sha256::digest(one), &Sha256::digest(other))
}

/// Takes the same time wherever the two differ.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

/// Secrets of the vault at places that are written once: what was read stays true, and the log says whether it still
/// counts.
pub(super) struct Secrets {
    vault: Vault,
    read: Mutex<LruCache<String, Secret>>,
}

impl Secrets {
    pub(super) fn new(log: &EventLog) -> Self {
        Self { vault: log.vault(), read: Mutex::new(LruCache::new(CACHED)) }
    }

    pub(super) async fn get(&self, place: &str) -> Result<Option<Secret>, Error> {
        if let Some(secret) = self.read().get(place) {
            return Ok(Some(secret.clone()));
        }
        let found = self.vault.get(place).await?;
        if let Some(secret) = &found {
            self.read().put(place.to_owned(), secret.clone());
        }
        Ok(found)
    }

    pub(super) async fn delete(&self, place: &str) -> Result<(), Error> {
        self.read().pop(place);
        Ok(self.vault.delete(place).await?)
    }

    fn read(&self) -> MutexGuard<'_, LruCache<String, Secret>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_holder() {
        let id = TokenId(uuid::Uuid::from_u128(7));
        let (one, other) = (new_token(id), new_token(id));
        assert_eq!((token_id(&one), token_id(&other)), (Some(id), Some(id)));
        assert!(one != other && !same(&digest(&one), &digest(&other)));
        for bad in ["", "sluice_", "sluice__", "sluice_x_y", &one[PREFIX.len()..]] {
            assert_eq!(token_id(bad), None, "{bad:?}");
        }
    }
}
