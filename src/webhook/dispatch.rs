//! Which delivery is sent next. L3; reads the outbox, and decides nothing else.
//!
//! Of each endpoint that has something to send only the time of its first delivery is known here; the rows stay in the file. An
//! endpoint is passed over while its time has not come, its breaker is open, or its host has [`HOST_MAX`] tries under
//! way. The endpoints take turns, so that one with a hundred thousand deliveries delays no other.
//!
//! A host whose last try has failed is a suspect: it gets one try at a time, and all suspects together get half of the threads.
//! Otherwise a few hosts that never answer would hold every thread until the timeout, and a host with an endpoint of its own for
//! each job would never meet a breaker.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::delivery::DeliveryId;
use crate::error::Result;
use crate::job::JobId;
use crate::store::outbox::{DeliveryRow, EndpointRow, OutboxReader};
use crate::time::Timestamp;
use crate::webhook::breaker::Breaker;

/// Tries to one host at a time.
const HOST_MAX: usize = 2;
/// Suspects that are remembered without having anything under way.
const SUSPECTS_MAX: usize = 1024;
/// Endpoints whose breaker is remembered although nothing waits for them.
const PLACES_MAX: usize = 4096;
/// Rows that are looked at for one that was never tried.
const DRAIN_SCAN: usize = 64;

#[derive(Default)]
pub(super) struct Dispatch {
    endpoints: HashMap<i64, Place>,
    /// Whose turn it is. Each endpoint is here once.
    turns: VecDeque<i64>,
    under_way: HashMap<DeliveryId, UnderWay>,
    /// Lines whose first delivery was sent and cannot be recorded.
    stuck: HashSet<(i64, JobId)>,
    hosts: HashMap<Arc<str>, Host>,
    /// Tries to suspects at a time.
    suspects_max: usize,
    /// Only what was never tried is taken.
    pub(super) is_draining: bool,
    /// Everything is to be looked at anew, and could not be read.
    pub(super) must_look: bool,
}

/// A host with a try under way, or one that has failed.
#[derive(Default)]
struct Host {
    under_way: usize,
    is_suspect: bool,
}

struct Place {
    next: Next,
    /// Where its last delivery went: while that host is busy its rows are not read.
    host: Option<Arc<str>>,
    under_way: usize,
    breaker: Breaker,
}

/// When the first delivery of an endpoint may be sent.
#[derive(Clone, Copy)]
enum Next {
    Unknown,
    At(Timestamp),
    Never,
}

struct UnderWay {
    endpoint_id: i64,
    job: JobId,
    host: Arc<str>,
}

/// What is to be sent.
pub(super) struct Task {
    pub(super) delivery: DeliveryRow,
    pub(super) endpoint: EndpointRow,
}

pub(super) enum Taken {
    Task(Box<Task>),
    /// Nothing before then, unless something happens.
    Nothing(Option<Timestamp>),
}

/// What becomes of the turn of an endpoint.
enum Turn {
    Take(Box<Task>),
    Wait(Timestamp),
    Pass,
    /// It has nothing to send, and is forgotten.
    Over,
}

/// How a try ended, for the endpoint's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Worked,
    Failed,
    Cut,
}

impl Dispatch {
    pub(super) fn new(threads: usize) -> Dispatch {
        Dispatch {
            suspects_max: threads.div_ceil(2),
            ..Dispatch::default()
        }
    }

    /// Something of this endpoint may be sent that was not there before.
    pub(super) fn arrived(&mut self, endpoint_id: i64) {
        match self.endpoints.get_mut(&endpoint_id) {
            Some(place) => place.next = Next::Unknown,
            None => {
                let place = Place {
                    next: Next::Unknown,
                    host: None,
                    under_way: 0,
                    breaker: Breaker::default(),
                };
                self.endpoints.insert(endpoint_id, place);
                self.turns.push_back(endpoint_id);
            }
        }
    }

    /// Looks at everything anew.
    pub(super) fn look(&mut self, reader: &dyn OutboxReader) -> Result<()> {
        self.must_look = true;
        for (endpoint_id, _) in reader.waiting()? {
            self.arrived(endpoint_id);
        }
        for place in self.endpoints.values_mut() {
            place.next = Next::Unknown;
        }
        self.must_look = false;
        Ok(())
    }

    /// A try has ended.
    pub(super) fn ended(&mut self, id: DeliveryId, ending: Ending, now: Timestamp) {
        let Some(ended) = self.under_way.get(&id) else {
            return;
        };
        if let Some(host) = self.hosts.get_mut(&ended.host)
            && ending != Ending::Cut
        {
            host.is_suspect = ending == Ending::Failed;
        }
        if let Some(place) = self.endpoints.get_mut(&ended.endpoint_id) {
            match ending {
                Ending::Worked => place.breaker.worked(),
                Ending::Failed => place.breaker.failed(now),
                Ending::Cut => place.breaker.cut(),
            }
        }
    }

    /// What came of it is on disk, or it was cut: it may be taken again, if it is pending still.
    pub(super) fn released(&mut self, id: DeliveryId) {
        let Some(gone) = self.under_way.remove(&id) else {
            return;
        };
        if let Some(host) = self.hosts.get_mut(&gone.host) {
            host.under_way -= 1;
            if host.under_way == 0 && !host.is_suspect {
                self.hosts.remove(&gone.host);
            }
        }
        if self.hosts.len() > SUSPECTS_MAX {
            self.hosts.retain(|_, host| host.under_way > 0);
        }
        if let Some(place) = self.endpoints.get_mut(&gone.endpoint_id) {
            place.under_way -= 1;
            place.next = Next::Unknown;
        }
    }

    /// It was sent, and that cannot be recorded. It is under way no more, and its line is passed over: else it would be sent again
    /// and again.
    pub(super) fn stuck(&mut self, id: DeliveryId) {
        if let Some(stuck) = self.under_way.get(&id) {
            self.stuck.insert((stuck.endpoint_id, stuck.job));
        }
        self.released(id);
    }

    pub(super) fn has_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The next delivery, which counts as under way from now on.
    pub(super) fn take(&mut self, reader: &dyn OutboxReader, now: Timestamp) -> Result<Taken> {
        let mut wake: Option<Timestamp> = None;
        for _ in 0..self.turns.len() {
            let Some(id) = self.turns.pop_front() else {
                break;
            };
            let turn = self.turn(id, reader, now);
            // Also when it could not be read: it would never have a turn again.
            if !matches!(turn, Ok(Turn::Over)) {
                self.turns.push_back(id);
            }
            match turn? {
                Turn::Take(task) => return Ok(Taken::Task(task)),
                Turn::Wait(at) => wake = Some(wake.map_or(at, |other| other.min(at))),
                Turn::Pass | Turn::Over => {}
            }
        }
        Ok(Taken::Nothing(wake))
    }

    fn turn(&mut self, id: i64, reader: &dyn OutboxReader, now: Timestamp) -> Result<Turn> {
        let is_crowded = self.endpoints.len() > PLACES_MAX;
        let Some(place) = self.endpoints.get_mut(&id) else {
            return Ok(Turn::Over);
        };
        if matches!(place.next, Next::Unknown) {
            place.next = reader.next_of(id)?.map_or(Next::Never, Next::At);
        }
        match (place.next, place.breaker.admits(now)) {
            (Next::Never, _) if place.under_way == 0 && (place.breaker.is_new() || is_crowded) => {
                self.endpoints.remove(&id);
                Ok(Turn::Over)
            }
            (Next::Unknown | Next::Never, _) | (_, Err(None)) => Ok(Turn::Pass),
            (Next::At(at), _) if at > now => Ok(Turn::Wait(at)),
            (Next::At(_), Err(Some(at))) => Ok(Turn::Wait(at)),
            (Next::At(_), Ok(())) => {
                let host = place.host.clone();
                if host.is_some_and(|host| self.is_busy(&host)) {
                    return Ok(Turn::Pass);
                }
                self.take_of(id, reader, now)
            }
        }
    }

    fn take_of(&mut self, id: i64, reader: &dyn OutboxReader, now: Timestamp) -> Result<Turn> {
        let Some(place) = self.endpoints.get_mut(&id) else {
            return Ok(Turn::Pass);
        };
        let endpoint = match reader.find_endpoint(id)? {
            // One of jobs cannot be enabled by hand: what waits for it is given up.
            Some(endpoint) if endpoint.is_enabled || endpoint.name.is_none() => endpoint,
            // What waits for it goes when it is enabled.
            Some(_) | None => {
                place.next = Next::Never;
                return Ok(Turn::Pass);
            }
        };
        let more = if self.is_draining { DRAIN_SCAN } else { 2 };
        let stuck = self.stuck.iter().filter(|(stuck, _)| *stuck == id).count();
        let rows = reader.sendable(id, place.under_way + stuck + more)?;
        let is_free = |row: &DeliveryRow| {
            let mut others = self.under_way.values();
            let is_under_way =
                others.any(|other| other.endpoint_id == id && other.job == row.job_id);
            !is_under_way && !self.stuck.contains(&(id, row.job_id))
        };
        let is_wanted = |row: &&DeliveryRow| (!self.is_draining || row.tries == 0) && is_free(row);
        let Some(delivery) = rows.iter().find(is_wanted).cloned() else {
            return Ok(Turn::Pass);
        };
        if let Some(at) = delivery.next_at.filter(|at| *at > now) {
            // What was due before it is under way, or stuck, and may be so for long.
            return Ok(Turn::Wait(at));
        }
        let host: Arc<str> = host_of(&delivery.url).into();
        place.host = Some(host.clone());
        if self.is_busy(&host) {
            return Ok(Turn::Pass);
        }
        self.hosts.entry(host.clone()).or_default().under_way += 1;
        if let Some(place) = self.endpoints.get_mut(&id) {
            place.under_way += 1;
            place.breaker.begin();
        }
        let (endpoint_id, job) = (id, delivery.job_id);
        self.under_way.insert(
            delivery.id,
            UnderWay {
                endpoint_id,
                job,
                host,
            },
        );
        Ok(Turn::Take(Box::new(Task { delivery, endpoint })))
    }

    /// Whether a host gets no try more at present.
    fn is_busy(&self, host: &str) -> bool {
        let Some(host) = self.hosts.get(host) else {
            return false;
        };
        if !host.is_suspect {
            return host.under_way >= HOST_MAX;
        }
        let suspects = self.hosts.values().filter(|host| host.is_suspect);
        let under_way: usize = suspects.map(|host| host.under_way).sum();
        host.under_way >= 1 || under_way >= self.suspects_max
    }
}

/// The part of a URL that names a host and a port, in one spelling. What is no URL is a host of its own.
fn host_of(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let port = if scheme.eq_ignore_ascii_case("https") {
        ":443"
    } else {
        ":80"
    };
    let host = host.to_ascii_lowercase();
    host.strip_suffix(port).map(str::to_owned).unwrap_or(host)
}

#[cfg(test)]
mod tests;
