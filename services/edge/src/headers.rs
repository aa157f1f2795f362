//! What is changed in the heads of requests and answers on their way: what concerns one connection only is taken off,
//! and what an upstream may believe about the client is set here, never taken from the client.

use std::net::{IpAddr, SocketAddr};

use domain::traffic::PROBE_HEADER;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    request, response,
    uri::PathAndQuery,
};

use crate::pages::Page;

const FORWARDED_PREFIX: &str = "x-forwarded-";
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const WEBSOCKET: &str = "websocket";

/// What upstreams are told about a client, the same for all of its connection's requests.
#[derive(Debug)]
pub(crate) struct Client {
    ip: HeaderValue,
    /// Of the listener.
    port: HeaderValue,
}

impl Client {
    /// The two ends of its connection.
    pub(crate) fn new(client: SocketAddr, listener: SocketAddr) -> Self {
        // An IPv4 client of an IPv6 listener is still an IPv4 client.
        let ip: IpAddr = client.ip().to_canonical();
        let ip = HeaderValue::try_from(ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { ip, port: listener.port().into() }
    }
}

/// Makes `GET http://shop.test/x` the same as `GET /x` with a Host header, and HTTP/2's form as well: routing and
/// upstreams know only that one. The target's host replaces the header's (RFC 9112, 3.2.2).
pub(crate) fn to_origin_form(head: &mut request::Parts) -> Result<(), Page> {
    if head.method == Method::CONNECT {
        return Err(Page::NoTunnels);
    }
    if let Some(authority) = head.uri.authority() {
        let host = HeaderValue::try_from(authority.as_str()).map_err(|_| Page::BadRequest)?;
        head.headers.insert(HOST, host);
        let target = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = Uri::from(target);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    let is_named = host.is_some() || head.version == Version::HTTP_10;
    if !is_named || hosts.next().is_some() || !host.is_none_or(|host| is_host(host.as_bytes())) {
        return Err(Page::BadRequest);
    }
    Ok(())
}

/// Nothing in it could be taken for more than a name and a port.
fn is_host(host: &[u8]) -> bool {
    let (name, port) = match (host.iter().rposition(|byte| *byte == b']'), host.iter().position(|byte| *byte == b':')) {
        (Some(bracket), _) => host.split_at(bracket + 1),
        (None, Some(colon)) => host.split_at(colon),
        (None, None) => (host, &host[host.len()..]),
    };
    let port = port.strip_prefix(b":").unwrap_or(port);
    name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~[]:%".contains(byte))
        && port.iter().all(u8::is_ascii_digit)
}

/// Whether this asks for a websocket, the only upgrade that passes.
pub(crate) fn asks_for_websocket(head: &request::Parts) -> bool {
    head.version == Version::HTTP_11
        && head.headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
}

/// Takes off what concerns the client's connection only, and prepares the head for one to an upstream.
pub(crate) fn to_upstream(head: &mut request::Parts, has_body: bool, client: &Client) -> Result<(), Page> {
    let websocket = asks_for_websocket(head);
    let headers = &mut head.headers;
    if headers.contains_key(CONNECTION) {
        drop_nominated(headers)?;
    }
    for name in [&KEEP_ALIVE, &PROXY_CONNECTION, &PROXY_AUTHENTICATE, &PROXY_AUTHORIZATION, &TE, &TRAILER] {
        headers.remove(name);
    }
    // The edge itself gives leave to send a body, as soon as there is somebody to send it to.
    for name in [&CONNECTION, &UPGRADE, &HTTP2_SETTINGS, &EXPECT] {
        headers.remove(name);
    }
    if headers.remove(TRANSFER_ENCODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(Page::BadRequest);
    }
    if has_body && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    }
    if head.version == Version::HTTP_2 {
        join_cookies(headers);
    }
    set_forwarded(headers, client);
    head.version = Version::HTTP_11;
    Ok(())
}

/// Removes what the Connection header names. Naming what tells upstreams where a request comes from and goes to would
/// be an attempt to hide it from them.
fn drop_nominated(headers: &mut HeaderMap) -> Result<(), Page> {
    let mut nominated = Vec::new();
    let values = headers.get_all(CONNECTION).into_iter();
    for token in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii) {
        if token.is_empty()
            || [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|own| token.eq_ignore_ascii_case(own))
        {
            continue;
        }
        let name = HeaderName::from_bytes(token).map_err(|_| Page::BadRequest)?;
        let is_protected =
            [HOST, CONTENT_LENGTH, FORWARDED, REAL_IP].contains(&name) || name.as_str().starts_with(FORWARDED_PREFIX);
        if is_protected {
            return Err(Page::BadRequest);
        }
        nominated.push(name);
    }
    for name in nominated {
        headers.remove(name);
    }
    Ok(())
}

/// HTTP/2 may split what HTTP/1 has in one line (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(cookies) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, cookies);
    }
}

/// Takes off an answer what concerns the upstream's connection only.
pub(crate) fn to_client(head: &mut response::Parts) {
    let headers = &mut head.headers;
    if headers.contains_key(CONNECTION) {
        // What an application names in vain need not fail its clients.
        let _ = drop_nominated(headers);
        headers.remove(CONNECTION);
    }
    if headers.remove(TRANSFER_ENCODING).is_some() {
        // The length would be a lie, and is one where both were sent.
        headers.remove(CONTENT_LENGTH);
    }
    for name in [&KEEP_ALIVE, &PROXY_CONNECTION, &UPGRADE] {
        headers.remove(name);
    }
    head.version = Version::HTTP_11;
}

/// What a 101 says of the connection itself.
pub(crate) fn set_upgraded(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
}

/// Takes the probe token off the request and says whether it was the right one.
pub(crate) fn take_probe(headers: &mut HeaderMap, token: &str) -> bool {
    headers.remove(PROBE_HEADER).is_some_and(|sent| sent.as_bytes() == token.as_bytes())
}

/// Drops what the client claims about where it comes from, and says it right.
fn set_forwarded(headers: &mut HeaderMap, client: &Client) {
    drop_claims(headers);
    let host = headers.get(HOST).cloned();
    // Behind a port mapping only the client knows the port that it connected to.
    let named =
        host.as_ref().and_then(|host| port(host.as_bytes())).and_then(|port| HeaderValue::from_bytes(port).ok());
    headers.insert(FORWARDED_PORT, named.unwrap_or_else(|| client.port.clone()));
    if let Some(host) = host {
        headers.insert(FORWARDED_HOST, host);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    headers.insert(FORWARDED_FOR, client.ip.clone());
    headers.insert(REAL_IP, client.ip.clone());
}

fn drop_claims(headers: &mut HeaderMap) {
    headers.remove(FORWARDED);
    headers.remove(REAL_IP);
    while let Some(name) = headers.keys().find(|name| name.as_str().starts_with(FORWARDED_PREFIX)).cloned() {
        headers.remove(name);
    }
}

/// `8080` of `shop.test:8080`; nothing where the client named no port.
fn port(host: &[u8]) -> Option<&[u8]> {
    let colon = host.iter().rposition(|byte| *byte == b':')?;
    let port = &host[colon + 1..];
    (!port.is_empty() && port.iter().all(u8::is_ascii_digit)).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(target: &str, headers: &[(&'static str, &'static str)]) -> request::Parts {
        let mut request = http::Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn client(client: &str) -> Client {
        Client::new(client.parse().expect("an address"), "127.0.0.1:8080".parse().expect("an address"))
    }

    /// What an upstream gets to see.
    fn sent(head: &mut request::Parts, has_body: bool) -> Result<Vec<(String, String)>, Page> {
        to_origin_form(head)?;
        to_upstream(head, has_body, &client("192.0.2.7:5000"))?;
        let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
        let mut all: Vec<_> = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        all.sort();
        Ok(all)
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn what_the_client_claims_is_replaced() {
        let mut head = head(
            "/x?y",
            &[
                ("Host", "shop.test:81"),
                ("X-Forwarded-For", "6.6.6.6"),
                ("x-forwarded-for", "7.7.7.7"),
                ("X-Forwarded-Proto", "https"),
                ("X-Forwarded-Prefix", "/admin"),
                ("X-Forwarded-Server", "evil"),
                ("Forwarded", "for=6.6.6.6"),
                ("X-Real-IP", "6.6.6.6"),
                ("accept", "*/*"),
            ],
        );
        let right = pairs(&[
            ("accept", "*/*"),
            ("host", "shop.test:81"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-host", "shop.test:81"),
            ("x-forwarded-port", "81"),
            ("x-forwarded-proto", "http"),
            ("x-real-ip", "192.0.2.7"),
        ]);
        assert_eq!(sent(&mut head, false), Ok(right));
    }

    #[test]
    fn what_concerns_one_connection_stays_on_it() {
        let mut head = head(
            "/",
            &[
                ("host", "a"),
                ("connection", "keep-alive, X-Hop,, te"),
                ("connection", "x-other"),
                ("x-hop", "1"),
                ("x-other", "1"),
                ("te", "trailers"),
                ("keep-alive", "5"),
                ("proxy-authorization", "secret"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
                ("expect", "100-continue"),
                ("transfer-encoding", "Chunked"),
            ],
        );
        let names: Vec<_> = sent(&mut head, true).expect("good").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[..2], ["host", "transfer-encoding"]);
        assert!(names[2..].iter().all(|name| name.starts_with("x-forwarded-") || name == "x-real-ip"), "{names:?}");
    }

    #[test]
    fn nobody_hides_who_they_are_or_how_long_a_body_is() {
        for name in
            ["Host", "X-Forwarded-For", "x-forwarded-any", "X-Real-IP", "forwarded", "Content-Length", "a b", "\"x\""]
        {
            let mut head = head("/", &[("host", "a")]);
            head.headers.insert(CONNECTION, HeaderValue::from_str(name).expect("a value"));
            assert_eq!(sent(&mut head, false), Err(Page::BadRequest), "{name}");
        }
        let mut coded = head("/", &[("host", "a"), ("transfer-encoding", "gzip, chunked")]);
        assert_eq!(sent(&mut coded, true), Err(Page::BadRequest));
    }

    #[test]
    fn a_body_without_a_length_is_sent_in_chunks() {
        let mut head = head("/", &[("host", "a")]);
        let all = sent(&mut head, true).expect("good");
        assert!(all.contains(&("transfer-encoding".into(), "chunked".into())), "{all:?}");
    }

    #[test]
    fn without_a_port_in_the_host_the_listener_tells_it() {
        for host in ["shop.test", "[::1]", "shop.test:"] {
            let mut head = head("/", &[("host", host)]);
            sent(&mut head, false).expect("good");
            assert_eq!(head.headers[FORWARDED_PORT], "8080", "{host}");
        }
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_listener_is_shown_as_ipv4() {
        assert_eq!(client("[::ffff:192.0.2.7]:1").ip, "192.0.2.7");
    }

    #[test]
    fn an_absolute_target_becomes_a_path_and_a_host() {
        for (target, host, path) in [
            ("http://shop.test:81/x?y", "shop.test:81", "/x?y"),
            ("http://shop.test", "shop.test", "/"),
            ("HTTP://shop.test?y", "shop.test", "/?y"),
            ("/x?y", "header.test", "/x?y"),
            ("*", "header.test", "*"),
        ] {
            let mut head = head(target, &[("host", "header.test")]);
            to_origin_form(&mut head).expect("a good target");
            assert_eq!((head.headers[HOST].as_bytes(), &*head.uri.to_string()), (host.as_bytes(), path), "{target}");
            assert!(head.uri.authority().is_none());
        }
    }

    #[test]
    fn a_host_is_one_name_and_a_port() {
        let check = |headers: &[_]| to_origin_form(&mut head("/", headers));
        assert_eq!(check(&[]), Err(Page::BadRequest), "HTTP/1.1 needs one");
        assert_eq!(check(&[("host", "a"), ("host", "a")]), Err(Page::BadRequest));
        for good in ["", "a", "A-b.c_d.", "a:1", "a:", "[::1]", "[::1]:80", "1.2.3.4:80"] {
            assert_eq!(check(&[("host", good)]), Ok(()), "{good}");
        }
        for bad in ["a b", "a,b", "a/b", "user@a", "a:b", "a:1:2", "[::1]x", "a?b", "a#b", "a:80/x", "a\\b"] {
            assert_eq!(check(&[("host", bad)]), Err(Page::BadRequest), "{bad}");
        }
        let mut old = head("/", &[]);
        old.version = Version::HTTP_10;
        assert_eq!(to_origin_form(&mut old), Ok(()));
    }

    #[test]
    fn crumbs_become_one_cookie() {
        let mut head = head("http://a/", &[("cookie", "a=b"), ("cookie", "c=d")]);
        head.version = Version::HTTP_2;
        sent(&mut head, false).expect("good");
        assert_eq!(head.headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=b; c=d"]);
    }

    #[test]
    fn an_answer_loses_what_was_meant_for_the_edge() {
        let answer = http::Response::builder()
            .header("connection", "close, x-hop, x-forwarded-for")
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("keep-alive", "5")
            .header("transfer-encoding", "chunked")
            .header("content-length", "7")
            .header("content-type", "text/plain");
        let (mut head, ()) = answer.body(()).expect("an answer").into_parts();
        to_client(&mut head);
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "x-hop"], "what also names a protected header is not obeyed");
    }

    #[test]
    fn the_probe_token_never_reaches_the_upstream() {
        for (sent, right) in [("token", true), ("Token", false), ("", false)] {
            let mut head = head("/", &[(PROBE_HEADER, sent)]);
            assert_eq!(take_probe(&mut head.headers, "token"), right);
            assert!(!head.headers.contains_key(PROBE_HEADER));
        }
        assert!(!take_probe(&mut HeaderMap::new(), ""), "no header is no probe");
    }
}
