//! What an upstream may believe about the client: set here, never taken from the client.

use std::net::{IpAddr, SocketAddr};

use domain::traffic::PROBE_HEADER;
use http::{
    HeaderName, HeaderValue,
    header::{FORWARDED, HOST},
};
use pingora::{
    ErrorType, OrErr,
    http::RequestHeader,
    protocols::{
        http::authority::{RawTargetAuthority, raw_target_authority},
        l4::socket::SocketAddr as Socket,
    },
};

const FORWARDED_PREFIX: &str = "x-forwarded-";
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The host that the client asks for, as it sent it: HTTP/2's authority or absolute form first,
/// then the Host header. Empty where it named none.
pub(crate) fn host(request: &RequestHeader) -> &str {
    match request.uri.authority() {
        Some(authority) => authority.as_str(),
        None => request.headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default(),
    }
}

/// Makes `GET http://shop.test/x` the same as `GET /x` with a Host header: routing and upstreams
/// know only that form. Pingora has made sure that a Host header beside it says the same.
pub(crate) fn to_origin_form(request: &mut RequestHeader) -> pingora::Result<()> {
    if request.raw_path().first() == Some(&b'/') {
        return Ok(());
    }
    let RawTargetAuthority::Absolute { authority, path_and_query, .. } = raw_target_authority(request.raw_path())
    else {
        return Ok(());
    };
    let host =
        HeaderValue::from_bytes(authority).or_err(ErrorType::InvalidHTTPHeader, "authority of the request target")?;
    let slash: &[u8] = if path_and_query.first() == Some(&b'/') { b"" } else { b"/" };
    let path = [slash, path_and_query].concat();
    request.insert_header(HOST, host)?;
    request.set_raw_path(&path)
}

/// Takes the probe token off the request and says whether it was the right one.
pub(crate) fn take_probe(request: &mut RequestHeader, token: &str) -> bool {
    request.remove_header(PROBE_HEADER).is_some_and(|sent| sent.as_bytes() == token.as_bytes())
}

/// Drops what the client claims about where it comes from, and says it right. `client` and
/// `listener` are the two ends of its connection.
pub(crate) fn set_forwarded(
    request: &mut RequestHeader,
    client: Option<&Socket>,
    listener: Option<&Socket>,
) -> pingora::Result<()> {
    drop_claims(request);
    let host = request.headers.get(HOST).cloned();
    // Behind a port mapping only the client knows the port that it connected to.
    let port = match host.as_ref().and_then(|host| port(host.as_bytes())) {
        Some(port) => HeaderValue::from_bytes(port).ok(),
        None => listener.and_then(Socket::as_inet).map(|address| HeaderValue::from(address.port())),
    };
    if let Some(port) = port {
        request.insert_header(FORWARDED_PORT, port)?;
    }
    if let Some(host) = host {
        request.insert_header(FORWARDED_HOST, host)?;
    }
    request.insert_header(FORWARDED_PROTO, HeaderValue::from_static("http"))?;
    if let Some(client) = client.and_then(Socket::as_inet).and_then(ip_value) {
        request.insert_header(FORWARDED_FOR, client.clone())?;
        request.insert_header(REAL_IP, client)?;
    }
    Ok(())
}

fn drop_claims(request: &mut RequestHeader) {
    request.remove_header(&FORWARDED);
    request.remove_header(&REAL_IP);
    while let Some(name) = request.headers.keys().find(|name| name.as_str().starts_with(FORWARDED_PREFIX)).cloned() {
        request.remove_header(&name);
    }
}

fn ip_value(client: &SocketAddr) -> Option<HeaderValue> {
    // An IPv4 client of an IPv6 listener is still an IPv4 client.
    let ip: IpAddr = client.ip().to_canonical();
    HeaderValue::try_from(ip.to_string()).ok()
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

    fn request(headers: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/x?y", None).expect("a request");
        for (name, value) in headers {
            request.append_header(*name, *value).expect("a header");
        }
        request
    }

    fn socket(text: &str) -> Socket {
        text.parse().expect("an address")
    }

    fn forwarded(headers: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let mut request = request(headers);
        set_forwarded(&mut request, Some(&socket("192.0.2.7:5000")), Some(&socket("127.0.0.1:8080")))
            .expect("plain headers");
        let mut all: Vec<_> = request
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
            .collect();
        all.sort();
        all
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn what_the_client_claims_is_replaced() {
        let all = forwarded(&[
            ("Host", "shop.test:81"),
            ("X-Forwarded-For", "6.6.6.6"),
            ("x-forwarded-for", "7.7.7.7"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Prefix", "/admin"),
            ("X-Forwarded-Server", "evil"),
            ("Forwarded", "for=6.6.6.6"),
            ("X-Real-IP", "6.6.6.6"),
            ("accept", "*/*"),
        ]);
        let right = pairs(&[
            ("accept", "*/*"),
            ("host", "shop.test:81"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-host", "shop.test:81"),
            ("x-forwarded-port", "81"),
            ("x-forwarded-proto", "http"),
            ("x-real-ip", "192.0.2.7"),
        ]);
        assert_eq!(all, right);
    }

    #[test]
    fn without_a_port_in_the_host_the_listener_tells_it() {
        for host in ["shop.test", "[::1]", "shop.test:", "shop.test:x"] {
            let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
            request.append_header("Host", host).expect("a header");
            set_forwarded(&mut request, None, Some(&socket("127.0.0.1:8080"))).expect("plain headers");
            assert_eq!(request.headers[FORWARDED_PORT], "8080", "{host}");
        }
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_listener_is_shown_as_ipv4() {
        let mut request = request(&[]);
        set_forwarded(&mut request, Some(&socket("[::ffff:192.0.2.7]:1")), None).expect("plain headers");
        assert_eq!(request.headers[FORWARDED_FOR], "192.0.2.7");
    }

    #[test]
    fn an_absolute_target_becomes_a_path_and_a_host() {
        for (target, host, path) in [
            ("http://shop.test:81/x?y", Some("shop.test:81"), "/x?y"),
            ("http://shop.test", Some("shop.test"), "/"),
            ("HTTP://shop.test?y", Some("shop.test"), "/?y"),
            ("/x?y", None, "/x?y"),
            ("*", None, "*"),
        ] {
            let mut request = RequestHeader::build("GET", target.as_bytes(), None).expect("a request");
            to_origin_form(&mut request).expect("a good target");
            assert_eq!(request.headers.get(HOST).map(|host| host.to_str().expect("text")), host, "{target}");
            assert_eq!(String::from_utf8_lossy(request.raw_path()), path);
        }
    }

    #[test]
    fn the_probe_token_never_reaches_the_upstream() {
        for (sent, right) in [("token", true), ("Token", false), ("", false)] {
            let mut request = request(&[]);
            request.append_header(PROBE_HEADER, sent).expect("a header");
            assert_eq!(take_probe(&mut request, "token"), right);
            assert!(!request.headers.contains_key(PROBE_HEADER));
        }
        assert!(!take_probe(&mut request(&[]), ""), "no header is no probe");
    }
}
