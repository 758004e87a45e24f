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
//! | ends its accept thread at the first error, with an error for one `recv` | a new server takes its place, then or when the dead one refuses a connection |
//! | panics in that thread when there is no second descriptor, and tells nobody | the gate looks for descriptors first; a request that nobody has received after 2 s brings a new server |
//! | panics when it cannot have a thread, in whoever starts a server and in its own threads | the panic becomes an error; a dead server is replaced as above |
//!
//! Its port is on loopback and any local user can reach it: a request without the gate's key is dropped unanswered. Whoever only
//! connects to it costs a thread and two descriptors, without the gate's limits. A unix socket in a private directory would keep
//! other accounts out, and was turned down: it has no place to be for a queue in memory, its path is limited to some 100 bytes,
//! what cleans temporary directories cuts the backend off, and tiny_http cannot be closed then; Windows needs the port anyway.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::catch_unwind;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result, panic_message};
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

#[cfg(any(fuzzing, test))]
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

/// The servers behind the gate: one at a time.
pub(super) struct Backend {
    current: Mutex<Option<Arc<Live>>>,
    key: String,
    /// Handlers that wait for a request.
    idle: AtomicUsize,
}

/// One of them, with its own counts: what was sent to one that has died is never received, and must not hide what the next one
/// does not receive.
pub(super) struct Live {
    server: tiny_http::Server,
    addr: Option<SocketAddr>,
    sent: AtomicUsize,
    received: AtomicUsize,
}

impl Live {
    fn start() -> Result<Arc<Live>> {
        let started = catch_unwind(|| tiny_http::Server::http("127.0.0.1:0"));
        let server = started
            .map_err(|panic| {
                let problem = format!("http: no thread can be had: {}", panic_message(&*panic));
                Error::new(ErrorKind::Storage, problem)
            })?
            .map_err(|error| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    "http: no port on loopback can be bound",
                )
                .with_source(error)
            })?;
        Ok(Arc::new(Live {
            addr: server.server_addr().to_ip(),
            server,
            sent: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
        }))
    }

    /// The gate has sent a request.
    pub(super) fn sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that were sent and not received.
    fn on_the_way(&self) -> usize {
        let (sent, received) = (&self.sent, &self.received);
        sent.load(Ordering::Relaxed)
            .saturating_sub(received.load(Ordering::Relaxed))
    }

    fn wake(&self) {
        for _ in 0..HANDLERS {
            self.server.unblock();
        }
    }
}

impl Backend {
    pub(super) fn new() -> Result<Backend> {
        let live = Live::start()?;
        // The hasher's keys are the standard library's only source of chance.
        let key = RandomState::new().hash_one(live.addr);
        Ok(Backend {
            current: Mutex::new(Some(live)),
            key: format!("{key:016x}"),
            idle: AtomicUsize::new(0),
        })
    }

    fn live(&self) -> Option<Arc<Live>> {
        self.current.lock().clone()
    }

    /// Where the next request goes, and a connection to it. A server that refuses is dead, and another one takes its place:
    /// it may have died with nothing on the way to it, while there was no descriptor for its successor.
    pub(super) fn connect(&self) -> io::Result<(Arc<Live>, TcpStream)> {
        let connect = || {
            let live = self.live().ok_or(io::ErrorKind::NotConnected)?;
            let addr = live.addr.ok_or(io::ErrorKind::NotConnected)?;
            let socket = TcpStream::connect(addr).inspect_err(|error| {
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    self.replace(&live);
                }
            })?;
            Ok((live, socket))
        };
        connect().or_else(|_| connect())
    }

    /// By what a request shows that it came through the gate, and by which connection.
    pub(super) fn key_of(&self, connection: u64) -> String {
        format!("{}-{connection}", self.key)
    }

    pub(super) fn on_the_way(&self) -> usize {
        self.live().map_or(0, |live| live.on_the_way())
    }

    /// A request has no answer for long. When handlers wait and it has reached none, the server is dead.
    pub(super) fn look(&self) {
        if let Some(live) = self.live()
            && live.on_the_way() > 0
            && self.idle.load(Ordering::Relaxed) == HANDLERS
        {
            log::warn!("the HTTP server has stopped taking requests and is started again");
            self.replace(&live);
        }
    }

    /// Puts a new server in the place of `old`, unless somebody has done so.
    fn replace(&self, old: &Arc<Live>) {
        let mut current = self.current.lock();
        if !current.as_ref().is_some_and(|live| Arc::ptr_eq(live, old)) {
            return;
        }
        match Live::start() {
            // What the old one had is lost: the gate has told those clients to try again.
            Ok(live) => *current = Some(live),
            Err(error) => {
                log::error!("{error}");
                return;
            }
        }
        drop(current);
        old.wake();
    }

    /// One of the threads that answer: until the server is closed.
    pub(super) fn serve(&self, answer: &dyn Fn(Request) -> Option<Vec<u8>>) {
        while let Some(live) = self.live() {
            self.idle.fetch_add(1, Ordering::Relaxed);
            let received = live.server.recv();
            self.idle.fetch_sub(1, Ordering::Relaxed);
            match received {
                Ok(request) => self.answer(&live, request, answer),
                // Its accept thread has ended, or it is not the current one any more.
                Err(_) => self.replace(&live),
            }
        }
    }

    fn answer(
        &self,
        live: &Live,
        mut foreign: tiny_http::Request,
        answer: &dyn Fn(Request) -> Option<Vec<u8>>,
    ) {
        let Some(request) = self.take(&mut foreign) else {
            // Not from the gate. Dropping the request itself would answer it.
            return drop(foreign.into_writer());
        };
        live.received.fetch_add(1, Ordering::Relaxed);
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
        let live = self.current.lock().take();
        if let Some(live) = live {
            live.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts were kept over the change: a request that the old server still handed out made up for one that the new one lost,
    /// and nobody noticed that this one was dead too.
    #[test]
    fn a_second_server_that_dies_is_noticed_like_the_first() {
        let backend = Backend::new().expect("bound");
        backend.idle.store(HANDLERS, Ordering::Relaxed);
        let first = backend.live().expect("there is one");
        first.sent();
        first.sent();
        backend.look();
        let second = backend.live().expect("there is one");
        assert!(!Arc::ptr_eq(&first, &second), "two requests were lost");
        // One of them was only late.
        first.received.fetch_add(1, Ordering::Relaxed);
        backend.look();
        let same = backend.live().expect("there is one");
        assert!(Arc::ptr_eq(&second, &same), "nothing is on the way to it");
        second.sent();
        backend.look();
        let third = backend.live().expect("there is one");
        assert!(!Arc::ptr_eq(&second, &third), "its only request was lost");
    }

    /// Out of descriptors, the accept thread ends although nobody wants anything of it, and there may be none for a new server
    /// either. Nothing was on the way to it, so nobody noticed when there were some again.
    #[test]
    fn a_server_that_has_died_with_nothing_on_the_way_is_replaced_by_who_comes_next() {
        let backend = Backend::new().expect("bound");
        let dead = {
            let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
            closed.local_addr().expect("it has an address")
        };
        let server = tiny_http::Server::http("127.0.0.1:0").expect("bound");
        *backend.current.lock() = Some(Arc::new(Live {
            server,
            addr: Some(dead),
            sent: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
        }));
        let (live, socket) = backend.connect().expect("there is another one");
        assert_eq!(socket.peer_addr().ok(), live.addr);
        assert_ne!(live.addr, Some(dead));
    }
}
