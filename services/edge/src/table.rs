//! Which route answers on a host and path. Pure: built anew on every change, then only read.

use std::{borrow::Cow, cmp::Reverse, collections::HashMap};

/// An immutable lookup table; `T` is what a host and path lead to.
#[derive(Debug)]
pub(crate) struct Table<T> {
    /// Per host, longest path first.
    hosts: HashMap<Box<str>, Vec<Place<T>>>,
}

#[derive(Debug)]
struct Place<T> {
    /// Without trailing slash, so `/` is empty.
    prefix: Box<str>,
    fence: u64,
    to: T,
}

impl<T> Table<T> {
    /// `routes` are (host, path, fence, to). Where two claim the same place, the larger fence wins.
    pub(crate) fn new<'a>(routes: impl IntoIterator<Item = (&'a str, &'a str, u64, T)>) -> Self {
        let mut hosts: HashMap<Box<str>, Vec<Place<T>>> = HashMap::new();
        for (host, path, fence, to) in routes {
            let prefix = path.trim_end_matches('/').into();
            hosts.entry(host_name(host).into()).or_default().push(Place { prefix, fence, to });
        }
        for places in hosts.values_mut() {
            places.sort_by_key(|place| (Reverse(place.prefix.len()), Reverse(place.fence)));
        }
        Self { hosts }
    }

    /// `host` as the client sent it, with or without port; `path` without query.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<&T> {
        let places = self.hosts.get(host_name(host).as_ref())?;
        places.iter().find(|place| is_under(path, &place.prefix)).map(|place| &place.to)
    }
}

/// Whole segments only: `/api` takes `/api` and `/api/x`, not `/apix`.
fn is_under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

/// The host without port and trailing dot, in lower case. Borrowed where nothing needs changing,
/// which is every request of a well-behaved client.
fn host_name(host: &str) -> Cow<'_, str> {
    let end = match host.rfind(']') {
        Some(bracket) => bracket + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    let name = host[..end].trim_end_matches('.');
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<&'static str> {
        Table::new([
            ("shop.test", "/", 1, "root"),
            ("shop.test", "/api", 1, "api"),
            ("shop.test", "/api/v2/", 1, "v2"),
            ("[::1]", "/", 1, "six"),
            ("only.test", "/app", 1, "app"),
        ])
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let table = table();
        for (path, to) in [
            ("/", "root"),
            ("", "root"),
            ("*", "root"),
            ("/apix", "root"),
            ("/api", "api"),
            ("/api/", "api"),
            ("/api/v20", "api"),
            ("/api/v2", "v2"),
            ("/api/v2/x", "v2"),
        ] {
            assert_eq!(table.find("shop.test", path), Some(&to), "{path}");
        }
        assert_eq!(table.find("only.test", "/"), None);
        assert_eq!(table.find("only.test", "/app/x"), Some(&"app"));
    }

    #[test]
    fn a_host_matches_exactly_but_for_case_port_and_trailing_dot() {
        let table = table();
        for host in ["shop.test", "SHOP.test", "shop.test:8080", "shop.test.", "Shop.Test.:80"] {
            assert_eq!(table.find(host, "/"), Some(&"root"), "{host}");
        }
        for host in ["", ":80", "test", "x.shop.test", "shop.test.evil", "]", "ü"] {
            assert_eq!(table.find(host, "/"), None, "{host}");
        }
        assert_eq!(table.find("[::1]:8080", "/"), Some(&"six"));
    }

    #[test]
    fn of_two_claims_on_one_place_the_larger_fence_wins() {
        let table = Table::new([("a", "/", 1, "old"), ("a", "/", 2, "new")]);
        assert_eq!(table.find("a", "/x"), Some(&"new"));
    }
}
