//! Who may ask what. L3, pure.
//!
//! A web page can make the browser of somebody on this machine send requests here. Three things tell them apart: the `Host`
//! (a page whose name was pointed at 127.0.0.1 says its own name: DNS rebinding), the `Origin`, and that a write has a
//! content type which a page cannot send without asking first (CORS preflight).

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use crate::http::answer::{Answer, header, problem};
use crate::http::config::HttpConfig;
use crate::http::server::Request;

/// The name of the session cookie: with the port, as the browser sees it. Cookies belong to a host whatever the port, and whoever
/// signed in to one queue was signed out of the other.
fn cookie_name(request: &Request) -> String {
    let host = request.header("host").unwrap_or_default();
    match host.rsplit_once(':') {
        Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) => format!("stepwell-{port}"),
        _ => "stepwell".to_owned(),
    }
}

pub(super) struct Guard {
    token: Option<String>,
    /// What the cookie holds. It says nothing about the token, and is another one after the next start.
    session: String,
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Guard {
    pub(super) fn new(config: &HttpConfig) -> Guard {
        // SipHash with a random key, over four inputs: 256 bits that nobody can compute without the key.
        let hasher = RandomState::new();
        let session = (0..4_u8)
            .map(|part| format!("{:016x}", hasher.hash_one((part, &config.token))))
            .collect();
        Guard {
            token: config.token.clone(),
            session,
            hosts: config.hosts.clone(),
            origins: config.origins.clone(),
        }
    }

    /// Whether the request comes from where it may come from; if so, the headers that its answer needs for that.
    pub(super) fn origin(&self, request: &Request) -> Result<String, Answer> {
        let Some(host) = request.header("host") else {
            return Err(problem(400, "the request has no Host"));
        };
        if !self.is_ours(host) {
            let why = "this name is not one of this server's: see HttpConfig::allow_host";
            return Err(problem(421, why));
        }
        let is_write = !matches!(&request.method[..], "GET" | "HEAD" | "OPTIONS");
        match request.header("origin") {
            Some(origin) if self.origins.iter().any(|it| it == origin) => {
                Ok(header("Access-Control-Allow-Origin", origin) + "Vary: Origin\r\n")
            }
            Some(origin) if is_same(origin, host) => Ok(String::new()),
            Some(_) => Err(problem(
                403,
                "requests of other origins are not allowed here",
            )),
            None if is_write
                && matches!(
                    request.header("sec-fetch-site"),
                    Some("cross-site" | "same-site")
                ) =>
            {
                Err(problem(403, "requests of other sites are not allowed here"))
            }
            None => Ok(String::new()),
        }
    }

    /// An address cannot be rebound; a name can.
    fn is_ours(&self, host: &str) -> bool {
        let name = without_port(host).to_ascii_lowercase();
        let bare = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'));
        name == "localhost"
            || bare.unwrap_or(&name).parse::<IpAddr>().is_ok()
            || self.hosts.contains(&name)
    }

    pub(super) fn needs_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether the request shows the token, or the cookie that it was exchanged for.
    pub(super) fn is_known(&self, request: &Request) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let bearer = request
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "));
        if bearer.is_some_and(|bearer| is_equal(bearer.trim(), token)) {
            return true;
        }
        // The cookie is sent by the browser without being asked: only our own page may use it.
        let is_foreign = request
            .header("origin")
            .is_some_and(|origin| self.origins.iter().any(|it| it == origin));
        let cookies = request.header("cookie").unwrap_or_default().split(';');
        let ours = cookie_name(request);
        !is_foreign
            && cookies
                .filter_map(|cookie| cookie.trim().split_once('='))
                .any(|(name, value)| name == ours && is_equal(value, &self.session))
    }

    /// The cookie for whoever shows the token.
    pub(super) fn sign_in(&self, request: &Request, shown: &str) -> Option<String> {
        let token = self.token.as_ref()?;
        is_equal(shown, token).then(|| {
            format!(
                "{}={}; Path=/; HttpOnly; SameSite=Strict",
                cookie_name(request),
                self.session
            )
        })
    }

    pub(super) fn sign_out(request: &Request) -> String {
        let name = cookie_name(request);
        format!("{name}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0")
    }

    /// A write has this content type, or none when it has no body.
    pub(super) fn is_json(request: &Request) -> bool {
        let media = request.header("content-type").unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        media.eq_ignore_ascii_case("application/json")
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    }
}

/// A proxy may speak TLS: the scheme is its own.
fn is_same(origin: &str, host: &str) -> bool {
    let rest = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    rest.is_some_and(|rest| rest.eq_ignore_ascii_case(host))
}

/// Takes as long for a right guess as for a wrong one of the same length.
fn is_equal(shown: &str, secret: &str) -> bool {
    let pairs = shown.bytes().zip(secret.bytes());
    shown.len() == secret.len() && pairs.fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        let config = HttpConfig::new("127.0.0.1:0")
            .token("0123456789abcdef")
            .allow_host("jobs.example.com")
            .allow_origin("https://admin.example.com");
        Guard::new(&config)
    }

    fn status(method: &str, headers: &[(&str, &str)]) -> u16 {
        guard()
            .origin(&Request::fake(method, "/", headers))
            .map_or_else(|answer| answer.status, |_| 200)
    }

    #[test]
    fn a_name_that_is_not_ours_is_refused() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]:80",
            "[::1]",
            "localhost:1",
            "LOCALHOST",
            "10.0.0.7:1",
            "jobs.example.com:443",
        ] {
            assert_eq!(status("GET", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "a@127.0.0.1",
            "jobs.example.com.evil",
        ] {
            assert_eq!(status("GET", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status("GET", &[]), 400);
    }

    #[test]
    fn another_origin_is_refused_unless_it_is_allowed() {
        let with = |method, origin| status(method, &[("host", "localhost:80"), ("origin", origin)]);
        assert_eq!(with("POST", "http://localhost:80"), 200);
        assert_eq!(with("POST", "https://admin.example.com"), 200);
        for origin in [
            "null",
            "http://localhost:81",
            "http://evil.example",
            "https://admin.example.com.evil",
            "localhost:80",
        ] {
            assert_eq!(with("POST", origin), 403, "{origin}");
            assert_eq!(with("GET", origin), 403, "{origin}");
        }
        let site = |method| {
            status(
                method,
                &[("host", "localhost:80"), ("sec-fetch-site", "cross-site")],
            )
        };
        assert_eq!((site("GET"), site("POST")), (200, 403));
    }

    #[test]
    fn the_token_opens_and_the_cookie_stands_for_it() {
        let guard = guard();
        let known = |headers: &[(&str, &str)]| guard.is_known(&Request::fake("GET", "/", headers));
        assert!(known(&[("authorization", "Bearer 0123456789abcdef")]));
        assert!(!known(&[("authorization", "Bearer 0123456789abcdeg")]));
        assert!(!known(&[("authorization", "0123456789abcdef")]));
        assert!(!known(&[]));
        let at = |host| Request::fake("POST", "/", &[("host", host)]);
        assert_eq!(guard.sign_in(&at("localhost"), "wrong"), None);
        let signed_in = guard.sign_in(&at("localhost"), "0123456789abcdef");
        let cookie = signed_in.expect("right");
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
        let pair = cookie.split(';').next().expect("a pair");
        assert!(!pair.contains("0123456789abcdef"));
        assert!(known(&[("cookie", &format!("other=1; {pair}"))]));
        assert!(!known(&[("cookie", &format!("x{pair}"))]));
        // A page of another origin may use the API by token, not by the cookie of the dashboard.
        assert!(!known(&[
            ("cookie", pair),
            ("origin", "https://admin.example.com")
        ]));
        // Two queues on one host: each has a cookie of its own.
        let here = guard.sign_in(&at("[::1]:8080"), "0123456789abcdef");
        let here = here.expect("right");
        assert!(here.starts_with("stepwell-8080="), "{here}");
        let pair_here = here.split(';').next().expect("a pair");
        let both = format!("stepwell-8081=other; {pair_here}");
        assert!(known(&[("host", "[::1]:8080"), ("cookie", &both)]));
        assert!(!known(&[("host", "[::1]:8081"), ("cookie", &both)]));
        let other = super::Guard::new(&HttpConfig::new("127.0.0.1:0").token("0123456789abcdef"));
        assert!(!other.is_known(&Request::fake("GET", "/", &[("cookie", pair)])));
    }
}
