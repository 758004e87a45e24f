//! Clients that others wrote: a real browser on the dashboard, and the usual readers of event streams.
//!
//! They need programs from outside: `STEPWELL_HTTP_CLIENTS` names a folder with Python packages in `venv` and npm packages in
//! `node_modules`; `.ci/run` makes it. Without it these tests say so and do nothing.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::{HttpConfig, JobType, NewJob, Phase, PhaseError, RetryPolicy};

use crate::support::{Served, builder, local, until};

const FILE: &str = "STEPWELL_HTTP_DEMO";
const ADDR: &str = "STEPWELL_HTTP_ADDR";

fn clients() -> Option<PathBuf> {
    let found = std::env::var_os("STEPWELL_HTTP_CLIENTS").map(PathBuf::from);
    if found.is_none() {
        println!("skipped: STEPWELL_HTTP_CLIENTS is not set, see .ci/run");
    }
    found
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/http/clients")
        .join(name)
}

/// A queue as one would have it: some types, some trouble.
fn demo() -> JobType<Value, Value> {
    const FETCH: Phase<Value> = Phase::new("fetch");
    const PARSE: Phase<Value> = Phase::new("parse");
    const LOAD: Phase<Value> = Phase::new("load");
    let rest = |cx: &stepwell::PhaseContext<Value>, key: &str| {
        cx.sleep(Duration::from_millis(
            cx.input()[key].as_u64().unwrap_or(40),
        ))
    };
    JobType::<Value>::new("import")
        .retry(RetryPolicy::fixed(Duration::from_secs(2)).max_attempts(3))
        .phase(FETCH, move |cx| {
            cx.progress(0.3, "300 of 1000 rows");
            rest(cx, "fetch_ms")?;
            Ok(json!({ "rows": 1000, "checksum": u64::MAX }))
        })
        .phase(PARSE, move |cx| {
            rest(cx, "parse_ms")?;
            match cx.input()["fails_until"].as_u64() {
                Some(attempt) if u64::from(cx.attempt()) < attempt => {
                    let row = cx.input()["row"].as_u64().unwrap_or(17);
                    Err(PhaseError::retry(format!(
                        "row {row}: expected 7 fields, found 6"
                    )))
                }
                _ => Ok(json!({ "ok": true })),
            }
        })
        .phase(LOAD, move |cx| {
            rest(cx, "load_ms")?;
            assert!(
                cx.input()["panics"] != true,
                "index out of bounds: the len is 3 but the index is 9"
            );
            Ok(json!("done"))
        })
}

/// One phase and one try; its input says what it fails with.
fn plain() -> JobType<Value, Value> {
    JobType::<Value>::new("export.daily")
        .retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(1))
        .phase(
            Phase::<Value>::new("send"),
            |cx| match cx.input()["fails"].as_str() {
                Some(message) => Err(PhaseError::fail(message.to_owned())),
                None => Ok(json!("sent")),
            },
        )
}

/// In the other process: serves a queue until it is told to go on with more jobs, or killed. An ordinary run does nothing here.
#[test]
fn in_another_process() {
    let (Some(file), Ok(addr)) = (std::env::var_os(FILE), std::env::var(ADDR)) else {
        return;
    };
    let mut builder = builder(Path::new(&file)).http(HttpConfig::new(addr).show_payloads());
    builder.register(demo());
    builder.register(plain());
    let queue = builder.open().unwrap();
    println!("> {}", queue.http_addr().unwrap());
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let input: Value = serde_json::from_str(&line).unwrap();
        let job_type = input["type"].as_str().unwrap_or("import");
        let times = input["times"].as_u64().unwrap_or(1);
        let jobs = (0..times).map(|_| NewJob::new(job_type, &input).unwrap());
        let added = queue.enqueue_all(jobs.collect()).unwrap();
        println!("> {}", added.last().unwrap().id);
    }
}

struct Demo {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    addr: String,
}

impl Demo {
    fn start(file: &Path, addr: &str) -> Demo {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "browser::in_another_process",
                "--nocapture",
                "--quiet",
            ])
            .env(FILE, file)
            .env(ADDR, addr)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut demo = Demo {
            child,
            lines,
            addr: String::new(),
        };
        demo.addr = demo.hear();
        demo
    }

    fn hear(&mut self) -> String {
        let marked = |line: String| line.strip_prefix("> ").map(str::to_owned);
        self.lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(marked)
            .expect("it speaks")
    }

    fn enqueue(&mut self, input: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{input}").unwrap();
        self.hear()
    }

    fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The browser says what it wants done (`enqueue JSON`, `kill`, `start`), one thing a line, and hears the answer.
fn drive(name: &str) {
    let Some(clients) = clients() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobs.db");
    let mut demo = Demo::start(&file, "127.0.0.1:0");
    let addr = demo.addr.clone();
    let mut browser = Command::new("node")
        .arg(script(name))
        .arg(&addr)
        .env("STEPWELL_HTTP_CLIENTS", &clients)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(browser.stdout.take().unwrap()).lines();
    let mut answers = browser.stdin.take().unwrap();
    for line in lines.map_while(Result::ok) {
        let answer = match line.split_once(' ') {
            Some(("enqueue", input)) => demo.enqueue(input),
            _ if line == "kill" => {
                demo.kill();
                "killed".to_owned()
            }
            _ if line == "start" => {
                demo = Demo::start(&file, &addr);
                "started".to_owned()
            }
            _ => {
                println!("{line}");
                continue;
            }
        };
        writeln!(answers, "{answer}").unwrap();
    }
    assert!(
        browser.wait().unwrap().success(),
        "see what the browser said above"
    );
}

#[test]
fn the_dashboard_follows_acts_and_recovers_in_a_real_browser() {
    drive("dashboard.mjs");
}

#[test]
fn jobs_are_found_by_a_type_that_is_typed_in_a_real_browser() {
    drive("types.mjs");
}

#[test]
fn failed_jobs_are_all_found_by_error_linked_and_retried_in_a_real_browser() {
    drive("groups.mjs");
}

/// Each prints what it has heard as JSON lines; all of it is compared with the log.
#[test]
fn readers_that_others_wrote_hear_the_log() {
    let Some(clients) = clients() else {
        return;
    };
    let served = Served::new();
    let ids: Vec<_> = (0..5)
        .map(|n| served.run(&json!({ "fail": format!("é\r\n\r\ndata: {n}\r\0") })))
        .collect();
    let log = served.queue.events_after(0, 1000).unwrap();
    let log: Vec<Value> = log
        .iter()
        .map(|event| serde_json::to_value(event).unwrap())
        .collect();
    let first = format!("{}-0", served.queue.file_id().unwrap());
    let url = format!("http://{}/events?last_event_id={first}", served.addr);
    let python = clients.join("venv/bin/python3");
    let commands = [
        (python.clone(), "sseclient_py.py"),
        (python.clone(), "httpx_sse_client.py"),
        (PathBuf::from("node"), "eventsource.mjs"),
        (PathBuf::from("bash"), "curl.sh"),
    ];
    for (program, name) in commands {
        let output = Command::new(&program)
            .arg(script(name))
            .arg(&url)
            .arg(log.len().to_string())
            .env("STEPWELL_HTTP_CLIENTS", &clients)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let heard: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            heard,
            log,
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let metrics = Command::new(&python)
        .arg(script("prometheus.py"))
        .arg(format!("http://{}/metrics", served.addr))
        .output()
        .unwrap();
    let parsed: Value = serde_json::from_slice(&metrics.stdout).unwrap();
    assert_eq!(parsed["stepwell_jobs failed"], json!(ids.len()), "{parsed}");
    assert_eq!(
        parsed["stepwell_events_total "],
        json!(log.len()),
        "{parsed}"
    );
}

/// A 503 would have ended it for good.
#[test]
fn a_reader_for_which_there_was_no_place_comes_again_by_itself() {
    let Some(clients) = clients() else {
        return;
    };
    let served = Served::with(local().max_streams(1));
    let held = served.stream("/events", "");
    let mut reader = Command::new("node")
        .arg(script("eventsource.mjs"))
        .arg(format!("http://{}/events", served.addr))
        .arg("1")
        .env("STEPWELL_HTTP_CLIENTS", &clients)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(reader.stderr.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "again");
    drop(held);
    let streams = |count: u8| {
        let metrics = served.get("/metrics").body;
        metrics.contains(&format!("stepwell_http_streams {count}\n"))
    };
    until("its place is free", || streams(0));
    until("it has come again", || streams(1));
    let id = served.run(&json!(1));
    let mut heard = BufReader::new(reader.stdout.take().unwrap()).lines();
    let event: Value = serde_json::from_str(&heard.next().unwrap().unwrap()).unwrap();
    assert_eq!(event["job_id"], id.as_i64());
    assert!(reader.wait().unwrap().success());
}

#[test]
fn the_token_is_entered_in_a_real_browser_and_the_page_is_live_by_its_cookie() {
    let Some(clients) = clients() else {
        return;
    };
    let token = "0123456789abcdef0123";
    let served = Served::with(local().token(token));
    let output = Command::new("node")
        .arg(script("sign_in.mjs"))
        .arg(format!("http://{}/", served.addr))
        .arg(token)
        .env("STEPWELL_HTTP_CLIENTS", &clients)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
