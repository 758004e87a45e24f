//! The gate in front of tiny_http: one thread that holds every connection. L3.
//!
//! tiny_http has a thread and two descriptors for each connection, waits without end for what a client does not send, reads a
//! head of any size, and panics when it has no descriptor left. 2,000 idle connections would be 2,000 threads. So clients
//! never talk to it: this thread accepts, holds what is idle or slow for the price of a socket, and passes on only requests
//! that are whole and within their limits, a few at a time. The event streams stay here too; see `feed`, `ring`, `stream`.
//!
//! ```text
//! accept -> Reading -> Waiting -> Relaying -> Lingering -> closed
//!             |  too large, too slow |  it asked for a stream
//!             v                      v
//!           Leaving               Streaming -> Leaving
//! ```
//!
//! It takes answers whole and lets the backend go: who reads slowly costs memory, within a limit for all, and no thread.
//!
//! One request a connection. With keep-alive the gate would have to know where each answer ends; clients reconnect
//! in 0.1 ms on the hosts that this is for.

mod connection;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::error::{Error, ErrorKind, Result};
use crate::http::feed::{Ask, Feed, News};
use crate::http::server::{Backend, Live};
use crate::http::stream::{self, Start, Stream};
use crate::sync::{AtomicUsize, Ordering, Receiver, Sender, TryRecvError, unbounded};
use crate::time::monotonic;

use connection::{Connection, Next};

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// Two tokens for each connection from here on: the client's and the backend's.
const FIRST: usize = 2;

/// Connections that are no streams. When there are more, the oldest is closed of those that lose least by it.
const LOBBY_MAX: usize = 256;
/// Bytes of answers that clients have not taken. When there are more, the oldest of these connections is closed.
const HELD_MAX: usize = 64 << 20;
/// Requests that tiny_http has at a time: it needs a thread for each.
const RELAYED_MAX: usize = 16;
/// Descriptors that one request needs beside the client's: our end, and two in tiny_http, which panics without.
const DESCRIPTORS_NEEDED: usize = 3;
/// And for the queue itself, which opens the file anew for more readers at a time, three for each; and for the next client.
const DESCRIPTORS_SPARED: usize = 10;
/// When no connection can be accepted for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What the gate is told by other threads.
pub(super) enum Message {
    /// The request on this connection asks for a stream.
    Stream(u64, Start),
    News(News),
    /// Everything ends by then, streams after whole events.
    Close(Instant),
}

/// The way to tell it.
#[derive(Clone)]
pub(super) struct Post {
    to: Sender<Message>,
    waker: Arc<Waker>,
}

impl Post {
    pub(super) fn tell(&self, message: Message) {
        // Without a gate there is nobody to be told.
        if self.to.send(message).is_ok()
            && let Err(error) = self.waker.wake()
        {
            log::error!("the HTTP thread cannot be woken: {error}");
        }
    }
}

/// What it holds, for `/metrics`.
#[derive(Default)]
pub(super) struct Gauges {
    pub(super) streams: AtomicUsize,
    pub(super) connections: AtomicUsize,
}

pub(super) struct Gate {
    poll: Poll,
    listener: Option<TcpListener>,
    /// Duplicates of it show whether descriptors are left.
    probe: std::net::TcpListener,
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    by_id: HashMap<u64, usize>,
    last_id: u64,
    waiting: VecDeque<u64>,
    orphans: Vec<u64>,
    relayed: usize,
    streams: usize,
    streams_max: usize,
    inbox: Receiver<Message>,
    asks: Option<Sender<Ask>>,
    feed: Arc<Feed>,
    backend: Arc<Backend>,
    gauges: Arc<Gauges>,
    accept_again: Option<Instant>,
    closing: Option<Instant>,
}

pub(super) struct Parts {
    pub(super) feed: Arc<Feed>,
    pub(super) backend: Arc<Backend>,
    pub(super) asks: Sender<Ask>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) streams_max: usize,
}

fn failed(error: io::Error) -> Error {
    Error::new(ErrorKind::InvalidConfig, "http: the socket cannot be used").with_source(error)
}

impl Gate {
    pub(super) fn new(
        listener: std::net::TcpListener,
        parts: Parts,
    ) -> Result<(Gate, Post, SocketAddr)> {
        let addr = listener.local_addr().map_err(failed)?;
        let probe = listener.try_clone().map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let mut listener = TcpListener::from_std(listener);
        let poll = Poll::new().map_err(failed)?;
        let registry = poll.registry();
        registry
            .register(&mut listener, LISTENER, Interest::READABLE)
            .map_err(failed)?;
        let waker = Arc::new(Waker::new(registry, WAKER).map_err(failed)?);
        let (to, inbox) = unbounded();
        let gate = Gate {
            poll,
            listener: Some(listener),
            probe,
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            last_id: 0,
            waiting: VecDeque::new(),
            orphans: Vec::new(),
            relayed: 0,
            streams: 0,
            streams_max: parts.streams_max,
            inbox,
            asks: Some(parts.asks),
            feed: parts.feed,
            backend: parts.backend,
            gauges: parts.gauges,
            accept_again: None,
            closing: None,
        };
        Ok((gate, Post { to, waker }, addr))
    }

    /// The thread.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(256);
        while !self.is_done() {
            let now = monotonic();
            let timeout = if self.orphans.is_empty() {
                self.deadline().map(|at| at.saturating_duration_since(now))
            } else {
                Some(Duration::ZERO)
            };
            if let Err(error) = self.poll.poll(&mut events, timeout) {
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                log::error!("HTTP ends, its sockets cannot be waited for: {error}");
                return;
            }
            self.read_inbox();
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    Token(token) => self.drive((token - FIRST) / 2),
                }
            }
            self.adopt();
            self.admit();
            self.shed();
            self.expire();
        }
    }

    fn is_done(&self) -> bool {
        let Some(until) = self.closing else {
            return false;
        };
        self.by_id.is_empty() || monotonic() >= until
    }

    fn deadline(&self) -> Option<Instant> {
        let connections = self
            .slots
            .iter()
            .flatten()
            .map(|connection| connection.deadline);
        connections
            .chain(self.accept_again)
            .chain(self.closing)
            .min()
    }

    // ---- what other threads say ----

    fn read_inbox(&mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Stream(id, start)) => self.begin_stream(id, start),
                Ok(Message::News(News::More)) => self.fan_out(),
                Ok(Message::News(News::Past(id, past))) => {
                    if let Some(&slot) = self.by_id.get(&id)
                        && let Some(connection) = &mut self.slots[slot]
                    {
                        connection.hear(&self.feed.file_id, past);
                        self.drive(slot);
                    }
                }
                Ok(Message::Close(until)) => self.close(until),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    /// A handler tells that a request is a stream before it lets go of it. So what the inbox does not tell now, after we saw
    /// that it was let go, was not a stream.
    fn adopt(&mut self) {
        while !self.orphans.is_empty() {
            let orphans = std::mem::take(&mut self.orphans);
            self.read_inbox();
            for id in orphans {
                if let Some(&slot) = self.by_id.get(&id)
                    && let Some(connection) = &mut self.slots[slot]
                    && connection.disown(self.poll.registry())
                {
                    self.relayed -= 1;
                    self.backend.look();
                    self.drive(slot);
                }
            }
        }
    }

    fn begin_stream(&mut self, id: u64, start: Start) {
        let Some(&slot) = self.by_id.get(&id) else {
            return;
        };
        let has_room = self.streams < self.streams_max && self.closing.is_none();
        if let Some(connection) = &mut self.slots[slot] {
            self.relayed -= usize::from(connection.stop_relaying(self.poll.registry()));
            if has_room {
                let stream = Stream::new(start, connection.is_http_10, &self.feed.ring.lock());
                connection.begin(stream);
                self.streams += 1;
            } else {
                connection.leave(stream::overloaded(&start.headers));
            }
        }
        self.count();
        self.drive(slot);
    }

    /// Every stream gets what is new.
    fn fan_out(&mut self) {
        let started = monotonic();
        for slot in 0..self.slots.len() {
            if self.slots[slot].as_ref().is_some_and(Connection::is_stream) {
                self.drive(slot);
            }
        }
        self.feed.fan_out_took(started.elapsed());
    }

    fn close(&mut self, until: Instant) {
        self.closing = Some(until);
        if let Some(mut listener) = self.listener.take() {
            self.poll.registry().deregister(&mut listener).ok();
        }
        self.asks = None;
        self.accept_again = None;
        for slot in 0..self.slots.len() {
            if let Some(connection) = &mut self.slots[slot] {
                connection.close(&self.feed.ring.lock(), until);
                self.drive(slot);
            }
        }
    }

    // ---- connections ----

    fn accept(&mut self) {
        self.accept_again = None;
        while let Some(listener) = &self.listener {
            // The last descriptors are not for connections: no request could be answered without them.
            if self.spare().is_err() {
                if self.evict() {
                    continue;
                }
                self.accept_again = Some(monotonic() + ACCEPT_AGAIN);
                return;
            }
            match listener.accept() {
                Ok((socket, _)) => {
                    if self.by_id.len() - self.streams >= LOBBY_MAX {
                        self.evict();
                    }
                    self.hold(socket);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    // Most likely no descriptor is left. The listener does not ring again for those that wait.
                    if !self.evict() {
                        log::warn!("no HTTP connection can be accepted: {error}");
                        self.accept_again = Some(monotonic() + ACCEPT_AGAIN);
                        return;
                    }
                }
            }
        }
    }

    fn hold(&mut self, mut socket: mio::net::TcpStream) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let both = Interest::READABLE | Interest::WRITABLE;
        let registered = self
            .poll
            .registry()
            .register(&mut socket, Token(FIRST + 2 * slot), both);
        if registered.is_err() || socket.set_nodelay(true).is_err() {
            self.free.push(slot);
            return;
        }
        self.last_id += 1;
        self.by_id.insert(self.last_id, slot);
        self.slots[slot] = Some(Connection::new(self.last_id, socket));
        self.count();
        self.drive(slot);
    }

    /// Makes room by closing a connection: one that keeps its request back, or does not take its answer, or waits for its
    /// turn. False when there is none.
    fn evict(&mut self) -> bool {
        let least = self
            .slots
            .iter()
            .flatten()
            .filter_map(|connection| Some((connection.worth()?, connection.id)))
            .min();
        let Some(&slot) = least.and_then(|(_, id)| self.by_id.get(&id)) else {
            return false;
        };
        self.drop_slot(slot);
        true
    }

    /// Closes the connections that do not take their answers, the oldest first, while these are too many.
    fn shed(&mut self) {
        let holders = |slots: &[Option<Connection>]| {
            let all = slots.iter().flatten();
            let held = all.map(|connection| (connection.id, connection.held()));
            held.filter(|(_, held)| *held > 0).collect::<Vec<_>>()
        };
        let mut held = holders(&self.slots);
        held.sort_unstable();
        let mut sum: usize = held.iter().map(|(_, held)| held).sum();
        for (id, bytes) in held {
            if sum <= HELD_MAX {
                return;
            }
            sum -= bytes;
            if let Some(&slot) = self.by_id.get(&id) {
                self.drop_slot(slot);
            }
        }
    }

    fn drop_slot(&mut self, slot: usize) {
        let Some(mut connection) = self.slots[slot].take() else {
            return;
        };
        self.relayed -= usize::from(connection.stop_relaying(self.poll.registry()));
        self.streams -= usize::from(connection.is_stream());
        self.by_id.remove(&connection.id);
        connection.deregister(self.poll.registry());
        self.free.push(slot);
        self.count();
    }

    fn count(&self) {
        self.gauges
            .connections
            .store(self.by_id.len(), Ordering::Relaxed);
        if self.gauges.streams.swap(self.streams, Ordering::Relaxed) != self.streams {
            self.feed.set_streams(self.streams);
        }
    }

    /// Lets one connection do what it can without waiting.
    fn drive(&mut self, slot: usize) {
        let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let (was_stream, was_relayed) = (connection.is_stream(), connection.is_relaying());
        let next = connection.drive(&self.feed.ring, self.poll.registry());
        self.streams -= usize::from(was_stream && !connection.is_stream());
        self.relayed -= usize::from(was_relayed && !connection.is_relaying());
        match next {
            Next::Wait => {}
            Next::Orphaned => self.orphans.push(connection.id),
            Next::Admit => self.waiting.push_back(connection.id),
            Next::Ask(ask) => {
                // Without a reader the queue is closing, and the stream ends in a moment.
                if let Some(asks) = &self.asks {
                    asks.send(ask).ok();
                }
            }
            Next::Drop => return self.drop_slot(slot),
        }
        if was_stream {
            self.count();
        }
    }

    /// Passes whole requests on, as many as tiny_http may have.
    fn admit(&mut self) {
        while self.relayed < RELAYED_MAX && self.closing.is_none() {
            let Some(id) = self.waiting.pop_front() else {
                return;
            };
            let Some(&slot) = self.by_id.get(&id) else {
                continue;
            };
            let connected = self.connect();
            let Some(connection) = &mut self.slots[slot] else {
                continue;
            };
            let key = self.backend.key_of(id);
            let token = Token(FIRST + 2 * slot + 1);
            let relayed = connected.and_then(|(live, socket)| {
                connection.relay(socket, &key, token, self.poll.registry())?;
                Ok(live)
            });
            match relayed {
                Ok(live) => {
                    self.relayed += 1;
                    live.sent();
                }
                Err(error) => {
                    log::warn!("an HTTP request is refused: {error}");
                    self.backend.look();
                    connection.refuse(503, "the server is out of descriptors");
                }
            }
            self.drive(slot);
        }
    }

    /// Whether there are descriptors for one more request, and for those on their way into tiny_http.
    fn spare(&self) -> io::Result<()> {
        let on_the_way = self.backend.on_the_way().min(RELAYED_MAX);
        let count = DESCRIPTORS_SPARED + DESCRIPTORS_NEEDED * (1 + on_the_way);
        let spare: io::Result<Vec<_>> = (0..count).map(|_| self.probe.try_clone()).collect();
        spare.map(|_| ())
    }

    fn connect(&mut self) -> io::Result<(Arc<Live>, std::net::TcpStream)> {
        // Who has asked for nothing yet makes room for who has.
        while let Err(error) = self.spare() {
            if !self.evict() {
                return Err(error);
            }
        }
        let (live, socket) = self.backend.connect()?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok((live, socket))
    }

    fn expire(&mut self) {
        let now = monotonic();
        if self.accept_again.is_some_and(|at| at <= now) {
            // What was on its way to a server that has died counts as on its way until there is another one.
            self.backend.look();
            self.accept();
        }
        for slot in 0..self.slots.len() {
            let Some(connection) = &mut self.slots[slot] else {
                continue;
            };
            if connection.deadline > now {
                continue;
            }
            if connection.is_unanswered() {
                self.backend.look();
            }
            if connection.expire(now) {
                self.drive(slot);
            } else {
                self.drop_slot(slot);
            }
        }
    }
}
