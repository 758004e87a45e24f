//! Events as bytes, and streams that fall behind. L3.
//!
//! What it would catch: an event that forges another one or a field; a gap, a repetition or a wrong order in a stream,
//! whatever it reads from the ring and whatever from the log, and however often it resumes.

use serde_json::{Map, Value};

use crate::event::{Event, EventKind, Seq};
use crate::http::feed::Past;
use crate::http::frame;
use crate::http::fuzz::Bytes;
use crate::http::ring::{Filter, Frame, Ring};
use crate::http::stream::{Start, Stream};
use crate::job::JobId;
use crate::time::Timestamp;

const FILE: &str = "0a1b";

/// A reader as the standard says: CRLF, LF and CR end a line; data lines are joined by LF. Id, name and data of each event.
pub(in crate::http) fn decode(bytes: &[u8]) -> Vec<(String, String, String)> {
    let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut id, mut found) = (String::new(), Vec::new());
    for block in text.split_terminator("\n\n") {
        let (mut name, mut data) = (String::new(), Vec::new());
        for line in block.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" if !value.contains('\0') => id = value.to_owned(),
                "event" => name = value.to_owned(),
                "data" => data.push(value),
                _ => {}
            }
        }
        if !data.is_empty() {
            found.push((id.clone(), name, data.join("\n")));
        }
    }
    found
}

/// The body of a chunked answer, as far as it has come; and whether a chunk is cut.
fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") {
        let length = std::str::from_utf8(&bytes[..end]).expect("digits");
        let length = usize::from_str_radix(length, 16).expect("a length");
        let rest = &bytes[end + 2..];
        body.extend_from_slice(&rest[..length.min(rest.len())]);
        let Some(after) = rest.get(length..).and_then(|it| it.get(2..)) else {
            return body;
        };
        assert_eq!(
            &rest[length..length + 2],
            b"\r\n",
            "a chunk ends as it says"
        );
        bytes = after;
    }
    body
}

pub(crate) fn sse(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let (mut all, mut told, mut seq) = (Vec::new(), Vec::new(), 0);
    while !bytes.is_empty() {
        seq += 1 + Seq::from(bytes.byte());
        let kind = bytes.pick(EventKind::ALL);
        let is_logged = kind != EventKind::Progress;
        let mut data = Map::new();
        for key in ["message", "kind", "url"] {
            data.insert(key.to_owned(), Value::String(bytes.text()));
        }
        let event = Event {
            seq: if is_logged { seq } else { 0 },
            kind,
            job_id: JobId::from_i64(7),
            // Names are checked before they are stored; here nothing is trusted.
            job_type: bytes.text().into(),
            at: Timestamp::from_millis(5),
            phase: Some(bytes.text().into()),
            attempt: u32::from(bytes.byte()),
            data,
        };
        all.extend_from_slice(&frame::event(FILE, &event));
        told.push(event);
    }
    let found = decode(&all);
    assert_eq!(found.len(), told.len(), "as many as were sent");
    let mut last = String::new();
    for ((id, name, data), event) in found.iter().zip(&told) {
        if event.seq > 0 {
            last = frame::id(FILE, event.seq);
            assert_eq!(frame::parse_id(FILE, id), Some(event.seq));
        }
        // An event without an id leaves the last one as it was.
        assert_eq!((&id[..], &name[..]), (&last[..], event.kind.as_str()));
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(data, serde_json::to_value(event).expect("JSON"));
    }
    let requested = told.first().map_or("", |event| &event.job_type);
    let found = decode(&frame::reset(FILE, requested, 3, 9));
    assert_eq!(found.len(), 1, "a reset is one event");
    let data: Value = serde_json::from_str(&found[0].2).expect("JSON");
    assert_eq!(data["requested"], requested);
}

/// A log of jobs 0 to 3, of which the beginning goes, and the ring that is fed from it.
#[derive(Default)]
struct World {
    log: Vec<Event>,
    pruned: Seq,
    ring: Ring,
    /// Up to here the ring was fed.
    fed: Seq,
}

impl World {
    fn head(&self) -> Seq {
        self.log.last().map_or(0, |event| event.seq)
    }

    fn write(&mut self, choice: u8) {
        const KINDS: [EventKind; 3] = [
            EventKind::Created,
            EventKind::Started,
            EventKind::PhaseStarted,
        ];
        self.log.push(Event {
            seq: self.head() + 1,
            ..event(KINDS[usize::from(choice) % KINDS.len()], choice)
        });
    }

    /// The newest stays, as it does in the store.
    fn prune(&mut self, count: u8) {
        self.pruned = (self.pruned + Seq::from(count)).min((self.head() - 1).max(0));
    }

    /// What is left of the log after `seq`.
    fn after(&self, seq: Seq) -> impl Iterator<Item = &Event> {
        let from = seq.max(self.pruned);
        self.log.iter().filter(move |event| event.seq > from)
    }

    /// As `Feed::round` does.
    fn feed(&mut self, most: usize) {
        let news: Vec<_> = self.after(self.fed).take(most).cloned().collect();
        if let Some(first) = news.first()
            && first.seq > self.fed + 1
        {
            self.ring.restart(first.seq - 1);
        }
        for event in news {
            self.fed = event.seq;
            self.ring.push(Frame::new(FILE, &event));
        }
    }

    /// As `Feed::past` does.
    fn past(&self, after: Seq, filter: &Filter, most: usize) -> Past {
        let mut past = Past {
            to: after,
            ..Past::default()
        };
        for event in self.after(after).take(most) {
            if event.seq > past.to + 1 {
                past.gap = Some((event.seq, self.head()));
                past.to = self.head();
                break;
            }
            past.to = event.seq;
            let frame = Frame::new(FILE, event);
            if filter.lets(&frame) {
                past.frames.push(frame.into());
            }
        }
        past
    }
}

fn event(kind: EventKind, choice: u8) -> Event {
    Event {
        seq: 0,
        kind,
        job_id: JobId::from_i64(i64::from(choice) % 4),
        job_type: if choice.is_multiple_of(2) {
            "even"
        } else {
            "odd"
        }
        .into(),
        at: Timestamp::from_millis(0),
        phase: None,
        attempt: 1,
        data: Map::new(),
    }
}

/// A client: a stream, and what it has heard.
struct Client {
    stream: Stream,
    filter: Filter,
    heard: Vec<u8>,
    asked: Option<(Seq, Filter)>,
    /// Where it began.
    after: Seq,
}

impl Client {
    /// As `events::from` does: after what the client has, or, when that is not in the log any more, after a reset.
    fn new(world: &World, last: Seq, filter: Filter) -> Client {
        let is_there = last >= world.pruned;
        let after = if is_there { last } else { world.head() };
        let start = Start {
            filter: filter.clone(),
            after,
            preface: Vec::new(),
            replays_job: false,
            headers: String::new(),
        };
        Client {
            stream: Stream::new(start, false, &world.ring),
            filter,
            heard: Vec::new(),
            asked: None,
            after,
        }
    }

    fn fill(&mut self, ring: &Ring) {
        if self.stream.fill(ring) {
            let ask = self.stream.ask(1);
            self.asked = Some((ask.after, ask.filter));
        }
    }

    fn answer(&mut self, world: &World, most: usize) {
        if let Some((after, filter)) = self.asked.take() {
            self.stream.hear(FILE, world.past(after, &filter, most));
        }
    }

    fn take(&mut self, most: usize) {
        let waiting = self.stream.waiting();
        let count = waiting.len().min(most);
        self.heard.extend_from_slice(&waiting[..count]);
        self.stream.took(count);
    }

    /// Reads on until nothing comes.
    fn settle(&mut self, world: &mut World) {
        world.feed(usize::MAX);
        for _ in 0..2 * world.log.len() + 4 {
            self.fill(&world.ring);
            self.answer(world, 3);
            self.take(usize::MAX);
        }
    }

    /// Compares what was heard with what was ever in the log, and says up to where it was heard.
    fn compare(&self, world: &World) -> Seq {
        let Some(end) = self.heard.windows(4).position(|it| it == b"\r\n\r\n") else {
            return self.after;
        };
        let mut body = dechunk(&self.heard[end + 4..]);
        let whole = body
            .windows(2)
            .rposition(|it| it == b"\n\n")
            .map_or(0, |at| at + 2);
        body.truncate(whole);
        let mut last = self.after;
        for (id, name, data) in decode(&body) {
            if name == EventKind::Progress.as_str() {
                continue;
            }
            let seq = frame::parse_id(FILE, &id).expect("an id of this file");
            if name == "reset" {
                let told: Value = serde_json::from_str(&data).expect("JSON");
                let requested = told["requested"].as_str().expect("an id");
                let requested = frame::parse_id(FILE, requested).expect("an id of this file");
                assert!(requested < world.pruned, "a reset, and nothing is gone");
            } else {
                assert_eq!(self.next(world, last), Some(seq), "no gap, nothing twice");
            }
            last = seq;
        }
        last
    }

    /// The event that comes after `last` for this client, whether or not it is still in the log.
    fn next(&self, world: &World, last: Seq) -> Option<Seq> {
        let later = world.log.iter().filter(|event| event.seq > last);
        let mut wanted = later.filter(|event| self.filter.lets(&Frame::new(FILE, event)));
        wanted.next().map(|event| event.seq)
    }
}

fn filter(choice: u8) -> Filter {
    let mut filter = Filter::default();
    if choice & 1 > 0 {
        filter.kinds.push(EventKind::Started);
    }
    if choice & 2 > 0 {
        filter.job_types.push("odd".to_owned());
    }
    filter.job = (choice & 4 > 0).then(|| JobId::from_i64(i64::from(choice >> 3) % 4));
    filter
}

pub(crate) fn stream(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let mut world = World::default();
    let filter = filter(bytes.byte());
    let mut client = Client::new(&world, 0, filter.clone());
    while !bytes.is_empty() && world.log.len() < 2000 {
        let (what, much) = (bytes.byte() % 9, bytes.byte());
        match what {
            0 => (0..=much % 32).for_each(|step| world.write(much.wrapping_add(step * 5))),
            1 => world.feed(usize::from(much)),
            2 => client.fill(&world.ring),
            3 => client.answer(&world, usize::from(much)),
            4 => client.take(usize::from(much) * 16),
            5 => world.prune(much),
            6 => {
                // It is cut off anywhere, and comes back with the last event that it has whole.
                let last = client.compare(&world);
                client = Client::new(&world, last, filter.clone());
            }
            7 => world
                .ring
                .push(Frame::new(FILE, &event(EventKind::Progress, much))),
            _ => {
                // There was no stream for a while, and the ring begins again.
                world.fed = world.head();
                world.ring.restart(world.fed);
            }
        }
    }
    client.settle(&mut world);
    let last = client.compare(&world);
    assert_eq!(client.next(&world, last), None, "something is missing");
}
