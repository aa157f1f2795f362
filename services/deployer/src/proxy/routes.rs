//! The `routes` bucket: what stands in front of each stage. The fence keeps an earlier worker from overwriting a later
//! one's route; [`Permit`] keeps it from bringing back one that a later worker has withdrawn.

use domain::traffic::{ROUTES, Route};
use eventlog::EventLog;

use super::Permit;
use crate::failure::StepError;

/// A route as it stands, with its revision.
pub(super) async fn standing(log: &EventLog, key: &str) -> Result<Option<(Route, u64)>, StepError> {
    let entry = log.bucket(ROUTES).get(key).await?;
    // One that a later version wrote is not ours to judge.
    Ok(entry.and_then(|entry| Some((serde_json::from_slice(&entry.value).ok()?, entry.revision))))
}

/// Every route that stands.
pub(super) async fn all(log: &EventLog) -> Result<Vec<Route>, StepError> {
    let mut routes = Vec::new();
    for key in log.bucket(ROUTES).keys().await? {
        routes.extend(standing(log, &key).await?.map(|(route, _)| route));
    }
    Ok(routes)
}

/// Writes `route` unless it stands already; returns the revision under which it does.
pub(super) async fn write(log: &EventLog, may: &Permit<'_>, route: &Route) -> Result<u64, StepError> {
    let bucket = log.bucket(ROUTES);
    let key = key(route);
    // A route is made of texts and numbers, which always become JSON.
    let value = serde_json::to_vec(route).unwrap_or_default();
    loop {
        let standing = bucket.get(&key).await?;
        may.ask("writing the route").await?;
        let written = match standing {
            Some(entry) if entry.value == value => return Ok(entry.revision),
            Some(entry) if fence(&entry.value) > route.fence => return Err(StepError::Fenced),
            Some(entry) => bucket.update(&key, value.clone(), entry.revision).await,
            None => bucket.create(&key, value.clone()).await,
        };
        match written {
            Ok(revision) => return Ok(revision),
            // Another was faster: look again who it was.
            Err(eventlog::Error::WrongRevision { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the route away unless someone with a right later than `upto` wrote it.
pub(super) async fn remove(log: &EventLog, may: &Permit<'_>, key: &str, upto: u64) -> Result<(), StepError> {
    let bucket = log.bucket(ROUTES);
    while let Some(entry) = bucket.get(key).await? {
        if fence(&entry.value) > upto {
            return Err(StepError::Fenced);
        }
        may.ask("withdrawing the route").await?;
        match bucket.delete(key, Some(entry.revision)).await {
            Ok(()) | Err(eventlog::Error::WrongRevision { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn key(route: &Route) -> String {
    format!("{}.{}", route.project, route.stage)
}

fn fence(value: &[u8]) -> u64 {
    serde_json::from_slice::<Route>(value).map_or(0, |route| route.fence)
}
