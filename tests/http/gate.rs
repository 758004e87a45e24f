//! What hostile, broken and merely slow clients send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{PATIENCE, Served, connect, raw, read_answer, until};
#[cfg(target_os = "linux")]
use crate::support::{builder, job_type, local};

#[test]
fn a_request_that_is_no_request_is_refused_and_the_server_stays_up() {
    let served = Served::new();
    let huge = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
        "a: b\r\n".repeat(170_000)
    );
    let cases = [
        ("\r\n\r\n\u{0}", 400),
        ("GET\r\n\r\n", 400),
        ("GET / HTTP/3.7\r\n\r\n", 505),
        (
            "GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
            400,
        ),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        (
            "POST /api/queue/pause HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
        ),
        (
            "POST /api/queue/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\n",
            413,
        ),
        (&huge[..], 431),
        (&many[..], 431),
    ];
    for (request, status) in cases {
        let answer = raw(served.addr, request);
        assert_eq!(answer.status, status, "{request:.60}");
        assert_eq!(
            answer.header("Content-Type"),
            Some("application/problem+json")
        );
        assert_eq!(answer.json()["status"], status);
    }
    assert_eq!(served.get("/healthz").status, 200);
}

#[test]
fn a_request_that_drips_is_cut_off_and_holds_nobody_up() {
    let served = Served::new();
    let started = Instant::now();
    let drip = |addr| {
        let mut socket = connect(addr);
        let mut sent = 0;
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
            .iter()
            .cycle()
        {
            if socket.write_all(&[*byte]).is_err() {
                break;
            }
            sent += 1;
            socket
                .set_read_timeout(Some(Duration::from_millis(1000)))
                .unwrap();
            let mut answer = [0; 64];
            if let Ok(read) = socket.read(&mut answer) {
                assert!(
                    read == 0 || answer.starts_with(b"HTTP/1.1 408"),
                    "{answer:?}"
                );
                break;
            }
        }
        sent
    };
    let addr = served.addr;
    let drips: Vec<_> = (0..20)
        .map(|_| std::thread::spawn(move || drip(addr)))
        .collect();
    while !drips.iter().all(std::thread::JoinHandle::is_finished) {
        assert_eq!(served.get("/healthz").status, 200);
        std::thread::park_timeout(Duration::from_millis(50));
    }
    for thread in drips {
        assert!(
            thread.join().unwrap() <= 12,
            "a byte a second, for ten seconds"
        );
    }
    assert!(started.elapsed() >= Duration::from_secs(9));
}

#[test]
fn a_body_may_come_later_than_its_head_and_be_asked_for() {
    let served = Served::new();
    let mut socket = connect(served.addr);
    let head = "POST /api/queue/pause HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    socket.write_all(head.as_bytes()).unwrap();
    let mut word = [0; 25];
    socket.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"{}").unwrap();
    assert_eq!(read_answer(&mut socket).status, 200);
}

#[cfg(target_os = "linux")]
fn memory_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
#[cfg(target_os = "linux")]
fn two_thousand_idle_connections_cost_neither_threads_nor_service() {
    let served = Served::new();
    served.get("/healthz");
    let (memory, before) = (memory_kib(), threads());
    // This process has both ends: 2,000 of ours and 256 of the server's, which closes the oldest for each new one.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let room = limit.current.unwrap_or(u64::MAX).saturating_sub(800);
    let count = usize::try_from(room.min(2000)).unwrap();
    let mut idle: Vec<TcpStream> = Vec::new();
    let mut closed = 0;
    for n in 0..2000 {
        if idle.len() >= count {
            idle.remove(0);
            closed += 1;
        }
        idle.push(connect(served.addr));
        if n % 100 == 0 {
            assert_eq!(served.get("/healthz").status, 200);
        }
    }
    let stream = served.stream("/events", "");
    assert_eq!(stream.status, 200);
    assert_eq!(served.get("/").status, 200);
    let connections = served.get("/metrics").body;
    let open = connections
        .lines()
        .find_map(|line| line.strip_prefix("stepwell_http_connections "))
        .unwrap();
    assert!(open.parse::<usize>().unwrap() <= 260, "{open}");
    let grown = memory_kib().saturating_sub(memory);
    println!(
        "2,000 idle connections ({closed} closed by the client): {grown} KiB more, {open} held"
    );
    assert!(grown < 8 * 1024, "{grown} KiB");
    // Other tests of this binary may start theirs.
    assert!(threads() < before + 400);
}

#[test]
fn answers_are_whole_and_their_connection_closes() {
    let served = Served::new();
    for n in 0..1000 {
        served.jobs.enqueue(&json!(n)).unwrap();
    }
    let answer = served.get("/api/jobs?limit=1000");
    assert_eq!(answer.header("Connection"), Some("close"));
    assert_eq!(
        answer.header("Content-Length"),
        Some(&*answer.body.len().to_string())
    );
    assert_eq!(answer.json()["jobs"].as_array().unwrap().len(), 1000);
    let head = served.send("HEAD", "/api/jobs?limit=1000", "", "");
    assert_eq!((head.status, &head.body[..]), (200, ""));
}

#[test]
fn requests_by_the_hundred_at_one_instant_are_all_answered() {
    let served = Served::new();
    let request = "GET /api/stats HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for _ in 0..5 {
        let mut asked: Vec<_> = (0..200)
            .map(|_| crate::support::Stream::asked(served.addr, request))
            .collect();
        for socket in &mut asked {
            assert_eq!(read_answer(socket).status, 200);
        }
    }
}

#[test]
fn clients_that_go_away_at_any_moment_leave_nothing_behind() {
    let served = Served::new();
    let request = "POST /api/jobs/bulk HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 45\r\n\r\n{\"action\":\"retry\",\"from\":\"start\",\"status\":\"x\"}";
    for end in 0..request.len() {
        let mut socket = connect(served.addr);
        socket.write_all(&request.as_bytes()[..end]).unwrap();
        drop(socket);
        drop(crate::support::Stream::asked(
            served.addr,
            "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ));
    }
    until("all are gone", || {
        let metrics = served.get("/metrics").body;
        metrics.contains("stepwell_http_streams 0\n")
            && metrics.contains("stepwell_http_connections 1\n")
    });
}

/// The bug: the one thread of the gate read for as long as there was something to read.
#[test]
fn a_client_that_keeps_sending_stops_nobody() {
    let served = Served::new();
    for path in ["/events", "/nowhere"] {
        let mut flood = TcpStream::connect(served.addr).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", served.addr);
        flood.write_all(head.as_bytes()).unwrap();
        let sender = std::thread::spawn(move || {
            // Until the server will have no more of it, or it is plain that it takes whatever comes.
            let until = Instant::now() + PATIENCE;
            while flood.write_all(&[b'x'; 64 * 1024]).is_ok() {
                if Instant::now() > until {
                    return false;
                }
            }
            true
        });
        for _ in 0..20 {
            assert_eq!(served.get("/healthz").status, 200);
        }
        assert!(sender.join().unwrap(), "{path}: it was never cut off");
    }
}

#[cfg(target_os = "linux")]
const FEW: &str = "STEPWELL_HTTP_FEW_DESCRIPTORS";

/// In the other process: a server that may open few files. An ordinary run does nothing here.
#[test]
#[cfg(target_os = "linux")]
fn in_another_process() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    if std::env::var_os(FEW).is_none() {
        return;
    }
    let served = Served::new();
    let few = Rlimit {
        current: Some(80),
        maximum: Some(80),
    };
    setrlimit(Resource::Nofile, few).unwrap();
    println!("> {}", served.addr);
    // Until the parent has ended.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_that_runs_out_of_descriptors_goes_on() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "gate::in_another_process",
            "--nocapture",
            "--quiet",
        ])
        .env(FEW, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let addr = lines
        .find_map(|line| line.strip_prefix("> ").map(str::to_owned))
        .unwrap();
    let addr = addr.parse().unwrap();
    for _ in 0..3 {
        let idle: Vec<_> = (0..100).map(|_| connect(addr)).collect();
        until("idle ones make room", || is_served(addr));
        let events = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let streams: Vec<_> = (0..60)
            .map(|_| crate::support::Stream::asked(addr, events))
            .collect();
        drop(idle);
        drop(streams);
        until("it serves again", || is_served(addr));
    }
    drop(child.stdin.take());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[cfg(target_os = "linux")]
fn is_served(addr: std::net::SocketAddr) -> bool {
    let mut socket = connect(addr);
    let health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut answer = String::new();
    let asked = socket
        .write_all(health)
        .and_then(|()| socket.read_to_string(&mut answer));
    asked.is_ok() && answer.starts_with("HTTP/1.1 200")
}

/// Answers were written by the threads that answer, at the pace of who reads: four slow readers, and nobody got an answer.
#[test]
#[cfg(target_os = "linux")]
fn readers_that_do_not_take_their_answers_hold_nobody_up_and_cost_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = builder(&dir.path().join("jobs.db"))
        .max_payload(8 << 20)
        .http(local().show_payloads());
    let jobs = builder.register(job_type());
    let queue = builder.open().unwrap();
    queue.pause().unwrap();
    let id = jobs.enqueue(&json!("x".repeat(4 << 20))).unwrap();
    let addr = queue.http_addr().unwrap();
    let request = format!("GET /api/jobs/{id} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let before = memory_kib();
    let stalled: Vec<_> = (0..24)
        .map(|_| {
            let asked = crate::support::Stream::asked(addr, &request);
            let started = Instant::now();
            assert!(is_served(addr));
            let took = started.elapsed();
            assert!(took < Duration::from_secs(5), "{took:?}");
            asked
        })
        .collect();
    let grown = memory_kib().saturating_sub(before);
    println!("24 readers that take nothing of 4 MiB each: {grown} KiB more");
    assert!(grown < 300 * 1024, "{grown} KiB");
    // Who reads gets all of it.
    let mut reader = crate::support::Stream::asked(addr, &request);
    let answer = read_answer(&mut reader);
    assert_eq!(
        answer.header("Content-Length"),
        Some(&*answer.body.len().to_string())
    );
    drop(stalled);
}

/// Requests that wait for their turn counted for nothing: as many as there are descriptors, 80 KiB each.
#[test]
fn requests_that_wait_are_counted_and_the_oldest_make_room() {
    let served = Served::new();
    let file = rusqlite::Connection::open(served.dir.path().join("jobs.db")).unwrap();
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Each waits for the file in a thread that answers, and then before these.
    let pause = "POST /api/queue/pause HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let mut asked: Vec<_> = (0..600)
        .map(|_| crate::support::Stream::asked(served.addr, pause))
        .collect();
    let mut health = crate::support::Stream::asked(
        served.addr,
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    until("they are held", || {
        asked.iter().filter(|socket| is_closed(socket)).count() >= 600 - 256
    });
    file.execute_batch("ROLLBACK").unwrap();
    assert_eq!(read_answer(&mut health).status, 200);
    let answered = asked
        .iter_mut()
        .filter(|socket| !is_closed(socket))
        .map(|socket| read_answer(socket).status);
    let statuses: Vec<_> = answered.collect();
    assert!(statuses.len() >= 200, "{}", statuses.len());
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

/// The other end has closed it, and has said nothing.
fn is_closed(socket: &TcpStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let peeked = socket.peek(&mut [0]);
    socket.set_nonblocking(false).unwrap();
    match peeked {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}
