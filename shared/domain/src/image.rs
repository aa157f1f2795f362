//! Image references as people write them, and what they resolved to.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The image of a release: resolved once, when the deployment is requested. The digest is what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// As asked for, e.g. `127.0.0.1:5000/shop:v2`.
    pub requested: String,
    /// `sha256:...`: of the manifest for an image from a registry, the engine's image id for a local one.
    pub digest: String,
    pub source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Registry,
    /// Known only to the node's own engine: built or loaded there.
    Local,
}

impl Image {
    /// What the engine is asked to run: `repository@digest`, or the bare id of a local image.
    pub fn pinned(&self) -> String {
        match (self.source, Reference::parse(&self.requested)) {
            (Source::Registry, Ok(reference)) => format!("{}@{}", reference.repository, self.digest),
            (Source::Registry, Err(_)) | (Source::Local, _) => self.digest.clone(),
        }
    }

    /// The tag that was asked for, or the beginning of the digest.
    pub fn version(&self) -> &str {
        let name = self.requested.split('@').next().unwrap_or_default();
        match Reference::parse(&self.requested) {
            Ok(Reference { tag: Some(_), .. }) => name.rsplit(':').next().unwrap_or(name),
            Ok(_) | Err(_) => self.digest.get(7..19).unwrap_or(&self.digest),
        }
    }
}

/// `[host[:port]/]path[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// With its registry host, where one was given.
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an image: write [registry/]repository[:tag], such as 127.0.0.1:5000/shop:v2")]
pub struct BadReference(String);

impl Reference {
    pub fn parse(text: &str) -> Result<Self, BadReference> {
        let bad = || BadReference(text.chars().take(120).collect());
        if text.len() > 512 {
            return Err(bad());
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let name_at = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match rest[name_at..].split_once(':') {
            Some((name, tag)) => (&rest[..name_at + name.len()], Some(tag)),
            None => (rest, None),
        };
        let good = valid_repository(repository) && tag.is_none_or(valid_tag) && digest.is_none_or(valid_digest);
        if !good {
            return Err(bad());
        }
        Ok(Self { repository: repository.into(), tag: tag.map(Into::into), digest: digest.map(Into::into) })
    }

    /// Host (and port) of the registry; Docker Hub's where none was given.
    pub fn registry(&self) -> &str {
        match self.repository.split_once('/') {
            Some((host, _)) if is_host(host) => host,
            Some(_) | None => "docker.io",
        }
    }

    /// Fills in what `deploy` may leave out: with a stage's repository, a bare tag or digest is enough.
    /// An image of another repository than the stage's is refused.
    pub fn within(repository: Option<&str>, text: &str) -> Result<Self, WithinError> {
        let Some(repository) = repository else {
            return Ok(Self::parse(text)?);
        };
        let home = Self::parse(repository)?;
        if let Some(digest) = text.strip_prefix('@') {
            return Ok(Self::parse(&format!("{repository}@{digest}"))?);
        }
        if valid_tag(text.strip_prefix(':').unwrap_or(text)) {
            return Ok(Self { tag: Some(text.trim_start_matches(':').to_owned()), ..home });
        }
        let asked = Self::parse(text)?;
        if asked.canonical() == home.canonical() {
            Ok(asked)
        } else {
            Err(WithinError::OtherRepository { asked: asked.repository, home: home.repository })
        }
    }

    /// The repository in full, so that `nginx` and `docker.io/library/nginx` compare equal.
    pub fn canonical(&self) -> String {
        match self.repository.split_once('/') {
            Some((host, path)) if is_host(host) && host != "docker.io" => format!("{host}/{path}"),
            Some(("docker.io", path)) if path.contains('/') => format!("docker.io/{path}"),
            Some(("docker.io", path)) => format!("docker.io/library/{path}"),
            Some(_) => format!("docker.io/{}", self.repository),
            None => format!("docker.io/library/{}", self.repository),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WithinError {
    #[error(transparent)]
    Bad(#[from] BadReference),
    #[error("this stage deploys from {home}, not from {asked}: give a tag of {home}, or change the stage's `image`")]
    OtherRepository { asked: String, home: String },
}

fn is_host(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':'])
}

fn valid_repository(text: &str) -> bool {
    let (host, path) = match text.split_once('/') {
        Some((host, path)) if is_host(host) => (Some(host), path),
        Some(_) | None => (None, text),
    };
    host.is_none_or(valid_host)
        && path.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with(['.', '_', '-'])
                && !part.ends_with(['.', '_', '-'])
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        })
}

/// `host[:port]` of a registry.
pub fn valid_host(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

pub fn valid_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

pub fn valid_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_told_apart() {
        let reference = Reference::parse("127.0.0.1:5000/team/shop:v2").expect("good");
        assert_eq!((reference.repository.as_str(), reference.tag.as_deref()), ("127.0.0.1:5000/team/shop", Some("v2")));
        assert_eq!(reference.registry(), "127.0.0.1:5000");
        assert_eq!(Reference::parse("nginx").expect("good").registry(), "docker.io");
    }

    #[test]
    fn what_a_shell_or_a_url_would_trip_over_is_refused() {
        for bad in [
            "",
            "Shop",
            "a b",
            "a;b",
            "$(x)",
            "a:",
            "a@sha256:12",
            "-a",
            "a//b",
            "http://x/y",
            "x:5000000/y:1",
            "a:b c",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_stage_with_a_repository_takes_a_bare_tag_and_refuses_another_repository() {
        let home = Some("127.0.0.1:5000/shop");
        assert_eq!(Reference::within(home, "v2").expect("tag").to_string(), "127.0.0.1:5000/shop:v2");
        assert_eq!(
            Reference::within(home, "127.0.0.1:5000/shop:v3").expect("full").to_string(),
            "127.0.0.1:5000/shop:v3"
        );
        assert!(matches!(Reference::within(home, "127.0.0.1:5000/other:v3"), Err(WithinError::OtherRepository { .. })));
        assert_eq!(
            Reference::within(Some("nginx"), "docker.io/library/nginx:1").expect("the same").tag.as_deref(),
            Some("1")
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*", home in proptest::option::of("\\PC*")) {
            let _ = Reference::parse(&text);
            let _ = Reference::within(home.as_deref(), &text);
        }
    }
}
