//! Requests that must be refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stepwell::{Client, ErrorKind, EventKind, HttpConfig, JobStatus, JobType, Phase};

use crate::support::{PATIENCE, Served, builder, local};

const JSON: &str = "Content-Type: application/json\r\n";
const TOKEN: &str = "0123456789abcdef0123";

#[test]
fn a_host_that_is_not_ours_is_refused_on_every_page() {
    let served = Served::new();
    for path in [
        "/",
        "/events",
        "/api/jobs",
        "/api/stats",
        "/metrics",
        "/healthz",
        "/nowhere",
    ] {
        let answer = served.send("GET", path, "Host: evil.example\r\n", "");
        assert_eq!(answer.status, 421, "{path}");
    }
    let answer = served.send(
        "POST",
        "/api/queue/pause",
        &format!("Host: evil.example:80\r\n{JSON}"),
        "{}",
    );
    assert_eq!(answer.status, 421);
    assert!(!served.queue.stats().unwrap().paused);
}

#[test]
fn a_write_of_another_origin_is_refused() {
    let served = Served::new();
    for origin in ["http://evil.example", "null", "http://localhost:1"] {
        let headers = format!("Origin: {origin}\r\n{JSON}");
        let answer = served.send("POST", "/api/queue/pause", &headers, "{}");
        assert_eq!(
            (answer.status, answer.header("Access-Control-Allow-Origin")),
            (403, None),
            "{origin}"
        );
        assert_eq!(
            served
                .send("OPTIONS", "/api/queue/pause", &headers, "")
                .status,
            403
        );
        assert_eq!(served.send("GET", "/api/jobs", &headers, "").status, 403);
    }
    let cross = format!("Sec-Fetch-Site: cross-site\r\n{JSON}");
    assert_eq!(
        served.send("POST", "/api/queue/pause", &cross, "{}").status,
        403
    );
    assert!(!served.queue.stats().unwrap().paused);
}

#[test]
fn a_write_needs_the_content_type_that_a_form_cannot_send() {
    let served = Served::new();
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ] {
        let headers = format!("Content-Type: {content_type}\r\n");
        assert_eq!(
            served
                .send("POST", "/api/queue/pause", &headers, "{}")
                .status,
            415,
            "{content_type}"
        );
    }
    assert_eq!(served.send("DELETE", "/api/jobs/1", "", "").status, 415);
    assert_eq!(
        served.send("POST", "/api/queue/pause", JSON, "").status,
        200
    );
}

#[test]
fn an_origin_that_is_allowed_gets_what_it_needs_and_no_other_does() {
    let served = Served::with(local().allow_origin("https://admin.example.com"));
    let headers = "Origin: https://admin.example.com\r\n";
    let preflight = served.send("OPTIONS", "/api/jobs/1/retry", headers, "");
    assert_eq!(preflight.status, 204);
    assert_eq!(
        preflight.header("Access-Control-Allow-Origin"),
        Some("https://admin.example.com")
    );
    assert_eq!(
        preflight.header("Access-Control-Allow-Methods"),
        Some("POST")
    );
    let stream = served.stream("/events", headers);
    assert!(
        stream
            .head
            .contains("Access-Control-Allow-Origin: https://admin.example.com\r\n"),
        "{}",
        stream.head
    );
    let other = served.send(
        "GET",
        "/api/jobs",
        "Origin: https://admin.example.com.evil\r\n",
        "",
    );
    assert_eq!(other.status, 403);
}

#[test]
fn with_a_token_nothing_but_the_health_is_told_without_it() {
    let served = Served::with(local().token(TOKEN));
    for path in [
        "/events",
        "/api/jobs",
        "/api/stats",
        "/metrics",
        "/jobs/1/events",
        "/api/openapi.json",
    ] {
        let answer = served.get(path);
        assert_eq!(
            (answer.status, answer.header("WWW-Authenticate")),
            (401, Some("Bearer")),
            "{path}"
        );
        let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
        if path != "/events" {
            assert_ne!(served.send("GET", path, &bearer, "").status, 401, "{path}");
        }
        let wrong = format!("Authorization: Bearer {TOKEN}0\r\n");
        assert_eq!(served.send("GET", path, &wrong, "").status, 401, "{path}");
    }
    let health = served.get("/healthz");
    assert_eq!(
        (health.status, &health.body[..]),
        (200, "{\"status\":\"ok\"}")
    );
    assert_eq!(served.get("/").status, 401);
    assert!(served.get("/").body.contains("Sign in"));
    assert!(!served.get("/").body.contains(TOKEN));
}

#[test]
fn the_sign_in_page_exchanges_the_token_for_a_cookie() {
    let served = Served::with(local().token(TOKEN));
    let wrong = served.post("/api/session", "{\"token\":\"wrong\"}");
    assert_eq!((wrong.status, wrong.header("Set-Cookie")), (401, None));
    let answer = served.post("/api/session", &format!("{{\"token\":\"{TOKEN}\"}}"));
    assert_eq!(answer.status, 204);
    let cookie = answer.header("Set-Cookie").unwrap();
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{cookie}"
    );
    assert!(!cookie.contains(TOKEN));
    let pair = cookie.split(';').next().unwrap();
    let answer = served.send("GET", "/", &format!("Cookie: {pair}\r\n"), "");
    assert_eq!(answer.status, 200);
    assert_eq!(
        served
            .send("GET", "/", &format!("Cookie: {pair}0\r\n"), "")
            .status,
        401
    );
}

/// The header was dropped whole: one odd cookie of any program on the same host locked its user out.
#[test]
fn a_cookie_that_is_not_ascii_does_not_hide_the_session() {
    let served = Served::with(local().token(TOKEN));
    let answer = served.post("/api/session", &format!("{{\"token\":\"{TOKEN}\"}}"));
    let cookie = answer.header("Set-Cookie").unwrap();
    let pair = cookie.split(';').next().unwrap();
    for cookies in [
        format!("n=é; {pair}"),
        format!("{pair}; n=é"),
        format!("n=\t; {pair};"),
    ] {
        let headers = format!("Cookie: {cookies}\r\n");
        let answer = served.send("GET", "/api/stats", &headers, "");
        assert_eq!(answer.status, 200, "{cookies}");
    }
    for cookies in ["n=é".to_owned(), format!("é{pair}"), format!("{pair}é")] {
        let headers = format!("Cookie: {cookies}\r\n");
        let answer = served.send("GET", "/api/stats", &headers, "");
        assert_eq!(answer.status, 401, "{cookies}");
    }
}

#[test]
fn every_answer_forbids_what_browsers_would_do_with_it() {
    let served = Served::new();
    let page = served.get("/");
    let policy = page.header("Content-Security-Policy").unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert!(
        policy.contains("connect-src 'self'") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe"), "{policy}");
    for path in ["/", "/api/jobs", "/nowhere", "/metrics"] {
        let answer = served.get(path);
        assert_eq!(
            answer.header("X-Content-Type-Options"),
            Some("nosniff"),
            "{path}"
        );
        assert_eq!(answer.header("Cache-Control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("Access-Control-Allow-Origin"), None, "{path}");
        assert_eq!(answer.header("Server"), None, "{path}");
    }
}

#[test]
fn a_queue_that_would_be_open_to_the_network_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobs.db");
    let open = |http: HttpConfig| builder(&file).http(http).open();
    let error = open(HttpConfig::new("0.0.0.0:0")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("set a token"), "{error}");
    assert!(!file.exists(), "nothing was made");
    // Nor does one whose port is taken.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = open(HttpConfig::new(taken.local_addr().unwrap().to_string())).unwrap_err();
    assert!(error.to_string().contains("cannot be bound"), "{error}");
    assert!(!file.exists(), "nothing was made");
    open(local()).unwrap();
}

/// The workers ran first, and were cut off when the port was found to be taken: the job had lost an attempt, or worse.
#[test]
fn a_port_that_is_taken_is_told_before_any_job_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobs.db");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let open = |entered: &Arc<AtomicBool>, http: HttpConfig| {
        let entered = entered.clone();
        let mut builder = builder(&file).http(http);
        builder.register(
            JobType::<u32>::new("work").phase(Phase::<u32>::new("only"), move |cx| {
                entered.store(true, Ordering::Relaxed);
                Ok(*cx.input())
            }),
        );
        builder.open()
    };
    let entered = Arc::new(AtomicBool::new(false));
    builder(&file).workers(0).open().unwrap();
    let client = Client::open(&file).unwrap();
    let id = client.enqueue("work", &1_u32).unwrap();
    let error = open(&entered, HttpConfig::new(&addr)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(!entered.load(Ordering::Relaxed), "its handler has run");
    let job = client.get(id).unwrap().unwrap();
    assert_eq!((job.status, job.attempt), (JobStatus::Pending, 0));
    let events = client.events_after(0, 100).unwrap();
    let events: Vec<_> = events.iter().map(|event| event.kind).collect();
    assert_eq!(events, [EventKind::Created]);

    let queue = open(&entered, local()).unwrap();
    queue.wait(id, PATIENCE).unwrap();
    assert!(entered.load(Ordering::Relaxed));
}

/// The bug: it was told of the port, which the first one has, and not of the first one.
#[test]
fn a_second_queue_on_the_same_file_and_port_is_told_who_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobs.db");
    let first = builder(&file).http(local()).open().unwrap();
    let addr = first.http_addr().unwrap().to_string();
    let error = builder(&file)
        .http(HttpConfig::new(addr))
        .open()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    let pid = format!("process {} runs jobs", std::process::id());
    assert!(error.to_string().contains(&pid), "{error}");
}
