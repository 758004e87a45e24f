//! A queue that is served, and clients of the plainest kind: what they send and read are bytes.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use stepwell::{
    Builder, Durability, HttpConfig, JobHandle, JobId, JobQueue, JobStatus, JobType, Phase,
    PhaseError, Retention, RetryPolicy,
};
use tempfile::TempDir;

/// A wait that takes longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Served {
    pub(crate) queue: JobQueue,
    pub(crate) jobs: JobHandle<Value, Value>,
    pub(crate) addr: SocketAddr,
    pub(crate) dir: TempDir,
}

/// Both ends of every connection are in this process, and the tests run beside each other.
#[cfg(unix)]
fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
}

pub(crate) fn local() -> HttpConfig {
    HttpConfig::new("127.0.0.1:0")
}

pub(crate) fn builder(file: &Path) -> Builder {
    JobQueue::builder(file)
        .workers(2)
        .durability(Durability::Normal)
        .retention(Retention::forever())
        .shutdown_timeout(Duration::from_millis(500))
}

/// `{"fail": message}` fails, `{"wait": true}` goes on until it is told to stop, anything else is completed.
pub(crate) fn job_type() -> JobType<Value, Value> {
    const FIRST: Phase<Value> = Phase::new("first");
    const SECOND: Phase<Value> = Phase::new("second");
    JobType::<Value>::new("work")
        .retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(1))
        .phase(FIRST, |cx| {
            cx.progress(0.5, "half\r\nid: 7");
            Ok(cx.input().clone())
        })
        .phase(SECOND, |cx| {
            if let Some(message) = cx.input()["fail"].as_str() {
                return Err(PhaseError::fail(message.to_owned()));
            }
            while cx.input()["wait"] == true {
                cx.sleep(PATIENCE)?;
            }
            cx.get(FIRST)
        })
}

impl Served {
    pub(crate) fn new() -> Served {
        Served::with(local())
    }

    pub(crate) fn with(http: HttpConfig) -> Served {
        #[cfg(unix)]
        raise_limit();
        let dir = tempfile::tempdir().unwrap();
        let mut builder = builder(&dir.path().join("jobs.db")).http(http);
        let jobs = builder.register(job_type());
        let queue = builder.open().unwrap();
        let addr = queue.http_addr().unwrap();
        Served {
            queue,
            jobs,
            addr,
            dir,
        }
    }

    /// Runs one job to its end.
    pub(crate) fn run(&self, input: &Value) -> JobId {
        let id = self.jobs.enqueue(input).unwrap();
        self.queue.wait(id, PATIENCE).unwrap();
        id
    }

    pub(crate) fn wait_for(&self, id: JobId, status: JobStatus) {
        until("the status", || {
            self.queue.status(id).unwrap() == Some(status)
        });
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, "Content-Type: application/json\r\n", body)
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let host = if headers.contains("Host:") {
            ""
        } else {
            "Host: localhost\r\n"
        };
        let length = body.len();
        raw(
            self.addr,
            &format!(
                "{method} {path} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\n\r\n{body}"
            ),
        )
    }

    pub(crate) fn stream(&self, path: &str, headers: &str) -> Stream {
        Stream::open(self.addr, path, headers)
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends these bytes, and reads until the server closes.
pub(crate) fn raw(addr: SocketAddr, request: &str) -> Answer {
    let mut socket = connect(addr);
    socket.write_all(request.as_bytes()).unwrap();
    read_answer(&mut socket)
}

pub(crate) fn read_answer(socket: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no head: {text:?}"));
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// Waits for what has no event.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "in time: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// An event as a client gets it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sent {
    pub(crate) id: Option<String>,
    pub(crate) name: String,
    pub(crate) data: Value,
}

impl Sent {
    /// The number in its id.
    pub(crate) fn seq(&self) -> i64 {
        let id = self.id.as_deref().unwrap();
        id.rsplit_once('-').unwrap().1.parse().unwrap()
    }
}

/// A reader of a chunked event stream.
pub(crate) struct Stream {
    from: BufReader<TcpStream>,
    pub(crate) head: String,
    pub(crate) status: u16,
    text: String,
    /// The last chunk has come.
    pub(crate) is_whole: bool,
    pub(crate) is_plain: bool,
}

impl Stream {
    pub(crate) fn open(addr: SocketAddr, path: &str, headers: &str) -> Stream {
        Stream::ask(
            addr,
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"),
        )
    }

    pub(crate) fn ask(addr: SocketAddr, request: &str) -> Stream {
        Stream::begin(Stream::asked(addr, request))
    }

    /// Has asked, and heard nothing yet.
    pub(crate) fn asked(addr: SocketAddr, request: &str) -> TcpStream {
        let mut socket = connect(addr);
        socket.write_all(request.as_bytes()).unwrap();
        socket
    }

    pub(crate) fn begin(socket: TcpStream) -> Stream {
        let mut from = BufReader::new(socket);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(from.read_line(&mut head).unwrap() > 0, "no head: {head:?}");
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let is_plain = !head.contains("Transfer-Encoding: chunked");
        Stream {
            from,
            head,
            status,
            text: String::new(),
            is_whole: false,
            is_plain,
        }
    }

    /// The next event; nothing when the stream has ended.
    pub(crate) fn next(&mut self) -> Option<Sent> {
        let started = Instant::now();
        loop {
            // Comments come for ever.
            assert!(started.elapsed() < PATIENCE, "an event, in time");
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(sent) = parse(&block) {
                    return Some(sent);
                }
            }
            if !self.read_more() {
                return None;
            }
        }
    }

    /// Everything up to the end of the stream.
    pub(crate) fn rest(&mut self) -> Vec<Sent> {
        std::iter::from_fn(|| self.next()).collect()
    }

    pub(crate) fn until(&mut self, name: &str) -> Vec<Sent> {
        let mut heard = Vec::new();
        while let Some(sent) = self.next() {
            let is_it = sent.name == name;
            heard.push(sent);
            if is_it {
                return heard;
            }
        }
        panic!("the stream has ended without {name}: {heard:?}");
    }

    fn read_more(&mut self) -> bool {
        let mut bytes = Vec::new();
        if self.is_plain {
            let read = self.from.fill_buf().unwrap().to_vec();
            self.from.consume(read.len());
            bytes = read;
        } else {
            let mut size = String::new();
            match self.from.read_line(&mut size) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                Err(error) => panic!("{error}"),
            }
            let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
            bytes.resize(size + 2, 0);
            if let Err(error) = self.from.read_exact(&mut bytes) {
                assert_ne!(error.kind(), ErrorKind::WouldBlock, "in time");
                return false;
            }
            assert_eq!(bytes.split_off(size), b"\r\n");
            self.is_whole |= size == 0;
        }
        self.text
            .push_str(&String::from_utf8(bytes.clone()).unwrap());
        !bytes.is_empty()
    }

    /// A chunk is never half an event.
    pub(crate) fn has_half_an_event(&self) -> bool {
        !self.text.is_empty()
    }
}

fn parse(block: &str) -> Option<Sent> {
    let mut sent = Sent {
        id: None,
        name: String::new(),
        data: Value::Null,
    };
    let mut has_data = false;
    for line in block.split('\n') {
        assert!(!line.contains(['\r', '\0']), "{line:?}");
        match line.split_once(": ") {
            Some(("id", id)) => sent.id = Some(id.to_owned()),
            Some(("event", name)) => sent.name = name.to_owned(),
            Some(("data", data)) => {
                sent.data = serde_json::from_str(data).unwrap();
                has_data = true;
            }
            _ => assert!(
                line.starts_with(':') || line.starts_with("retry: "),
                "{line:?}"
            ),
        }
    }
    has_data.then_some(sent)
}

impl Stream {
    /// Waits for a comment that is no greeting.
    pub(crate) fn raw_beat(&mut self) -> bool {
        self.text = self.text.replace(": stepwell\n\n", "");
        while self.text.is_empty() {
            if !self.read_more() {
                return false;
            }
            self.text = self.text.replace(": stepwell\n\n", "");
        }
        self.text.starts_with(":\n\n")
    }
}
