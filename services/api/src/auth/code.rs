//! Codes by which somebody who has signed in with a browser signs in at a command line, too, where they have no password
//! to type: shown to them alone, good once, for two minutes, and only as long as their session. What is kept is a hash.

use chrono::{DateTime, TimeDelta, Utc};
use domain::{SessionId, UserId};
use eventlog::Bucket;
use serde::{Deserialize, Serialize};

use super::{Auth, Principal, Who, digest, random_secret};
use crate::problem::Error;

/// Made in `nats/streams.json`, which bounds their number and forgets them by itself.
pub(super) const BUCKET: &str = "sign-in-codes";
const GOOD: TimeDelta = TimeDelta::minutes(2);

#[derive(Serialize, Deserialize)]
struct Kept {
    user: UserId,
    session: SessionId,
    expires_at: DateTime<Utc>,
}

fn key(code: &str) -> String {
    hex::encode(digest(code))
}

impl Auth {
    fn codes(&self) -> Bucket {
        self.log.bucket(BUCKET)
    }

    /// A code for whoever asks by a browser's session, and when it is over.
    pub(crate) async fn issue_code(&self, caller: &Principal) -> Result<(String, DateTime<Utc>), Error> {
        let Who::Session { user, session } = caller.who else { return Err(Error::NotSignedIn) };
        let (code, expires_at) = (random_secret(), runtime::clock::now() + GOOD);
        let kept = serde_json::to_vec(&Kept { user, session, expires_at }).map_err(Error::Encode)?;
        self.codes().create(&key(&code), kept).await?;
        Ok((code, expires_at))
    }

    /// Whose session a code comes from; nobody learns it again.
    pub(crate) async fn redeem(&self, code: &str) -> Result<Option<Principal>, Error> {
        let key = key(code);
        let Some(entry) = self.codes().get(&key).await? else { return Ok(None) };
        match self.codes().delete(&key, Some(entry.revision)).await {
            Ok(()) => {}
            Err(eventlog::Error::WrongRevision { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let now = runtime::clock::now();
        let Ok(kept) = serde_json::from_slice::<Kept>(&entry.value) else { return Ok(None) };
        if kept.expires_at <= now {
            return Ok(None);
        }
        Ok(self.session_holder(kept.user, kept.session, now).await?.map(|(principal, _)| principal))
    }
}
