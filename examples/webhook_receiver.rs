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
#![allow(clippy::disallowed_methods, reason = "a program has its own threads")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use stepwell::webhook::{Endpoint, Secret, Signed, WebhookConfig};
use stepwell::{JobQueue, JobType, Phase, Timestamp};

const GREET: Phase<String> = Phase::new("greet");

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [address, secret] = &args[..] {
        let listener = TcpListener::bind(address)?;
        return receive(&listener, &Secret::parse(secret)?, usize::MAX);
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let secret = Secret::generate()?;
    let url = format!("http://{}/hooks", listener.local_addr()?);
    let key = secret.clone();
    // An example: whoever runs it sees what goes wrong here, because no line is printed.
    let receiver =
        std::thread::spawn(move || receive(&listener, &key, 5).map_err(|error| error.to_string()));
    send(&url, secret)?;
    receiver.join().map_err(|_| "the receiver panicked")??;
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

/// Takes `count` webhooks. A real receiver keeps the ids that it has seen in its database, in the transaction of what it does.
fn receive(listener: &TcpListener, secret: &Secret, count: usize) -> Result<(), Failure> {
    let mut seen = HashSet::new();
    for stream in listener.incoming() {
        let stream = stream?;
        // The sender keeps its connection for the next one.
        while let Some(request) = Request::read(&stream)? {
            let status = match request.verify(secret) {
                Err(problem) => {
                    println!("refused: {problem}");
                    "401 Unauthorized"
                }
                Ok(()) if !seen.insert(request.header("webhook-id").to_owned()) => "200 OK",
                Ok(()) => {
                    println!("{}", String::from_utf8_lossy(&request.body));
                    "200 OK"
                }
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            (&stream).write_all(answer.as_bytes())?;
            if seen.len() >= count {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// As much of HTTP as this needs. A real receiver has a framework for it.
struct Request {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &TcpStream) -> Result<Option<Request>, Failure> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut request = Request {
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            let header = (name.to_ascii_lowercase(), value.trim().to_owned());
            request.headers.push(header);
        }
        let length = request.header("content-length").parse()?;
        request.body = vec![0; length];
        reader.read_exact(&mut request.body)?;
        Ok(Some(request))
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
