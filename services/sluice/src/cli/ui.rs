//! Everything that the command line prints goes through here.

use std::{
    cell::Cell,
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::{ContentArrangement, Table, presets};
use domain::difference::Difference;
use serde::Serialize;
use serde_json::Value;

use super::exit::{Code, Failure};

/// Results go to standard output; remarks and errors to standard error, so that a pipe carries
/// nothing but results.
pub(crate) struct Ui {
    pub(crate) json: bool,
    /// A person watches: a running line may be drawn and wiped.
    live: bool,
    drawn: Cell<bool>,
}

impl Ui {
    pub(crate) fn new(json: bool) -> Self {
        let live = !json && io::stdout().is_terminal() && io::stderr().is_terminal();
        Self { json, live, drawn: Cell::new(false) }
    }

    /// One line for people.
    pub(crate) fn line(&self, text: impl Display) -> io::Result<()> {
        self.wipe();
        self.write(&clean(&text.to_string()))
    }

    /// The one document of a `--json` command.
    pub(crate) fn document(&self, value: &impl Serialize) -> io::Result<()> {
        self.write(&serde_json::to_string_pretty(value)?)
    }

    /// The result of a mutation: what the server answered, or a sentence.
    pub(crate) fn result(&self, answer: &Value, sentence: impl FnOnce() -> String) -> io::Result<()> {
        if self.json { self.document(answer) } else { self.line(sentence()) }
    }

    /// One of many documents of a followed stream: one line each, flushed, so that a reader sees it at once.
    pub(crate) fn entry(&self, value: &impl Serialize) -> io::Result<()> {
        self.write(&serde_json::to_string(value)?)
    }

    /// Text that is a file rather than a message: a completion script, a declaration.
    pub(crate) fn raw(&self, text: &str) -> io::Result<()> {
        self.write(text.trim_end_matches('\n'))
    }

    pub(crate) fn table<const N: usize>(&self, header: [&str; N], rows: Vec<[String; N]>) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // Ids must stay whole, to be copied; a narrow terminal wraps lines by itself.
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header);
        table.add_rows(rows.iter().map(|row| row.each_ref().map(|cell| clean(cell))));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.write(&table.trim_fmt())
    }

    /// A remark beside the result. That it cannot be written is no reason to fail.
    pub(crate) fn note(&self, text: impl Display) {
        if !self.json {
            self.wipe();
            writeln!(io::stderr(), "{}", clean(&text.to_string())).ok();
        }
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        self.wipe();
        let mut out = io::stderr().lock();
        if self.json {
            let document = serde_json::json!({ "error": failure, "exit_code": failure.exit as u8 });
            writeln!(out, "{document}").ok();
            return;
        }
        // A message that only strings its fields together would say everything twice.
        let said = failure.errors.iter().any(|error| failure.message.contains(&error.problem));
        let message = if said { "this was not accepted:" } else { &failure.message };
        writeln!(out, "error: {}", clean(message)).ok();
        for error in &failure.errors {
            writeln!(out, "  {}: {}", clean(&error.field), clean(&error.problem)).ok();
        }
        if let Some(hint) = &failure.hint {
            writeln!(out, "hint: {}", clean(hint)).ok();
        }
        // Only what broke inside is worth a search in the log.
        if let (Some(id), Code::Failed | Code::Unreachable) = (&failure.request_id, failure.exit) {
            writeln!(out, "request id: {}", clean(id)).ok();
        }
    }

    /// Draws the line that shows that work goes on; the next output wipes it. Nothing without a terminal.
    pub(crate) fn spin(&self, tick: usize, text: impl Display) {
        const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
        if self.live {
            let mut out = io::stderr().lock();
            write!(out, "\r\x1b[2K{} {}", FRAMES[tick % FRAMES.len()], clean(&text.to_string())).ok();
            out.flush().ok();
            self.drawn.set(true);
        }
    }

    pub(crate) fn live(&self) -> bool {
        self.live
    }

    pub(crate) fn wipe(&self) {
        if self.drawn.take() {
            let mut out = io::stderr().lock();
            write!(out, "\r\x1b[2K").ok();
            out.flush().ok();
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }
}

/// Text from containers and strangers must not steer the terminal: colours and control characters
/// are dropped, lines and tabs stay.
pub(crate) fn clean(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\n' | '\t' => kept.push(c),
            '\x1b' if rest.peek() == Some(&'[') => {
                rest.next();
                // Up to and with the letter that ends the sequence.
                while rest.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            c if c.is_control() => {}
            c => kept.push(c),
        }
    }
    kept
}

pub(crate) fn clock(time: DateTime<Utc>) -> String {
    time.format("%H:%M:%S").to_string()
}

pub(crate) fn date(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// `3m ago`; the clocks of two machines may differ, so never less than now.
pub(crate) fn ago(now: DateTime<Utc>, then: DateTime<Utc>) -> String {
    format!("{} ago", coarse((now - then).max(TimeDelta::zero())))
}

fn coarse(span: TimeDelta) -> String {
    match (span.num_days(), span.num_hours(), span.num_minutes()) {
        (0, 0, 0) => format!("{}s", span.num_seconds()),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h {}m", minutes % 60),
        (days, hours, _) => format!("{days}d {}h", hours % 24),
    }
}

/// A field with its old and new value.
pub(crate) fn change(Difference { field, from, to }: &Difference) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match (from, to) {
        (Some(old), Some(new)) => format!("~ {field}: {} -> {}", plain(old), plain(new)),
        (None, Some(new)) => format!("+ {field}: {}", plain(new)),
        (Some(old), None) => format!("- {field}: {}", plain(old)),
        (None, None) => format!("~ {field}"),
    }
}

/// A measured length of time, from milliseconds.
pub(crate) fn elapsed(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000.. => format!("{} m {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

/// The part of a digest that people compare: its algorithm and twelve digits.
pub(crate) fn short_digest(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_steer_a_terminal_is_dropped() {
        assert_eq!(clean("\x1b[31mred\x1b[0m \x1b[2J\x07bell\ttab\nline\r\x1b"), "red bell\ttab\nline");
        assert_eq!(clean("\u{9b}31mgrün"), "31mgrün");
        assert_eq!(clean("cut \x1b[3"), "cut ");
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        assert_eq!([0, 999, 1_000, 59_999, 61_000].map(elapsed), ["0 ms", "999 ms", "1.0 s", "59.9 s", "1 m 1 s"]);
        let spans = [5, 65, 3_700, 90_000].map(|s| coarse(TimeDelta::seconds(s)));
        assert_eq!(spans, ["5s", "1m", "1h 1m", "1d 1h"]);
        let now = DateTime::UNIX_EPOCH;
        assert_eq!(ago(now, now + TimeDelta::seconds(3)), "0s ago", "a clock that is ahead");
    }
}
