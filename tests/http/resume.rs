//! Streams that break off and go on: nothing is lost, nothing comes twice.

use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use stepwell::{JobQueue, JobType, Phase, PhaseError};

use crate::support::{PATIENCE, Sent, Served, Stream, builder, job_type, local};

/// Of some 2,800 events.
const ENOUGH: usize = 700;

fn last_id(id: &str) -> String {
    format!("Last-Event-ID: {id}\r\n")
}

/// Follows the log from the beginning, breaking off after a few events each time, until it has broken off and heard enough. A busy
/// server may tell a reader to come again, before it has noticed that another one has gone.
fn follow(addr: SocketAddr, file_id: &str, disconnects: usize) -> Vec<Sent> {
    let (mut heard, mut round): (Vec<Sent>, usize) = (Vec::new(), 0);
    let mut id = format!("{file_id}-0");
    let started = Instant::now();
    while round < disconnects || heard.len() <= ENOUGH {
        assert!(started.elapsed() < 3 * PATIENCE, "{round}: {}", heard.len());
        round += 1;
        let mut stream = Stream::open(addr, "/events", &last_id(&id));
        assert_eq!(stream.status, 200, "{}", stream.head);
        for _ in 0..=round % 7 {
            let Some(sent) = stream.next() else {
                break;
            };
            if let Some(new) = &sent.id {
                id.clone_from(new);
                heard.push(sent);
            }
        }
    }
    heard
}

fn assert_is_the_log(heard: &[Sent], queue: &JobQueue) {
    let log = queue.events_after(0, heard.len()).unwrap();
    let log: Vec<_> = log
        .iter()
        .map(|event| serde_json::to_value(event).unwrap())
        .collect();
    let heard: Vec<_> = heard.iter().map(|sent| sent.data.clone()).collect();
    assert_eq!(heard, log);
}

#[test]
fn two_hundred_disconnects_under_load_lose_and_repeat_nothing() {
    let served = Served::new();
    let file_id = served.queue.file_id().unwrap();
    let jobs = served.queue.clone();
    let load = std::thread::spawn(move || {
        for n in 0..400 {
            jobs.enqueue("work", &json!(n)).unwrap();
        }
    });
    let followers: Vec<_> = (0..4)
        .map(|_| {
            let (addr, file_id) = (served.addr, file_id.clone());
            std::thread::spawn(move || follow(addr, &file_id, 200))
        })
        .collect();
    load.join().unwrap();
    for follower in followers {
        let heard = follower.join().unwrap();
        assert_is_the_log(&heard, &served.queue);
    }
}

#[test]
fn an_id_that_means_nothing_here_gives_a_reset_first_and_then_goes_on() {
    let served = Served::new();
    served.run(&json!(1));
    let file_id = served.queue.file_id().unwrap();
    let head = served.queue.stats().unwrap().head_seq;
    for id in [
        "0123456789ab-3",
        "x",
        &format!("{file_id}-{}", head + 1),
        &format!("{file_id}-{}", i64::MAX),
        &format!("{file_id}-x"),
    ] {
        let mut stream = served.stream("/events", &last_id(id));
        let reset = stream.next().unwrap();
        assert_eq!(
            (&reset.name[..], reset.data["requested"].as_str()),
            ("reset", Some(id))
        );
        assert_eq!(reset.data["head"], format!("{file_id}-{head}"));
        assert_eq!(reset.data["oldest"], format!("{file_id}-1"));
        assert_eq!(reset.id.as_deref(), reset.data["head"].as_str());
    }
    let mut by_query = served.stream(&format!("/events?last_event_id={file_id}-{}", head - 1), "");
    assert_eq!(by_query.next().unwrap().seq(), head);
}

#[test]
fn an_id_whose_part_of_the_log_is_gone_gives_a_reset_first() {
    let dir = tempfile::tempdir().unwrap();
    let keep = stepwell::Retention::forever().events(stepwell::Keep::newest(20));
    let mut builder = builder(&dir.path().join("jobs.db"))
        .retention(keep)
        .http(local());
    let jobs = builder.register(job_type());
    let queue = builder.open().unwrap();
    let mut n = 0;
    while queue.oldest_seq().unwrap() < 10 {
        let id = jobs.enqueue(&json!(n)).unwrap();
        queue.wait(id, Duration::from_secs(20)).unwrap();
        n += 1;
    }
    let addr = queue.http_addr().unwrap();
    let file_id = queue.file_id().unwrap();
    let mut stream = Stream::open(addr, "/events", &last_id(&format!("{file_id}-1")));
    let reset = stream.next().unwrap();
    assert_eq!(
        (&reset.name[..], &reset.data["requested"]),
        ("reset", &json!(format!("{file_id}-1")))
    );
    let id = jobs.enqueue(&json!("after")).unwrap();
    let next = stream.next().unwrap();
    assert_eq!(
        (&next.name[..], next.data["job_id"].as_i64()),
        ("job:created", Some(id.as_i64()))
    );
}

/// A client that follows a job which is over would wait for ever. Told once where it is, it comes again and gets a 204.
#[test]
fn a_stream_of_a_job_that_is_over_ends_whatever_became_of_its_events() {
    let dir = tempfile::tempdir().unwrap();
    let keep = stepwell::Retention::forever().events(stepwell::Keep::newest(20));
    let mut builder = builder(&dir.path().join("jobs.db"))
        .retention(keep)
        .http(local());
    let jobs = builder.register(job_type());
    let queue = builder.open().unwrap();
    let run = |n: i64| {
        let id = jobs.enqueue(&json!(n)).unwrap();
        queue.wait(id, PATIENCE).unwrap();
        id
    };
    let first = run(0);
    while queue.oldest_seq().unwrap() < 10 {
        run(1);
    }
    let addr = queue.http_addr().unwrap();
    let path = format!("/jobs/{first}/events");
    // It would hear nothing, have no id to come again with, and do so for ever.
    assert_eq!(Stream::open(addr, &path, "").status, 204);
    let mut foreign = Stream::open(addr, &path, &last_id("0123456789ab-3"));
    let heard = foreign.rest();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!((&heard[0].name[..], foreign.is_whole), ("reset", true));
    let again = last_id(heard[0].id.as_deref().unwrap());
    assert_eq!(Stream::open(addr, &path, &again).status, 204);
}

/// Events that the filter leaves out came after the last one that was heard, so an `EventSource` came again for ever.
#[test]
fn a_filtered_stream_of_a_job_that_is_over_ends_for_good() {
    let served = Served::new();
    let id = served.run(&json!(1));
    let status = |query: &str, last: &str| {
        let path = format!("/jobs/{id}/events?{query}");
        served.stream(&path, last).status
    };
    let query = "type=job:phase:completed";
    let heard = served
        .stream(&format!("/jobs/{id}/events?{query}"), "")
        .rest();
    let ids: Vec<_> = heard.iter().filter_map(|sent| sent.id.as_deref()).collect();
    assert_eq!(ids.len(), 2, "{heard:?}");
    assert_eq!(status(query, &last_id(ids[0])), 200);
    assert_eq!(status(query, &last_id(ids[1])), 204);
    // Without the filter there is more, and with one that nothing fits there never was any.
    assert_eq!(status("", &last_id(ids[1])), 200);
    assert_eq!(status("job_type=other", ""), 204);
    assert_eq!(status("job_type=other", &last_id(ids[0])), 204);
    assert_eq!(status("type=job:failed", ""), 204);
    // Of one that goes on, anything may come.
    let waits = served.jobs.enqueue(&json!({"wait": true})).unwrap();
    let path = format!("/jobs/{waits}/events?type=job:failed");
    assert_eq!(served.stream(&path, "").status, 200);
}

#[test]
fn a_job_with_more_past_than_is_read_gives_a_reset_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = builder(&dir.path().join("jobs.db")).http(local());
    let jobs = builder.register(
        JobType::<u32>::new("patient").phase(Phase::<u32>::new("only"), {
            let left = AtomicU32::new(600);
            move |cx| match left.fetch_sub(1, Ordering::Relaxed) {
                0 | 1 => Ok(*cx.input()),
                _ => Err(PhaseError::snooze(Duration::ZERO)),
            }
        }),
    );
    let queue = builder.open().unwrap();
    let id = jobs.enqueue(&1).unwrap();
    queue.wait(id, PATIENCE).unwrap();
    let log = queue.events_after(0, 10_000).unwrap();
    assert!(log.len() > 1200, "{}", log.len());
    let (addr, file_id) = (queue.http_addr().unwrap(), queue.file_id().unwrap());
    let path = format!("/jobs/{id}/events");
    // What is left out is not left out in silence.
    let heard = Stream::open(addr, &path, &last_id(&format!("{file_id}-5"))).rest();
    assert_eq!(heard[0].name, "reset", "{:?}", heard[0]);
    assert_eq!(heard[0].data["requested"], format!("{file_id}-5"));
    assert_eq!(heard.len(), 1);
    let last = last_id(&format!("{file_id}-5"));
    let heard = Stream::open(addr, &format!("{path}?type=job:created"), &last).rest();
    assert_eq!(heard[0].name, "reset", "what was left out may have fitted");
    // Whoever begins anew gets the newest part, without a gap.
    let heard = Stream::open(addr, &path, "").rest();
    assert!(heard.len() >= 1000, "{}", heard.len());
    let first = usize::try_from(heard[0].seq()).unwrap();
    assert_eq!(
        heard.iter().map(Sent::seq).collect::<Vec<_>>(),
        log[first - 1..]
            .iter()
            .map(|event| event.seq)
            .collect::<Vec<_>>()
    );
}

// ---- a server that is killed ----

const FILE: &str = "STEPWELL_HTTP_FILE";

/// In the other process: a server under load, until it is killed. An ordinary run does nothing here.
#[test]
fn in_another_process() {
    let Some(file) = std::env::var_os(FILE) else {
        return;
    };
    let mut builder = builder(Path::new(&file)).http(local());
    let jobs = builder.register(job_type());
    let queue = builder.open().unwrap();
    println!("> {}", queue.http_addr().unwrap());
    loop {
        let id = jobs.enqueue(&json!(1)).unwrap();
        queue.wait(id, Duration::from_secs(20)).unwrap();
    }
}

struct Other {
    child: Child,
    addr: SocketAddr,
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(file: &Path) -> Other {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "resume::in_another_process",
                "--nocapture",
                "--quiet",
            ])
            .env(FILE, file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("> ").map(str::to_owned));
        let addr = told.expect("it says where it is").parse().unwrap();
        Other {
            child,
            addr,
            _lines: lines,
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn twenty_kills_of_the_server_under_load_lose_and_repeat_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobs.db");
    let file_id = builder(&file).workers(0).open().unwrap().file_id().unwrap();
    let (mut heard, mut id): (Vec<Sent>, String) = (Vec::new(), format!("{file_id}-0"));
    for round in 0..20 {
        let mut other = Other::start(&file);
        let mut stream = Stream::open(other.addr, "/events", &last_id(&id));
        let enough = heard.len() + 20 + round;
        let mut is_killed = false;
        // What was sent before the kill is read to its end: it may be in the middle of an event, which counts for nothing.
        while let Some(sent) = stream.next() {
            assert_ne!(sent.name, "reset");
            if let Some(new) = &sent.id {
                id.clone_from(new);
                heard.push(sent);
            }
            if heard.len() >= enough && !is_killed {
                other.child.kill().unwrap();
                other.child.wait().unwrap();
                is_killed = true;
            }
        }
        assert!(is_killed, "the stream ended by itself");
        assert!(!stream.is_whole);
    }
    let queue = builder(&file).workers(0).open().unwrap();
    assert!(heard.len() >= 400);
    assert_is_the_log(&heard, &queue);
}
