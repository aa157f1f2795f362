//! Tag policies: which images of its repository a stage takes by itself.
//!
//! A policy is compiled once and then asked: is this tag one of those, and which of them is the newest. Tags come from
//! a registry and may be anything.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use regex::{Regex, RegexBuilder};
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{FieldError, Span, image::valid_tag};

/// What a stage deploys without being asked. Exactly one of `semver`, `pattern` and `tag` says which images.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagPolicy {
    /// Takes the highest version in this range; `v1.2.3` counts as `1.2.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = ">=1.4, <3")]
    pub semver: Option<String>,
    /// Takes the newest of the tags that match this regular expression as a whole, by `order`. Its group `key`, or else
    /// its first group, is what is ordered by; without one, the whole tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "main-(\\d+)")]
    pub pattern: Option<String>,
    /// With `pattern`: what makes a tag newer than another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// Takes whatever this tag points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "main")]
    pub tag: Option<String>,
    /// Of the tags, only those that match one of these regular expressions as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// None of the tags that match one of these as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    /// Whether versions such as `2.0.0-rc.1` count, with the ranges that `2.0.0` is in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prerelease: bool,
    /// How old an image must be. One whose age nobody knows is not taken.
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    #[schema(value_type = String, example = "24h")]
    pub cooldown: Span,
}

/// What makes a tag newer than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A semantic version.
    Semver,
    /// A date, year first, with whatever digits follow it: `20261123`, `2026-11-23.2`, `20261123T0915`.
    Date,
    /// A whole number.
    Numeric,
    /// Byte by byte.
    Lexical,
    /// When the image was created, as its configuration says.
    Created,
}

const MOST_PATTERNS: usize = 20;
const LONGEST_PATTERN: usize = 200;
/// Bytes that a compiled expression may take.
const LARGEST_PATTERN: usize = 1 << 20;
const LONGEST_COOLDOWN: Span = Span::secs(366 * 86_400);

/// A policy that can be asked.
#[derive(Debug, Clone)]
pub struct Rules {
    takes: Takes,
    allow: Vec<Regex>,
    ignore: Vec<Regex>,
    prerelease: bool,
    cooldown: Span,
}

#[derive(Debug, Clone)]
enum Takes {
    Range(VersionReq),
    Pattern(Regex, Order),
    Moving(String),
}

/// A tag's place among the others of its policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Version(Version),
    Date(NaiveDate, u128),
    Number(u128),
    Text(String),
    /// Only the image tells.
    Unknown,
}

/// Whether an image is old enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    Ripe,
    /// It will be, then.
    Until(DateTime<Utc>),
    Unknown,
}

impl TagPolicy {
    /// Everything that is wrong with it, each error's field under `prefix`.
    pub fn check(&self, prefix: &str) -> Vec<FieldError> {
        self.compile().err().unwrap_or_default().into_iter().map(|wrong| wrong.under(prefix)).collect()
    }

    /// The policy as it can be asked, or what is wrong with it.
    pub fn compile(&self) -> Result<Rules, Vec<FieldError>> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, problem: String| errors.push(FieldError { field: field.into(), problem });
        let takes = match (&self.semver, &self.pattern, &self.tag) {
            (Some(range), None, None) => match VersionReq::parse(range) {
                Ok(range) => Some(Takes::Range(range)),
                Err(error) => {
                    let how = "write comparisons joined by commas, such as `^1.4` or `>=1.4, <3`";
                    wrong("semver", format!("is not a range of versions ({error}): {how}"));
                    None
                }
            },
            (None, Some(pattern), None) => match (expression(pattern), self.order) {
                (Ok(pattern), Some(order)) => Some(Takes::Pattern(pattern, order)),
                (Ok(_), None) => {
                    wrong("order", "is needed with `pattern`: semver, date, numeric, lexical or created".into());
                    None
                }
                (Err(problem), _) => {
                    wrong("pattern", problem);
                    None
                }
            },
            (None, None, Some(tag)) => {
                if !valid_tag(tag) {
                    wrong("tag", "must be a tag: 1 to 128 letters, digits, `_`, `.` and `-`".into());
                }
                Some(Takes::Moving(tag.clone()))
            }
            (None, None, None) => {
                wrong("semver", "one of `semver`, `pattern` and `tag` is needed".into());
                None
            }
            (Some(_), ..) | (_, Some(_), _) => {
                wrong("semver", "only one of `semver`, `pattern` and `tag` can be given".into());
                None
            }
        };
        if self.order.is_some() && self.pattern.is_none() {
            wrong("order", "applies only to `pattern`".into());
        }
        let versions = self.semver.is_some() || self.order == Some(Order::Semver);
        if self.prerelease && !versions {
            wrong("prerelease", "applies only to versions: to `semver`, or to `order: semver`".into());
        }
        if self.cooldown > LONGEST_COOLDOWN {
            wrong("cooldown", format!("must be at most {LONGEST_COOLDOWN}"));
        }
        let mut compiled = [Vec::new(), Vec::new()];
        for ((field, patterns), compiled) in
            [("allow", &self.allow), ("ignore", &self.ignore)].into_iter().zip(&mut compiled)
        {
            if self.tag.is_some() && !patterns.is_empty() {
                wrong(field, "does not apply to a `tag`, which is one already".into());
            }
            if patterns.len() > MOST_PATTERNS {
                wrong(field, format!("holds at most {MOST_PATTERNS} expressions"));
            }
            for (at, pattern) in patterns.iter().enumerate().take(MOST_PATTERNS) {
                match expression(pattern) {
                    Ok(pattern) => compiled.push(pattern),
                    Err(problem) => wrong(&format!("{field}.{at}"), problem),
                }
            }
        }
        let [allow, ignore] = compiled;
        match takes {
            Some(takes) if errors.is_empty() => {
                Ok(Rules { takes, allow, ignore, prerelease: self.prerelease, cooldown: self.cooldown })
            }
            Some(_) | None => Err(errors),
        }
    }
}

/// `pattern` as one that a whole tag must match. Linear in the length of the tag, whatever it says.
fn expression(pattern: &str) -> Result<Regex, String> {
    if pattern.is_empty() || pattern.len() > LONGEST_PATTERN {
        return Err(format!("must be a regular expression of 1 to {LONGEST_PATTERN} characters"));
    }
    // Alone first: in the brackets below, a pattern such as `a)(b` would be a good one.
    let bounded = |text: &str| RegexBuilder::new(text).size_limit(LARGEST_PATTERN).build();
    let whole = bounded(pattern).and_then(|_| bounded(&format!(r"\A(?:{pattern})\z")));
    whole.map_err(|error| format!("is not a regular expression: {}", error.to_string().replace('\n', " ")))
}

impl Rules {
    /// The tag that is followed wherever it points.
    pub fn moving(&self) -> Option<&str> {
        match &self.takes {
            Takes::Moving(tag) => Some(tag),
            Takes::Range(_) | Takes::Pattern(..) => None,
        }
    }

    /// Whether only the images can tell which tag is the newest.
    pub fn by_creation(&self) -> bool {
        matches!(self.takes, Takes::Pattern(_, Order::Created))
    }

    /// Whether the age of an image matters.
    pub fn cools_down(&self) -> bool {
        !self.cooldown.is_zero()
    }

    /// Whether the policy would ever take this tag.
    pub fn matches(&self, tag: &str) -> bool {
        self.rank(tag).is_some()
    }

    /// Of `tags`, those that the policy would rather have than `current`, the newest first. With
    /// [`Rules::by_creation`], all that it would ever take, for the images have to be compared.
    pub fn candidates<'a>(&self, tags: impl IntoIterator<Item = &'a str>, current: Option<&str>) -> Vec<&'a str> {
        let beaten = current.and_then(|current| Some((self.rank(current)?, current)));
        let ranked = tags.into_iter().filter_map(|tag| Some((self.rank(tag)?, tag)));
        let mut better: Vec<_> = ranked
            .filter(|(rank, tag)| match &beaten {
                None | Some((Rank::Unknown, _)) => true,
                // The same version under another name is nothing new.
                Some((beaten, current)) => rank > beaten && tag != current,
            })
            .collect();
        // Two names of one version: always the same of them, whatever the registry's order.
        better.sort_by(|(a, tag), (b, other)| b.cmp(a).then_with(|| tag.cmp(other)));
        better.dedup_by(|(_, tag), (_, other)| tag == other);
        better.into_iter().map(|(_, tag)| tag).collect()
    }

    /// Whether an image that was created at `created` may be taken at `now`.
    pub fn age(&self, created: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Age {
        if !self.cools_down() {
            return Age::Ripe;
        }
        let Some(created) = created.and_then(|created| plausible(created, now)) else { return Age::Unknown };
        let cooldown = TimeDelta::from_std(self.cooldown.duration()).unwrap_or(TimeDelta::MAX);
        match created.checked_add_signed(cooldown) {
            Some(ripe) if ripe <= now => Age::Ripe,
            Some(ripe) => Age::Until(ripe),
            None => Age::Unknown,
        }
    }

    fn rank(&self, tag: &str) -> Option<Rank> {
        if !valid_tag(tag) {
            return None;
        }
        let matches = |pattern: &Regex| pattern.is_match(tag);
        if self.ignore.iter().any(matches) || !(self.allow.is_empty() || self.allow.iter().any(matches)) {
            return None;
        }
        match &self.takes {
            Takes::Moving(moving) => (tag == moving).then_some(Rank::Unknown),
            Takes::Range(range) => {
                let version = self.version(tag)?;
                in_range(range, &version).then_some(Rank::Version(version))
            }
            Takes::Pattern(pattern, order) => {
                let captures = pattern.captures(tag)?;
                let key = captures.name("key").or_else(|| captures.get(1)).map_or(tag, |key| key.as_str());
                match order {
                    Order::Semver => self.version(key).map(Rank::Version),
                    Order::Date => date(key).map(|(date, rest)| Rank::Date(date, rest)),
                    Order::Numeric => key.parse().ok().map(Rank::Number),
                    Order::Lexical => Some(Rank::Text(key.to_owned())),
                    Order::Created => Some(Rank::Unknown),
                }
            }
        }
    }

    fn version(&self, text: &str) -> Option<Version> {
        let version = Version::parse(text.strip_prefix(['v', 'V']).unwrap_or(text)).ok()?;
        (self.prerelease || version.pre.is_empty()).then_some(version)
    }
}

/// A time that an image can have been created at. Reproducible builds set it to the epoch, which says nothing.
pub fn plausible(created: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    const YEAR: i64 = 366 * 86_400;
    (created.timestamp() > YEAR && created <= now).then_some(created)
}

fn in_range(range: &VersionReq, version: &Version) -> bool {
    // By itself, a range holds no pre-release that it does not name; one that names some says itself which.
    let release = Version::new(version.major, version.minor, version.patch);
    let names_some = range.comparators.iter().any(|comparator| !comparator.pre.is_empty());
    range.matches(version) || (!names_some && range.matches(&release))
}

/// A date with its year first, and the digits behind it as a number.
fn date(text: &str) -> Option<(NaiveDate, u128)> {
    let mut left = text;
    let mut number = |length: usize| {
        let (digits, after) = left.split_at_checked(length).filter(|(digits, _)| is_digits(digits))?;
        // One character may stand between the parts, if it is no digit.
        left = after.strip_prefix(|c: char| !c.is_ascii_digit()).unwrap_or(after);
        digits.parse::<u32>().ok()
    };
    let date = NaiveDate::from_ymd_opt(number(4)?.try_into().ok()?, number(2)?, number(2)?)?;
    let rest: String = left.chars().filter(char::is_ascii_digit).collect();
    // As a time of day, 0915 is more than 08; as a count, 10 is more than 9. Equal lengths are both.
    let rest = if rest.is_empty() { 0 } else { rest.parse().ok()? };
    Some((date, rest))
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The newest of some tags by the creation of their images; later tags win where times are equal. One whose time nobody
/// knows is never the newest.
pub fn newest<'a>(created: impl IntoIterator<Item = (&'a str, Option<DateTime<Utc>>)>) -> Option<&'a str> {
    let known = created.into_iter().filter_map(|(tag, created)| Some((created?, tag)));
    known.max().map(|(_, tag)| tag)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn semver(range: &str) -> TagPolicy {
        TagPolicy { semver: Some(range.into()), ..TagPolicy::default() }
    }

    fn pattern(pattern: &str, order: Order) -> TagPolicy {
        TagPolicy { pattern: Some(pattern.into()), order: Some(order), ..TagPolicy::default() }
    }

    fn rules(policy: &TagPolicy) -> Rules {
        policy.compile().expect("a good policy")
    }

    fn best<'a>(policy: &TagPolicy, tags: &[&'a str], current: Option<&str>) -> Option<&'a str> {
        rules(policy).candidates(tags.iter().copied(), current).first().copied()
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    const RELEASES: [&str; 9] =
        ["latest", "1.2.0", "v1.10.0", "1.9.3", "2.0.0-rc.1", "2.1.0", "1.2", "not-1.99.0", "1.11.0-beta"];

    #[test]
    fn a_range_takes_its_highest_version_and_no_other_tag() {
        for (range, prerelease, wanted) in [
            ("^1", false, Some("v1.10.0")),
            ("^1", true, Some("1.11.0-beta")),
            (">=1, <2", false, Some("v1.10.0")),
            ("~1.9", false, Some("1.9.3")),
            ("*", false, Some("2.1.0")),
            (">=2, <2.1", true, Some("2.0.0-rc.1")),
            ("^3", true, None),
            (">=2.0.0-rc.2", true, Some("2.1.0")),
            (">=2.0.0-rc.2, <2.1", true, None),
        ] {
            let policy = TagPolicy { prerelease, ..semver(range) };
            assert_eq!(best(&policy, &RELEASES, None), wanted, "{range} prerelease {prerelease}");
        }
    }

    #[test]
    fn nothing_older_than_what_runs_is_a_candidate() {
        let policy = semver("*");
        assert_eq!(rules(&policy).candidates(RELEASES, Some("1.9.3")), ["2.1.0", "v1.10.0"]);
        assert_eq!(best(&policy, &RELEASES, Some("2.1.0")), None);
        assert_eq!(best(&policy, &RELEASES, Some("v2.1.0")), None, "the same version by another name");
        assert_eq!(best(&policy, &RELEASES, Some("7.0.0")), None, "a release that has gone from the registry");
        assert_eq!(best(&policy, &RELEASES, Some("pinned")), Some("2.1.0"), "what runs is no version");
    }

    #[test]
    fn patterns_order_by_what_they_name() {
        let tags = ["main-9", "main-10", "dev-11", "main-010", "main-x"];
        assert_eq!(best(&pattern(r"main-(\d+)", Order::Numeric), &tags, None), Some("main-010"), "ten twice: by name");
        assert_eq!(best(&pattern(r"main-(?<key>.+)", Order::Lexical), &tags, None), Some("main-x"));
        let dates = ["b-20261122.9", "b-2026-11-23", "b-20261122.10", "b-20269999", "b-7", "b-2026-1-12.5"];
        assert_eq!(
            rules(&pattern(r"b-(.+)", Order::Date)).candidates(dates, None),
            ["b-2026-11-23", "b-20261122.10", "b-20261122.9"]
        );
        let images = ["web-1.2.3", "web-v1.10.0", "web-x"];
        assert_eq!(best(&pattern(r"web-(.+)", Order::Semver), &images, None), Some("web-v1.10.0"));
        assert_eq!(rules(&pattern("main-.*", Order::Created)).candidates(tags, Some("main-9")).len(), 4);
    }

    #[test]
    fn a_pattern_must_match_the_whole_tag() {
        assert!(!rules(&pattern("a|b", Order::Lexical)).matches("ab"));
        assert!(!rules(&pattern("v1", Order::Lexical)).matches("v10"));
    }

    #[test]
    fn allow_and_ignore_narrow_every_kind() {
        let policy =
            TagPolicy { allow: vec!["v.*".into(), "2.*".into()], ignore: vec![r".*\.0".into()], ..semver("*") };
        assert_eq!(best(&policy, &[&RELEASES[..], &["v1.3.1"]].concat(), None), Some("v1.3.1"));
    }

    #[test]
    fn the_newest_by_creation_is_one_whose_time_is_known() {
        let (old, new) = (Some(at("2026-11-01T00:00:00Z")), Some(at("2026-11-02T00:00:00Z")));
        assert_eq!(newest([("b", new), ("a", old), ("c", None)]), Some("b"));
        assert_eq!(newest([("a", new), ("b", new)]), Some("b"));
        assert_eq!(newest([("c", None)]), None);
    }

    #[test]
    fn an_image_of_unknown_age_waits_for_ever_and_a_known_one_for_its_time() {
        let rules = rules(&TagPolicy { cooldown: Span::secs(3600), ..semver("*") });
        let now = at("2026-11-23T12:00:00Z");
        assert_eq!(rules.age(None, now), Age::Unknown);
        assert_eq!(rules.age(Some(DateTime::UNIX_EPOCH), now), Age::Unknown, "as reproducible builds set it");
        assert_eq!(rules.age(Some(at("2026-11-23T13:00:00Z")), now), Age::Unknown, "from the future");
        assert_eq!(rules.age(Some(at("2026-11-23T11:00:00Z")), now), Age::Ripe);
        assert_eq!(rules.age(Some(at("2026-11-23T11:00:01Z")), now), Age::Until(at("2026-11-23T12:00:01Z")));
    }

    #[test]
    fn every_bad_field_is_named() {
        let fields = |policy: TagPolicy| policy.check("p").into_iter().map(|error| error.field).collect::<Vec<_>>();
        assert_eq!(fields(TagPolicy::default()), ["p.semver"]);
        assert_eq!(fields(semver("1 || 2")), ["p.semver"]);
        assert_eq!(fields(TagPolicy { tag: Some("main".into()), ..semver("1") }), ["p.semver"]);
        assert_eq!(fields(TagPolicy { order: Some(Order::Date), ..semver("1") }), ["p.order"]);
        assert_eq!(fields(TagPolicy { order: None, ..pattern("x", Order::Date) }), ["p.order"]);
        for bad in ["(", "a)(b", "", "(a{1000}){1000}"] {
            assert_eq!(fields(pattern(bad, Order::Lexical)), ["p.pattern"], "{bad}");
        }
        let moving =
            TagPolicy { tag: Some("a b".into()), prerelease: true, allow: vec!["x".into()], ..TagPolicy::default() };
        assert_eq!(fields(moving), ["p.tag", "p.prerelease", "p.allow"]);
        let narrowed = TagPolicy { ignore: vec!["a".into(), "[".into()], cooldown: Span::secs(1 << 40), ..semver("*") };
        assert_eq!(fields(narrowed), ["p.cooldown", "p.ignore.1"]);
    }

    proptest! {
        #[test]
        fn no_tag_panics(tag in "\\PC{0,40}", other in "\\PC{0,40}") {
            for order in [Order::Semver, Order::Date, Order::Numeric, Order::Lexical, Order::Created] {
                let rules = rules(&pattern(".*", order));
                let _ = rules.candidates([tag.as_str(), other.as_str()], Some(&tag));
            }
        }

        /// Whatever the order in which a registry lists its tags, the same ones are taken in the same order, and each
        /// is newer than what runs.
        #[test]
        fn the_order_of_a_list_means_nothing(
            tags in prop::collection::vec("(v?[0-3]\\.[0-3]\\.[0-3](-rc\\.[0-2])?|main-[0-9]{1,3})", 0..12),
            current in prop::option::of("v?[0-3]\\.[0-3]\\.[0-3]"),
            prerelease: bool,
        ) {
            let rules = rules(&TagPolicy { prerelease, ..semver("*") });
            let forward = rules.candidates(tags.iter().map(String::as_str), current.as_deref());
            let backward = rules.candidates(tags.iter().rev().map(String::as_str), current.as_deref());
            prop_assert_eq!(&forward, &backward);
            if let Some(best) = forward.first() {
                prop_assert!(rules.candidates(tags.iter().map(String::as_str), Some(best)).is_empty());
            }
        }
    }
}
