//! Webhooks of job lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};
use stepwell::webhook::Secret;

use crate::bench::{Bench, PATIENCE};

/// A server that takes requests, says 200, and passes their bodies on.
fn receiver() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "http://{}/hooks?token=secret",
        listener.local_addr().unwrap()
    );
    let (tx, bodies) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, tx) = (stream.unwrap(), tx.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                loop {
                    let (mut length, mut line) = (0, String::new());
                    while reader.read_line(&mut line).unwrap_or(0) > 2 {
                        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                        line.clear();
                    }
                    let mut body = vec![0; length];
                    if length == 0 || reader.read_exact(&mut body).is_err() {
                        return;
                    }
                    tx.send(serde_json::from_slice(&body).unwrap()).unwrap();
                    (&stream)
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        .unwrap();
                }
            });
        }
    });
    (url, bodies)
}

#[test]
fn a_job_s_webhooks_are_sent_listed_and_sent_again() {
    let bench = Bench::new();
    let (url, bodies) = receiver();
    let line = json!({"phases": [{"name": "a", "run": "true"}], "webhooks": [{"url": url, "events": ["job:completed"]}]});
    let run = bench
        .runner_with(
            &line.to_string(),
            &["run", "-", "--allow-private", "127.0.0.1"],
        )
        .ok();
    assert!(run.stdout.contains("1 completed"), "{run:?}");
    let body = bodies.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        json!([body["type"], body["data"]["job_id"]]),
        json!(["job:completed", 1])
    );
    assert_eq!(
        bench.show("1".parse().unwrap())["webhook_sent"],
        true,
        "the run did not end before it was sent"
    );

    let listed = bench.runner(&["deliveries", "--json"]).ok().json();
    let [delivery] = &listed[..] else {
        panic!("{listed:?}")
    };
    for key in [
        "id",
        "webhook_id",
        "event",
        "url",
        "status",
        "tries",
        "next_at",
        "last_status",
        "last_error",
    ] {
        assert!(delivery.get(key).is_some(), "{key}: {delivery}");
    }
    let what = json!([
        delivery["event"],
        delivery["status"],
        delivery["tries"],
        delivery["last_status"]
    ]);
    assert_eq!(what, json!(["job:completed", "delivered", 1, 200]));
    assert!(
        !delivery.to_string().contains("token"),
        "a query string can be a secret: {delivery}"
    );
    let human = bench
        .runner(&["deliveries", "--status", "delivered"])
        .ok()
        .stdout;
    assert!(human.ends_with("\n1 delivery\n"), "{human}");

    bench
        .runner(&["redeliver", &delivery["id"].to_string()])
        .ok();
    bench
        .runner(&["work", "--until-idle", "--allow-private", "127.0.0.1"])
        .ok();
    assert_eq!(bodies.recv_timeout(PATIENCE).unwrap(), body);
    let refused = bench.runner(&["redeliver", "77"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused
            .stderr
            .contains("delivery 77: there is no such delivery"),
        "{refused:?}"
    );
}

#[test]
fn a_webhook_to_a_private_address_is_not_sent_unless_it_is_allowed() {
    let bench = Bench::new();
    let (url, bodies) = receiver();
    let line = json!({"phases": [{"name": "a", "run": "true"}], "webhooks": [{"url": url}]});
    bench.runner_with(&line.to_string(), &["run", "-"]).ok();
    let listed = bench
        .runner(&["deliveries", "--status", "failed", "--json"])
        .ok()
        .json();
    assert_eq!(listed.len(), 5);
    assert!(
        listed[0]["last_error"]
            .as_str()
            .unwrap()
            .contains("not public"),
        "{listed:?}"
    );
    assert!(bodies.try_recv().is_err());
    let bad = json!({"phases": [{"name": "a", "run": "true"}], "webhooks": [{"url": "http://u:p@a.example/"}]});
    let refused = bench.runner_with(&bad.to_string(), &["submit", "-"]);
    assert_eq!(refused.code, 2);
    assert!(
        refused.stderr.contains("line 1: webhooks[0]: ") && !refused.stderr.contains("u:p"),
        "{refused:?}"
    );
}

/// Sends `request`, and answers the first line of what comes back.
fn answer(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

/// The bugs: one request without a length ended the program, and one connection that said nothing held up all others.
#[test]
fn the_example_receiver_outlives_strangers() {
    let bench = Bench::new();
    let secret = Secret::generate().unwrap();
    let args = ["127.0.0.1:0", &secret.reveal()];
    let mut receiver = bench.start_example("webhook_receiver", &args);
    let mut lines = BufReader::new(receiver.stdout()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    let address = next().strip_prefix("listening on ").unwrap().to_owned();

    let _says_nothing = TcpStream::connect(&address).unwrap();
    let bad = [
        "GET /hooks HTTP/1.1\r\n\r\n",
        "hello\r\n\r\n",
        "POST /hooks HTTP/1.1\r\ncontent-length: much\r\n\r\n",
        "POST /hooks HTTP/1.1\r\ncontent-length: 99999999999999\r\n\r\n",
    ];
    for request in bad {
        assert_eq!(answer(&address, request), "HTTP/1.1 400 Bad Request\r\n");
        assert!(next().starts_with("refused: "));
    }
    let unsigned = "POST /hooks HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(answer(&address, unsigned), "HTTP/1.1 401 Unauthorized\r\n");
    assert!(next().starts_with("refused: "));

    let webhook = json!({"url": format!("http://{address}/hooks"), "events": ["job:completed"], "secret": secret.reveal()});
    let line = json!({"phases": [{"name": "a", "run": "true"}], "webhooks": [webhook]});
    let args = ["run", "-", "--allow-private", "127.0.0.1"];
    bench.runner_with(&line.to_string(), &args).ok();
    assert!(next().contains("job:completed"));
    let listed = bench.runner(&["deliveries", "--json"]).ok().json();
    assert_eq!(listed[0]["last_status"], 200, "{listed:?}");
}
