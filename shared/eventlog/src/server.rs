//! The configuration of a nats-server that Sluice starts itself (`sluice up`, tests).

use std::{fmt::Write as _, path::PathBuf};

const TEMPLATE: &str = include_str!("../../../nats/server.conf");

/// What differs from one embedded server to the next; the rest is fixed in `nats/server.conf`.
#[derive(Clone)]
pub struct ServerConfig {
    /// On 127.0.0.1.
    pub port: u16,
    /// Where JetStream keeps its files; the server makes it.
    pub store_dir: PathBuf,
    pub user: String,
    pub password: String,
}

/// Renders `nats/server.conf`. The text holds the password: write it with mode 0600.
pub fn server_config(config: &ServerConfig) -> String {
    let mut parts = TEMPLATE.split("{{");
    let mut rendered = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // Values go in once and are not looked at again, so none can smuggle in a placeholder.
        let Some((name, text)) = part.split_once("}}") else {
            rendered.push_str(part);
            continue;
        };
        match name {
            "port" => rendered.push_str(&config.port.to_string()),
            "store_dir" => push_escaped(&mut rendered, &config.store_dir.to_string_lossy()),
            "user" => push_escaped(&mut rendered, &config.user),
            "password" => push_escaped(&mut rendered, &config.password),
            other => rendered.push_str(other),
        }
        rendered.push_str(text);
    }
    rendered
}

/// `text` for the inside of a double-quoted string of nats-server's configuration language.
fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => {
                // Writing to a String does not fail.
                let _ = write!(out, "\\x{:02X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_breaks_out_of_its_string() {
        let text = server_config(&ServerConfig {
            port: 4222,
            store_dir: PathBuf::from("/var/lib/a \"b\"\\"),
            user: "x\" } ] #\n".into(),
            password: "{{user}}".into(),
        });
        assert!(text.contains(r#"store_dir: "/var/lib/a \"b\"\\""#), "{text}");
        assert!(text.contains(r#"{ user: "x\" } ] #\x0A", password: "{{user}}" }"#), "{text}");
        assert!(text.contains("listen: \"127.0.0.1:4222\""), "{text}");
    }
}
