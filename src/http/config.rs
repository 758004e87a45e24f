//! Settings of the HTTP server, and the one place that checks them. L3.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};

use crate::error::{Error, ErrorKind, Result};

/// A token is guessed at from the network: 16 characters of hexadecimal are 64 bits.
const TOKEN_BYTES_MIN: usize = 16;
/// It travels in a header.
const TOKEN_BYTES_MAX: usize = 512;
/// Each has one descriptor and a buffer of 32 KiB at most.
const STREAMS_MAX: usize = 10_000;

/// Where and how a queue is served over HTTP: events, dashboard, API and metrics.
///
/// Bound to a loopback address it needs no token: whoever runs programs on the machine can look and act. Requests that a
/// foreign web page makes are refused all the same, by their `Host` and `Origin`. Any other address needs a
/// [`token`](HttpConfig::token). There is no TLS: put a proxy in front, or a tunnel.
#[derive(Clone)]
pub struct HttpConfig {
    addr: String,
    pub(super) token: Option<String>,
    pub(super) hosts: Vec<String>,
    pub(super) origins: Vec<String>,
    pub(super) shows_payloads: bool,
    pub(super) streams_max: usize,
}

impl HttpConfig {
    /// Listens on `addr`, for example `127.0.0.1:8080`; with port 0 the system chooses one, see
    /// [`JobQueue::http_addr`](crate::JobQueue::http_addr).
    #[must_use]
    pub fn new(addr: impl Into<String>) -> HttpConfig {
        HttpConfig {
            addr: addr.into(),
            token: None,
            hosts: Vec::new(),
            origins: Vec::new(),
            shows_payloads: false,
            streams_max: 256,
        }
    }

    /// Everything but `/healthz` needs this token: as `Authorization: Bearer ...`, or entered on the sign-in page, which
    /// sets a cookie that scripts cannot read and that lasts until the queue is opened again. 16 to 512 visible ASCII
    /// characters. Defaults to none.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> HttpConfig {
        self.token = Some(token.into());
        self
    }

    /// Answers to this `Host` too, for example the name that a proxy is known by: ASCII (a name with other letters in its
    /// `xn--` form), without scheme and port, which [`open`](crate::Builder::open) refuses. Defaults to IP addresses and
    /// `localhost`: a name that an attacker controls and points here (DNS rebinding) is refused.
    #[must_use]
    pub fn allow_host(mut self, host: impl Into<String>) -> HttpConfig {
        self.hosts.push(host.into().to_ascii_lowercase());
        self
    }

    /// Lets scripts of this origin use the API (CORS), for example `https://admin.example.com`; exact, no wildcards, and as
    /// browsers send it: in lower case, with a port only if it is not the scheme's own. [`open`](crate::Builder::open) refuses
    /// any other. They need the token as `Authorization`: the cookie is for the dashboard alone. Defaults to none.
    #[must_use]
    pub fn allow_origin(mut self, origin: impl Into<String>) -> HttpConfig {
        self.origins.push(origin.into());
        self
    }

    /// Shows the inputs and results of jobs. Defaults to not: they may hold what not everyone who looks after a queue
    /// should see.
    #[must_use]
    pub fn show_payloads(mut self) -> HttpConfig {
        self.shows_payloads = true;
        self
    }

    /// Event streams that are open at the same time; more are told to come again in 5 s. Defaults to `256`; 1 to 10,000.
    /// Each needs a file descriptor.
    #[must_use]
    pub fn max_streams(mut self, streams: usize) -> HttpConfig {
        self.streams_max = streams;
        self
    }

    /// Takes the port, if all of this is sound. Whoever connects waits until the queue serves.
    pub(crate) fn bind(&self) -> Result<TcpListener> {
        let addr = self.validate()?;
        TcpListener::bind(addr).map_err(|error| {
            let problem = format!("http: {addr} cannot be bound");
            Error::new(ErrorKind::InvalidConfig, problem).with_source(error)
        })
    }

    /// The address to bind, if all of this is sound.
    pub(crate) fn validate(&self) -> Result<SocketAddr> {
        let invalid =
            |problem: String| Error::new(ErrorKind::InvalidConfig, format!("http: {problem}"));
        let mut found = self.addr.to_socket_addrs().map_err(|error| {
            invalid(format!("address {:?}: expected IP:PORT", self.addr)).with_source(error)
        })?;
        let addr = found
            .next()
            .ok_or_else(|| invalid(format!("address {:?} does not resolve", self.addr)))?;
        match &self.token {
            None if !addr.ip().is_loopback() => {
                return Err(invalid(format!(
                    "{addr} is not a loopback address: set a token, or bind 127.0.0.1"
                )));
            }
            Some(token) if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) => {
                return Err(invalid(format!(
                    "the token has {} bytes: expected {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX}",
                    token.len()
                )));
            }
            Some(token) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return Err(invalid(
                    "the token has characters that are not visible ASCII".to_owned(),
                ));
            }
            None | Some(_) => {}
        }
        if !(1..=STREAMS_MAX).contains(&self.streams_max) {
            return Err(invalid(format!(
                "max_streams is {}: expected 1 to {STREAMS_MAX}",
                self.streams_max
            )));
        }
        self.hosts
            .iter()
            .try_for_each(|host| check_host(host))
            .map_err(invalid)?;
        self.origins
            .iter()
            .try_for_each(|origin| check_origin(origin))
            .map_err(invalid)?;
        Ok(addr)
    }
}

/// Whether a browser can name a host so. One that it cannot would be allowed in vain.
fn check_host(host: &str) -> std::result::Result<(), String> {
    let rest = host.split_once("://").map_or(host, |(_, rest)| rest);
    let alone = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let alone = alone.split_once(':').map_or(alone, |(name, _)| name);
    let is_ip = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if is_ip || is_name(host) {
        return Ok(());
    }
    Err(if is_name(alone) {
        format!("host {host:?}: without scheme, port and path: write {alone:?}")
    } else {
        format!(
            "host {host:?}: expected a host alone, as browsers send it, for example admin.example.com"
        )
    })
}

/// Of ASCII characters: that is how browsers send all names.
fn is_name(text: &str) -> bool {
    let is_part = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !text.is_empty() && text.bytes().all(is_part)
}

/// Whether a browser can name an origin so: they are compared to the letter.
fn check_origin(origin: &str) -> std::result::Result<(), String> {
    match written(origin) {
        Some(same) if same == origin => Ok(()),
        Some(other) => Err(format!(
            "origin {origin:?}: browsers send it otherwise: write {other:?}"
        )),
        None => Err(format!(
            "origin {origin:?}: expected scheme and host, for example https://admin.example.com"
        )),
    }
}

/// An origin as a browser writes it: in lower case, with a port if that is not the scheme's.
/// <https://html.spec.whatwg.org/multipage/browsers.html#ascii-serialisation-of-an-origin>
fn written(origin: &str) -> Option<String> {
    let (scheme, rest) = origin.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let usual = match &scheme[..] {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest).to_ascii_lowercase();
    let end_of_host = rest.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match rest[end_of_host..].find(':') {
        Some(at) => (&rest[..end_of_host + at], &rest[end_of_host + at + 1..]),
        None => (&rest[..], ""),
    };
    let ip = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if !is_name(host) && ip?.parse::<Ipv6Addr>().is_err() {
        return None;
    }
    let port: u16 = if port.is_empty() {
        usual
    } else {
        port.parse().ok()?
    };
    Some(if port == usual {
        format!("{scheme}://{host}")
    } else {
        format!("{scheme}://{host}:{port}")
    })
}

/// The token is a secret.
impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConfig")
            .field("addr", &self.addr)
            .field("has_token", &self.token.is_some())
            .field("hosts", &self.hosts)
            .field("origins", &self.origins)
            .field("shows_payloads", &self.shows_payloads)
            .field("streams_max", &self.streams_max)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(config: &HttpConfig) -> String {
        config.validate().expect_err("refused").to_string()
    }

    #[test]
    fn an_address_beyond_this_machine_needs_a_token() {
        for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
            assert!(
                problem(&HttpConfig::new(addr)).contains("set a token"),
                "{addr}"
            );
            assert!(
                HttpConfig::new(addr)
                    .token("0123456789abcdef")
                    .validate()
                    .is_ok()
            );
        }
        for addr in ["127.0.0.1:0", "[::1]:0", "127.9.9.9:1"] {
            assert!(HttpConfig::new(addr).validate().is_ok(), "{addr}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let local = || HttpConfig::new("127.0.0.1:0");
        assert!(problem(&HttpConfig::new("nonsense")).contains("expected IP:PORT"));
        assert!(problem(&local().token("short")).contains("16 to 512"));
        assert!(problem(&local().token("0123456789abcde\n")).contains("visible ASCII"));
        assert!(problem(&local().max_streams(0)).contains("1 to 10000"));
        for origin in [
            "*",
            "null",
            "https://",
            "https://a/b",
            "https://*.a",
            "a.example",
        ] {
            assert!(
                problem(&local().allow_origin(origin)).contains("expected scheme"),
                "{origin}"
            );
        }
    }

    /// The bug: what no browser ever sends was taken, and never matched.
    #[test]
    fn a_host_or_an_origin_that_could_never_match_is_refused() {
        let local = || HttpConfig::new("127.0.0.1:0");
        for (host, says) in [
            ("x.example:443", "write \"x.example\""),
            ("https://x.example", "write \"x.example\""),
            ("HTTPS://X.example:443/jobs", "write \"x.example\""),
            ("*.example", "expected a host alone"),
            ("a b", "expected a host alone"),
            ("", "expected a host alone"),
            ("käse.example", "expected a host alone"),
        ] {
            let problem = problem(&local().allow_host(host));
            let names = format!("host {:?}", host.to_ascii_lowercase());
            assert!(
                problem.contains(&names) && problem.contains(says),
                "{problem}"
            );
        }
        for host in [
            "X.example",
            "x.example.",
            "my_host",
            "10.0.0.1",
            "[::1]",
            "::1",
        ] {
            assert!(local().allow_host(host).validate().is_ok(), "{host}");
        }
        for (origin, says) in [
            ("https://Admin.example", "write \"https://admin.example\""),
            ("HTTPS://admin.example", "write \"https://admin.example\""),
            (
                "https://admin.example:443",
                "write \"https://admin.example\"",
            ),
            ("http://admin.example:80", "write \"http://admin.example\""),
            ("http://admin.example:", "write \"http://admin.example\""),
            (
                "http://admin.example:0443",
                "write \"http://admin.example:443\"",
            ),
            ("https://admin.example/", "write \"https://admin.example\""),
            ("https://a.example?x", "expected scheme and host"),
            ("https://me@a.example", "expected scheme and host"),
            ("https://a.example:x", "expected scheme and host"),
            ("https://:443", "expected scheme and host"),
            ("https://käse.example", "expected scheme and host"),
        ] {
            let problem = problem(&local().allow_origin(origin));
            let names = format!("origin {origin:?}");
            assert!(
                problem.contains(&names) && problem.contains(says),
                "{problem}"
            );
        }
        for origin in [
            "https://a.example:8443",
            "http://localhost:3000",
            "http://[::1]:8080",
        ] {
            assert!(local().allow_origin(origin).validate().is_ok(), "{origin}");
        }
    }

    #[test]
    fn the_token_is_not_printed() {
        let config = HttpConfig::new("127.0.0.1:0").token("very-secret-token");
        assert!(!format!("{config:?}").contains("secret"));
    }
}
