//! A receiver of webhooks: a real server on loopback, whose paths behave well or badly.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

/// What `/later-date` says: 90 s after the start.
pub(crate) const RETRY_AFTER: &str = "retry-after: Fri, 15 Jan 2027 08:01:30 GMT\r\n";

/// Nothing here takes longer on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
    pub(crate) at: Instant,
}

impl Received {
    pub(crate) fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn event(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }
}

pub(crate) struct Receiver {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    connections: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    may_answer: AtomicBool,
    released: AtomicBool,
    /// Bytes that were taken of `/flood`, by the sender or the system.
    flooded: AtomicUsize,
    /// Requests to `/gone-once`.
    answered: AtomicUsize,
    is_over: AtomicBool,
}

impl Receiver {
    pub(crate) fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let accepts = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepts.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, shared) = (stream.unwrap(), accepts.clone());
                shared.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Receiver { port, shared }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    pub(crate) fn at(&self, path: &str) -> Vec<Received> {
        let all = self.received();
        all.into_iter()
            .filter(|request| request.path == path)
            .collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Bytes of `/flood` that have gone, once it has ended.
    pub(crate) fn flooded(&self) -> usize {
        wait_until("the connections are over", || {
            self.shared.under_way.load(Ordering::SeqCst) == 0
        });
        self.shared.flooded.load(Ordering::SeqCst)
    }

    /// Requests at the same time, at most so far.
    pub(crate) fn most_under_way(&self) -> usize {
        self.shared.most_under_way.load(Ordering::SeqCst)
    }

    /// Answers what waits at `/held`, and all that will come there.
    pub(crate) fn let_go(&self) {
        self.shared.may_answer.store(true, Ordering::SeqCst);
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Received> {
        wait_until(&format!("{count} requests"), || {
            self.received().len() >= count
        });
        self.received()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

fn serve(stream: TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read(&mut reader) {
        let earlier = {
            let mut received = shared.received.lock().unwrap();
            let same = received.iter().filter(|other| other.path == request.path);
            let earlier = same.filter(|other| other.id() == request.id()).count();
            received.push(request.clone());
            earlier
        };
        let now = shared.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_under_way.fetch_max(now, Ordering::SeqCst);
        let goes_on = answer(&stream, &request, earlier, shared);
        shared.under_way.fetch_sub(1, Ordering::SeqCst);
        if !goes_on {
            stream.shutdown(Shutdown::Both).ok();
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut first = String::new();
    if reader.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).unwrap();
    Some(Received {
        path,
        headers,
        body,
        at: Instant::now(),
    })
}

/// Answers; false when the connection is over.
fn answer(mut stream: &TcpStream, request: &Received, earlier: usize, shared: &Shared) -> bool {
    let (path, id) = (request.path.split('?').next().unwrap(), request.id());
    if let Some(goes_on) = misbehave(stream, path, shared) {
        return goes_on;
    }
    let mut say = |status: &str, more: &str, body: &str| {
        let length = body.len();
        // In one piece: in several, each would wait for an acknowledgement of the one before.
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{more}\r\n");
        stream.write_all(format!("{head}{body}").as_bytes()).is_ok()
    };
    match path {
        "/shaky" => {
            park_timeout(Duration::from_millis(3));
            if earlier == 0 && is_refused_once(id) {
                return say("503 Service Unavailable", "", "not yet");
            }
            say("200 OK", "", "thanks")
        }
        "/redirect" => say("302 Found", "location: /secret\r\n", ""),
        "/twice" if earlier < 2 => say("500 Internal Server Error", "", "not yet"),
        "/always-500" => say("500 Internal Server Error", "", "no"),
        "/gone-once" if shared.answered.fetch_add(1, Ordering::SeqCst) == 0 => {
            say("410 Gone", "", "")
        }
        "/gone" => say("410 Gone", "", ""),
        "/later-date" if earlier == 0 => say("503 Service Unavailable", RETRY_AFTER, ""),
        "/later" if earlier == 0 => say("429 Too Many Requests", "retry-after: 2\r\n", ""),
        "/slow" => {
            park_timeout(Duration::from_millis(150));
            say("200 OK", "", "thanks")
        }
        // Answered when somebody has asked for `/release`, once each time, or has let all go.
        held @ ("/held" | "/held-gone") => {
            wait_until("it is released", || {
                let flags = [&shared.may_answer, &shared.is_over];
                flags.iter().any(|flag| flag.load(Ordering::SeqCst))
                    || shared.released.swap(false, Ordering::SeqCst)
            });
            match held {
                "/held" => say("200 OK", "", "thanks"),
                _ => say("410 Gone", "", ""),
            }
        }
        "/release" => {
            shared.released.store(true, Ordering::SeqCst);
            say("200 OK", "", "")
        }
        _ => say("200 OK", "", "thanks"),
    }
}

/// What no server should do; whether the connection goes on.
fn misbehave(mut stream: &TcpStream, path: &str, shared: &Shared) -> Option<bool> {
    Some(match path {
        "/hang" => {
            wait_while_open(stream, shared);
            false
        }
        "/drip" => {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").ok();
            while !shared.is_over.load(Ordering::SeqCst) && stream.write_all(b"x").is_ok() {
                park_timeout(Duration::from_secs(1));
            }
            false
        }
        "/dripping-head" => {
            for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" {
                if stream.write_all(&[*byte]).is_err() {
                    return Some(false);
                }
                park_timeout(Duration::from_secs(1));
            }
            true
        }
        "/flood" => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n"
            )
            .ok();
            let chunk = vec![b'x'; 1 << 16];
            while let Ok(sent) = stream.write(&chunk) {
                shared.flooded.fetch_add(sent, Ordering::SeqCst);
            }
            false
        }
        "/flooding-head" => {
            write!(stream, "HTTP/1.1 200 OK\r\nx-more: ").ok();
            while let Ok(sent) = stream.write(&[b'x'; 1 << 16]) {
                shared.flooded.fetch_add(sent, Ordering::SeqCst);
            }
            false
        }
        "/close" => false,
        _ => return None,
    })
}

/// Whether `/shaky` refuses the first try of this delivery: one in eight.
pub(crate) fn is_refused_once(id: &str) -> bool {
    id.bytes()
        .fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
        & 7
        == 0
}

fn wait_while_open(stream: &TcpStream, shared: &Shared) {
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let mut byte = [0];
    while !shared.is_over.load(Ordering::SeqCst) {
        match (&mut &*stream).read(&mut byte) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(_) => return,
        }
    }
}

#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(
            started.elapsed() < PATIENCE,
            "not so after {PATIENCE:?}: {what}"
        );
        park_timeout(Duration::from_millis(5));
    }
}
