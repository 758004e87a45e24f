//! One try: one request, and what came of it. L3.

use std::io::Read;
use std::time::{Duration, SystemTime};

use ureq::config::Config;
use ureq::{Agent, Timeout};

use crate::config::ANSWER_BYTES_MAX;
use crate::delivery::{is_https, shown_url};
use crate::sync::{AtomicBool, Ordering};
use crate::time::Timestamp;
use crate::webhook::address::{Denied, agent};
use crate::webhook::endpoint::check;
use crate::webhook::secret::Secret;
use crate::webhook::signature::sign;
use crate::webhook::target::with_query;

/// For the body of an answer, whose status has decided already: a receiver that leaves it open must not hold a thread.
const BODY_TIME: Duration = Duration::from_secs(1);
/// What is read of an answer; less is kept.
const ANSWER_READ_MAX: u64 = 64 * 1024;
const HEADERS_MAX: usize = 32 * 1024;
/// Connections that are kept open for the next delivery, and for how long.
const IDLE_MAX: usize = 4;
const IDLE_AGE: Duration = Duration::from_secs(10);

/// What is to be sent.
pub(super) struct Post<'a> {
    pub(super) url: &'a str,
    pub(super) webhook_id: &'a str,
    /// As text, the newest first.
    pub(super) secrets: &'a [String],
    pub(super) body: &'a str,
    pub(super) at: Timestamp,
}

/// What came of it. No text here holds a query string or a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Answered {
        status: u16,
        answer: String,
        retry_after: Option<Duration>,
    },
    /// No answer. It may be another matter the next time.
    Failed(String),
    /// It must not be sent, now or later.
    Refused(String),
    /// We have cut it off.
    Cut,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) resolve: Duration,
    pub(super) connect: Duration,
    pub(super) total: Duration,
}

impl Timeouts {
    pub(super) fn iter(&self) -> impl Iterator<Item = Duration> {
        [self.resolve, self.connect, self.total].into_iter()
    }
}

/// Makes one request after another. The courier knows no more of the network than this, so that tests need none.
pub(super) trait Carrier: Send + Sync {
    fn send(&self, post: &Post<'_>) -> Sent;
    /// Ends what is on its way, and everything after it.
    fn cut(&self);
}

pub(super) struct Sender {
    agent: Agent,
    is_https_only: bool,
    is_cut: AtomicBool,
}

impl Carrier for Sender {
    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.agent.clone().shutdown();
    }

    fn send(&self, post: &Post<'_>) -> Sent {
        if self.is_cut.load(Ordering::Acquire) {
            return Sent::Cut;
        }
        let uri = match check(post.url) {
            Ok(uri) => uri,
            Err(error) => return Sent::Refused(error.to_string()),
        };
        if self.is_https_only && !is_https(post.url) {
            return Sent::Refused("it is not https, and only that is allowed".to_owned());
        }
        let secrets: Result<Vec<Secret>, _> = post
            .secrets
            .iter()
            .map(|text| Secret::parse(text))
            .collect();
        let secrets = match secrets {
            Ok(secrets) => secrets,
            Err(error) => return Sent::Refused(error.to_string()),
        };
        let sent = with_query(uri.query(), || self.post(post, &secrets));
        // What was ended by us is no fault of the receiver. An answer is an answer.
        if self.is_cut.load(Ordering::Acquire) && !matches!(sent, Sent::Answered { .. }) {
            return Sent::Cut;
        }
        sent
    }
}

impl Sender {
    pub(super) fn new(
        timeouts: Timeouts,
        allow_private: Vec<String>,
        is_https_only: bool,
    ) -> Sender {
        Sender::with(timeouts, is_https_only, |config| {
            agent(config, allow_private)
        })
    }

    pub(super) fn with(
        timeouts: Timeouts,
        is_https_only: bool,
        agent: impl FnOnce(Config) -> Agent,
    ) -> Sender {
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .max_response_header_size(HEADERS_MAX)
            .max_idle_connections(IDLE_MAX)
            .max_idle_age(IDLE_AGE)
            .user_agent(concat!("stepwell/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(timeouts.resolve))
            .timeout_connect(Some(timeouts.connect))
            .timeout_recv_body(Some(BODY_TIME))
            .timeout_global(Some(timeouts.total))
            .build();
        Sender {
            agent: agent(config),
            is_https_only,
            is_cut: AtomicBool::new(false),
        }
    }

    fn post(&self, post: &Post<'_>, secrets: &[Secret]) -> Sent {
        let timestamp = post.at.as_millis().div_euclid(1000);
        let mut request = self
            .agent
            .post(shown_url(post.url))
            .header("content-type", "application/json")
            .header("webhook-id", post.webhook_id)
            .header("webhook-timestamp", timestamp.to_string());
        if !secrets.is_empty() {
            let signature = sign(secrets, post.webhook_id, timestamp, post.body.as_bytes());
            request = request.header("webhook-signature", signature);
        }
        let mut response = match request.send(post.body) {
            Ok(response) => response,
            Err(error) => return failed(&error),
        };
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after
            .and_then(|value| value.to_str().ok())
            .and_then(|text| wait_of(text, post.at));
        let mut bytes = Vec::new();
        let reader = response.body_mut().with_config().limit(u64::MAX).reader();
        // The status has decided: that the rest cannot be read changes nothing.
        reader.take(ANSWER_READ_MAX).read_to_end(&mut bytes).ok();
        Sent::Answered {
            status: response.status().as_u16(),
            answer: kept(&bytes),
            retry_after,
        }
    }
}

/// The beginning of an answer. What is no UTF-8 takes more room as text than it did before.
fn kept(bytes: &[u8]) -> String {
    let mut text =
        String::from_utf8_lossy(&bytes[..bytes.len().min(ANSWER_BYTES_MAX)]).into_owned();
    text.truncate(text.floor_char_boundary(ANSWER_BYTES_MAX));
    text
}

/// The value of `Retry-After`: seconds, or a date. Source: RFC 9110, section 10.2.3.
fn wait_of(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than fits is as long as can be: the schedule has a limit of its own.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    let at = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let at = Timestamp::from_millis(i64::try_from(at.as_millis()).ok()?);
    Some(at.since(now))
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "ureq may add errors, and those that are left out here may repeat the URL"
)]
fn failed(error: &ureq::Error) -> Sent {
    use ureq::Error;
    Sent::Failed(match error {
        Error::Other(other) if other.is::<Denied>() => {
            let denied = other.downcast_ref::<Denied>();
            // A name may lead elsewhere tomorrow: a resolver of a guest network says so for an hour. A number will not.
            if denied.is_some_and(Denied::is_for_good) {
                return Sent::Refused(other.to_string());
            }
            other.to_string()
        }
        Error::Timeout(Timeout::Resolve) => "the host's name was not resolved in time".to_owned(),
        Error::Timeout(Timeout::Connect) => "no connection in time".to_owned(),
        Error::Timeout(_) => "no complete answer in time".to_owned(),
        Error::HostNotFound => "the host's name is not known".to_owned(),
        Error::Io(error) => error.to_string(),
        Error::Tls(problem) => format!("TLS: {problem}"),
        Error::Rustls(error) => format!("TLS: {error}"),
        Error::Protocol(error) => format!("the answer is no HTTP: {error}"),
        Error::LargeResponseHeader(..) => "the answer's headers are too large".to_owned(),
        Error::ConnectionFailed => "no connection".to_owned(),
        _ => "the request failed".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bug: each byte that was no UTF-8 was kept as three, so that an answer took up to 6 KiB of the file.
    #[test]
    fn no_answer_is_kept_longer_than_its_limit() {
        for byte in [b'x', 0xff, 0xc3] {
            assert!(kept(&[byte; 3000]).len() <= ANSWER_BYTES_MAX, "{byte}");
        }
        assert_eq!(kept(&[b'x'; 3000]).len(), ANSWER_BYTES_MAX);
        assert_eq!(kept(b"word"), "word");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = Timestamp::from_millis(1_445_412_480_000);
        let wait = |text| wait_of(text, now).map(|wait| wait.as_secs());
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("99999999999999999999999"), Some(u64::MAX));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:05 GMT"), Some(5));
        assert_eq!(wait("Wednesday, 21-Oct-15 07:28:07 GMT"), Some(7));
        assert_eq!(
            wait("Wed, 21 Oct 2015 07:27:00 GMT"),
            Some(0),
            "it has passed"
        );
        for bad in ["", "-1", "soon", "1.5", "Wed, 32 Oct 2015 07:28:05 GMT"] {
            assert_eq!(wait(bad), None, "{bad}");
        }
    }
}
