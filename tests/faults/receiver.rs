//! A receiver of deliveries that outlives the processes whose I/O fails, and remembers every request in the order in which they came.
//!
//! One thread takes one request after another, so what it remembers has an order, and a request of its own tells that all before
//! it have been taken. Of every second event it refuses the first try; at `/never` it refuses all.

use std::collections::HashSet;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where nothing is ever accepted.
pub(crate) const NEVER: &str = "/never";
/// Refusals in a row: a breaker opens at five, and then 30 s would have to be waited for.
const REFUSED_MAX: u32 = 2;
/// A process that was ended within a request says no more.
const PATIENCE: Duration = Duration::from_secs(10);

/// One request, and what was answered.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) path: String,
    pub(crate) webhook_id: String,
    pub(crate) body: String,
    pub(crate) status: u16,
    /// How long the record was when it came: what stands in it up to there happened before.
    pub(crate) recorded: u64,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Receipt {
            path,
            webhook_id,
            body,
            status,
            ..
        } = self;
        write!(f, "{path} {webhook_id} {status} {body}")
    }
}

#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    receipts: Mutex<Vec<Receipt>>,
    is_over: AtomicBool,
}

/// What it makes its answers of.
#[derive(Default)]
struct Manners {
    known: HashSet<String>,
    refused_in_a_row: u32,
    record: Option<PathBuf>,
}

impl Receiver {
    pub(crate) fn start() -> Receiver {
        Receiver::listen(Manners::default())
    }

    /// One that notes how long the file `record` is at each request.
    pub(crate) fn beside(record: PathBuf) -> Receiver {
        Receiver::listen(Manners {
            record: Some(record),
            ..Manners::default()
        })
    }

    fn listen(mut manners: Manners) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared::default());
        let takes = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if takes.is_over.load(Ordering::SeqCst) {
                    return;
                }
                // One that was ended within its request is no request.
                if let Ok(stream) = stream {
                    serve(stream, &takes, &mut manners).ok();
                }
            }
        });
        Receiver { port, shared }
    }

    /// What has come since this was asked for last, all of what the processes sent that have ended by now.
    pub(crate) fn take(&self) -> Vec<Receipt> {
        self.knock();
        std::mem::take(&mut *self.shared.receipts.lock().expect("it does not panic"))
    }

    /// Returns when every connection that was made before has been served.
    fn knock(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

fn serve(mut stream: TcpStream, shared: &Shared, manners: &mut Manners) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut path, mut webhook_id, mut length) = (String::new(), None, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if path.is_empty() {
            path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        }
        let (name, value) = line.split_once(": ").unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "webhook-id" => webhook_id = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut status = 200;
    if let Some(webhook_id) = webhook_id {
        status = manners.answer(&path, &webhook_id);
        let receipt = Receipt {
            path,
            webhook_id,
            body: String::from_utf8_lossy(&body).into_owned(),
            status,
            recorded: manners.recorded(),
        };
        let receipts = &mut *shared.receipts.lock().expect("nobody panics with it");
        receipts.push(receipt);
    }
    let head = format!("HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes())
}

impl Manners {
    fn answer(&mut self, path: &str, webhook_id: &str) -> u16 {
        if path == NEVER {
            return 500;
        }
        let is_new = self.known.insert(webhook_id.to_owned());
        // The number of the event, and in eight bits which of its deliveries it is.
        let number = webhook_id.rsplit('_').next().and_then(|id| id.parse().ok());
        let is_refused = number.is_some_and(|number: u64| (number >> 8).is_multiple_of(2));
        if is_new && is_refused && self.refused_in_a_row < REFUSED_MAX {
            self.refused_in_a_row += 1;
            return 500;
        }
        self.refused_in_a_row = 0;
        200
    }

    fn recorded(&self) -> u64 {
        let length = self.record.as_ref().map(std::fs::metadata);
        length.map_or(0, |length| length.map_or(0, |length| length.len()))
    }
}
