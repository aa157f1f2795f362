//! What every read model's fold needs.

use std::{borrow::Cow, collections::BTreeSet};

use chrono::{DateTime, SubsecRound, Utc};
use domain::{DeploymentId, Event, Recorded, stage};
use serde::Serialize;
use sqlx::types::Json;

/// The distinct keys that a batch touches, in order, so that rows are always written in the same one.
pub(crate) fn keys<K: Ord>(events: &[Recorded], key: impl Fn(&Recorded) -> Option<K>) -> Vec<K> {
    events.iter().filter_map(key).collect::<BTreeSet<K>>().into_iter().collect()
}

/// When it happened, to the microsecond, which is what the database keeps: a row that was stored in between
/// must not differ from one that was not.
pub(crate) fn time(recorded: &Recorded) -> DateTime<Utc> {
    recorded.context.time.trunc_subsecs(6)
}

/// A stage's event, with its project and stage.
pub(crate) fn of_stage(recorded: &Recorded) -> Option<((&str, &str), &stage::Event)> {
    let Event::Stage(event) = &recorded.event else { return None };
    Some(((recorded.project()?, recorded.stage()?), event))
}

/// The deployment that an event is about.
pub(crate) fn deployment(event: &stage::Event) -> Option<DeploymentId> {
    use stage::Event;
    match event {
        Event::Requested { deployment, .. }
        | Event::Superseded { deployment, .. }
        | Event::Dispatched { deployment, .. }
        | Event::Started { deployment, .. }
        | Event::StepFailed { deployment, .. }
        | Event::CancelRequested { deployment, .. }
        | Event::Succeeded { deployment }
        | Event::Failed { deployment, .. }
        | Event::RolledBack { deployment, .. }
        | Event::Cancelled { deployment }
        | Event::InstanceStarted { deployment, .. }
        | Event::InstanceExited { deployment, .. }
        | Event::InstanceOomKilled { deployment, .. }
        | Event::InstanceHealthChanged { deployment, .. } => Some(*deployment),
        Event::Pulled(done)
        | Event::Held(done)
        | Event::Created { step: done, .. }
        | Event::Healthy(done)
        | Event::Switched(done)
        | Event::Baked(done)
        | Event::Drained(done)
        | Event::Retired(done)
        | Event::Reheld(done)
        | Event::Discarded(done)
        | Event::Restored(done)
        | Event::Reverted(done) => Some(done.deployment),
        Event::Locked { .. }
        | Event::Unlocked { .. }
        | Event::PromotionRequested { .. }
        | Event::PromotionApproved { .. }
        | Event::PromotionAccepted { .. }
        | Event::PromotionRefused { .. }
        | Event::PromotionWithdrawn { .. }
        | Event::HoldSet { .. }
        | Event::HoldLifted {}
        | Event::Archived {}
        | Event::Reopened {} => None,
    }
}

/// Rows in the form that `jsonb_populate_recordset` takes.
pub(crate) fn recordset<R: Serialize>(rows: impl Iterator<Item = R>) -> sqlx::Result<String> {
    let rows: Vec<R> = rows.collect();
    serde_json::to_string(&rows)
        .map(|json| storable(&json).into_owned())
        .map_err(|error| sqlx::Error::Encode(error.into()))
}

/// Text that the database takes, for the same reason.
pub(crate) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

pub(crate) fn unwrapped<R>(rows: Vec<Json<R>>) -> Vec<R> {
    rows.into_iter().map(|Json(row)| row).collect()
}

/// JSON that the database takes: it has no room for U+0000 in text, which a container's log may well hold.
pub(crate) fn storable(json: &str) -> Cow<'_, str> {
    const NULL: &str = r"\u0000";
    if !json.contains(NULL) {
        return json.into();
    }
    let mut clean = String::with_capacity(json.len());
    let mut rest = json;
    // Escape by escape: in `\\u0000` the backslash itself is escaped, and what follows is plain text.
    while let Some((before, from)) = rest.find('\\').map(|at| rest.split_at(at)) {
        clean.push_str(before);
        let (escape, after) = from.split_at(if from.starts_with(NULL) { NULL.len() } else { 2 });
        clean.push_str(if escape == NULL { r"\ufffd" } else { escape });
        rest = after;
    }
    clean.push_str(rest);
    clean.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_null_character_is_replaced_and_an_escaped_backslash_before_u0000_is_not() {
        let json = serde_json::to_string(&["a\0b", r"\u0000", "\\\0", "plain"]).expect("strings");
        let read: Vec<String> = serde_json::from_str(&storable(&json)).expect("still JSON");
        assert_eq!(read, ["a\u{fffd}b", r"\u0000", "\\\u{fffd}", "plain"]);
    }

    proptest! {
        #[test]
        fn only_null_characters_change(text in "[\\\\u0\"n\\x00-\\x02ä]{0,20}") {
            let json = serde_json::to_string(&text).expect("a string");
            let read: String = serde_json::from_str(&storable(&json)).expect("still JSON");
            prop_assert_eq!(read, text.replace('\0', "\u{fffd}"));
        }
    }
}
