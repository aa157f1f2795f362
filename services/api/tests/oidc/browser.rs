//! A browser at a provider.

use std::{collections::BTreeMap, sync::Mutex};

use reqwest::{Method, Response, StatusCode, Url, redirect};

/// Follows redirects until they leave the provider, and keeps its cookies.
pub(crate) struct Browser {
    http: reqwest::Client,
    cookies: Mutex<BTreeMap<String, String>>,
}

impl Browser {
    pub(crate) fn new() -> Self {
        let http = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().expect("a client");
        Self { http, cookies: Mutex::default() }
    }

    pub(crate) async fn send(&self, method: Method, url: Url, form: &[(&str, &str)]) -> Response {
        let cookies = self.cookies.lock().expect("unpoisoned").clone();
        let cookies: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = self.http.request(method, url).header("cookie", cookies.join("; ")).body(form);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer = request.send().await.expect("an answer");
        let mut jar = self.cookies.lock().expect("unpoisoned");
        for cookie in answer.headers().get_all("set-cookie") {
            let cookie = cookie.to_str().expect("text").split(';').next().unwrap_or_default().to_owned();
            let (name, value) = cookie.split_once('=').expect("a cookie");
            match value {
                "" => drop(jar.remove(name)),
                value => drop(jar.insert(name.to_owned(), value.to_owned())),
            }
        }
        answer
    }

    /// The page where the redirects from `answer` end, or the address at which they leave `issuer`.
    pub(crate) async fn follow(&self, issuer: &str, mut answer: Response) -> Result<(Url, String), Url> {
        for _ in 0..10 {
            let here = answer.url().clone();
            if !answer.status().is_redirection() {
                let (status, page) = (answer.status(), answer.text().await.expect("a page"));
                assert_eq!(status, StatusCode::OK, "{here}: {page}");
                return Ok((here, page));
            }
            let next = here.join(answer.headers()["location"].to_str().expect("text")).expect("an address");
            if !next.as_str().starts_with(issuer) {
                return Err(next);
            }
            answer = self.send(Method::GET, next, &[]).await;
        }
        panic!("redirects without end");
    }

    /// To where the provider leads from `location`, signing in as `name` where it asks for that.
    pub(crate) async fn sign_in(&self, issuer: &str, location: &str, name: &str) -> Url {
        let answer = self.send(Method::GET, location.parse().expect("an address"), &[]).await;
        match self.follow(issuer, answer).await {
            Err(back) => back,
            Ok((page, _)) => {
                assert!(page.path().starts_with("/interaction/"), "{page}");
                let answer = self.send(Method::POST, page, &[("login", name)]).await;
                self.follow(issuer, answer).await.expect_err("it sends us back")
            }
        }
    }

    /// The same for a sign-out, where it asks whether that is meant.
    pub(crate) async fn sign_out(&self, issuer: &str, location: &str) -> Url {
        let answer = self.send(Method::GET, location.parse().expect("an address"), &[]).await;
        let (page, form) = self.follow(issuer, answer).await.expect("a page that asks");
        let xsrf = form.split("name=\"xsrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a form");
        let confirm = page.join("/session/end/confirm").expect("an address");
        let answer = self.send(Method::POST, confirm, &[("xsrf", xsrf), ("logout", "yes")]).await;
        self.follow(issuer, answer).await.expect_err("it sends us back")
    }
}
