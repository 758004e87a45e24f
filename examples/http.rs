//! A queue that is served over HTTP: dashboard, API and live events. `cargo run --features http --example http`; with the
//! argument `stay` it stays up, to be looked at in a browser.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use stepwell::{HttpConfig, JobQueue, JobType, Phase};

const FETCH: Phase<String> = Phase::new("fetch");
const COUNT: Phase<usize> = Phase::new("count");

fn ask(addr: SocketAddr, path: &str) -> std::io::Result<TcpStream> {
    let mut socket = TcpStream::connect(addr)?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    Ok(socket)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let stays = std::env::args().nth(1).is_some_and(|word| word == "stay");
    let dir = tempfile::tempdir()?;
    let http = HttpConfig::new(if stays {
        "127.0.0.1:8080"
    } else {
        "127.0.0.1:0"
    });
    let mut builder = JobQueue::builder(dir.path().join("jobs.db")).http(http.show_payloads());
    let jobs = builder.register(
        JobType::<String>::new("import")
            .phase(FETCH, |cx| Ok(cx.input().to_uppercase()))
            .phase(COUNT, |cx| Ok(cx.get(FETCH)?.len())),
    );
    let queue = builder.open()?;
    let addr = queue.http_addr().ok_or("it is served")?;
    println!("http://{addr}/");

    // A stream of everything from now on: any reader of server-sent events understands it.
    let mut events = BufReader::new(ask(addr, "/events?type=job:completed")?).lines();
    events.find(|line| line.as_ref().is_ok_and(|line| line == ": stepwell"));
    let id = jobs.enqueue(&"three little words".to_owned())?;
    let told = events.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("data: ")));
    let told = told.ok_or("the stream has ended")??;
    println!("{told}");
    assert!(told.contains(&format!("\"job_id\":{id}")));

    let mut answer = String::new();
    ask(addr, &format!("/api/jobs/{id}"))?.read_to_string(&mut answer)?;
    assert!(answer.contains("\"result\":18"), "{answer}");

    if stays {
        queue.wait_closed();
    }
    queue.shutdown(Duration::from_secs(5))?;
    Ok(())
}
