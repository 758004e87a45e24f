//! tiny_http, and what has to be known about it. L3. The only file that names it; no type of it leaves.
//!
//! What it does here: it reads requests off connections on loopback that only the gate makes, and hands them to our handlers.
//! What it cannot do (facts of version 0.12, by its source and by experiment), and where that is worked around:
//!
//! | it | so |
//! |---|---|
//! | has a thread and two descriptors for each connection, an idle one too | the gate holds the connections, and passes on whole requests, 16 at a time |
//! | waits without end for a head or body, of any size | the gate has the deadlines and the limits |
//! | leaves connections without a thread when several arrive at once: it counts a thread that was woken as idle | every request says `Connection: close`, which lets its thread go as soon as the head is read; none is held by a stream |
//! | reads a streamed body to its end first for HTTP/1.0 and `TE: identity`, and does not flush | requests are rewritten (`head`), answers are written through `into_writer` with framing of our own (`answer`) |
//! | ends its accept thread at the first error, with an error for one `recv` | a new server takes its place |
//! | panics in that thread when there is no second descriptor, and tells nobody | the gate looks for descriptors first; a request that nobody has received after 2 s brings a new server |
//!
//! Its port is on loopback and any local user can reach it: a request without the gate's key is dropped unanswered.

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::http::head::{BODY_BYTES_MAX, CONNECTION};
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// Threads that answer. The queue serves them one commit at a time; more would only wait in another place.
pub(super) const HANDLERS: usize = 4;

/// A request, as handlers see it.
#[derive(Debug)]
pub(super) struct Request {
    /// Which connection of the gate it came by.
    pub(super) connection: u64,
    pub(super) method: String,
    /// Path and query, as sent.
    pub(super) target: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The first header of this name, in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| &value[..])
    }
}

#[cfg(test)]
impl Request {
    pub(super) fn fake(method: &str, target: &str, headers: &[(&str, &str)]) -> Request {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Request {
            connection: 0,
            method: method.to_owned(),
            target: target.to_owned(),
            headers: headers.iter().map(owned).collect(),
            body: Vec::new(),
        }
    }
}

/// The server behind the gate.
pub(super) struct Backend {
    state: Mutex<State>,
    key: String,
    sent: AtomicUsize,
    received: AtomicUsize,
    /// Handlers that wait for a request.
    idle: AtomicUsize,
}

struct State {
    server: Option<Arc<tiny_http::Server>>,
    addr: Option<SocketAddr>,
}

fn start() -> Result<(Arc<tiny_http::Server>, Option<SocketAddr>)> {
    let server = tiny_http::Server::http("127.0.0.1:0").map_err(|error| {
        Error::new(
            ErrorKind::InvalidConfig,
            "http: no port on loopback can be bound",
        )
        .with_source(error)
    })?;
    let addr = server.server_addr().to_ip();
    Ok((Arc::new(server), addr))
}

impl Backend {
    pub(super) fn new() -> Result<Backend> {
        let (server, addr) = start()?;
        // The hasher's keys are the standard library's only source of chance.
        let key = RandomState::new().hash_one(addr);
        Ok(Backend {
            state: Mutex::new(State {
                server: Some(server),
                addr,
            }),
            key: format!("{key:016x}"),
            sent: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
        })
    }

    pub(super) fn addr(&self) -> Option<SocketAddr> {
        self.state.lock().addr
    }

    /// By what a request shows that it came through the gate, and by which connection.
    pub(super) fn key_of(&self, connection: u64) -> String {
        format!("{}-{connection}", self.key)
    }

    /// The gate has sent a request.
    pub(super) fn sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that were sent and not received.
    pub(super) fn on_the_way(&self) -> usize {
        let (sent, received) = (&self.sent, &self.received);
        sent.load(Ordering::Relaxed)
            .saturating_sub(received.load(Ordering::Relaxed))
    }

    /// A request has no answer for long. When handlers wait and it has reached none, the server is dead.
    pub(super) fn look(&self) {
        if self.on_the_way() > 0 && self.idle.load(Ordering::Relaxed) == HANDLERS {
            log::warn!("the HTTP server has stopped taking requests and is started again");
            let current = self.state.lock().server.clone();
            self.replace(current.as_ref());
        }
    }

    /// Puts a new server in the place of `old`, unless somebody has done so.
    fn replace(&self, old: Option<&Arc<tiny_http::Server>>) {
        let mut state = self.state.lock();
        let is_current = match (&state.server, old) {
            (Some(current), Some(old)) => Arc::ptr_eq(current, old),
            _ => false,
        };
        if !is_current {
            return;
        }
        match start() {
            Ok((server, addr)) => {
                *state = State {
                    server: Some(server),
                    addr,
                }
            }
            Err(error) => {
                log::error!("{error}");
                return;
            }
        }
        drop(state);
        // What the old one had is lost: the gate has told those clients to try again.
        self.received
            .store(self.sent.load(Ordering::Relaxed), Ordering::Relaxed);
        self.wake(old);
    }

    fn wake(&self, server: Option<&Arc<tiny_http::Server>>) {
        for _ in 0..HANDLERS {
            if let Some(server) = server {
                server.unblock();
            }
        }
    }

    /// One of the threads that answer: until the server is closed.
    pub(super) fn serve(&self, answer: &dyn Fn(Request) -> Option<Vec<u8>>) {
        loop {
            let Some(server) = self.state.lock().server.clone() else {
                return;
            };
            self.idle.fetch_add(1, Ordering::Relaxed);
            let received = server.recv();
            self.idle.fetch_sub(1, Ordering::Relaxed);
            match received {
                Ok(request) => self.answer(request, answer),
                // Its accept thread has ended, or it is not the current one any more.
                Err(_) => self.replace(Some(&server)),
            }
        }
    }

    fn answer(&self, mut foreign: tiny_http::Request, answer: &dyn Fn(Request) -> Option<Vec<u8>>) {
        let Some(request) = self.take(&mut foreign) else {
            // Not from the gate. Dropping the request itself would answer it.
            return drop(foreign.into_writer());
        };
        self.received.fetch_add(1, Ordering::Relaxed);
        let bytes = answer(request);
        let mut writer = foreign.into_writer();
        if let Some(bytes) = bytes
            && let Err(error) = writer.write_all(&bytes).and_then(|()| writer.flush())
        {
            log::debug!("an HTTP client has gone before its answer: {error}");
        }
    }

    fn take(&self, foreign: &mut tiny_http::Request) -> Option<Request> {
        let headers: Vec<_> = foreign
            .headers()
            .iter()
            .map(|header| {
                let name = header.field.as_str().as_str().to_ascii_lowercase();
                (name, header.value.as_str().to_owned())
            })
            .collect();
        let key = headers.iter().find(|(name, _)| name == CONNECTION)?;
        let connection = key
            .1
            .strip_prefix(&self.key)?
            .strip_prefix('-')?
            .parse()
            .ok()?;
        let mut body = Vec::new();
        let limit = u64::try_from(BODY_BYTES_MAX).unwrap_or(u64::MAX);
        foreign
            .as_reader()
            .take(limit)
            .read_to_end(&mut body)
            .ok()?;
        Some(Request {
            connection,
            method: foreign.method().as_str().to_owned(),
            target: foreign.url().to_owned(),
            headers,
            body,
        })
    }

    /// Ends the threads that answer.
    pub(super) fn close(&self) {
        let server = self.state.lock().server.take();
        self.wake(server.as_ref());
    }
}
