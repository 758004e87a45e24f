//! The queue over HTTP: live events, a dashboard, an API, metrics. L3.
//!
//! ```text
//!  client ──> gate ──> tiny_http ──> handler: guard, router, api ──> requests, reader
//!             ^  │ streams                       │ "this connection is a stream"
//!             │  └── ring <── feed <── bus, log <┘
//!             └──────────────────────────────────┘
//! ```
//!
//! A stream is a cursor on the event log and holds no queue: what is new comes from a ring of encoded events that all streams
//! share, what is older from the log. Threads: one for all connections, one that fills the ring, one that reads the past, four
//! that answer; nothing of it runs while nobody is connected.

mod answer;
mod api;
mod bulk;
pub(crate) mod config;
mod events;
mod feed;
mod frame;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod gate;
mod guard;
mod head;
mod metrics;
mod pages;
mod ring;
mod router;
mod server;
mod stream;

use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::error::Result;
use crate::error::panic_message;
use crate::shutdown::Outlet;
use crate::sync::{JoinHandle, Mutex, Receiver, pause, spawn, unbounded};
use crate::time::monotonic;

use config::HttpConfig;
use feed::{Ask, Feed};
use gate::{Gate, Gauges, Message, Parts, Post};
use guard::Guard;
use router::{Reply, Site};
use server::{Backend, HANDLERS, Request};

/// Streams have this long to take their last events.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// And this long at least, when the shutdown has no time left.
const CLOSE_MIN: Duration = Duration::from_millis(50);

/// A running server.
pub(crate) struct Http {
    pub(crate) addr: SocketAddr,
    feed: Arc<Feed>,
    backend: Arc<Backend>,
    post: Post,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Http {
    /// Serves at `listener`, which the same settings have given.
    pub(crate) fn start(
        engine: &Arc<Engine>,
        config: &HttpConfig,
        listener: TcpListener,
    ) -> Result<Http> {
        let feed = Arc::new(Feed::new(engine.clone())?);
        let backend = Arc::new(Backend::new()?);
        let gauges = Arc::new(Gauges::default());
        let (asks, asked) = unbounded();
        let parts = Parts {
            feed: feed.clone(),
            backend: backend.clone(),
            asks,
            gauges: gauges.clone(),
            streams_max: config.streams_max,
        };
        let (gate, post, addr) = Gate::new(listener, parts)?;
        let site = Arc::new(Site {
            engine: engine.clone(),
            feed: feed.clone(),
            guard: Guard::new(config),
            gauges,
            shows_payloads: config.shows_payloads,
        });
        let http = Http {
            addr,
            feed,
            backend,
            post,
            threads: Mutex::default(),
        };
        let started = http.start_threads(engine, gate, site, asked);
        if let Err(error) = started {
            // Those that were started hold the port, and the queue.
            http.close(monotonic());
            return Err(error);
        }
        log::info!("HTTP on {addr}");
        Ok(http)
    }

    fn start_threads(
        &self,
        engine: &Arc<Engine>,
        gate: Gate,
        site: Arc<Site>,
        asked: Receiver<Ask>,
    ) -> Result<()> {
        self.thread(engine, "stepwell-http", move || gate.run())?;
        let (feed, post) = (self.feed.clone(), self.post.clone());
        self.thread(engine, "stepwell-feed", move || {
            feed.run(&|news| post.tell(Message::News(news)))
        })?;
        let (feed, post) = (self.feed.clone(), self.post.clone());
        self.thread(engine, "stepwell-past", move || {
            feed.run_past(&asked, &|news| post.tell(Message::News(news)));
        })?;
        for _ in 0..HANDLERS {
            let (backend, site, post) = (self.backend.clone(), site.clone(), self.post.clone());
            self.thread(engine, "stepwell-answer", move || {
                backend.serve(&|request| answer(&site, &post, &request))
            })?;
        }
        Ok(())
    }

    /// A thread that poisons the queue if it ends by a panic.
    fn thread(
        &self,
        engine: &Arc<Engine>,
        name: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let engine = engine.clone();
        let thread = spawn(name, move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                engine.poison(name, &panic_message(&*panic));
            }
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }
}

impl Outlet for Http {
    /// Ends every stream after a whole event, the newest if its client takes it in time, and lets the port go.
    fn close(&self, deadline: Instant) {
        let now = monotonic();
        let until = deadline.clamp(now + CLOSE_MIN, now + CLOSE_MAX);
        let threads = std::mem::take(&mut *self.threads.lock());
        let ended = |name: &str| {
            threads
                .iter()
                .filter(|it| it.thread().name() == Some(name))
                .all(JoinHandle::is_finished)
        };
        // The ring gets the last events before the streams end.
        self.feed.close();
        wait(until, || ended("stepwell-feed"));
        self.post.tell(Message::Close(until));
        wait(until + CLOSE_MIN, || ended("stepwell-http"));
        self.backend.close();
        // What is left waits for the disk, and ends when the disk answers.
        wait(until + CLOSE_MIN, || {
            threads.iter().all(JoinHandle::is_finished)
        });
    }
}

fn wait(until: Instant, is: impl Fn() -> bool) {
    while !is() && monotonic() < until {
        pause(Duration::from_millis(1));
    }
}

/// The bytes to answer with; none when the gate goes on with the connection.
fn answer(site: &Site, post: &Post, request: &Request) -> Option<Vec<u8>> {
    let reply = catch_unwind(AssertUnwindSafe(|| site.reply(request))).unwrap_or_else(|panic| {
        log::error!(
            "{} {}: {}",
            request.method,
            request.target,
            panic_message(&*panic)
        );
        answer::problem(500, "a bug of stepwell: see the log").into()
    });
    match reply {
        Reply::Answer(answer) => Some(answer.into_bytes(request.method == "HEAD")),
        Reply::Stream(_) if request.method == "HEAD" => {
            Some(answer::Answer::new(200, "text/event-stream", Vec::new()).into_bytes(true))
        }
        Reply::Stream(start) => {
            post.tell(Message::Stream(request.connection, *start));
            None
        }
    }
}
