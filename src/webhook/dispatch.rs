//! Which delivery is sent next. L3; reads the outbox, and decides nothing else.
//!
//! Of each endpoint that has something to send only the time of its first delivery is known here; the rows stay in the file. An
//! endpoint is passed over while its time has not come, its breaker is open, or its host has [`HOST_MAX`] tries under
//! way. The endpoints take turns, so that one with a hundred thousand deliveries delays no other.

use std::collections::{HashMap, VecDeque};

use crate::delivery::DeliveryId;
use crate::error::Result;
use crate::job::JobId;
use crate::store::Reader;
use crate::store::outbox::{DeliveryRow, EndpointRow};
use crate::time::Timestamp;
use crate::webhook::breaker::Breaker;

/// Tries to one host at a time.
const HOST_MAX: usize = 2;
/// Rows that are looked at for one that was never tried.
const DRAIN_SCAN: usize = 64;

#[derive(Default)]
pub(super) struct Dispatch {
    endpoints: HashMap<i64, Place>,
    /// Whose turn it is. Each endpoint is here once.
    turns: VecDeque<i64>,
    under_way: HashMap<DeliveryId, UnderWay>,
    hosts: HashMap<String, usize>,
    /// Only what was never tried is taken.
    pub(super) is_draining: bool,
}

struct Place {
    next: Next,
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
    host: String,
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

/// How a try ended, for the endpoint's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Worked,
    Failed,
    Cut,
}

impl Dispatch {
    /// Something of this endpoint may be sent that was not there before.
    pub(super) fn arrived(&mut self, endpoint_id: i64) {
        match self.endpoints.get_mut(&endpoint_id) {
            Some(place) => place.next = Next::Unknown,
            None => {
                let place = Place {
                    next: Next::Unknown,
                    under_way: 0,
                    breaker: Breaker::default(),
                };
                self.endpoints.insert(endpoint_id, place);
                self.turns.push_back(endpoint_id);
            }
        }
    }

    /// Looks at everything anew.
    pub(super) fn look(&mut self, waiting: &[(i64, Timestamp)]) {
        for (endpoint_id, _) in waiting {
            self.arrived(*endpoint_id);
        }
        for place in self.endpoints.values_mut() {
            place.next = Next::Unknown;
        }
    }

    /// A try has ended.
    pub(super) fn ended(&mut self, endpoint_id: i64, ending: Ending, now: Timestamp) {
        if let Some(place) = self.endpoints.get_mut(&endpoint_id) {
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
        if let Some(count) = self.hosts.get_mut(&gone.host) {
            *count -= 1;
            if *count == 0 {
                self.hosts.remove(&gone.host);
            }
        }
        if let Some(place) = self.endpoints.get_mut(&gone.endpoint_id) {
            place.under_way -= 1;
            place.next = Next::Unknown;
        }
    }

    pub(super) fn has_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The next delivery, which counts as under way from now on.
    pub(super) fn take(&mut self, reader: &dyn Reader, now: Timestamp) -> Result<Taken> {
        let mut wake: Option<Timestamp> = None;
        let mut not_before =
            |at: Timestamp| wake = Some(wake.map_or(at, |other: Timestamp| other.min(at)));
        for _ in 0..self.turns.len() {
            let Some(id) = self.turns.pop_front() else {
                break;
            };
            let Some(place) = self.endpoints.get_mut(&id) else {
                continue;
            };
            if matches!(place.next, Next::Unknown) {
                place.next = reader.next_of(id)?.map_or(Next::Never, Next::At);
            }
            match (place.next, place.breaker.admits(now)) {
                (Next::Never, _) if place.under_way == 0 && place.breaker.is_new() => {
                    self.endpoints.remove(&id);
                    continue;
                }
                (Next::Unknown | Next::Never, _) | (_, Err(None)) => {}
                (Next::At(at), _) if at > now => not_before(at),
                (Next::At(_), Err(Some(at))) => not_before(at),
                (Next::At(_), Ok(())) => {
                    if let Some(task) = self.take_of(id, reader, now)? {
                        self.turns.push_back(id);
                        return Ok(Taken::Task(Box::new(task)));
                    }
                }
            }
            self.turns.push_back(id);
        }
        Ok(Taken::Nothing(wake))
    }

    fn take_of(&mut self, id: i64, reader: &dyn Reader, now: Timestamp) -> Result<Option<Task>> {
        let Some(place) = self.endpoints.get_mut(&id) else {
            return Ok(None);
        };
        let endpoint = match reader.find_endpoint(id)? {
            Some(endpoint) if endpoint.is_enabled => endpoint,
            // What waits for it goes when it is enabled.
            Some(_) | None => {
                place.next = Next::Never;
                return Ok(None);
            }
        };
        let more = if self.is_draining { DRAIN_SCAN } else { 2 };
        let rows = reader.sendable(id, now, place.under_way + more)?;
        let is_free = |row: &DeliveryRow| {
            let mut others = self.under_way.values();
            !others.any(|other| other.endpoint_id == id && other.job == row.job_id)
        };
        let is_wanted = |row: &&DeliveryRow| (!self.is_draining || row.tries == 0) && is_free(row);
        let Some(delivery) = rows.iter().find(is_wanted).cloned() else {
            return Ok(None);
        };
        let host = host_of(&delivery.url);
        let count = self.hosts.entry(host.clone()).or_insert(0);
        if *count >= HOST_MAX {
            return Ok(None);
        }
        *count += 1;
        place.under_way += 1;
        place.breaker.begin();
        let (endpoint_id, job) = (id, delivery.job_id);
        self.under_way.insert(
            delivery.id,
            UnderWay {
                endpoint_id,
                job,
                host,
            },
        );
        Ok(Some(Task { delivery, endpoint }))
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
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_same_in_any_spelling() {
        for url in [
            "http://A.example/x",
            "http://a.example:80",
            "HTTP://a.EXAMPLE?x",
            "https://a.example:443/#y",
        ] {
            assert_eq!(host_of(url), "a.example", "{url}");
        }
        assert_eq!(host_of("http://a.example:443/"), "a.example:443");
    }
}
