//! Requests that a browser sends with a cookie because another site told it to.

use http::{Method, header, request::Parts};

use crate::problem::Error;

/// What changes something must come from our own pages, and say so in a way that a form of another site cannot: by its
/// type, and by what the browser itself says about where it comes from.
pub(crate) fn check(parts: &Parts, public_url: Option<&str>) -> Result<(), Error> {
    if matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Err(Error::NotJson);
    }
    origin(parts, public_url, true)
}

/// The same of a sign-in, where programs, which say nothing, may come too.
pub(crate) fn origin(parts: &Parts, public_url: Option<&str>, required: bool) -> Result<(), Error> {
    let value = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let site = value("sec-fetch-site").map(|site| site == "same-origin");
    let origin = value("origin").map(|origin| match public_url {
        Some(url) => same_origin(origin, url),
        // Without an address of our own it is the one that was asked.
        None => value("host").is_some_and(|host| same_origin(origin, &format!("http://{host}"))),
    });
    match (site, origin) {
        (Some(false), _) | (_, Some(false)) => Err(Error::CrossSite),
        (None, None) if required => Err(Error::CrossSite),
        (_, _) => Ok(()),
    }
}

fn same_origin(origin: &str, url: &str) -> bool {
    let of = |url: &str| -> Option<String> {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split('/').next()?.to_ascii_lowercase();
        let default = if scheme == "https" { ":443" } else { ":80" };
        Some(format!("{scheme}://{}", authority.strip_suffix(default).unwrap_or(&authority)))
    };
    of(origin).is_some_and(|origin| of(url) == Some(origin))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn verdict(method: &str, headers: &[(&str, &str)], public_url: Option<&str>) -> Option<String> {
        let request = Request::builder().method(method).uri("/").header("host", "127.0.0.1:7070");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        check(&parts, public_url).err().map(|error| error.code())
    }

    const JSON: (&str, &str) = ("content-type", "application/json");

    #[test]
    fn only_our_own_pages_change_anything() {
        let own = ("origin", "http://127.0.0.1:7070");
        let site = ("sec-fetch-site", "same-origin");
        for headers in [&[JSON, own, site][..], &[JSON, own], &[JSON, site]] {
            assert_eq!(verdict("POST", headers, None), None, "{headers:?}");
        }
        for headers in [
            &[JSON][..],
            &[JSON, ("origin", "http://evil.example")],
            &[JSON, ("origin", "null")],
            &[JSON, ("origin", "https://127.0.0.1:7070")],
            &[JSON, ("origin", "http://127.0.0.1:7071")],
            &[JSON, own, ("sec-fetch-site", "cross-site")],
            &[JSON, own, ("sec-fetch-site", "same-site")],
            &[JSON, ("sec-fetch-site", "none")],
            &[JSON, site, ("origin", "http://evil.example")],
        ] {
            assert_eq!(verdict("POST", headers, None).as_deref(), Some("cross_site"), "{headers:?}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""] {
            for method in ["POST", "PUT", "DELETE"] {
                assert_eq!(verdict(method, &[("content-type", kind), own, site], None).as_deref(), Some("not_json"));
            }
        }
        assert_eq!(verdict("GET", &[("sec-fetch-site", "cross-site")], None), None, "reading changes nothing");
    }

    #[test]
    fn behind_a_proxy_it_is_the_public_address_that_counts() {
        let public = Some("https://sluice.example/");
        assert_eq!(verdict("POST", &[JSON, ("origin", "https://sluice.example")], public), None);
        assert_eq!(verdict("POST", &[JSON, ("origin", "https://sluice.example:443")], public), None);
        for origin in ["http://127.0.0.1:7070", "http://sluice.example", "https://sluice.example.evil"] {
            assert_eq!(verdict("POST", &[JSON, ("origin", origin)], public).as_deref(), Some("cross_site"));
        }
    }
}
