//! Reads a password: without echo from a terminal, or one line from a pipe. Asks whether to go on.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::exit::{Code, Failure};

/// More is no password but a mistake.
const LIMIT: u64 = 64 << 10;

pub(super) async fn password(prompt: &str) -> Result<String, Failure> {
    let _silent = if io::stdin().is_terminal() {
        let silent = Silent::new().map_err(unreadable)?;
        write!(io::stderr(), "{prompt}").and_then(|()| io::stderr().flush()).ok();
        Some(silent)
    } else {
        None
    };
    // A thread of its own: Ctrl-C must still be heard, to bring the echo back.
    let line = tokio::task::spawn_blocking(read_line);
    let line = tokio::select! {
        line = line => line.map_err(|error| unreadable(error.into()))?.map_err(unreadable)?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new(Code::Interrupted, "interrupted", "no password was given"));
        }
    };
    if line.is_empty() {
        return Err(Failure::invalid("nothing was entered").hint("type it when asked, or pipe it in: `... < file`"));
    }
    Ok(line)
}

/// Like a password; from a pipe it may have many lines, of which only the last line's end is left out.
pub(super) async fn secret(prompt: &str) -> Result<String, Failure> {
    if io::stdin().is_terminal() {
        return password(prompt).await;
    }
    let read = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        io::stdin().lock().take(LIMIT + 1).read_to_string(&mut text)?;
        if text.len() as u64 > LIMIT {
            return Err(io::Error::other("it is longer than 64 KiB"));
        }
        Ok(text)
    });
    let text = read.await.map_err(|error| unreadable(error.into()))?.map_err(unreadable)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Failure::invalid("the value is empty").hint("pipe it in: `sluice secret set ... < file`"));
    }
    Ok(text.to_owned())
}

/// Whether the person at the terminal wants to go on. Where nobody is there to ask, the command line has said it all.
pub(super) async fn agreed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Ok(true);
    }
    write!(io::stderr(), "{question} [y/N] ").and_then(|()| io::stderr().flush()).ok();
    let line = tokio::task::spawn_blocking(read_line);
    let line = tokio::select! {
        line = line => line.map_err(|error| unreadable(error.into()))?.map_err(unreadable)?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new(Code::Interrupted, "interrupted", "nothing was changed"));
        }
    };
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn unreadable(error: io::Error) -> Failure {
    Failure::invalid(format!("standard input cannot be read: {error}"))
}

fn read_line() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().lock().take(LIMIT + 1).read_line(&mut line)?;
    if line.len() as u64 > LIMIT {
        return Err(io::Error::other("it is longer than 64 KiB"));
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// A terminal without echo, until dropped.
struct Silent(Termios);

impl Silent {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // Nobody is left to tell if this fails.
        tcsetattr(io::stdin(), OptionalActions::Flush, &self.0).ok();
    }
}
