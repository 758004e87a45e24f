//! What must never be seen: keys, signatures, query strings and passwords, in whatever is logged, listed, told or printed.
//!
//! A logger is there for a whole process, so the process is another one: this very program, started again with a logger that prints
//! everything, also what the libraries underneath say, at the level `trace`.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use stepwell::webhook::{Endpoint, Secret};
use stepwell::{Client, DeliveryStatus, EventKind, Keep, NewJob, Retention};

use crate::receiver::{Receiver, wait_until};
use crate::{Bench, ONE, deliveries, finish, quick, wait_over};

const CHILD: &str = "STEPWELL_WEBHOOK_LOGS";
/// In every query string.
const TOKEN: &str = "t0ken-of-the-query";
/// Of every endpoint: 24 bytes.
const SECRET: &str = "whsec_c2VjcmV0LWJ5dGVzLW9mLXRoZS1rZXlz";

struct Printer;

impl log::Log for Printer {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    #[allow(clippy::print_stdout, reason = "the other process reads it")]
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let (level, target) = (record.level(), record.target());
            println!("LOG {level} {target}: {}", record.args());
        }
    }

    fn flush(&self) {}
}

fn log_all(level: log::LevelFilter) {
    log::set_logger(&Printer).unwrap();
    log::set_max_level(level);
}

/// What the test `test` of this program prints in a process of its own, with `receiver` to send to.
fn printed(test: &str, receiver: &Receiver) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, receiver.url(""))
        // Nobody is there: what went by way of a proxy would not arrive.
        .envs(["http_proxy", "HTTP_PROXY", "ALL_PROXY"].map(|name| (name, "http://127.0.0.1:9")))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = [child.stdout, child.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(child.status.success(), "{printed}");
    printed
}

/// The process whose secrets must not be seen: every way in which a delivery can end.
#[test]
#[allow(clippy::print_stdout, reason = "the other process reads it")]
fn sender_with_secrets() {
    let Ok(url) = std::env::var(CHILD) else {
        return;
    };
    log_all(log::LevelFilter::Trace);
    let endpoint = |base: &str| {
        let endpoint = Endpoint::new(&format!("{base}?key={TOKEN}#{TOKEN}")).unwrap();
        let secret = || Secret::parse(SECRET).unwrap();
        endpoint
            .secret(secret())
            .also_secret(secret())
            .events([EventKind::Created])
    };
    let bench = Bench::new();
    let port = url.rsplit(':').next().unwrap();
    let config = quick().endpoint("audit", endpoint(&format!("{url}/ok")));
    println!("{config:?}");
    let (queue, jobs) = bench.open(config);
    let paths = [
        "/twice",
        "/hang",
        "/flood",
        "/dripping-head",
        "/redirect",
        "/close",
        "/gone",
    ];
    let mut bases: Vec<_> = paths.iter().map(|path| format!("{url}{path}")).collect();
    bases.extend([
        format!("http://localhost:{port}/private"),
        format!("https://127.0.0.1:{port}/no-tls"),
        "http://name.invalid/".to_owned(),
    ]);
    for base in &bases {
        let job = NewJob::new("import", &1).unwrap().webhook(endpoint(base));
        println!("{job:?}");
        finish(&queue, queue.enqueue_job(job).unwrap().id);
    }
    finish(&queue, jobs.enqueue(&json!(1)).unwrap());
    wait_over(&queue, 2 * bases.len() + 1);
    queue.disable_endpoint("audit").unwrap();
    for delivery in deliveries(&queue) {
        let record = queue.delivery(delivery.id).unwrap().unwrap();
        println!("{record:?} {}", serde_json::to_string(&record).unwrap());
    }
    for event in queue.events_after(0, 1000).unwrap() {
        println!("{event:?} {}", serde_json::to_string(&event).unwrap());
    }
    println!("{:?} {:?}", queue.endpoints().unwrap(), queue.health());
    for bad in [
        format!("http://user:{TOKEN}@a.example/"),
        format!("http://a b/?{TOKEN}"),
        format!("ftp://a.example/?{TOKEN}"),
        format!("http:///?{TOKEN}"),
    ] {
        println!("{}", Endpoint::new(&bad).unwrap_err());
    }
    let unverified = Secret::parse(&SECRET[..SECRET.len() - 3]).unwrap_err();
    println!("{unverified} {unverified:?}");
    queue.shutdown(Duration::from_secs(5)).unwrap();
    println!("ENDED");
}

#[test]
fn keys_and_query_strings_are_never_seen() {
    let receiver = Receiver::start();
    let printed = printed("logs::sender_with_secrets", &receiver);
    assert!(printed.contains("ENDED"), "{printed}");
    // The logger was there, and heard the library underneath.
    for said in [
        "LOG WARN stepwell",
        "LOG TRACE ureq",
        "LOG DEBUG ureq",
        "status 302",
    ] {
        assert!(printed.contains(said), "{said:?} in\n{printed}");
    }
    let sent = receiver.received();
    let arrived = sent.iter().filter(|one| one.path.ends_with(TOKEN)).count();
    assert_eq!(
        arrived,
        sent.len(),
        "the receiver needs the query: {sent:?}"
    );
    let mut hidden = vec![TOKEN.to_owned(), SECRET[6..].to_owned()];
    for one in &sent {
        let signatures = one.headers["webhook-signature"].split(' ');
        hidden.extend(signatures.map(|signature| signature[3..].to_owned()));
    }
    assert!(hidden.len() > 20, "{} signatures", hidden.len());
    for hidden in hidden {
        let line = printed.lines().find(|line| line.contains(&hidden));
        assert_eq!(line, None, "{hidden:?} is seen");
    }
}

/// The process whose jobs are deleted while their deliveries are under way, by hand and by retention.
#[test]
#[allow(clippy::print_stdout, reason = "the other process reads it")]
fn sender_of_deleted_jobs() {
    let Ok(url) = std::env::var(CHILD) else {
        return;
    };
    log_all(log::LevelFilter::Debug);
    let bench = Bench::new();
    let time = Duration::from_secs(30);
    let mut builder = stepwell::JobQueue::builder(bench.path())
        .webhooks(quick().timeouts(time, time, time))
        .retention(Retention::forever().failed(Keep::newest(0)));
    builder.register(
        stepwell::JobType::<serde_json::Value>::new("import").phase(ONE, |cx| {
            match cx.input().as_str() {
                Some("fail") => Err(stepwell::PhaseError::fail("on purpose")),
                _ => Ok(json!(1)),
            }
        }),
    );
    let queue = builder.open().unwrap();
    let client = Client::open(bench.path()).unwrap();
    let ends = [EventKind::Completed, EventKind::Failed];
    for (path, input) in [("/held", "fail"), ("/held", "work"), ("/held-gone", "work")] {
        let endpoint = Endpoint::new(&format!("{url}{path}")).unwrap().events(ends);
        let job = NewJob::new("import", &input).unwrap().webhook(endpoint);
        let id = queue.enqueue_job(job).unwrap().id;
        wait_until("it is over", || {
            let job = queue.get(id).unwrap();
            job.is_none_or(|job| job.status.is_terminal())
        });
        if input == "work" {
            client.delete(id).unwrap();
        }
        wait_until("it is gone", || queue.get(id).unwrap().is_none());
        let pending = |delivery: &stepwell::Delivery| delivery.status == DeliveryStatus::Pending;
        assert!(
            deliveries(&queue).iter().any(pending),
            "it was deleted while its delivery was under way"
        );
        let release = "POST /release HTTP/1.1\r\nwebhook-id: none\r\ncontent-length: 0\r\n\r\n";
        let mut receiver = TcpStream::connect(&url["http://".len()..]).unwrap();
        receiver.write_all(release.as_bytes()).unwrap();
        wait_until("it is recorded", || !deliveries(&queue).iter().any(pending));
    }
    let ended: Vec<_> = deliveries(&queue)
        .iter()
        .map(|one| (one.status, one.tries, one.last_status))
        .collect();
    let delivered = (DeliveryStatus::Delivered, 1, Some(200));
    let gone = (DeliveryStatus::Failed, 1, Some(410));
    assert_eq!(ended, [delivered, delivered, gone]);
    assert_eq!(queue.check().unwrap(), Vec::<String>::new());
    queue.shutdown(Duration::from_secs(5)).unwrap();
    println!("ENDED");
}

#[test]
fn a_job_that_is_deleted_while_its_delivery_is_under_way_is_no_trouble() {
    let receiver = Receiver::start();
    let printed = printed("logs::sender_of_deleted_jobs", &receiver);
    assert!(printed.contains("ENDED"), "{printed}");
    assert!(printed.contains("LOG DEBUG"), "{printed}");
    let levels = ["LOG ERROR", "LOG WARN", "LOG INFO"];
    let loud = printed
        .lines()
        .filter(|line| levels.iter().any(|level| line.starts_with(level)));
    // That a dead letter is one is said of any.
    let loud: Vec<_> = loud.filter(|line| !line.contains("status 410")).collect();
    assert_eq!(loud, Vec::<&str>::new(), "{printed}");
}
