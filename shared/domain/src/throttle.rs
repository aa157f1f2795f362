//! Protection against guessing: attempts are counted, and too many of them end in a block.
//!
//! An attempt counts before anything is checked, so that many at once gain nothing; a success takes everything back.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Failures that end in a block; at least 1.
    pub failures: usize,
    /// How long a failure counts.
    pub window: TimeDelta,
    /// How long a block lasts.
    pub cooldown: TimeDelta,
}

/// What is known of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// When what counts was tried: at most as many as end in a block.
    attempts: Vec<DateTime<Utc>>,
    blocked_until: Option<DateTime<Utc>>,
}

/// Whether an attempt may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// To be kept before the attempt is made. Where it fails and `last` says so, it was the last one.
    Granted {
        counter: Counter,
        last: Option<DateTime<Utc>>,
    },
    Blocked,
}

impl Counter {
    /// Whether nothing is looked at, at `now`.
    pub fn blocks(&self, now: DateTime<Utc>) -> bool {
        self.blocked_until.is_some_and(|until| now < until)
    }

    /// Counts an attempt at `now`.
    #[must_use]
    pub fn attempt(&self, now: DateTime<Utc>, limits: &Limits) -> Admission {
        let mut attempts = match self.blocked_until {
            Some(_) if self.blocks(now) => return Admission::Blocked,
            // What led to a block is paid for with it.
            Some(_) => vec![],
            None => self.attempts.clone(),
        };
        attempts.retain(|at| now < *at + limits.window);
        attempts.push(now);
        let last = (attempts.len() >= limits.failures).then(|| now + limits.cooldown);
        Admission::Granted { counter: Self { attempts, blocked_until: last }, last }
    }

    /// Without the attempt that was counted at `at`, where it still counts: nothing was looked at. A block that it had
    /// led to is lifted.
    #[must_use]
    pub fn without(&self, at: DateTime<Utc>, limits: &Limits) -> Self {
        let Some(found) = self.attempts.iter().position(|known| *known == at) else { return self.clone() };
        let mut attempts = self.attempts.clone();
        attempts.remove(found);
        let blocked_until = self.blocked_until.filter(|_| attempts.len() >= limits.failures);
        Self { attempts, blocked_until }
    }

    /// When nothing of it counts any longer.
    pub fn over(&self, limits: &Limits) -> Option<DateTime<Utc>> {
        self.blocked_until.or_else(|| self.attempts.last().map(|last| *last + limits.window))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { failures: 5, window: TimeDelta::seconds(300), cooldown: TimeDelta::seconds(900) };

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).expect("in range")
    }

    /// Whether each attempt is let through, where all fail.
    fn attempts(seconds: impl IntoIterator<Item = i64>) -> Vec<bool> {
        let mut counter = Counter::default();
        seconds
            .into_iter()
            .map(|second| match counter.attempt(at(second), &LIMITS) {
                Admission::Granted { counter: next, .. } => {
                    counter = next;
                    true
                }
                Admission::Blocked => false,
            })
            .collect()
    }

    #[test]
    fn the_fifth_failure_blocks_and_the_fourth_does_not() {
        assert_eq!(attempts([0, 1, 2, 3]), [true; 4]);
        assert_eq!(attempts([0, 1, 2, 3, 4, 5]), [true, true, true, true, true, false]);
        assert_eq!(attempts([0; 7]), [true, true, true, true, true, false, false], "all at once");
    }

    #[test]
    fn a_failure_counts_until_the_window_is_over() {
        assert_eq!(attempts([0, 1, 2, 3, 299, 300]), [true, true, true, true, true, false], "five within 300 s");
        assert_eq!(attempts([0, 1, 2, 3, 300, 301, 302]), [true; 7], "the first no longer counts at 300 s");
        assert_eq!(attempts([0, 100, 200, 301, 302, 303]), [true; 6]);
    }

    #[test]
    fn a_block_lasts_as_long_as_the_cooldown_and_begins_with_the_last_failure() {
        let blocked = |second| attempts([0, 1, 2, 3, 4, second])[5];
        assert!(!blocked(4) && !blocked(903));
        assert!(blocked(904) && blocked(100_000));
        assert_eq!(attempts([0, 1, 2, 3, 4, 904, 905, 906, 907, 908, 909])[5..], [true, true, true, true, true, false]);
    }

    #[test]
    fn a_blocked_attempt_does_not_make_the_block_longer() {
        let tries = [0, 1, 2, 3, 4].into_iter().chain((5..904).step_by(7)).chain([904]);
        assert_eq!(attempts(tries).last(), Some(&true));
    }

    #[test]
    fn what_was_not_looked_at_does_not_count() {
        let mut counter = Counter::default();
        let attempt = |counter: &mut Counter, second| match counter.attempt(at(second), &LIMITS) {
            Admission::Granted { counter: next, .. } => {
                *counter = next;
                true
            }
            Admission::Blocked => false,
        };
        for second in 0..5 {
            assert!(attempt(&mut counter, second));
        }
        assert!(!attempt(&mut counter, 5), "blocked");
        assert_eq!(counter.without(at(7), &LIMITS), counter, "of nobody's attempt");
        counter = counter.without(at(4), &LIMITS);
        assert!(attempt(&mut counter, 6), "the fourth did not block");
        assert!(!attempt(&mut counter, 7), "and those before still count");
        // A block that was paid for stays so.
        let after = counter.attempt(at(906), &LIMITS);
        let Admission::Granted { counter: after, .. } = after else { panic!("{after:?}") };
        assert_eq!(after.without(at(3), &LIMITS), after);
    }

    #[test]
    fn what_is_over_need_not_be_kept() {
        let Admission::Granted { counter, last: None } = Counter::default().attempt(at(0), &LIMITS) else { panic!() };
        assert_eq!(counter.over(&LIMITS), Some(at(300)));
        assert_eq!(Counter::default().over(&LIMITS), None);
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_within_a_window(mut seconds in proptest::collection::vec(0..5000_i64, 1..200)) {
            seconds.sort_unstable();
            let granted = attempts(seconds.iter().copied());
            let through: Vec<i64> =
                seconds.into_iter().zip(granted).filter(|(_, granted)| *granted).map(|(second, _)| second).collect();
            for six in through.windows(6) {
                prop_assert!(six[5] - six[0] >= 300, "{:?}", six);
            }
        }
    }
}
