//! From the event log to the streams: one thread fills the ring, one reads the past for those that the ring has left behind. L3.
//!
//! While no stream is open, nothing is read. While there are some, jobs come first: after each round both threads rest for a
//! multiple of what the round cost, the writing to the clients included, so that streams take a bounded share of a
//! processor whatever their number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bus::Heard;
use crate::engine::Engine;
use crate::error::{ErrorKind, Result};
use crate::event::{self, Event, EventKind, Seq};
use crate::http::ring::{Filter, Frame, Ring};
use crate::job::{JobId, JobStatus};
use crate::sync::{AtomicU64, Condvar, Mutex, Ordering, Receiver};
use crate::time::monotonic;

/// Changes that are read at a time: a few pages of the file.
const CHANGES_MAX: usize = 512;
/// Events of a round; one change can be a run of any number of created jobs.
const EVENTS_MAX: usize = 1024;
/// And of a round while the queue is busy: each is written to every stream.
const EVENTS_BUSY_MAX: usize = 256;
/// A resumed stream gets its past in pieces of about this many events that it wants.
const PAST_WANTED: usize = 256;
/// Pieces of the log that are searched for them before another stream has its turn.
const PAST_PIECES: usize = 8;
/// Changes of a job that its own stream replays, the newest. A stream that asks for more is told that there is a gap.
const JOB_CHANGES_MAX: usize = 1000;
/// A round is followed by a rest of this many times its cost: 10 % of a processor for what is new ...
const REST_LIVE: u32 = 9;
/// ... and 2 % while more events are written than a round takes: then the processors are for jobs, and streams catch up later.
const REST_BUSY: u32 = 49;
/// A round is one of a busy queue when this many events were written since the one before.
const EVENTS_BUSY: Seq = 1000;
const REST_BUSY_MAX: Duration = Duration::from_secs(2);
/// ... and 25 % for the past.
const REST_PAST: u32 = 3;
/// No rest is longer: a quarter of what an event may take to its readers.
const REST_MAX: Duration = Duration::from_millis(25);
/// After an error of the store.
const REST_FAILED: Duration = Duration::from_secs(1);

/// A stream asks for its past.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) connection: u64,
    pub(super) after: Seq,
    pub(super) filter: Filter,
    /// By the job's own chain of changes, not by the whole log.
    pub(super) replays_job: bool,
}

/// What it gets.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) frames: Vec<Arc<Frame>>,
    /// Up to here nothing is missing.
    pub(super) to: Seq,
    /// Retention was faster: the oldest event that is left, and the newest.
    pub(super) gap: Option<(Seq, Seq)>,
    /// The job is over, and this was its end.
    pub(super) is_over: bool,
}

impl Past {
    /// Whether it is that of a job which is over, and there is nothing to send of it.
    pub(super) fn is_nothing_more(&self) -> bool {
        self.is_over && self.frames.is_empty() && self.gap.is_none()
    }
}

/// Told to the gate.
pub(super) enum News {
    /// The ring has grown.
    More,
    Past(u64, Past),
}

pub(super) struct Feed {
    engine: Arc<Engine>,
    pub(super) file_id: String,
    pub(super) ring: Mutex<Ring>,
    demand: Mutex<Demand>,
    bell: Condvar,
    /// What the last fan-out took, in microseconds.
    fan_out_us: AtomicU64,
}

#[derive(Default)]
struct Demand {
    streams: usize,
    is_closed: bool,
}

impl Feed {
    pub(super) fn new(engine: Arc<Engine>) -> Result<Feed> {
        Ok(Feed {
            file_id: engine.reader.file_id()?,
            engine,
            ring: Mutex::default(),
            demand: Mutex::default(),
            bell: Condvar::default(),
            fan_out_us: AtomicU64::new(0),
        })
    }

    pub(super) fn set_streams(&self, streams: usize) {
        self.demand.lock().streams = streams;
        self.bell.notify_all();
    }

    pub(super) fn fan_out_took(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.fan_out_us.store(us, Ordering::Relaxed);
    }

    /// Ends both threads: the first once it has read everything, the bus being closed.
    pub(super) fn close(&self) {
        self.demand.lock().is_closed = true;
        self.bell.notify_all();
    }

    /// The thread that fills the ring.
    pub(super) fn run(&self, tell: &dyn Fn(News)) {
        while self.wait_for_streams() {
            let Ok(head) = self.engine.reader.head() else {
                if self.rest(REST_FAILED) {
                    return;
                }
                continue;
            };
            self.ring.lock().restart(head.seq);
            // Streams that were there before the ring was may be waiting for it.
            tell(News::More);
            if !self.follow(head.seq, tell) {
                return;
            }
        }
    }

    /// Fills the ring while there are streams. False when nothing will come any more.
    fn follow(&self, mut newest: Seq, tell: &dyn Fn(News)) -> bool {
        let bus = &self.engine.bus;
        // The first round has the newest progress of every job under way.
        let mut seen = 0;
        let mut is_busy = false;
        while self.demand.lock().streams > 0 {
            let head = self.ring.lock().head();
            if bus.wait(head, seen, None) == Heard::Closed {
                return false;
            }
            let started = monotonic();
            let rest = match self.round(
                head,
                &mut seen,
                if is_busy { EVENTS_BUSY_MAX } else { EVENTS_MAX },
            ) {
                Ok(true) => {
                    tell(News::More);
                    let before = newest;
                    newest = self.newest(before);
                    is_busy = newest - before >= EVENTS_BUSY;
                    self.rest_after(started, is_busy)
                }
                // The bell rang for what cannot be read yet.
                Ok(false) => REST_MAX,
                Err(error) if error.kind() == ErrorKind::Closed => return false,
                Err(error) => {
                    log::warn!("the event streams wait, the log cannot be read: {error}");
                    REST_FAILED
                }
            };
            self.rest(rest);
        }
        true
    }

    fn newest(&self, known: Seq) -> Seq {
        self.engine.reader.head().map_or(known, |head| head.seq)
    }

    /// Waits until there are streams. False when there will be none.
    fn wait_for_streams(&self) -> bool {
        let mut demand = self.demand.lock();
        while demand.streams == 0 && !demand.is_closed {
            self.bell.wait(&mut demand);
        }
        !demand.is_closed
    }

    /// Reads what is new into the ring. False when there was nothing.
    fn round(&self, head: Seq, seen: &mut u64, events_max: usize) -> Result<bool> {
        let (progress, count) = self.engine.bus.progress_after(*seen);
        *seen = count;
        let events = self.events_after(head, events_max)?;
        let first = events.first().map_or(head + 1, |event| event.seq);
        let frames = merge(events, progress);
        let frames: Vec<_> = frames
            .iter()
            .map(|event| Frame::new(&self.file_id, event))
            .collect();
        let is_new = !frames.is_empty();
        let mut ring = self.ring.lock();
        if first > head + 1 {
            // The log has it no more: each stream finds out by itself.
            ring.restart(first - 1);
        }
        for frame in frames {
            ring.push(frame);
        }
        Ok(is_new)
    }

    fn events_after(&self, after: Seq, events_max: usize) -> Result<Vec<Event>> {
        let limit = CHANGES_MAX.min(events_max);
        let changes = self.engine.reader.changes_after(after, limit)?;
        Ok(event::expand_all(changes, after, events_max))
    }

    /// The thread that reads the past.
    pub(super) fn run_past(&self, asked: &Receiver<Ask>, tell: &dyn Fn(News)) {
        while let Ok(ask) = asked.recv() {
            let started = monotonic();
            let past = self.past(&ask).unwrap_or_else(|error| {
                log::warn!("an event stream ends, its past cannot be read: {error}");
                // It comes again, and perhaps finds more.
                Past {
                    is_over: true,
                    to: ask.after,
                    ..Past::default()
                }
            });
            tell(News::Past(ask.connection, past));
            let rest = started.elapsed().saturating_mul(REST_PAST).min(REST_MAX);
            self.rest(rest);
        }
    }

    fn past(&self, ask: &Ask) -> Result<Past> {
        if let (true, Some(id)) = (ask.replays_job, ask.filter.job) {
            return self.past_of_job(id, ask.after, &ask.filter);
        }
        let mut past = Past {
            to: ask.after,
            ..Past::default()
        };
        for _ in 0..PAST_PIECES {
            let events = self.events_after(past.to, EVENTS_MAX)?;
            let Some(first) = events.first() else {
                break;
            };
            if first.seq > past.to + 1 {
                let head = self.engine.reader.head()?.seq;
                // What it was about to get after the gap, it gets no more: it has to look at the jobs again.
                past.gap = Some((first.seq, head));
                past.to = head;
                break;
            }
            past.to = events.last().map_or(past.to, |event| event.seq);
            let frames = events.iter().map(|event| Frame::new(&self.file_id, event));
            past.frames
                .extend(frames.filter(|frame| ask.filter.lets(frame)).map(Arc::new));
            if past.frames.len() >= PAST_WANTED {
                break;
            }
        }
        Ok(past)
    }

    /// By the job's own chain of changes.
    pub(super) fn past_of_job(&self, id: JobId, after: Seq, filter: &Filter) -> Result<Past> {
        let reader = &self.engine.reader;
        // The status first: what ends the job later has a number of its own. Then the head: what comes after it comes by the ring.
        let was_over = reader.status(id)?.is_none_or(JobStatus::is_terminal);
        let head = reader.head()?.seq;
        let mut events = Vec::new();
        let changes = reader.changes_of(id, JOB_CHANGES_MAX)?;
        if let Some(oldest) = changes.first().map(|change| change.seq)
            && changes.len() == JOB_CHANGES_MAX
            && (1..oldest - 1).contains(&after)
        {
            return Ok(Past {
                to: head,
                gap: Some((oldest, head)),
                is_over: was_over,
                ..Past::default()
            });
        }
        for change in changes {
            event::expand(&change, after, &mut events);
        }
        events.retain(|event| event.seq <= head);
        let frames: Vec<_> = events
            .iter()
            .map(|event| Arc::new(Frame::new(&self.file_id, event)))
            .collect();
        // Of a job that is over the end may be pruned, or before `after`, or deliveries may have been told after it.
        let of_job = frames.iter().rev().find(|frame| !frame.is_about_delivery());
        let is_over =
            of_job.map_or(was_over, |frame| frame.ends_job()) || reader.status(id)?.is_none();
        Ok(Past {
            frames: frames
                .into_iter()
                .filter(|frame| filter.lets(frame))
                .collect(),
            to: head,
            gap: None,
            is_over,
        })
    }

    fn rest_after(&self, started: Instant, is_busy: bool) -> Duration {
        let fan_out = Duration::from_micros(self.fan_out_us.load(Ordering::Relaxed));
        let cost = started.elapsed() + fan_out;
        if is_busy {
            cost.saturating_mul(REST_BUSY).min(REST_BUSY_MAX)
        } else {
            cost.saturating_mul(REST_LIVE).min(REST_MAX)
        }
    }

    /// True when it is closed, which cuts every rest short.
    fn rest(&self, duration: Duration) -> bool {
        let until = monotonic() + duration;
        let mut demand = self.demand.lock();
        while !demand.is_closed {
            let left = until.saturating_duration_since(monotonic());
            if left.is_zero() {
                return false;
            }
            self.bell.wait_for(&mut demand, left);
        }
        true
    }
}

/// Progress goes after the start of its phase, if that is among the events, and else before all of them: it was told before
/// they were read.
fn merge(events: Vec<Event>, progress: Vec<Event>) -> Vec<Event> {
    if progress.is_empty() {
        return events;
    }
    let mut left: HashMap<JobId, Event> = progress
        .into_iter()
        .map(|event| (event.job_id, event))
        .collect();
    let mut merged = Vec::with_capacity(events.len() + left.len());
    for event in events {
        let starts = event.kind == EventKind::PhaseStarted
            && left
                .get(&event.job_id)
                .is_some_and(|told| told.phase == event.phase);
        let told = if starts {
            left.remove(&event.job_id)
        } else {
            None
        };
        merged.push(event);
        merged.extend(told);
    }
    let mut first: Vec<Event> = left.into_values().collect();
    first.append(&mut merged);
    first
}
