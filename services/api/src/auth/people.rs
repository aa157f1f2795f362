//! Who people are, readable only with a key of each person's own; and the digests by which names, addresses and what
//! was sent stand where everybody may read.

use domain::{UserId, address::Source, user::Sealed};
use eventlog::{EventLog, Secret, Vault, vault::Sealer};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::secret::Secrets;
use crate::problem::Error;

const NAMES: &str = "auth/names";

/// What is known of a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Profile {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) display_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) email: Option<String>,
}

const LONGEST: usize = 64;
const LONGEST_TEXT: usize = 254;

impl Profile {
    /// Trimmed, and refused by field.
    pub(crate) fn checked(name: &str, display_name: Option<&str>, email: Option<&str>) -> Result<Self, Error> {
        let name = name.trim();
        let good = (1..=LONGEST).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._@+-".contains(&b));
        if !good {
            return Err(Error::invalid("name", "must be 1 to 64 of a-z, 0-9 and . _ @ + -"));
        }
        let text = |field: &str, text: Option<&str>| match text.map(str::trim).filter(|text| !text.is_empty()) {
            Some(text) if text.chars().count() > LONGEST_TEXT || text.chars().any(char::is_control) => {
                Err(Error::invalid(field, "must be at most 254 characters, on one line"))
            }
            text => Ok(text.map(str::to_owned)),
        };
        let display_name = text("display_name", display_name)?;
        let email = text("email", email)?;
        if email.as_ref().is_some_and(|email| !email.contains('@')) {
            return Err(Error::invalid("email", "must be an address, such as ann@example.com"));
        }
        Ok(Self { name: name.to_owned(), display_name, email })
    }

    /// What others see.
    pub(crate) fn shown(&self) -> &str {
        self.display_name.as_deref().unwrap_or(&self.name)
    }
}

pub(crate) struct People {
    vault: Vault,
    keys: Secrets,
    names: Secret,
}

impl People {
    pub(super) async fn open(log: &EventLog) -> Result<Self, Error> {
        let vault = log.vault();
        let fresh = Secret::new(rand::random::<[u8; 32]>());
        let names = match vault.create(NAMES, &fresh).await {
            Ok(_) => fresh,
            Err(eventlog::Error::WrongRevision { .. }) => vault.get(NAMES).await?.ok_or(Error::Panicked)?,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { keys: Secrets::new(log), vault, names })
    }

    /// Under which the name stands in the log. Names that differ in case only are one, in any script: the provider's may
    /// hold any.
    pub(crate) fn handle(&self, name: &str) -> String {
        self.digest("name", name.trim().to_lowercase())
    }

    /// Under which whom the provider knows stands in the log.
    pub(crate) fn identity(&self, issuer: &str, subject: &str) -> String {
        // Neither can hold the byte between them.
        self.digest("subject", format!("{issuer}\0{subject}"))
    }

    /// Under which what is known of an address is kept.
    pub(crate) fn source(&self, source: Source) -> String {
        self.digest("source", source.to_string())
    }

    /// Under which a command stands in the log: of the `parts` that it came in, which may hold a password.
    pub(crate) fn command(&self, parts: &[&[u8]]) -> String {
        let framed = parts.iter().flat_map(|part| [&(part.len() as u64).to_be_bytes(), *part].concat());
        self.digest("command", framed.collect::<Vec<_>>())
    }

    fn digest(&self, purpose: &str, text: impl AsRef<[u8]>) -> String {
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(self.names.expose()) else { return String::new() };
        hex::encode(mac.chain_update(purpose).chain_update([0]).chain_update(text.as_ref()).finalize().into_bytes())
    }

    pub(crate) async fn seal(&self, id: UserId, profile: &Profile) -> Result<Sealed, Error> {
        let place = place(id);
        let fresh = Secret::new(rand::random::<[u8; 32]>());
        let key = match self.vault.create(&place, &fresh).await {
            Ok(_) => fresh,
            Err(eventlog::Error::WrongRevision { .. }) => {
                let (key, version) = self.vault.entry(&place).await?.ok_or(Error::Conflict)?;
                // Anew, so that it is nobody's leftover while the event is on its way that points here.
                match self.vault.replace(&place, &key, version).await {
                    Ok(_) => key,
                    Err(eventlog::Error::WrongRevision { .. }) => return Err(Error::Conflict),
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        let text = serde_json::to_vec(profile).map_err(Error::Encode)?;
        let sealed = Sealer::new(&key).and_then(|sealer| sealer.seal(&place, &Secret::new(text)));
        Ok(Sealed(hex::encode(sealed.map_err(eventlog::Error::from)?)))
    }

    /// Who it is. None of whom was erased.
    pub(crate) async fn open_profile(&self, id: UserId, sealed: &Sealed) -> Result<Option<Profile>, Error> {
        let place = place(id);
        let Some(key) = self.keys.get(&place).await? else { return Ok(None) };
        let Ok(bytes) = hex::decode(&sealed.0) else { return Ok(None) };
        let text = Sealer::new(&key).and_then(|sealer| sealer.unseal(&place, &bytes));
        Ok(text.ok().and_then(|text| serde_json::from_slice(text.expose()).ok()))
    }

    /// Nobody can read again who it was.
    pub(crate) async fn forget(&self, id: UserId) -> Result<(), Error> {
        self.keys.delete(&place(id)).await
    }
}

/// Of the key of a person.
pub(crate) fn place(id: UserId) -> String {
    format!("person/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_profile_is_refused_by_field() {
        for (name, display_name, email, field) in [
            ("", None, None, "name"),
            ("ann smith", None, None, "name"),
            ("änn", None, None, "name"),
            ("a\nb", None, None, "name"),
            ("ann", Some("a\nb"), None, "display_name"),
            ("ann", None, Some("nowhere"), "email"),
        ] {
            let refused = Profile::checked(name, display_name, email);
            assert!(matches!(&refused, Err(Error::Invalid(errors)) if errors[0].field == field), "{refused:?}");
        }
        let ann = Profile::checked(" ann ", Some(" "), Some("ann@example.com")).expect("good");
        assert_eq!((ann.shown(), ann.display_name.as_deref()), ("ann", None));
    }
}
