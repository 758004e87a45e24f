//! One event stream: a position, a filter, and the bytes that its client has not taken yet. L3; does no I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::Seq;
use crate::http::feed::{Ask, Past};
use crate::http::frame;
use crate::http::ring::{Filter, Frame, Ring};

/// Bytes that wait for a client. The kernel has as many again and more; what does not fit stays in the ring or the log.
const OUT_MAX: usize = 32 * 1024;

/// How a stream begins.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) filter: Filter,
    /// The last event that the client has.
    pub(super) after: Seq,
    /// Sent before anything else.
    pub(super) preface: Vec<u8>,
    /// First the job's own past.
    pub(super) replays_job: bool,
    /// More headers of the answer, each with its CRLF.
    pub(super) headers: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the ring.
    Ring(u64),
    /// What comes next is only in the log.
    Log,
    /// And has been asked for.
    Asked,
    /// Sends what the log had; nothing is missing up to this event.
    Past(Seq),
}

#[derive(Debug)]
pub(super) struct Stream {
    filter: Filter,
    place: Place,
    /// Every event up to this one was looked at.
    scanned: Seq,
    /// Progress from this place of the ring on is news; what is before it was told to it, or to others before it was there.
    live_from: u64,
    past: VecDeque<Arc<Frame>>,
    replays_job: bool,
    /// HTTP/1.0 knows no chunks.
    is_plain: bool,
    ends_after_past: bool,
    is_over: bool,
    out: Vec<u8>,
    sent: usize,
}

const HEAD: &str = "Content-Type: text/event-stream\r\nCache-Control: no-store, no-transform\r\nX-Accel-Buffering: no\r\n\
    X-Content-Type-Options: nosniff\r\nConnection: close\r\n";

/// The answer when there are as many streams as are allowed.
pub(super) fn overloaded(headers: &str) -> Vec<u8> {
    let mut out = format!(
        "HTTP/1.1 200 OK\r\n{HEAD}{headers}Content-Length: {}\r\n\r\n",
        frame::OVERLOADED.len()
    )
    .into_bytes();
    out.extend_from_slice(frame::OVERLOADED);
    out
}

impl Stream {
    pub(super) fn new(start: Start, is_plain: bool, ring: &Ring) -> Stream {
        let framing = if is_plain {
            ""
        } else {
            "Transfer-Encoding: chunked\r\n"
        };
        let version = if is_plain { "1.0" } else { "1.1" };
        let mut stream = Stream {
            filter: start.filter,
            place: Place::Log,
            scanned: start.after,
            live_from: ring.end(),
            past: VecDeque::new(),
            replays_job: start.replays_job,
            is_plain,
            ends_after_past: false,
            is_over: false,
            out: format!(
                "HTTP/{version} 200 OK\r\n{HEAD}{framing}{}\r\n",
                start.headers
            )
            .into_bytes(),
            sent: 0,
        };
        stream.append(frame::HELLO);
        stream.append(&start.preface);
        stream
    }

    fn append(&mut self, body: &[u8]) {
        if self.is_plain {
            self.out.extend_from_slice(body);
        } else {
            frame::chunk(body, &mut self.out);
        }
    }

    /// Takes what it has room for. True when it wants its past from the log.
    pub(super) fn fill(&mut self, ring: &Ring) -> bool {
        let mut body = Vec::new();
        while !self.is_over && self.out.len() - self.sent + body.len() < OUT_MAX {
            let Some(frame) = self.next(ring) else {
                break;
            };
            let is_old = match self.place {
                // Progress has no number: what counts is whether the stream was there. The events around it may have come
                // from the log already. The place is the one after its own.
                Place::Ring(next) => {
                    let was_told = next <= self.live_from;
                    self.live_from = self.live_from.max(next);
                    if frame.seq == 0 {
                        was_told
                    } else {
                        frame.seq <= self.scanned
                    }
                }
                Place::Log | Place::Asked | Place::Past(_) => frame.seq <= self.scanned,
            };
            if is_old {
                continue;
            }
            self.scanned = self.scanned.max(frame.seq);
            if self.filter.lets(&frame) {
                body.extend_from_slice(&frame.bytes);
            }
            self.is_over |=
                !matches!(self.place, Place::Past(_)) && self.filter.is_over_after(&frame);
        }
        self.append(&body);
        self.place == Place::Log && !self.is_over
    }

    fn next(&mut self, ring: &Ring) -> Option<Arc<Frame>> {
        loop {
            match self.place {
                Place::Ring(place) => match ring.at(place) {
                    Ok(frame) => {
                        let frame = frame?.clone();
                        self.place = Place::Ring(place + 1);
                        return Some(frame);
                    }
                    Err(_) => self.settle(ring),
                },
                Place::Past(to) => {
                    if let Some(frame) = self.past.pop_front() {
                        return Some(frame);
                    }
                    self.scanned = self.scanned.max(to);
                    self.is_over |= self.ends_after_past;
                    self.settle(ring);
                }
                Place::Log if !self.replays_job && ring.place_after(self.scanned).is_some() => {
                    self.settle(ring);
                }
                Place::Log | Place::Asked => return None,
            }
            if self.is_over || self.place == Place::Log {
                return None;
            }
        }
    }

    /// Goes on in the ring if it has what comes next.
    fn settle(&mut self, ring: &Ring) {
        // Progress that it has not heard may stand before events that it has from the log.
        let live_from = self.live_from.max(ring.first());
        self.place = ring
            .place_after(self.scanned)
            .map_or(Place::Log, |place| Place::Ring(place.min(live_from)));
    }

    /// What it asks of the log.
    pub(super) fn ask(&mut self, connection: u64) -> Ask {
        self.place = Place::Asked;
        Ask {
            connection,
            after: self.scanned,
            filter: self.filter.clone(),
            replays_job: std::mem::take(&mut self.replays_job),
        }
    }

    /// The answer to what it asked.
    pub(super) fn hear(&mut self, file_id: &str, past: Past) {
        if self.place != Place::Asked {
            return;
        }
        if let Some((oldest, head)) = past.gap {
            let requested = frame::id(file_id, self.scanned);
            self.append(&frame::reset(file_id, &requested, oldest, head));
        }
        self.past = past.frames.into();
        self.ends_after_past = past.is_over;
        self.place = Place::Past(past.to);
    }

    /// Sends no more than what waits already, and its end.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }

    pub(super) fn beat(&mut self) {
        self.append(frame::HEARTBEAT);
    }

    pub(super) fn waiting(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    pub(super) fn took(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            self.out.shrink_to(OUT_MAX);
        } else if self.sent >= OUT_MAX {
            // A reader that is never through all of it must not have all of it kept.
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// What is left to send, when nothing more will come.
    pub(super) fn rest(&self) -> Option<Vec<u8>> {
        if !self.is_over {
            return None;
        }
        let mut rest = self.waiting().to_vec();
        if !self.is_plain {
            rest.extend_from_slice(frame::LAST_CHUNK);
        }
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventKind};

    fn frame(seq: Seq) -> Frame {
        let data = serde_json::json!({"pad": "x".repeat(200)});
        Frame::new(
            "file",
            &Event {
                seq,
                kind: EventKind::Created,
                job_id: crate::job::JobId::from_i64(seq),
                job_type: "a".into(),
                at: crate::time::Timestamp::default(),
                data: data.as_object().cloned().unwrap_or_default(),
                phase: None,
                attempt: 0,
            },
        )
    }

    /// One that never took all of it at once had everything kept that it was ever sent.
    #[test]
    fn a_slow_reader_costs_no_more_the_longer_it_reads() {
        let mut ring = Ring::default();
        let start = Start {
            filter: Filter::default(),
            after: 0,
            preface: Vec::new(),
            replays_job: false,
            headers: String::new(),
        };
        let mut stream = Stream::new(start, false, &ring);
        for seq in 1..5000 {
            ring.push(frame(seq));
            stream.fill(&ring);
            stream.took(stream.waiting().len().min(200));
            assert!(stream.out.len() <= 3 * OUT_MAX, "{}", stream.out.len());
        }
        assert!(stream.sent > 0);
    }
}
