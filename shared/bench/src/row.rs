//! One figure: ours and the peers', a value a round, taken side by side.

use anyhow::{Result, ensure};
use serde::Serialize;

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    PerSecond,
    Milliseconds,
    Seconds,
    /// 10^6 bytes.
    Megabytes,
    /// Requests that failed.
    Failed,
    Count,
}

/// What ours must reach, at the median over the rounds.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum Target {
    /// In every single round.
    Zero,
    AtMost {
        limit: f64,
    },
    /// Of the ratio ours / peer, round by round.
    AtLeast {
        peer: &'static str,
        ratio: f64,
    },
    /// Of the ratio ours / peer, round by round.
    AtMostTimes {
        peer: &'static str,
        ratio: f64,
    },
    /// Of the difference ours - peer, round by round.
    AtMostOver {
        peer: &'static str,
        plus: f64,
    },
}

/// Median and range of the values of one series.
#[derive(Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

#[derive(Serialize)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) rounds: Vec<f64>,
    pub(crate) spread: Spread,
    /// Ours / peer, round by round; nothing where the peer had a zero.
    pub(crate) ratio: Option<Spread>,
}

#[derive(Serialize)]
pub(crate) struct Verdict {
    #[serde(flatten)]
    pub(crate) target: Target,
    /// What is compared with the target.
    pub(crate) value: f64,
    pub(crate) met: bool,
}

/// A row of the table. A row without a target is reported only.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) rounds: Vec<f64>,
    pub(crate) spread: Option<Spread>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) verdicts: Vec<Verdict>,
    /// What bounds the figure, as profiled.
    pub(crate) bound: &'static str,
    pub(crate) notes: Vec<String>,
    #[serde(skip)]
    targets: Vec<Target>,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, unit: Unit) -> Row {
        Row {
            name: name.into(),
            unit,
            rounds: Vec::new(),
            spread: None,
            peers: Vec::new(),
            verdicts: Vec::new(),
            bound: "",
            notes: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// One value a round.
    pub(crate) fn ours(mut self, rounds: Vec<f64>) -> Row {
        self.spread = Spread::of(&rounds);
        self.rounds = rounds;
        self
    }

    /// One value a round, each taken beside ours of the same round.
    pub(crate) fn peer(mut self, name: &'static str, rounds: Vec<f64>) -> Row {
        let ratios: Option<Vec<f64>> =
            self.rounds.iter().zip(&rounds).map(|(ours, peer)| (*peer != 0.0).then(|| ours / peer)).collect();
        let spread = Spread::of(&rounds).unwrap_or(Spread { median: f64::NAN, least: f64::NAN, most: f64::NAN });
        self.peers.push(Peer { name, rounds, spread, ratio: ratios.and_then(|ratios| Spread::of(&ratios)) });
        self
    }

    pub(crate) fn target(mut self, target: Target) -> Row {
        self.targets.push(target);
        self
    }

    pub(crate) fn bound(mut self, bound: &'static str) -> Row {
        self.bound = bound;
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Row {
        self.notes.push(note.into());
        self
    }

    /// Compares ours with every target; an error where a series is not complete.
    pub(crate) fn judge(mut self, rounds: usize) -> Result<Row> {
        let name = self.name.clone();
        ensure!(self.rounds.len() == rounds, "{name}: {} values in {rounds} rounds", self.rounds.len());
        for peer in &self.peers {
            let (of, values) = (peer.name, peer.rounds.len());
            ensure!(values == rounds, "{name}: {values} values of {of} in {rounds} rounds");
        }
        for target in &self.targets {
            let value = self.value(*target).filter(|value| value.is_finite());
            let Some(value) = value else { anyhow::bail!("{name}: {target:?} cannot be judged") };
            let met = match *target {
                Target::Zero => value == 0.0,
                Target::AtMost { limit } => value <= limit,
                Target::AtLeast { ratio, .. } => value >= ratio,
                Target::AtMostTimes { ratio, .. } => value <= ratio,
                Target::AtMostOver { plus, .. } => value <= plus,
            };
            self.verdicts.push(Verdict { target: *target, value, met });
        }
        Ok(self)
    }

    fn value(&self, target: Target) -> Option<f64> {
        let median = |combine: fn(f64, f64) -> f64, name: &str| {
            let peer = self.peers.iter().find(|peer| peer.name == name)?;
            let combined: Vec<f64> = self.rounds.iter().zip(&peer.rounds).map(|(a, b)| combine(*a, *b)).collect();
            Spread::of(&combined).map(|spread| spread.median)
        };
        match target {
            Target::Zero => self.spread.as_ref().map(|spread| spread.most),
            Target::AtMost { .. } => self.spread.as_ref().map(|spread| spread.median),
            Target::AtLeast { peer, .. } | Target::AtMostTimes { peer, .. } => {
                median(|ours, theirs| ours / theirs, peer)
            }
            Target::AtMostOver { peer, .. } => median(|ours, theirs| ours - theirs, peer),
        }
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Zero => write!(f, "0"),
            Target::AtMost { limit } => write!(f, "at most {limit}"),
            Target::AtLeast { peer, ratio } => write!(f, "at least {ratio} of {peer}"),
            Target::AtMostTimes { peer, ratio } => write!(f, "at most {ratio} times {peer}"),
            Target::AtMostOver { peer, plus } => write!(f, "at most {plus} over {peer}"),
        }
    }
}

impl Spread {
    /// Nothing of nothing.
    pub(crate) fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Spread { median, least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: &[f64]) -> Row {
        Row::new("figure", Unit::PerSecond).ours(ours.to_vec())
    }

    fn met(row: Row) -> bool {
        let row = row.judge(3).expect("complete");
        row.verdicts.iter().all(|verdict| verdict.met)
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        // The machine was ten times slower in the third round, for both.
        let row = |ratio| {
            row(&[90.0, 95.0, 9.0]).peer("raw", vec![100.0, 100.0, 10.0]).target(Target::AtLeast { peer: "raw", ratio })
        };
        assert!(met(row(0.9)));
        assert!(!met(row(0.91)));
    }

    #[test]
    fn zero_means_zero_in_every_round() {
        assert!(met(row(&[0.0, 0.0, 0.0]).target(Target::Zero)));
        assert!(!met(row(&[0.0, 0.0, 1.0]).target(Target::Zero)));
    }

    #[test]
    fn limits_hold_at_the_median() {
        assert!(met(row(&[1.0, 2.0, 30.0]).target(Target::AtMost { limit: 2.0 })));
        let over = |plus| {
            row(&[12.0, 13.0, 90.0])
                .peer("alone", vec![10.0, 10.0, 10.0])
                .target(Target::AtMostOver { peer: "alone", plus })
        };
        assert!(met(over(3.0)));
        assert!(!met(over(2.9)));
    }

    #[test]
    fn a_missing_round_or_peer_is_an_error() {
        assert!(row(&[1.0]).judge(3).is_err());
        assert!(row(&[1.0; 3]).peer("raw", vec![1.0]).judge(3).is_err());
        assert!(row(&[1.0; 3]).target(Target::AtLeast { peer: "absent", ratio: 1.0 }).judge(3).is_err());
    }
}
