//! Event streams as their readers see them.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;
use stepwell::{CancelOutcome, JobId, JobStatus};

use crate::support::{Served, Stream, local, until};

fn names(sent: &[crate::support::Sent]) -> Vec<&str> {
    sent.iter().map(|it| &it.name[..]).collect()
}

#[test]
fn a_stream_of_a_job_replays_its_past_and_ends_after_its_end() {
    let served = Served::new();
    let id = served.run(&json!({"fail": "line\r\n\r\nevent: job:completed\rid: 1\0"}));
    let mut stream = served.stream(&format!("/jobs/{id}/events"), "");
    let sent = stream.rest();
    assert!(stream.is_whole);
    assert_eq!(
        names(&sent),
        [
            "job:created",
            "job:started",
            "job:phase:started",
            "job:phase:completed",
            "job:phase:started",
            "job:phase:failed",
            "job:failed"
        ]
    );
    let failed = sent.last().unwrap();
    assert_eq!(
        failed.data["message"],
        "line\r\n\r\nevent: job:completed\rid: 1\0"
    );
    assert_eq!(failed.data["seq"], failed.seq());
    let log = serde_json::to_value(served.queue.events_of(id).unwrap()).unwrap();
    assert_eq!(
        json!(sent.iter().map(|it| it.data.clone()).collect::<Vec<_>>()),
        log
    );
}

#[test]
fn a_stream_of_everything_begins_now_and_tells_progress_without_an_id() {
    let served = Served::new();
    served.run(&json!(1));
    let mut stream = served.stream("/events", "");
    assert_eq!(stream.status, 200);
    for header in [
        "text/event-stream",
        "no-store, no-transform",
        "X-Accel-Buffering: no",
        "nosniff",
    ] {
        assert!(stream.head.contains(header), "{}", stream.head);
    }
    let id = served.jobs.enqueue(&json!({"wait": true})).unwrap();
    let mut heard = stream.until("job:phase:completed");
    // Progress comes beside the log, and nobody is told of it once its job is over.
    if heard.iter().all(|it| it.name != "job:progress") {
        heard.extend(stream.until("job:progress"));
    }
    assert_eq!(served.queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
    heard.extend(stream.until("job:cancelled"));
    assert!(
        heard.iter().all(|it| it.data["job_id"] == id.as_i64()),
        "{heard:?}"
    );
    assert_eq!(heard[0].name, "job:created");
    for sent in &heard {
        assert_eq!(sent.id.is_none(), sent.name == "job:progress", "{sent:?}");
    }
    let progress = heard.iter().find(|it| it.id.is_none());
    assert_eq!(
        progress.map(|it| &it.data["message"]),
        Some(&json!("half\r\nid: 7"))
    );
    let seqs: Vec<_> = heard
        .iter()
        .filter(|it| it.id.is_some())
        .map(crate::support::Sent::seq)
        .collect();
    assert!(
        seqs.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{seqs:?}"
    );
}

/// Progress that others were told long ago came first, all of it: a client that breaks off after a few events never got on.
#[test]
fn a_stream_that_resumes_gets_the_log_and_no_old_progress() {
    let served = Served::new();
    let mut live = served.stream("/events", "");
    for _ in 0..10 {
        let id = served.jobs.enqueue(&json!({"wait": true})).unwrap();
        live.until("job:progress");
        assert_eq!(served.queue.cancel(id).unwrap(), CancelOutcome::Cancelled);
        live.until("job:cancelled");
    }
    let head = served.queue.stats().unwrap().head_seq;
    let first = format!("{}-0", served.queue.file_id().unwrap());
    let mut again = served.stream("/events", &format!("Last-Event-ID: {first}\r\n"));
    for seq in 1..=head {
        let sent = again.next().unwrap();
        assert!(sent.id.is_some(), "before {seq}: {sent:?}");
        assert_eq!(sent.seq(), seq);
    }
}

#[test]
fn a_filter_lets_pass_what_was_asked_for() {
    let served = Served::new();
    let mut stream = served.stream("/events?type=job:completed,job:failed&job_type=work", "");
    let mut none = served.stream("/events?job_type=other", "");
    served.run(&json!(1));
    served.run(&json!({"fail": "x"}));
    assert_eq!(
        names(&[stream.next().unwrap(), stream.next().unwrap()]),
        ["job:completed", "job:failed"]
    );
    served.queue.enqueue("other", &json!(1)).unwrap();
    assert_eq!(none.next().unwrap().data["job_type"], "other");
    assert_eq!(served.get("/events?type=job:complete").status, 400);
    assert_eq!(served.get("/events?tpye=job:completed").status, 400);
}

#[test]
fn a_job_that_is_not_there_has_no_stream() {
    let served = Served::new();
    assert_eq!(served.get("/jobs/77/events").status, 404);
    assert_eq!(served.get("/jobs/x/events").status, 400);
}

#[test]
fn a_client_of_http_1_0_gets_events_as_they_happen() {
    let served = Served::new();
    for request in [
        "GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n",
        "GET /events HTTP/1.1\r\nHost: localhost\r\nTE: identity\r\n\r\n",
    ] {
        let mut stream = Stream::ask(served.addr, request);
        served.run(&json!(1));
        assert_eq!(stream.next().unwrap().name, "job:created");
        assert_eq!(stream.is_plain, request.contains("1.0"));
    }
}

/// What tiny_http alone does not do: of several connections that arrive at once some get no thread. Eight browsers, each with
/// eight streams and the six requests that it has under way at a time.
#[test]
fn streams_and_requests_of_one_instant_are_all_served_50_times() {
    const BROWSERS: usize = 8;
    let served = Served::new();
    let ask = |path: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n");
        Stream::asked(served.addr, &request)
    };
    for round in 0..50 {
        let start = Barrier::new(BROWSERS);
        let browse = || {
            start.wait();
            let streams: Vec<_> = (0..8).map(|_| ask("/events")).collect();
            let mut requests: Vec<_> = (0..6).map(|_| ask("/api/stats")).collect();
            let streams: Vec<_> = streams.into_iter().map(Stream::begin).collect();
            for request in &mut requests {
                assert_eq!(crate::support::read_answer(request).status, 200);
            }
            streams
        };
        let mut streams = std::thread::scope(|scope| {
            let browsers: Vec<_> = (0..BROWSERS).map(|_| scope.spawn(browse)).collect();
            let opened = browsers.into_iter().flat_map(|it| it.join().unwrap());
            opened.collect::<Vec<_>>()
        });
        assert_eq!(streams.len(), 64);
        let id = served.run(&json!(round));
        for stream in &mut streams {
            let sent = stream.next().unwrap_or_else(|| panic!("{}", stream.head));
            assert_eq!(sent.data["job_id"], id.as_i64(), "{sent:?}");
        }
    }
}

#[test]
fn a_stream_too_many_is_told_to_come_again() {
    let served = Served::with(local().max_streams(2));
    let first = served.stream("/events", "");
    let _second = served.stream("/events", "");
    let third = served.get("/events");
    assert_eq!(third.status, 200);
    assert!(third.body.starts_with("retry: "), "{}", third.body);
    assert!(!third.body.contains("data"));
    drop(first);
    until("a place is free", || {
        served.stream("/events", "").head.contains("chunked")
    });
}

#[test]
fn a_stream_beats_and_a_reader_that_takes_nothing_is_cut_off() {
    let served = Served::new();
    let mut silent = served.stream("/events?job_type=none", "");
    let started = Instant::now();
    let stalled = Stream::asked(
        served.addr,
        "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    let streams = || {
        served
            .get("/metrics")
            .body
            .contains("stepwell_http_streams 2")
    };
    until("both are open", streams);
    // More than the kernel takes for a reader that reads nothing.
    let message = "x".repeat(8000);
    let fail = json!({ "fail": message });
    let inputs: Vec<_> = (0..1500).map(|_| fail.clone()).collect();
    let last = served
        .jobs
        .enqueue_many(&inputs)
        .unwrap()
        .last()
        .copied()
        .unwrap();
    served.queue.wait(last, Duration::from_secs(60)).unwrap();
    until("the other is cut off", || {
        served
            .get("/metrics")
            .body
            .contains("stepwell_http_streams 1")
    });
    drop(stalled);
    assert!(silent.raw_beat(), "a comment comes");
    assert!(
        started.elapsed() >= Duration::from_secs(10),
        "neither came early"
    );
}

#[test]
fn a_retried_job_can_be_followed_to_its_new_end() {
    let served = Served::new();
    let id: JobId = served.run(&json!({"fail": "x"}));
    let last = served.queue.events_of(id).unwrap().last().unwrap().seq;
    let file = served.queue.file_id().unwrap();
    let headers = format!("Last-Event-ID: {file}-{last}\r\n");
    let path = format!("/jobs/{id}/events");
    assert_eq!(
        served.send("GET", &path, &headers, "").status,
        204,
        "nothing more will come"
    );
    served.queue.retry(id, stepwell::RetryFrom::Failed).unwrap();
    served.wait_for(id, JobStatus::Failed);
    let sent = served.stream(&path, &headers).rest();
    assert_eq!(
        (&sent[0].name[..], &sent.last().unwrap().name[..]),
        ("job:retrying", "job:failed")
    );
    assert_eq!(sent[0].seq(), last + 1);
}
