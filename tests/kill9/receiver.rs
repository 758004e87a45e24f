//! The receiver of the deliveries: in the process that is not killed. It writes what it got and what it said to the journal, and
//! behaves badly now and then.
//!
//! Lines: `U port` when it is up, `w? number path hash id` when a request has come, `w! number answer` before it is answered;
//! `number` is that of the delivery, the last part of its `webhook-id`.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use crate::journal::{Journal, Random, hash};

/// After five failures in a row an endpoint is given 30 s of rest, and the proof would wait for it. Two are under way at a time.
const FAILURES_IN_A_ROW_MAX: u32 = 3;
const SLOW: Duration = Duration::from_millis(12);
/// The connections of a dead process are over at once.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// What comes so is no delivery: see [`Receiver::settle`].
const BELL: &str = "BELL";

pub(crate) struct Receiver {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    journal: Arc<Journal>,
    random: Mutex<Random>,
    /// Failures since the last success, by path.
    failures: Mutex<HashMap<String, u32>>,
    connections: AtomicUsize,
    bells: AtomicU64,
    is_over: AtomicBool,
}

/// What a receiver does with a request.
#[derive(Clone, Copy)]
enum Answer {
    Accept,
    Refuse,
    Close,
}

impl Answer {
    fn name(self) -> &'static str {
        match self {
            Answer::Accept => "200",
            Answer::Refuse => "500",
            Answer::Close => "closed",
        }
    }
}

impl Receiver {
    pub(crate) fn start(journal: Arc<Journal>, seed: u64) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it has an address").port();
        journal.line(&format!("U {port}"));
        let shared = Arc::new(Shared {
            journal,
            random: Mutex::new(Random::new(seed, 1 << 40)),
            failures: Mutex::default(),
            connections: AtomicUsize::new(0),
            bells: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let accepts = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepts.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), shared) = (stream, accepts.clone()) else {
                    continue;
                };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    serve(&stream, &shared);
                    stream.shutdown(Shutdown::Both).ok();
                    shared.connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Receiver { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Until everything that a dead process had sent is in the journal. Connections are taken in the order in which they came: behind
    /// one of our own there is none of its.
    pub(crate) fn settle(&self) {
        let bells = self.shared.bells.load(Ordering::SeqCst);
        let mut bell = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        writeln!(bell, "{BELL}").expect("it reads");
        drop(bell);
        let until = Instant::now() + SETTLE_MAX;
        while self.shared.bells.load(Ordering::SeqCst) == bells
            || self.shared.connections.load(Ordering::SeqCst) > 0
        {
            assert!(Instant::now() < until, "a dead process keeps a connection");
            park_timeout(Duration::from_micros(200));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

/// Answers what comes on one connection, until it is over.
fn serve(mut stream: &TcpStream, shared: &Shared) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).ok()? == 0 {
            return None;
        }
        if first.trim_end() == BELL {
            shared.bells.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        let target = first.split(' ').nth(1)?.trim_start_matches('/');
        let path = target.split('?').next()?.to_owned();
        let (id, body) = request(&mut reader)?;
        let number = id.rsplit('_').next()?.to_owned();
        let seen = format!("w? {number} {path} {} {id}", hash(&body));
        shared.journal.line(&seen);
        let answer = shared.answer(&path, &number);
        let status = match answer {
            Answer::Accept => "200 OK",
            Answer::Refuse => "500 Internal Server Error",
            Answer::Close => return None,
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
    }
}

/// The rest of a request: its `webhook-id` and its body.
fn request(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let (mut id, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "webhook-id" => id = Some(value.to_owned()),
            "content-length" => length = value.parse().ok()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((id?, body))
}

impl Shared {
    /// Takes its time, and decides.
    fn answer(&self, path: &str, number: &str) -> Answer {
        let chance = self.random.lock().expect("no thread panics").below(100);
        if chance.is_multiple_of(8) {
            park_timeout(SLOW);
        }
        let mut failures = self.failures.lock().expect("no thread panics");
        let failures = failures.entry(path.to_owned()).or_default();
        let answer = match chance {
            _ if *failures >= FAILURES_IN_A_ROW_MAX => Answer::Accept,
            // Once refused, it is likely to be refused until it is given up.
            _ if *failures > 0 && chance < 60 => Answer::Refuse,
            0..8 => Answer::Refuse,
            8..14 => Answer::Close,
            _ => Answer::Accept,
        };
        *failures = match answer {
            Answer::Accept => 0,
            Answer::Refuse | Answer::Close => *failures + 1,
        };
        self.journal.line(&format!("w! {number} {}", answer.name()));
        answer
    }
}
