//! How webhooks are sent, and the endpoints of the configuration. L3.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::config::check_name;
use crate::delivery::{EndpointSpec, NAMED_MAX, is_https, not_https};
use crate::error::{Error, ErrorKind, Result};
use crate::outlet::{OpenOutlet, Outlet};
use crate::store::Reader;
use crate::webhook::courier::Courier;
use crate::webhook::endpoint::Endpoint;
use crate::webhook::schedule::Schedule;
use crate::webhook::sender::{Sender, Timeouts};

const THREADS_MAX: usize = 256;
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// By name.
type Endpoints = Vec<(Arc<str>, EndpointSpec)>;

/// How webhooks are sent. A queue without one sends them by the defaults.
///
/// ```no_run
/// use stepwell::JobQueue;
/// use stepwell::webhook::{Endpoint, Secret, WebhookConfig};
///
/// let secret = Secret::parse(&std::env::var("HOOK_SECRET")?)?;
/// let hooks = WebhookConfig::new()
///     .endpoint("billing", Endpoint::new("https://billing.example.com/hooks")?.secret(secret))
///     .https_only(true);
/// let queue = JobQueue::builder("jobs.db").webhooks(hooks).open()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    threads: usize,
    schedule: Schedule,
    timeouts: Timeouts,
    allow_private: Vec<String>,
    is_https_only: bool,
    endpoints: Endpoints,
    are_https: bool,
}

impl Default for WebhookConfig {
    fn default() -> WebhookConfig {
        WebhookConfig {
            threads: 4,
            schedule: Schedule::default(),
            timeouts: Timeouts {
                resolve: Duration::from_secs(3),
                connect: Duration::from_secs(5),
                total: Duration::from_secs(15),
            },
            allow_private: Vec::new(),
            is_https_only: false,
            endpoints: Vec::new(),
            are_https: true,
        }
    }
}

impl WebhookConfig {
    /// The defaults, and no endpoint.
    #[must_use]
    pub fn new() -> WebhookConfig {
        WebhookConfig::default()
    }

    /// An endpoint that is told of the events of all jobs. The file remembers it by `name` (1 to 128 of `[A-Za-z0-9_.:-]`), so
    /// that other processes' jobs are told of, too. One that the configuration names no more is disabled; a configuration that
    /// names none leaves all of them as they are. One that is there is changed as by
    /// [`put_endpoint`](crate::JobQueue::put_endpoint). At most 64.
    #[must_use]
    pub fn endpoint(mut self, name: impl Into<Arc<str>>, endpoint: Endpoint) -> WebhookConfig {
        self.are_https &= endpoint.is_https();
        self.endpoints.push((name.into(), endpoint.into_spec()));
        self
    }

    /// Threads that send. They are started when there is something to send. Defaults to `4`; 1 to 256.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> WebhookConfig {
        self.threads = threads;
        self
    }

    /// The waits before each try, the first of them 0; so many tries are made in all. Defaults to the ten of Standard Webhooks: at
    /// once, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h.
    #[must_use]
    pub fn delays(mut self, delays: impl IntoIterator<Item = Duration>) -> WebhookConfig {
        self.schedule.delays = delays.into_iter().collect();
        self
    }

    /// Each wait is drawn evenly from (1 - share) to (1 + share) times its length. Defaults to `0.2`; 0 to 1.
    #[must_use]
    pub fn jitter(mut self, share: f64) -> WebhookConfig {
        self.schedule.jitter = share;
        self
    }

    /// How long a try may take: to resolve the host's name, to connect, and in all. Defaults to 3 s, 5 s and 15 s; each 1 ms to 1 day.
    #[must_use]
    pub fn timeouts(
        mut self,
        resolve: Duration,
        connect: Duration,
        total: Duration,
    ) -> WebhookConfig {
        self.timeouts = Timeouts {
            resolve,
            connect,
            total,
        };
        self
    }

    /// Lets deliveries go to this host, as it is written in their URL, although its address is not public: one of your own
    /// network, or of this machine. Defaults to none.
    ///
    /// Public is what is not in IANA's registries of special addresses. In a network with IPv6 alone that reaches IPv4 hosts by
    /// NAT64 under `64:ff9b::/96`, the IPv4 address in it decides; a gateway under `64:ff9b:1::/48` has to be allowed host by host.
    #[must_use]
    pub fn allow_private(mut self, host: impl AsRef<str>) -> WebhookConfig {
        let host = host.as_ref().trim_start_matches('[').trim_end_matches(']');
        self.allow_private.push(host.to_ascii_lowercase());
        self
    }

    /// Refuses endpoints that are not https: those of this configuration when the queue is opened, later ones when they are put
    /// there or a job names them. Nothing is sent to any other one. The file may hold some from before, or from a
    /// [`Client`](crate::Client), which does not know of this setting and cannot refuse: a warning tells of those with a name
    /// when the queue is opened, and what is written for them is given up at its first try. Defaults to `false`.
    #[must_use]
    pub fn https_only(mut self, is_https_only: bool) -> WebhookConfig {
        self.is_https_only = is_https_only;
        self
    }

    pub(crate) fn is_https_only(&self) -> bool {
        self.is_https_only
    }

    fn validate(&self) -> Result<()> {
        let mut names: Vec<_> = self.endpoints.iter().map(|(name, _)| name).collect();
        for name in &names {
            check_name("webhook endpoint", name)
                .map_err(|error| Error::new(ErrorKind::InvalidConfig, error.to_string()))?;
        }
        names.sort();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        let strange = self.allow_private.iter().find(|host| !is_host(host));
        let problem = if let Some(host) = strange {
            format!(
                "allow_private is {host:?}: expected a host alone, without scheme, port and path"
            )
        } else if let Some(pair) = twice {
            format!("endpoint {:?} is there twice: names must differ", pair[0])
        } else if names.len() > NAMED_MAX {
            format!("{} endpoints: at most {NAMED_MAX} are allowed", names.len())
        } else if !(1..=THREADS_MAX).contains(&self.threads) {
            format!("threads is {}: expected 1 to {THREADS_MAX}", self.threads)
        } else if self.schedule.delays.is_empty() {
            "there is no delay: one try is the least".to_owned()
        } else if let Some(first) = self
            .schedule
            .delays
            .first()
            .filter(|first| !first.is_zero())
        {
            format!("the first delay is {first:?}: the first try is made at once, expected 0")
        } else if let Some(strange) = self.timeouts.iter().find(|time| !TIMEOUTS.contains(time)) {
            format!("a timeout is {strange:?}: expected 1 ms to 1 day")
        } else if !(0.0..=1.0).contains(&self.schedule.jitter) {
            format!("jitter is {}: expected 0 to 1", self.schedule.jitter)
        } else if self.is_https_only && !self.are_https {
            "an endpoint is not https, and only that is allowed".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("webhooks: {problem}"),
        ))
    }
}

/// Whether it can be what a URL calls its host; it would else be allowed in vain.
fn is_host(text: &str) -> bool {
    let is_strange = |c: char| c.is_whitespace() || c.is_control() || "/\\?#@:".contains(c);
    let is_ip = text.parse::<std::net::IpAddr>().is_ok();
    is_ip || !text.is_empty() && !text.contains(is_strange)
}

/// The configuration in the engine's terms: its endpoints, and how to open who sends to them.
pub(crate) fn opener(config: WebhookConfig) -> Result<(Endpoints, OpenOutlet)> {
    config.validate()?;
    let endpoints = config.endpoints.clone();
    let open: OpenOutlet = Box::new(move |office| {
        if config.is_https_only {
            warn_of_insecure(&*office.reader);
        }
        let sender = Sender::new(config.timeouts, config.allow_private, config.is_https_only);
        Courier::new(office, Box::new(sender), config.schedule, config.threads) as Arc<dyn Outlet>
    });
    Ok((endpoints, open))
}

/// Endpoints that the file has from before, and to which nothing is sent now.
fn warn_of_insecure(reader: &dyn Reader) {
    let found = reader.all_endpoints();
    let found = found.inspect_err(|error| log::warn!("webhooks: endpoints: {error}"));
    for row in found.unwrap_or_default() {
        if let Some(name) = row
            .name
            .filter(|_| row.is_enabled && !is_https(&row.spec.url))
        {
            let problem = not_https(&row.spec.url);
            log::warn!("webhook endpoint {name:?}: {problem}: what is written for it is given up");
        }
    }
}
