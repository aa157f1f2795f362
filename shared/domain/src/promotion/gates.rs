//! What a person declares to stand between a stage and the one that it promotes from.

use std::{collections::BTreeSet, str::FromStr};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{FieldError, Role, Span};

/// Everything that has to hold before a promotion is accepted, beside the release running healthy in the source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Gates {
    /// How long the release must have been healthy in the source, without a break.
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    #[schema(value_type = String, example = "10m")]
    pub soak: Span,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<Approvals>,
    /// When nothing is promoted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<Window>,
}

/// How many people other than the one who asked have to agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Approvals {
    /// 1 to 20.
    pub count: u16,
    /// Whose approval counts: those with one of these roles or a higher one. Without any, every operator's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub roles: BTreeSet<Role>,
}

/// A time that comes again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// When it begins: minute, hour, day of the month, month, day of the week.
    #[schema(example = "0 16 * * FRI")]
    pub schedule: String,
    /// How long it lasts.
    #[schema(value_type = String, example = "64h")]
    pub duration: Span,
    /// By whose clock, as the IANA database names it.
    #[serde(default = "utc")]
    #[schema(example = "Europe/Berlin")]
    pub time_zone: String,
    /// For those who meet it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

const MOST_WINDOWS: usize = 20;
const YEAR: Span = Span::secs(366 * 86_400);

fn utc() -> String {
    "UTC".into()
}

impl Gates {
    /// Everything that is wrong with them, each error's field under `prefix`.
    pub fn check(&self, prefix: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut refuse =
            |field: String, problem: String| errors.push(FieldError { field: format!("{prefix}.{field}"), problem });
        if self.soak > YEAR {
            refuse("soak".into(), "must be at most a year".into());
        }
        if let Some(approvals) = &self.approvals {
            if !(1..=20).contains(&approvals.count) {
                refuse("approvals.count".into(), "must be from 1 to 20".into());
            }
            if approvals.roles.contains(&Role::Viewer) {
                refuse("approvals.roles".into(), "viewers only look: name operator or admin".into());
            }
        }
        if self.frozen.len() > MOST_WINDOWS {
            refuse("frozen".into(), format!("must hold at most {MOST_WINDOWS} windows"));
        }
        for (at, window) in self.frozen.iter().enumerate() {
            if let Err(error) = window.cron() {
                refuse(format!("frozen[{at}].schedule"), error);
            }
            if let Err(error) = window.zone() {
                refuse(format!("frozen[{at}].time_zone"), error);
            }
            if window.duration == Span::ZERO || window.duration > YEAR {
                refuse(format!("frozen[{at}].duration"), "must be longer than nothing, and at most a year".into());
            }
            if window.reason.as_ref().is_some_and(|reason| reason.chars().count() > 500) {
                refuse(format!("frozen[{at}].reason"), "must be at most 500 characters".into());
            }
        }
        errors
    }

    /// The window that holds at `now`, and when it ends. Of several the one that ends last.
    pub(super) fn frozen_at(&self, now: DateTime<Utc>) -> Option<(&Window, DateTime<Utc>)> {
        let holding = self.frozen.iter().filter_map(|window| Some((window, window.end(now)?)));
        holding.max_by_key(|(_, end)| *end)
    }
}

impl Approvals {
    pub fn counts(&self, role: Role) -> bool {
        role >= self.least()
    }

    /// The lowest role whose approval counts.
    pub fn least(&self) -> Role {
        self.roles.first().copied().unwrap_or(Role::Operator)
    }
}

impl Window {
    /// When the one that holds at `now` ends; none where none does. What cannot be read was refused when it was
    /// declared; should it stand in the log all the same, it holds for ever.
    fn end(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (Ok(cron), Ok(zone)) = (self.cron(), self.zone()) else { return Some(DateTime::<Utc>::MAX_UTC) };
        let began = cron.find_previous_occurrence(&now.with_timezone(&zone), true).ok()?.to_utc();
        let length = TimeDelta::try_milliseconds(self.duration.as_millis().try_into().unwrap_or(i64::MAX))?;
        let end = began.checked_add_signed(length)?;
        (end > now).then_some(end)
    }

    fn cron(&self) -> Result<Cron, String> {
        let fields = self.schedule.split_whitespace().count();
        let parsed = (fields == 5).then(|| Cron::from_str(&self.schedule).ok()).flatten();
        parsed.ok_or_else(|| {
            "must be five fields: minute, hour, day of the month, month, day of the week, such as 0 16 * * FRI".into()
        })
    }

    fn zone(&self) -> Result<Tz, String> {
        self.time_zone.parse().map_err(|_| "must be a name of the IANA database, such as Europe/Berlin or UTC".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn window(schedule: &str, hours: u64, zone: &str) -> Window {
        Window { schedule: schedule.into(), duration: Span::secs(hours * 3600), time_zone: zone.into(), reason: None }
    }

    fn end(window: &Window, now: &str) -> Option<DateTime<Utc>> {
        Gates { frozen: vec![window.clone()], ..Gates::default() }.frozen_at(at(now)).map(|(_, end)| end)
    }

    #[test]
    fn a_window_holds_from_its_first_moment_to_just_before_its_last() {
        // From Friday 16:00 in Berlin (15:00 UTC in winter) until Monday 8:00.
        let weekend = window("0 16 * * FRI", 64, "Europe/Berlin");
        let monday = Some(at("2026-11-23T07:00:00Z"));
        assert_eq!(end(&weekend, "2026-11-20T14:59:59Z"), None);
        assert_eq!(end(&weekend, "2026-11-20T15:00:00Z"), monday);
        assert_eq!(end(&weekend, "2026-11-20T15:00:00.250Z"), monday);
        assert_eq!(end(&weekend, "2026-11-23T06:59:59Z"), monday);
        assert_eq!(end(&weekend, "2026-11-23T07:00:00Z"), None);
    }

    #[test]
    fn a_window_begins_by_its_own_clock_whatever_the_season() {
        let nightly = window("0 22 * * *", 1, "Europe/Berlin");
        assert!(end(&nightly, "2026-07-01T20:30:00Z").is_some() && end(&nightly, "2026-07-01T21:30:00Z").is_none());
        assert!(end(&nightly, "2026-12-01T21:30:00Z").is_some() && end(&nightly, "2026-12-01T20:30:00Z").is_none());
    }

    #[test]
    fn of_several_windows_the_one_that_ends_last_is_told() {
        let gates =
            Gates { frozen: vec![window("0 0 * * *", 2, "UTC"), window("0 1 * * *", 4, "UTC")], ..Gates::default() };
        let (_, end) = gates.frozen_at(at("2026-01-01T01:30:00Z")).expect("both hold");
        assert_eq!(end, at("2026-01-01T05:00:00Z"));
    }

    #[test]
    fn every_bad_field_is_named() {
        let gates = Gates {
            soak: Span::secs(400 * 86_400),
            approvals: Some(Approvals { count: 0, roles: [Role::Viewer].into() }),
            frozen: vec![
                window("whenever", 0, "Mars/Olympus"),
                window("* * * * * *", 1, "UTC"),
                window("0 25 * * *", 1, "UTC"),
            ],
        };
        let fields: Vec<String> = gates.check("g").into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            [
                "g.soak",
                "g.approvals.count",
                "g.approvals.roles",
                "g.frozen[0].schedule",
                "g.frozen[0].time_zone",
                "g.frozen[0].duration",
                "g.frozen[1].schedule",
                "g.frozen[2].schedule"
            ]
        );
    }

    #[test]
    fn a_window_that_cannot_be_read_holds() {
        assert!(end(&window("whenever", 1, "UTC"), "2026-01-01T00:00:00Z").is_some());
    }

    #[test]
    fn an_approval_counts_from_the_lowest_named_role_upwards() {
        let approvals = |roles: &[Role]| Approvals { count: 1, roles: roles.iter().copied().collect() };
        assert!(approvals(&[]).counts(Role::Operator) && !approvals(&[]).counts(Role::Viewer));
        assert!(!approvals(&[Role::Admin]).counts(Role::Operator) && approvals(&[Role::Operator]).counts(Role::Admin));
    }
}
