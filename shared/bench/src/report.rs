//! Every row of a run: a table for people, JSON for programs.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::{
    machine::Machine,
    row::{Row, Spread, Unit},
};

#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    taken: chrono::DateTime<chrono::Utc>,
    rounds: usize,
    measures: Vec<Measure>,
}

#[derive(Serialize)]
struct Measure {
    name: &'static str,
    rows: Vec<Row>,
    /// Why there are no rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

impl Report {
    pub(crate) fn new(rounds: usize) -> Result<Report> {
        Ok(Report { machine: Machine::this()?, taken: runtime::clock::now(), rounds, measures: Vec::new() })
    }

    pub(crate) fn add(&mut self, name: &'static str, rows: Vec<Row>) -> Result<()> {
        let rows = rows.into_iter().map(|row| row.judge(self.rounds)).collect::<Result<_>>()?;
        self.measures.push(Measure { name, rows, failure: None });
        Ok(())
    }

    pub(crate) fn failed(&mut self, name: &'static str, why: String) {
        self.measures.push(Measure { name, rows: Vec::new(), failure: Some(why) });
    }

    /// Whether every measure was taken and every target reached.
    pub(crate) fn met(&self) -> bool {
        self.failures().next().is_none() && self.rows().flat_map(|row| &row.verdicts).all(|verdict| verdict.met)
    }

    /// Median (least to most) of each series; a ratio is the median of the ratios of each round.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header([
            "measure",
            "Sluice",
            "beside it in the same run",
            "target",
            "met",
        ]);
        for row in self.rows() {
            let peers: Vec<String> = row
                .peers
                .iter()
                .map(|peer| match &peer.ratio {
                    Some(ratio) => format!("{} {} (x{:.2})", peer.name, figure(&peer.spread), ratio.median),
                    None => format!("{} {}", peer.name, figure(&peer.spread)),
                })
                .collect();
            let targets: Vec<String> = row.verdicts.iter().map(|verdict| format!("{:?}", verdict.target)).collect();
            let met = match row.verdicts.iter().map(|verdict| verdict.met).reduce(|a, b| a && b) {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "reported",
            };
            let ours = row.spread.as_ref().map(figure).unwrap_or_default();
            table.add_row([
                &format!("{}, {}", row.name, row.unit.name()),
                &ours,
                &peers.join("; "),
                &targets.join("; "),
                met,
            ]);
        }
        let head = format!("{}, {} rounds, {}", self.machine.line(), self.rounds, self.taken.format("%Y-%m-%d"));
        let failures: String = self.failures().map(|(name, why)| format!("\n{name} was not measured: {why}")).collect();
        format!("{head}\n\n{table}{failures}")
    }

    fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.measures.iter().filter_map(|measure| Some((measure.name, measure.failure.as_deref()?)))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let directory = path.parent().context("the report's directory")?;
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        fs::write(path, serde_json::to_vec_pretty(self)?).with_context(|| format!("writing {}", path.display()))
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.measures.iter().flat_map(|measure| &measure.rows)
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::PerSecond => "per second",
            Unit::Milliseconds => "ms",
            Unit::Seconds => "s",
            Unit::Megabytes => "MB",
            Unit::Failed => "failed",
            Unit::Count => "count",
        }
    }
}

fn figure(spread: &Spread) -> String {
    let Spread { median, least, most } = spread;
    if least == most {
        number(*median)
    } else {
        format!("{} ({} to {})", number(*median), number(*least), number(*most))
    }
}

/// Three significant digits, and never fewer than are left of the point.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        below if below < 1.0 => 3,
        below if below < 10.0 => 2,
        below if below < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_show_their_spread() {
        let spread = |median, least, most| figure(&Spread { median, least, most });
        assert_eq!(spread(0.0, 0.0, 0.0), "0");
        assert_eq!(spread(0.4142, 0.4, 12.345), "0.414 (0.400 to 12.3)");
        assert_eq!(spread(43210.6, 4.5, 50000.0), "43211 (4.50 to 50000)");
    }
}
