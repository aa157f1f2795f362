//! Which subjects are meant: NATS wildcards.

use std::str::FromStr;

/// Tokens joined by dots: `*` fits any one token, a last `>` fits one or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<String>);

const LONGEST: usize = 512;

impl FromStr for Pattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let tokens: Vec<String> = text.split('.').map(str::to_owned).collect();
        let plain =
            |token: &str| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>');
        let good = |(at, token): (usize, &String)| match token.as_str() {
            "*" => true,
            ">" => at + 1 == tokens.len(),
            token => plain(token),
        };
        if text.len() <= LONGEST && tokens.iter().enumerate().all(good) {
            Ok(Self(tokens))
        } else {
            Err("is not a subject: write tokens joined by dots, `*` for any one and a last `>` for the rest, \
                 such as sluice.events.stage.shop.*.deployment.>")
        }
    }
}

impl Pattern {
    pub(crate) fn fits(&self, subject: &str) -> bool {
        let mut rest = subject.split('.');
        for token in &self.0 {
            match (token.as_str(), rest.next()) {
                (_, None) => return false,
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (token, Some(actual)) if token == actual => {}
                (_, Some(_)) => return false,
            }
        }
        rest.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, subject: &str) -> bool {
        pattern.parse::<Pattern>().expect("a good pattern").fits(subject)
    }

    #[test]
    fn wildcards_mean_what_they_mean_to_nats() {
        assert!(fits(">", "a"));
        assert!(fits("a.>", "a.b.c"));
        assert!(!fits("a.>", "a"));
        assert!(fits("a.*.c", "a.b.c"));
        assert!(!fits("a.*", "a.b.c"));
        assert!(!fits("a.*.c", "a.c"));
        assert!(fits("a.b", "a.b"));
        assert!(!fits("a.b", "a.bc"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "a..b", ">.a", "a.b*", "a b", "a.>x", ".", "a.", "ä"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad:?} passed");
        }
    }
}
