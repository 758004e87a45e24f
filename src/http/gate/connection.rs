//! One connection of the gate: its state, and its deadlines. L3.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::http::answer;
use crate::http::feed::{Ask, Past};
use crate::http::head::{self, BODY_BYTES_MAX, HEAD_BYTES_MAX, Head, Parsed};
use crate::http::ring::Ring;
use crate::http::stream::Stream;
use crate::sync::Mutex;
use crate::time::monotonic;

/// For a whole request to come in, however it drips.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// For a place at the backend.
const WAITING_TIME: Duration = Duration::from_secs(30);
/// After so long without an answer, and again each time: is the backend still there?
const LOOK_TIME: Duration = Duration::from_secs(2);
/// For an answer to begin: a commit on a slow disk, a bulk of as many jobs as it may take.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// For a client to take anything of what is there for it.
const STALL_TIME: Duration = Duration::from_secs(10);
/// Silence of a stream before it beats.
const BEAT_TIME: Duration = Duration::from_secs(15);
/// For a client to read our last words before it gets a reset for what we did not read.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// What a client may say on a stream, where it has nothing to say.
const HEARD_MAX: usize = 64 * 1024;
/// What a client may send after its answer: the rest of a request that was refused.
const LINGER_MAX: usize = 1024 * 1024;
/// What of one answer waits here, so that a slow reader holds up no handler; the rest waits in the kernel and in the handler.
const ANSWER_MAX: usize = 32 << 20;

enum State {
    /// The request is not whole.
    Reading {
        bytes: Vec<u8>,
        head: Option<Head>,
    },
    /// Whole; waits for its turn.
    Waiting {
        head: Head,
        body: Vec<u8>,
    },
    /// The backend has it.
    Relaying(Relay),
    Streaming(Box<Stream>),
    /// Last words of our own.
    Leaving {
        out: Vec<u8>,
        sent: usize,
    },
    /// Everything is said; reads what the client still sends.
    Lingering,
}

struct Relay {
    backend: TcpStream,
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
    given: usize,
    has_begun: bool,
    /// How long it has had no answer.
    since: Instant,
}

pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) deadline: Instant,
    pub(super) is_http_10: bool,
    socket: TcpStream,
    state: State,
    /// There is no time to linger.
    is_closing: bool,
    /// Bytes that it sent and nobody wanted.
    ignored: usize,
}

/// What comes next for a connection that has done what it could.
pub(super) enum Next {
    Wait,
    Admit,
    Ask(Ask),
    /// The backend has gone without an answer: it was dropped, or has become a stream, which the inbox tells.
    Orphaned,
    Drop,
}

/// How far reading or writing came.
#[derive(PartialEq, Eq)]
enum Io {
    Blocked,
    Ended,
    Full,
}

/// Reads until the socket has no more, the buffer is full, or the other side has ended.
fn read(socket: &mut TcpStream, into: &mut Vec<u8>, max: usize) -> io::Result<Io> {
    let mut piece = [0; 8192];
    while into.len() < max {
        let room = piece.len().min(max - into.len());
        match socket.read(&mut piece[..room]) {
            Ok(0) => return Ok(Io::Ended),
            Ok(n) => into.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Io::Blocked),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Io::Full)
}

/// Writes as much as the socket takes; answers how much.
fn write(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.write(&bytes[sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

impl Connection {
    pub(super) fn new(id: u64, socket: TcpStream) -> Connection {
        Connection {
            id,
            deadline: monotonic() + REQUEST_TIME,
            is_http_10: false,
            socket,
            state: State::Reading {
                bytes: Vec::new(),
                head: None,
            },
            is_closing: false,
            ignored: 0,
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self.state, State::Streaming(_))
    }

    pub(super) fn is_relaying(&self) -> bool {
        matches!(self.state, State::Relaying(_))
    }

    /// How little is lost with it, 0 the least; nothing when it is not to be closed for others.
    pub(super) fn worth(&self) -> Option<u8> {
        match self.state {
            // It has not said what it wants, or was told everything.
            State::Reading { .. } | State::Lingering => Some(0),
            State::Leaving { .. } => Some(1),
            State::Waiting { .. } => Some(2),
            State::Relaying(_) | State::Streaming(_) => None,
        }
    }

    /// Bytes of an answer that its client has not taken.
    pub(super) fn held(&self) -> usize {
        match &self.state {
            State::Leaving { out, sent } => out.len() - sent,
            State::Relaying(relay) => relay.answer.len() - relay.given,
            State::Reading { .. }
            | State::Waiting { .. }
            | State::Streaming(_)
            | State::Lingering => 0,
        }
    }

    pub(super) fn is_unanswered(&self) -> bool {
        matches!(&self.state, State::Relaying(relay) if !relay.has_begun)
    }

    pub(super) fn deregister(&mut self, registry: &Registry) {
        // It is closed in a moment, which deregisters it for good.
        registry.deregister(&mut self.socket).ok();
    }

    // ---- changes of state ----

    /// Hands the request to the backend.
    pub(super) fn relay(
        &mut self,
        backend: std::net::TcpStream,
        key: &str,
        token: Token,
        registry: &Registry,
    ) -> io::Result<()> {
        let State::Waiting { head, body } = &mut self.state else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut request = head.rewritten(key);
        request.append(body);
        let mut backend = TcpStream::from_std(backend);
        registry.register(&mut backend, token, Interest::READABLE | Interest::WRITABLE)?;
        self.state = State::Relaying(Relay {
            backend,
            request,
            sent: 0,
            answer: Vec::new(),
            given: 0,
            has_begun: false,
            since: monotonic(),
        });
        self.deadline = monotonic() + LOOK_TIME;
        Ok(())
    }

    /// The backend is done with it. False when it had nothing to do with it.
    pub(super) fn stop_relaying(&mut self, registry: &Registry) -> bool {
        let State::Relaying(relay) = &mut self.state else {
            return false;
        };
        registry.deregister(&mut relay.backend).ok();
        self.state = State::Lingering;
        true
    }

    /// What became of the request, nobody knows. False when it has an answer, or is a stream.
    pub(super) fn disown(&mut self, registry: &Registry) -> bool {
        let is_orphan = self.is_unanswered() && self.stop_relaying(registry);
        if is_orphan {
            self.refuse(503, "the request was dropped: try again");
        }
        is_orphan
    }

    pub(super) fn begin(&mut self, stream: Stream) {
        self.state = State::Streaming(Box::new(stream));
        self.deadline = monotonic() + STALL_TIME;
    }

    pub(super) fn hear(&mut self, file_id: &str, past: Past) {
        if let State::Streaming(stream) = &mut self.state {
            stream.hear(file_id, past);
        }
    }

    /// Sends these last words.
    pub(super) fn leave(&mut self, out: Vec<u8>) {
        self.state = State::Leaving { out, sent: 0 };
        self.deadline = monotonic() + STALL_TIME;
    }

    pub(super) fn refuse(&mut self, status: u16, why: &str) {
        self.leave(answer::problem(status, why).into_bytes(false));
    }

    /// The queue closes.
    pub(super) fn close(&mut self, ring: &Ring, until: Instant) {
        self.is_closing = true;
        match &mut self.state {
            State::Streaming(stream) => {
                stream.fill(ring);
                stream.end();
            }
            State::Reading { .. } | State::Lingering => self.deadline = monotonic(),
            State::Waiting { .. } => self.refuse(503, "the queue shuts down"),
            State::Relaying(_) | State::Leaving { .. } => {}
        }
        self.deadline = self.deadline.min(until);
    }

    // ---- work ----

    /// Does what can be done without waiting.
    pub(super) fn drive(&mut self, ring: &Mutex<Ring>, registry: &Registry) -> Next {
        loop {
            let done = match &mut self.state {
                State::Reading { .. } => self.read_request(),
                State::Waiting { .. } => return Next::Wait,
                State::Relaying(_) => self.give_answer(registry),
                State::Streaming(_) => self.give_events(ring),
                State::Leaving { .. } => self.give_last_words(),
                State::Lingering => self.linger(),
            };
            match done {
                Ok(Some(next)) => return next,
                // Another state: it may have something to do at once.
                Ok(None) => {}
                Err(_) => return Next::Drop,
            }
        }
    }

    fn read_request(&mut self) -> io::Result<Option<Next>> {
        let State::Reading { bytes, head } = &mut self.state else {
            return Ok(None);
        };
        let step = read(&mut self.socket, bytes, HEAD_BYTES_MAX + BODY_BYTES_MAX)?;
        if head.is_none() {
            match head::parse(bytes) {
                Parsed::Partial => {}
                Parsed::Whole(parsed) => *head = Some(parsed),
                Parsed::Refused(status, why) => {
                    self.refuse(status, why);
                    return Ok(None);
                }
            }
        }
        let ended = matches!(step, Io::Ended);
        let Some(parsed) = head else {
            return Ok(Some(if ended { Next::Drop } else { Next::Wait }));
        };
        let whole = parsed.bytes + parsed.body_bytes;
        if bytes.len() >= whole {
            let body = bytes[parsed.bytes..whole].to_vec();
            self.is_http_10 = parsed.is_http_10;
            if let Some(head) = head.take() {
                self.state = State::Waiting { head, body };
                self.deadline = monotonic() + WAITING_TIME;
            }
            return Ok(Some(Next::Admit));
        }
        if std::mem::take(&mut parsed.expects_continue) {
            write(&mut self.socket, b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        Ok(Some(if ended { Next::Drop } else { Next::Wait }))
    }

    fn give_answer(&mut self, registry: &Registry) -> io::Result<Option<Next>> {
        let State::Relaying(relay) = &mut self.state else {
            return Ok(None);
        };
        relay.sent += write(&mut relay.backend, &relay.request[relay.sent..]).unwrap_or(0);
        loop {
            // A backend that breaks off has answered what there is.
            let step = read(&mut relay.backend, &mut relay.answer, ANSWER_MAX);
            let is_whole = matches!(step, Ok(Io::Ended) | Err(_));
            if is_whole && !relay.has_begun && relay.answer.is_empty() {
                return Ok(Some(Next::Orphaned));
            }
            if is_whole {
                // The backend is free for others, however long this client takes.
                let (out, given) = (std::mem::take(&mut relay.answer), relay.given);
                self.stop_relaying(registry);
                self.leave(out);
                if let State::Leaving { sent, .. } = &mut self.state {
                    *sent = given;
                }
                return Ok(None);
            }
            if relay.answer.is_empty() {
                return Ok(Some(Next::Wait));
            }
            relay.has_begun = true;
            let given = write(&mut self.socket, &relay.answer[relay.given..])?;
            relay.given += given;
            if given > 0 {
                self.deadline = monotonic() + STALL_TIME;
            }
            if relay.given < relay.answer.len() {
                return Ok(Some(Next::Wait));
            }
            relay.answer.clear();
            relay.given = 0;
        }
    }

    fn give_events(&mut self, ring: &Mutex<Ring>) -> io::Result<Option<Next>> {
        // What a client says on a stream is nothing to us; that it has gone is.
        match self.ignore(1024, HEARD_MAX)? {
            Io::Blocked => {}
            Io::Full | Io::Ended => return Ok(Some(Next::Drop)),
        }
        let State::Streaming(stream) = &mut self.state else {
            return Ok(None);
        };
        loop {
            let was_waiting = !stream.waiting().is_empty();
            let asks = stream.fill(&ring.lock());
            let waiting = stream.waiting().len();
            let sent = write(&mut self.socket, stream.waiting())?;
            stream.took(sent);
            if sent < waiting {
                if sent > 0 || !was_waiting {
                    self.deadline = monotonic() + STALL_TIME;
                }
                return Ok(Some(if asks {
                    Next::Ask(stream.ask(self.id))
                } else {
                    Next::Wait
                }));
            }
            if let Some(rest) = stream.rest() {
                self.leave(rest);
                return Ok(None);
            }
            if asks {
                return Ok(Some(Next::Ask(stream.ask(self.id))));
            }
            if sent == 0 {
                return Ok(Some(Next::Wait));
            }
            self.deadline = monotonic() + BEAT_TIME;
        }
    }

    fn give_last_words(&mut self) -> io::Result<Option<Next>> {
        let State::Leaving { out, sent } = &mut self.state else {
            return Ok(None);
        };
        let taken = write(&mut self.socket, &out[*sent..])?;
        *sent += taken;
        if *sent == out.len() {
            return self.finish();
        }
        if taken > 0 && !self.is_closing {
            self.deadline = monotonic() + STALL_TIME;
        }
        Ok(Some(Next::Wait))
    }

    /// Everything is said.
    fn finish(&mut self) -> io::Result<Option<Next>> {
        self.socket.shutdown(Shutdown::Write)?;
        if self.is_closing {
            return Ok(Some(Next::Drop));
        }
        self.state = State::Lingering;
        self.deadline = monotonic() + LINGER_TIME;
        Ok(None)
    }

    fn linger(&mut self) -> io::Result<Option<Next>> {
        Ok(Some(match self.ignore(64 * 1024, LINGER_MAX)? {
            Io::Blocked => Next::Wait,
            Io::Full | Io::Ended => Next::Drop,
        }))
    }

    /// Reads what nobody wants, until there is no more at present. Full when it was more than `max` in all: who sends as fast as we
    /// read would keep this thread for ever.
    fn ignore(&mut self, piece: usize, max: usize) -> io::Result<Io> {
        let mut ignored = Vec::new();
        while self.ignored <= max {
            ignored.clear();
            let end = read(&mut self.socket, &mut ignored, piece)?;
            self.ignored += ignored.len();
            if end != Io::Full {
                return Ok(end);
            }
        }
        Ok(Io::Full)
    }

    /// Its deadline has passed. False when that is its end.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Reading { bytes, .. } if !bytes.is_empty() && !self.is_closing => {
                self.refuse(408, "the request did not come in whole within 10 s");
                true
            }
            State::Waiting { .. } => {
                self.refuse(503, "the server is busy: try again");
                true
            }
            State::Relaying(relay)
                if !relay.has_begun && !self.is_closing && now < relay.since + ANSWER_TIME =>
            {
                self.deadline = now + LOOK_TIME;
                true
            }
            State::Streaming(stream) if stream.waiting().is_empty() => {
                stream.beat();
                self.deadline = now + BEAT_TIME;
                true
            }
            // A reader that takes nothing: it has lost nothing, it resumes.
            State::Streaming(_)
            | State::Reading { .. }
            | State::Relaying(_)
            | State::Leaving { .. }
            | State::Lingering => false,
        }
    }
}
