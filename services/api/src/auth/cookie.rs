//! The cookie that holds the handle to a session.

use http::{HeaderMap, HeaderValue, header};

use super::settings::Identity;

/// In seconds: as long as a sign-in at the provider may take.
const BEGUN: i64 = 600;

/// How the cookie is written: over TLS with everything that browsers can do for it.
pub(crate) struct Cookies {
    secure: bool,
    max_age: i64,
}

impl Cookies {
    pub(super) fn new(settings: &Identity) -> Self {
        let secure = settings.public_url.as_deref().is_some_and(|url| url.starts_with("https://"));
        if !secure {
            tracing::warn!(
                "PUBLIC_URL is not an https:// address: the session cookie goes without Secure and without the prefix \
                 __Host-, which is for a browser on this machine only"
            );
        }
        Self { secure, max_age: settings.session_idle().num_seconds() }
    }

    fn name(&self) -> &'static str {
        if self.secure { "__Host-sluice" } else { "sluice" }
    }

    fn browser_name(&self) -> &'static str {
        if self.secure { "__Host-sluice-oidc" } else { "sluice-oidc" }
    }

    pub(crate) fn read<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        find(headers, self.name())
    }

    pub(crate) fn set(&self, handle: &str) -> Option<HeaderValue> {
        self.write(self.name(), handle, self.max_age)
    }

    pub(crate) fn clear(&self) -> Option<HeaderValue> {
        self.write(self.name(), "", 0)
    }

    /// What only the browser holds that has begun to sign in at the provider.
    pub(crate) fn read_browser<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        find(headers, self.browser_name())
    }

    pub(crate) fn set_browser(&self, value: &str) -> Option<HeaderValue> {
        self.write(self.browser_name(), value, BEGUN)
    }

    fn write(&self, name: &str, value: &str, max_age: i64) -> Option<HeaderValue> {
        let secure = if self.secure { "; Secure" } else { "" };
        let text = format!("{name}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Lax{secure}");
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// What the browser sent. Of two by one name neither counts: nobody can tell who set which.
fn find<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut ours = pairs.filter(|(found, _)| *found == name).map(|(_, value)| value);
    ours.next().filter(|value| !value.is_empty() && ours.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookies(secure: bool) -> Cookies {
        Cookies { secure, max_age: 60 }
    }

    #[test]
    fn over_tls_the_cookie_is_bound_to_the_host_and_to_tls() {
        let set = cookies(true).set("x").expect("a header");
        assert_eq!(set, "__Host-sluice=x; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure");
        assert!(!format!("{set:?}").contains("sluice"), "not in any log");
        let set = cookies(false).clear().expect("a header");
        assert_eq!(set, "sluice=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax");
    }

    #[test]
    fn one_cookie_counts_and_two_of_one_name_do_not() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::COOKIE, value.parse().expect("a header"));
            }
            cookies(true).read(&headers).map(str::to_owned)
        };
        assert_eq!(read(&["a=b; __Host-sluice=x; c=d"]), Some("x".into()));
        assert_eq!(read(&["a=b", "__Host-sluice=x"]), Some("x".into()));
        for bad in [&["sluice=x"][..], &["__Host-sluice=x; __Host-sluice=y"], &["__Host-sluice="], &["__host-sluice=x"]]
        {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
