//! An endpoint as the user describes it. L3, pure.

use std::fmt;

use ureq::http::Uri;

use crate::config::URL_BYTES_MAX;
use crate::delivery::{EndpointSpec, Kinds, is_https, shown_url};
use crate::error::{Error, ErrorKind, Result};
use crate::event::EventKind;
use crate::new_job::NewJob;
use crate::webhook::secret::Secret;

/// Where events are sent: a URL, which events, and the keys that sign them.
///
/// ```
/// use stepwell::EventKind;
/// use stepwell::webhook::{Endpoint, Secret};
///
/// let endpoint = Endpoint::new("https://example.com/hooks/jobs")?
///     .events([EventKind::Completed, EventKind::Failed, EventKind::Cancelled])
///     .secret(Secret::generate()?);
/// # Ok::<(), stepwell::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(EndpointSpec);

impl Endpoint {
    /// What can be delivered: everything in the log that is not about deliveries, which would never end.
    pub const DELIVERED: &'static [EventKind] = Kinds::ALL;

    /// An endpoint that is told of every event of a job. Without a secret its deliveries are not signed.
    ///
    /// # Errors
    /// `InvalidConfig` when `url` is not one of http or https with a host, or names a user or password.
    pub fn new(url: &str) -> Result<Endpoint> {
        check(url)?;
        Ok(Endpoint(EndpointSpec {
            url: url.to_owned(),
            events: Kinds::all(),
            secrets: Vec::new(),
        }))
    }

    /// What it is told, instead of everything. `job:progress` and `job:webhook:*` are never delivered, and are left out.
    #[must_use]
    pub fn events(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Endpoint {
        let wanted = Kinds::of(kinds);
        self.0.events = Kinds::of(wanted.iter().filter(|kind| Kinds::all().has(*kind)));
        self
    }

    /// The key that signs, and no other: it takes the place of all that were named before.
    #[must_use]
    pub fn secret(mut self, secret: Secret) -> Endpoint {
        self.0.secrets = vec![secret.reveal()];
        self
    }

    /// A second key that signs too, while receivers go over from one to the other.
    #[must_use]
    pub fn also_secret(mut self, secret: Secret) -> Endpoint {
        self.0.secrets.truncate(1);
        self.0.secrets.push(secret.reveal());
        self
    }

    pub(crate) fn into_spec(self) -> EndpointSpec {
        self.0
    }

    pub(crate) fn is_https(&self) -> bool {
        is_https(&self.0.url)
    }
}

impl NewJob {
    /// Tells an endpoint of this job's events, beside those of the configuration. May be called 16 times. Feature `webhook`.
    ///
    /// A queue whose configuration allows https alone refuses the job for another URL; a [`Client`](crate::Client) does not
    /// know of that, and its job's deliveries are given up.
    ///
    /// An endpoint that answers 410 is sent nothing more: what waits for it is given up. The next job that names it, with the same
    /// events and keys, has it sent to again.
    #[must_use]
    pub fn webhook(mut self, endpoint: Endpoint) -> NewJob {
        self.endpoints.push(endpoint.into_spec());
        self
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether something can be sent to a URL. The error does not repeat its query, nor a password in it.
pub(super) fn check(url: &str) -> Result<Uri> {
    let shown = shown_for_error(url);
    let refuse = |problem: &str| {
        let problem = format!("webhook URL {shown:?}: {problem}");
        Err(Error::new(ErrorKind::InvalidConfig, problem))
    };
    if url.len() > URL_BYTES_MAX {
        return refuse(&format!(
            "it has {} bytes, at most {URL_BYTES_MAX} are allowed",
            url.len()
        ));
    }
    let Ok(uri) = url.parse::<Uri>() else {
        return refuse("it is not a URL");
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return refuse("expected http:// or https://");
    }
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return refuse("it names a user: sign with a secret instead");
    }
    if uri.host().is_none_or(str::is_empty) {
        return refuse("it has no host");
    }
    if !port_of(&uri).is_empty() && uri.port_u16().is_none() {
        return refuse("its port is none");
    }
    Ok(uri)
}

/// What stands behind the host; nothing also for an empty port, which is the scheme's.
fn port_of(uri: &Uri) -> &str {
    let (host, authority) = (uri.host(), uri.authority());
    let port = authority.and_then(|it| it.as_str().strip_prefix(host.unwrap_or_default()));
    port.unwrap_or_default().trim_start_matches(':')
}

/// Without the query, and without what may be a name or a password before the host.
fn shown_for_error(url: &str) -> String {
    let shown = shown_url(url);
    if let Some((_, rest)) = shown.rsplit_once('@') {
        return format!("...@{rest}");
    }
    let start = shown.find("://").map_or(0, |at| at + 3);
    let end = shown[start..]
        .find('/')
        .map_or(shown.len(), |at| start + at);
    // `https://name:password?x@host` has no host before its query.
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (scheme, authority) = (&shown[..start], &shown[start..end]);
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(']') && !is_port(port) => {
            format!("{scheme}{host}:...")
        }
        _ => shown.chars().take(200).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_urls_are_refused_with_the_reason_and_without_secrets() {
        for (url, says) in [
            ("", "it is not a URL"),
            ("ftp://a.example/", "expected http:// or https://"),
            ("/hooks", "expected http:// or https://"),
            ("a.example", "expected http:// or https://"),
            (
                "https://user:pass@a.example/",
                "\"...@a.example/\": it names a user",
            ),
            ("https://", "it is not a URL"),
            (
                "https://billing:pass?x@pay.example/",
                "\"https://billing:...\": its port is none",
            ),
            ("http://a.example:80800/x", "its port is none"),
            (
                "http://a.example/ b?key=1",
                "\"http://a.example/ b\": it is not a URL",
            ),
            ("http://a.example/\r\nx: y", "it is not a URL"),
            (
                &format!("http://a.example/{}", "x".repeat(2048)),
                "at most 2048",
            ),
        ] {
            let error = Endpoint::new(url).expect_err(url).to_string();
            assert!(error.contains(says), "{url}: {error}");
            assert!(
                !error.contains("pass") && !error.contains("key=1"),
                "{error}"
            );
        }
        for good in [
            "http://a.example",
            "https://a.example:8443/x?y=z",
            "http://[::1]:80/",
            "http://[::1]/",
            "http://a.example:/x",
            "HTTPS://A.example/",
        ] {
            assert!(Endpoint::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn what_would_never_end_is_not_delivered() {
        let endpoint = Endpoint::new("http://a.example")
            .expect("good")
            .events(EventKind::ALL.iter().copied());
        assert_eq!(endpoint.into_spec().events, Kinds::all());
    }

    #[test]
    fn two_keys_are_live_at_most_and_none_is_printed() {
        let secret = || Secret::generate().expect("random bytes");
        let (first, second) = (secret(), secret());
        let endpoint = Endpoint::new("http://a.example/?token=1")
            .expect("good")
            .secret(first);
        let endpoint = endpoint.also_secret(secret()).also_secret(second.clone());
        assert_eq!(
            format!("{endpoint:?}"),
            "EndpointSpec(http://a.example/, 2 keys)"
        );
        assert_eq!(endpoint.into_spec().secrets[1], second.reveal());
    }
}
