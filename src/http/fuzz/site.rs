//! Requests: as the gate reads them, as the backend gets them, and what is answered. L3.
//!
//! What it would catch: a head that two parsers read differently, a header that is forged, an answer that is not HTTP, a
//! panic or an internal error for anything that a client can send, a list whose pages miss a job or show one twice.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, OnceLock};

use serde_json::{Value, json};

use crate::config::{Config, Durability, Location};
use crate::engine::Engine;
use crate::http::config::HttpConfig;
use crate::http::feed::Feed;
use crate::http::fuzz::Bytes;
use crate::http::gate::Gauges;
use crate::http::guard::Guard;
use crate::http::head::{self, CONNECTION, Head, Parsed};
use crate::http::ring::Ring;
use crate::http::router::{Reply, Site};
use crate::http::server::Request;
use crate::http::stream::Stream;
use crate::job::{JobId, RetryFrom};
use crate::new_job::NewJob;
use crate::phase::{JobType, Phase, PhaseError, Registry};
use crate::requests;
use crate::time::Clock;

const JOBS: i64 = 40;
const TOKEN: &str = "0123456789abcdef";

/// A site with jobs of all statuses. In memory, requests change them; the one in a file is only read, so that a failure repeats.
fn site(location: Location, token: Option<&str>) -> Site {
    let mut registry = Registry::default();
    const ONE: Phase<Value> = Phase::new("one");
    let work = JobType::<Value>::new("import").phase(ONE, |cx| match cx.input()["n"].as_i64() {
        Some(n) if n % 3 == 0 => Err(PhaseError::fail("on purpose")),
        _ => Ok(Value::Null),
    });
    registry.add(work.into_def()).expect("a sound job type");
    let mut config = Config::new(location);
    config.durability = Durability::Normal;
    config.workers = 1;
    let engine =
        Engine::open(config, registry, Clock::system(), None, &OnceLock::new()).expect("a queue");
    fill(&engine, JOBS);
    let mut config = HttpConfig::new("127.0.0.1:0").allow_origin("https://admin.example.com");
    if let Some(token) = token {
        config = config.token(token);
    }
    Site {
        feed: Arc::new(Feed::new(engine.clone()).expect("a feed")),
        engine,
        guard: Guard::new(&config),
        gauges: Arc::new(Gauges::default()),
        shows_payloads: true,
    }
}

fn fill(engine: &Arc<Engine>, count: i64) {
    let jobs = (0..count).map(|n| {
        let name = if n % 4 == 0 { "unknown" } else { "import" };
        NewJob::new(name, &json!({ "n": n })).expect("JSON")
    });
    let enqueued = requests::enqueue(&**engine, jobs.collect()).expect("they are stored");
    for (n, job) in enqueued.iter().enumerate() {
        let is_waiting = n.is_multiple_of(4);
        if is_waiting && n.is_multiple_of(8) {
            requests::cancel(&**engine, job.id)
                .map(drop)
                .expect("it is cancelled");
        } else if !is_waiting {
            let wait = std::time::Duration::from_secs(60);
            requests::wait(engine, job.id, wait, |reader, id| reader.outline(id)).expect("it ends");
        }
    }
    requests::retry(&**engine, enqueued[0].id, RetryFrom::Start).expect("it is retried");
}

/// As the backend would read it: the head anew, and the body by its length.
fn understood(head: &Head, rest: &[u8]) -> Option<Request> {
    let sent = head.rewritten("7");
    // Nothing is left over. It may have a few headers more than the gate takes.
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut headers);
    let end = parsed.parse(&sent).expect("it was parsed before");
    assert_eq!(end, httparse::Status::Complete(sent.len()));
    assert_eq!(parsed.version, Some(1));
    let own: Vec<_> = parsed
        .headers
        .iter()
        .filter(|it| it.name == CONNECTION)
        .collect();
    assert_eq!(own.len(), 1, "which connection it is, is said once");
    assert_eq!(own[0].value, b"7");
    let lengths = parsed.headers.iter();
    let lengths: Vec<_> = lengths.filter(|it| it.name == "content-length").collect();
    assert_eq!(lengths.len(), 1);
    assert_eq!(lengths[0].value, head.body_bytes.to_string().as_bytes());
    let headers: Vec<_> = parsed
        .headers
        .iter()
        .map(|it| (it.name, std::str::from_utf8(it.value).expect("it was text")))
        .collect();
    let (method, target) = (parsed.method?, parsed.path?);
    let mut request = Request::fake(method, target, &headers);
    request.body = rest.get(..head.body_bytes)?.to_vec();
    Some(request)
}

pub(crate) fn request(bytes: &[u8]) {
    static OPEN: LazyLock<Site> = LazyLock::new(|| site(Location::Memory, None));
    static GUARDED: LazyLock<Site> = LazyLock::new(|| site(Location::Memory, Some(TOKEN)));
    let head = match head::parse(bytes) {
        Parsed::Partial => return,
        Parsed::Refused(status, _) => {
            assert!((400..=505).contains(&status));
            return;
        }
        Parsed::Whole(head) => head,
    };
    assert_eq!(
        head::parse(&bytes[..head.bytes]),
        head::parse(bytes),
        "what follows says nothing"
    );
    let before = head::parse(&bytes[..head.bytes - 1]);
    assert!(
        matches!(before, Parsed::Partial),
        "{before:?}: one byte was left out"
    );
    let Some(request) = understood(&head, &bytes[head.bytes..]) else {
        return;
    };
    if OPEN.engine.reader.head().expect("it can be read").seq > 100_000 {
        // The next one begins with a queue like the first.
        return;
    }
    let open = OPEN.reply(&request);
    let guarded = GUARDED.reply(&request);
    let status = sound(open, &request);
    let knows = request.header("authorization").is_some() || request.header("cookie").is_some();
    let is_open = ["/healthz", "/api/session"]
        .iter()
        .any(|path| request.target.split('?').next() == Some(path));
    if sound(guarded, &request) < 300 && !knows && !is_open && request.method != "OPTIONS" {
        panic!("answered without a token: {request:?} ({status} without a guard)");
    }
}

/// The status of an answer that is whole, and says nothing of an error inside.
fn sound(reply: Reply, request: &Request) -> u16 {
    let is_head = request.method == "HEAD";
    let answer = match reply {
        Reply::Answer(answer) => answer,
        Reply::Stream(start) => {
            let stream = Stream::new(*start, false, &Ring::default());
            let bytes = stream.waiting();
            status(bytes);
            return 200;
        }
    };
    assert_ne!(answer.status, 500, "{request:?}: {answer:?}");
    let bytes = answer.into_bytes(is_head);
    let (status, head_bytes, length) = status(&bytes);
    let body = &bytes[head_bytes..];
    if is_head || status == 204 {
        assert!(body.is_empty(), "{request:?}");
    } else {
        assert_eq!(length, Some(body.len()), "{request:?}");
    }
    status
}

/// Status, bytes of the head, and Content-Length of an answer.
fn status(bytes: &[u8]) -> (u16, usize, Option<usize>) {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    let parsed_bytes = parsed.parse(bytes).expect("an answer is HTTP");
    let httparse::Status::Complete(head_bytes) = parsed_bytes else {
        panic!("half a head: {}", String::from_utf8_lossy(bytes));
    };
    let mut names = BTreeSet::new();
    let mut length = None;
    for header in parsed.headers.iter() {
        let name = header.name.to_ascii_lowercase();
        if name == "content-length" {
            let text = std::str::from_utf8(header.value).expect("digits");
            length = Some(text.parse().expect("a number"));
        }
        assert!(names.insert(name), "{} is there twice", header.name);
    }
    (parsed.code.expect("a whole head"), head_bytes, length)
}

const PAGES: [&str; 6] = [
    "/api/jobs",
    "/events",
    "/jobs/2/events",
    "/api/jobs/2",
    "/api/deliveries/2",
    "/api/stats",
];

/// The first byte chooses a page; the rest is its query, or stands for its id.
pub(crate) fn query(bytes: &[u8]) {
    static SITE: LazyLock<Site> = LazyLock::new(|| site(Location::File(scratch()), None));
    let mut bytes = Bytes(bytes);
    let path = bytes.pick(&PAGES);
    let rest = String::from_utf8_lossy(bytes.0);
    let rest: String = rest.chars().filter(|c| c.is_ascii_graphic()).collect();
    let host = [("host", "localhost")];
    let target = format!("{path}?{rest}");
    let status = sound(
        SITE.reply(&Request::fake("GET", &target, &host)),
        &Request::fake("GET", &target, &host),
    );
    let by_id = Request::fake("GET", &path.replace('2', &rest.replace('?', "")), &host);
    sound(SITE.reply(&by_id), &by_id);
    let last = [host[0], ("last-event-id", &rest[..])];
    let resumed = Request::fake("GET", path, &last);
    sound(SITE.reply(&resumed), &resumed);
    if status == 200 && path == PAGES[0] {
        walk(&SITE, &target);
    }
}

/// From any cursor on, the pages of a list end, and have no job twice.
fn walk(site: &Site, target: &str) {
    let (mut target, mut seen) = (target.to_owned(), BTreeSet::new());
    for _ in 0..=2 * JOBS {
        let request = Request::fake("GET", &target, &[("host", "localhost")]);
        let Reply::Answer(answer) = site.reply(&request) else {
            panic!("{target}: a list is no stream");
        };
        let bytes = answer.into_bytes(false);
        let (status, head_bytes, _) = status(&bytes);
        assert_eq!(status, 200, "{target}");
        let page: Value = serde_json::from_slice(&bytes[head_bytes..]).expect("JSON");
        for job in page["jobs"].as_array().expect("a list") {
            let id = job["id"].as_i64().map(JobId::from_i64).expect("an id");
            assert!(seen.insert(id), "{target}: job {id} is there twice");
        }
        let Some(next) = page["next"].as_str() else {
            return;
        };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let others = query.split('&').filter(|it| !it.starts_with("cursor="));
        let others: Vec<_> = others.collect();
        target = format!("{path}?{}&cursor={next}", others.join("&"));
    }
    panic!("{target}: the pages have no end");
}

/// A file of its own for each process.
fn scratch() -> PathBuf {
    let name = format!("stepwell-fuzz-{}.db", std::process::id());
    let path = std::env::temp_dir().join(name);
    for end in ["", "-wal", "-shm", "-owner", "-wake"] {
        let mut beside = path.clone().into_os_string();
        beside.push(end);
        std::fs::remove_file(beside).ok();
    }
    path
}
