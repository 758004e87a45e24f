//! A receiver of webhooks: it verifies who sends, and does nothing twice.
//!
//! Run it, and tell a queue of its URL:
//!
//! ```text
//! cargo run --example webhook_receiver -- 127.0.0.1:8090 whsec_...
//! ```
//!
//! Without arguments it is its own demonstration: a queue beside it sends the events of one job.
#![allow(clippy::print_stdout, reason = "a demonstration")]
#![allow(
    clippy::disallowed_methods,
    reason = "a program has its own threads and pauses"
)]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stepwell::webhook::{Endpoint, Secret, Signed, WebhookConfig};
use stepwell::{JobQueue, JobType, Phase, Timestamp};

const GREET: Phase<String> = Phase::new("greet");
/// Who sends nothing for longer must connect anew.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// While the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bodies of webhooks hold a job's payload: 256 KiB, unless the queue allows more.
const BODY_BYTES_MAX: usize = 1 << 20;
/// All headers of a request together.
const HEAD_BYTES_MAX: u64 = 16 << 10;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (tx, new) = channel();
    if let [address, secret] = &args[..] {
        let listener = TcpListener::bind(address)?;
        println!("listening on {}", listener.local_addr()?);
        Receiver::new(Secret::parse(secret)?, tx).start(listener)?;
        new.iter().for_each(|webhook| println!("{webhook}"));
        return Ok(());
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let secret = Secret::generate()?;
    let url = format!("http://{}/hooks", listener.local_addr()?);
    Receiver::new(secret.clone(), tx).start(listener)?;
    send(&url, secret)?;
    // Created, started, a phase started and completed, completed.
    for _ in 0..5 {
        println!("{}", new.recv_timeout(Duration::from_secs(10))?);
    }
    Ok(())
}

/// One job, and all of its events to `url`.
fn send(url: &str, secret: Secret) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    // Loopback is no public address: it is allowed by name.
    let hooks = WebhookConfig::new()
        .allow_private("127.0.0.1")
        .endpoint("receiver", Endpoint::new(url)?.secret(secret));
    let mut builder = JobQueue::builder(dir.path().join("jobs.db")).webhooks(hooks);
    let greetings = builder.register(
        JobType::<String>::new("greeting").phase(GREET, |cx| Ok(format!("Hello, {}!", cx.input()))),
    );
    let queue = builder.open()?;
    let id = greetings.enqueue(&"world".to_owned())?;
    greetings.wait(id, Duration::from_secs(10))?;
    // Waits for what has not been sent yet.
    queue.shutdown(Duration::from_secs(10))?;
    Ok(())
}

/// Takes webhooks, and passes on what is new. A real receiver keeps the ids that it has seen in its database, in the transaction of
/// what it does.
struct Receiver {
    secret: Secret,
    seen: Mutex<HashSet<String>>,
    new: Sender<String>,
}

impl Receiver {
    fn new(secret: Secret, new: Sender<String>) -> Arc<Receiver> {
        Arc::new(Receiver {
            secret,
            seen: Mutex::default(),
            new,
        })
    }

    /// A thread for each connection: the sender keeps its own for the next webhook, and a stranger's may say nothing at all.
    fn start(self: Arc<Receiver>, listener: TcpListener) -> std::io::Result<()> {
        let accept = move || {
            // A connection that cannot be had, or for which there is no thread, is no reason to refuse others.
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    std::thread::sleep(ACCEPT_PAUSE);
                    continue;
                };
                let receiver = self.clone();
                let serve = move || {
                    if let Err(problem) = receiver.serve(&stream) {
                        println!("refused: {problem}");
                    }
                };
                std::thread::Builder::new().spawn(serve).ok();
            }
        };
        std::thread::Builder::new().spawn(accept).map(drop)
    }

    /// Answers requests until the connection ends, or one of them is bad.
    fn serve(&self, mut stream: &TcpStream) -> Result<(), Failure> {
        stream.set_read_timeout(Some(IDLE_MAX))?;
        let mut reader = BufReader::new(stream);
        // A connection that ends or is idle between two requests ends as it should.
        while reader.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
            let request = Request::read(&mut reader);
            let status = match &request {
                Err(_) => "400 Bad Request",
                Ok(request) => self.take(request),
            };
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")?;
            // Nobody knows where the next one begins.
            request?;
        }
        Ok(())
    }

    fn take(&self, request: &Request) -> &'static str {
        if let Err(problem) = request.verify(&self.secret) {
            println!("refused: {problem}");
            return "401 Unauthorized";
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.insert(request.header("webhook-id").to_owned()) {
            let webhook = String::from_utf8_lossy(&request.body).into_owned();
            // Nobody listens any more when the program ends.
            self.new.send(webhook).ok();
        }
        "200 OK"
    }
}

/// As much of HTTP as this needs. A real receiver has a framework for it.
struct Request {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> Result<Request, Failure> {
        let mut request = Request {
            headers: Vec::new(),
            body: Vec::new(),
        };
        let mut head = reader.by_ref().take(HEAD_BYTES_MAX);
        let mut line = String::new();
        head.read_line(&mut line)?;
        loop {
            line.clear();
            head.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            let header = (name.to_ascii_lowercase(), value.trim().to_owned());
            request.headers.push(header);
        }
        let length = request.header("content-length").parse();
        let length = length.map_err(|_| "a request without the length of its body")?;
        if length > BODY_BYTES_MAX {
            return Err(format!("a body of {length} bytes").into());
        }
        request.body = vec![0; length];
        reader.read_exact(&mut request.body)?;
        Ok(request)
    }

    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    fn verify(&self, secret: &Secret) -> Result<(), stepwell::webhook::Unverified> {
        let signed = Signed {
            id: self.header("webhook-id"),
            timestamp: self.header("webhook-timestamp"),
            signature: self.header("webhook-signature"),
            body: &self.body,
        };
        signed.verify(std::slice::from_ref(secret), Timestamp::now())
    }
}
