//! The secrets of the file, which nobody shows: what it left to be sent is signed with them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use stepwell::testing::FakeClock;
use stepwell::webhook::{Secret, Signed, WebhookConfig};
use stepwell::{JobQueue, Retention, Timestamp};

use crate::content::{AUDIT, NEWER, OLDER};
use crate::{PATIENCE, VERSIONS, content, copy, known};

/// A request as it came: its path, its headers, its body.
struct Request {
    path: String,
    head: String,
    body: String,
}

impl Request {
    fn parse(text: &str) -> Option<Request> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let path = head.split(' ').nth(1)?;
        Some(Request {
            path: path.to_owned(),
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value).expect("a header")
    }

    fn is_signed_with(&self, secret: &str) -> bool {
        let timestamp = self.header("webhook-timestamp");
        let seconds: i64 = timestamp.parse().expect("a number");
        let signed = Signed {
            id: self.header("webhook-id"),
            timestamp,
            signature: self.header("webhook-signature"),
            body: self.body.as_bytes(),
        };
        let secret = Secret::parse(secret).expect("a secret");
        let at = Timestamp::from_millis(seconds * 1000);
        signed.verify(&[secret], at).is_ok()
    }
}

/// Takes everything. Ends with the process.
fn receiver() -> (u16, Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let (takes, taken) = channel();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                return;
            };
            let (mut request, mut piece) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"}") {
                match connection.read(&mut piece) {
                    Ok(count) if count > 0 => request.extend_from_slice(&piece[..count]),
                    _ => break,
                }
            }
            let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            connection.write_all(answer.as_bytes()).ok();
            let request = Request::parse(&String::from_utf8_lossy(&request));
            if let Some(request) = request
                && takes.send(request).is_err()
            {
                return;
            }
        }
    });
    (port, taken)
}

/// Everything that goes to where the receiver of that version was goes to this one.
fn move_receiver(path: &Path, from: &str, port: u16) {
    let conn = rusqlite::Connection::open(path).expect("it can be opened");
    let to = format!("http://127.0.0.1:{port}");
    for table in ["endpoint", "delivery"] {
        let moves = format!("UPDATE {table} SET url = replace(url, ?1, ?2)");
        conn.execute(&moves, [from, &to]).expect("it can be moved");
    }
}

#[test]
fn what_each_version_left_to_be_sent_is_signed_with_its_secrets() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    for version in VERSIONS {
        let path = copy(version, dir.path());
        let known = known(version);
        let left = left_to(&known, "/signed");
        let url = left["delivery"]["url"].as_str().expect("a URL");
        let (port, taken) = receiver();
        move_receiver(&path, url.trim_end_matches("/signed"), port);
        let clock = FakeClock::new(Timestamp::now());
        let webhooks = WebhookConfig::new().allow_private("127.0.0.1");
        let mut builder = JobQueue::builder(&path)
            .workers(1)
            .clock(&clock)
            .retention(Retention::forever())
            .webhooks(webhooks);
        content::register(&mut builder, |_| {});
        let queue = builder.open().expect("it can be opened");
        let (mut own, mut named) = (false, false);
        let until = Instant::now() + PATIENCE;
        while !(own && named) {
            assert!(
                Instant::now() < until,
                "{version}: own {own}, named {named}"
            );
            clock.advance(Duration::from_secs(60));
            let Ok(request) = taken.recv_timeout(Duration::from_millis(5)) else {
                continue;
            };
            match &*request.path {
                "/signed" => {
                    assert!(request.is_signed_with(NEWER), "{}", request.head);
                    assert!(request.is_signed_with(OLDER), "{}", request.head);
                    assert!(!request.is_signed_with(AUDIT), "{}", request.head);
                    let is_left = left["delivery"]["webhook_id"] == request.header("webhook-id");
                    assert!(!is_left || left["body"] == *request.body);
                    own |= is_left;
                }
                "/ok" => {
                    assert!(request.is_signed_with(AUDIT), "{}", request.head);
                    assert!(!request.is_signed_with(OLDER), "{}", request.head);
                    named = true;
                }
                _ => {}
            }
        }
        queue.shutdown(PATIENCE).expect("it ends");
    }
}

/// The first pending delivery that goes there.
fn left_to<'a>(known: &'a Value, path: &str) -> &'a Value {
    let deliveries = known["deliveries"].as_array().expect("a list");
    let mut left = deliveries.iter().filter(|it| {
        let url = it["delivery"]["url"].as_str().expect("a URL");
        it["delivery"]["status"] == "pending" && url.ends_with(path)
    });
    left.next().expect("there is one")
}
