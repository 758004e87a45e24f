//! Readers of event streams: slow ones that are cut off and resume, and stuck ones.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::load::{count, problem};

/// A slow reader takes this much at a time ...
const BITE: usize = 2048;
/// ... and then rests.
const REST: Duration = Duration::from_millis(20);
/// It goes away after that, and comes back.
const STAY: Duration = Duration::from_secs(7);
const READ_MAX: Duration = Duration::from_secs(20);

fn connect(addr: SocketAddr, last: Option<&str>) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(READ_MAX))?;
    let resume = last.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
    // HTTP/1.0: the body has no chunks to take apart.
    stream
        .write_all(format!("GET /events HTTP/1.0\r\nHost: localhost\r\n{resume}\r\n").as_bytes())?;
    Ok(stream)
}

/// Follows the log from wherever it is, and tells of a gap.
pub(crate) fn slow(addr: SocketAddr, over: &Arc<AtomicBool>) {
    let mut last: Option<String> = None;
    while !over.load(Ordering::Relaxed) {
        if last.is_some() {
            count("streams resumed");
        }
        match connect(addr, last.as_deref()) {
            Ok(stream) => follow(stream, &mut last, over),
            Err(_) => std::thread::park_timeout(REST),
        }
    }
}

fn follow(stream: TcpStream, last: &mut Option<String>, over: &AtomicBool) {
    let mut lines = BufReader::with_capacity(BITE, stream);
    let (until, mut taken) = (Instant::now() + STAY, 0);
    let (mut line, mut id) = (String::new(), None);
    while Instant::now() < until && !over.load(Ordering::Relaxed) {
        line.clear();
        match lines.by_ref().take(1 << 20).read_line(&mut line) {
            Ok(0) | Err(_) => return,
            Ok(bytes) => taken += bytes,
        }
        if taken >= BITE {
            taken = 0;
            std::thread::park_timeout(REST);
        }
        let text = line.trim_end();
        if let Some(new) = text.strip_prefix("id: ") {
            id = Some(new.to_owned());
        } else if text == "event: reset" {
            // Retention was faster than it: what it asked for is gone.
            count("streams reset");
            *last = None;
        } else if text.is_empty()
            && let Some(new) = id.take()
        {
            count("events of slow streams");
            if let Some(before) = last.as_deref()
                && number(&new) != number(before).map(|it| it + 1)
            {
                problem(format!("a stream went from {before} to {new}"));
            }
            *last = Some(new);
        }
    }
}

fn number(id: &str) -> Option<i64> {
    id.split_once('-')?.1.parse().ok()
}

/// Asks, and takes nothing until it is closed.
pub(crate) fn stuck(addr: SocketAddr, over: &Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        let Ok(stream) = connect(addr, None) else {
            std::thread::park_timeout(REST);
            continue;
        };
        count("streams stuck");
        let until = Instant::now() + 2 * READ_MAX;
        while Instant::now() < until && !over.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(200));
        }
        drop(stream);
    }
}
