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
    pub(super) fn look(&mut self, waiting: &[(i64, Timestamp)]) {
        for (endpoint_id, _) in waiting {
            self.arrived(*endpoint_id);
        }
        for place in self.endpoints.values_mut() {
            place.next = Next::Unknown;
        }
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
                let task = self.take_of(id, reader, now)?;
                Ok(task.map_or(Turn::Pass, |task| Turn::Take(Box::new(task))))
            }
        }
    }

    fn take_of(
        &mut self,
        id: i64,
        reader: &dyn OutboxReader,
        now: Timestamp,
    ) -> Result<Option<Task>> {
        let Some(place) = self.endpoints.get_mut(&id) else {
            return Ok(None);
        };
        let endpoint = match reader.find_endpoint(id)? {
            // One of jobs cannot be enabled by hand: what waits for it is given up.
            Some(endpoint) if endpoint.is_enabled || endpoint.name.is_none() => endpoint,
            // What waits for it goes when it is enabled.
            Some(_) | None => {
                place.next = Next::Never;
                return Ok(None);
            }
        };
        let more = if self.is_draining { DRAIN_SCAN } else { 2 };
        let stuck = self.stuck.iter().filter(|(stuck, _)| *stuck == id).count();
        let rows = reader.sendable(id, now, place.under_way + stuck + more)?;
        let is_free = |row: &DeliveryRow| {
            let mut others = self.under_way.values();
            let is_under_way =
                others.any(|other| other.endpoint_id == id && other.job == row.job_id);
            !is_under_way && !self.stuck.contains(&(id, row.job_id))
        };
        let is_wanted = |row: &&DeliveryRow| (!self.is_draining || row.tries == 0) && is_free(row);
        let Some(delivery) = rows.iter().find(is_wanted).cloned() else {
            return Ok(None);
        };
        let host: Arc<str> = host_of(&delivery.url).into();
        place.host = Some(host.clone());
        if self.is_busy(&host) {
            return Ok(None);
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
        Ok(Some(Task { delivery, endpoint }))
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
mod tests {
    use super::*;
    use crate::delivery::{DeliveryStatus, DeliveryTry, EndpointSpec, Kinds};
    use crate::error::{Error, ErrorKind};
    use crate::event::EventKind;
    use crate::store::outbox::DeliveryFilter;
    use crate::sync::Mutex;

    /// An outbox of one pending delivery for each endpoint: its number is the endpoint's, its URL is given.
    struct Outbox {
        urls: Vec<(i64, String)>,
        /// This read fails, and none after it.
        fails: Mutex<usize>,
        reads: Mutex<usize>,
    }

    impl Outbox {
        fn new(urls: impl IntoIterator<Item = String>) -> Outbox {
            Outbox {
                urls: (1..).zip(urls).collect(),
                fails: Mutex::default(),
                reads: Mutex::default(),
            }
        }

        fn read(&self) -> Result<()> {
            let mut reads = self.reads.lock();
            *reads += 1;
            if *self.fails.lock() == *reads {
                return Err(Error::new(ErrorKind::Storage, "on purpose"));
            }
            Ok(())
        }

        fn dispatch(&self, threads: usize) -> Dispatch {
            let mut dispatch = Dispatch::new(threads);
            for (id, _) in &self.urls {
                dispatch.arrived(*id);
            }
            dispatch
        }

        /// Everything that may be sent now, by number.
        fn taken(&self, dispatch: &mut Dispatch) -> Vec<i64> {
            let mut ids = Vec::new();
            while let Ok(Taken::Task(task)) = dispatch.take(self, at(0)) {
                ids.push(task.delivery.id.as_i64());
            }
            ids
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn end(dispatch: &mut Dispatch, id: i64, ending: Ending) {
        dispatch.ended(DeliveryId::from_i64(id), ending, at(0));
        dispatch.released(DeliveryId::from_i64(id));
    }

    impl OutboxReader for Outbox {
        fn all_endpoints(&self) -> Result<Vec<EndpointRow>> {
            Ok(Vec::new())
        }

        fn find_endpoint(&self, id: i64) -> Result<Option<EndpointRow>> {
            self.read()?;
            Ok(Some(EndpointRow {
                id,
                name: None,
                spec: EndpointSpec {
                    url: String::new(),
                    events: Kinds::all(),
                    secrets: Vec::new(),
                },
                is_enabled: true,
                problem: None,
            }))
        }

        fn waiting(&self) -> Result<Vec<(i64, Timestamp)>> {
            Ok(Vec::new())
        }

        fn next_of(&self, _: i64) -> Result<Option<Timestamp>> {
            self.read()?;
            Ok(Some(at(0)))
        }

        fn sendable(&self, id: i64, now: Timestamp, _: usize) -> Result<Vec<DeliveryRow>> {
            self.read()?;
            let urls = self
                .urls
                .iter()
                .filter(|(endpoint_id, _)| *endpoint_id == id);
            let row = |(_, url): &(i64, String)| DeliveryRow {
                id: DeliveryId::from_i64(id),
                endpoint_id: id,
                job_id: JobId::from_i64(id),
                kind: EventKind::Created,
                url: url.clone(),
                body: "{}".into(),
                status: DeliveryStatus::Pending,
                tries: 0,
                next_at: Some(now),
                created_at: now,
                finished_at: None,
                last_status: None,
                last_error: None,
            };
            Ok(urls.map(row).collect())
        }

        fn deliveries(
            &self,
            _: &DeliveryFilter,
            _: Option<DeliveryId>,
            _: usize,
        ) -> Result<(Vec<DeliveryRow>, Option<DeliveryId>)> {
            Ok((Vec::new(), None))
        }

        fn find_delivery(&self, _: DeliveryId) -> Result<Option<(DeliveryRow, Vec<DeliveryTry>)>> {
            Ok(None)
        }
    }

    /// The endpoint whose rows could not be read once had no turn any more, until the process was started again.
    #[test]
    fn an_endpoint_that_could_not_be_read_has_its_turn_again() {
        for fails in 1..=3 {
            let outbox = Outbox::new(["http://a.example/".to_owned()]);
            *outbox.fails.lock() = fails;
            let mut dispatch = outbox.dispatch(4);
            assert!(dispatch.take(&outbox, at(0)).is_err(), "read {fails}");
            assert_eq!(outbox.taken(&mut dispatch), [1], "read {fails}");
        }
    }

    /// With an endpoint of its own for each job no breaker opened: two hosts that never answer held all threads.
    #[test]
    fn hosts_that_have_failed_get_half_of_the_threads() {
        let urls = |host: &str| {
            let host = host.to_owned();
            (0..4).map(move |number| format!("http://{host}.example/{number}"))
        };
        let outbox = Outbox::new(urls("a").chain(urls("b")).chain(urls("c")));
        let mut dispatch = outbox.dispatch(4);
        // Which hosts have something under way.
        let hosts = |dispatch: &mut Dispatch| {
            outbox.taken(dispatch);
            let under_way = dispatch.under_way.values();
            let mut hosts: Vec<_> = under_way.map(|one| one.host[..1].to_owned()).collect();
            hosts.sort();
            hosts.concat()
        };
        let end_all = |dispatch: &mut Dispatch, of: &str, ending| {
            let under_way = dispatch.under_way.iter();
            let ids = under_way.filter(|(_, one)| one.host.starts_with(of));
            for id in ids.map(|(id, _)| id.as_i64()).collect::<Vec<_>>() {
                end(dispatch, id, ending);
            }
        };
        assert_eq!(hosts(&mut dispatch), "aabbcc");
        for (of, ending) in [
            ("a", Ending::Failed),
            ("b", Ending::Failed),
            ("c", Ending::Worked),
        ] {
            end_all(&mut dispatch, of, ending);
        }
        assert_eq!(hosts(&mut dispatch), "abcc", "one for each suspect");
        end_all(&mut dispatch, "c", Ending::Failed);
        assert_eq!(
            hosts(&mut dispatch),
            "ab",
            "half of the threads for all of them"
        );
        end_all(&mut dispatch, "a", Ending::Worked);
        assert_eq!(hosts(&mut dispatch), "aabc", "it is none any more");
        end_all(&mut dispatch, "b", Ending::Cut);
        end_all(&mut dispatch, "c", Ending::Cut);
        assert_eq!(hosts(&mut dispatch), "aabc", "a cut says nothing");
    }

    /// It was under way for ever: two of them, and their host was sent nothing more, nor did a shutdown find an end.
    #[test]
    fn what_cannot_be_recorded_holds_up_no_other() {
        let outbox = Outbox::new((0..3).map(|number| format!("http://a.example/{number}")));
        let mut dispatch = outbox.dispatch(4);
        assert_eq!(outbox.taken(&mut dispatch), [1, 2]);
        for id in [1, 2].map(DeliveryId::from_i64) {
            dispatch.ended(id, Ending::Worked, at(0));
            dispatch.stuck(id);
        }
        assert!(!dispatch.has_under_way());
        assert_eq!(
            outbox.taken(&mut dispatch),
            [3],
            "and they are not sent again"
        );
    }

    #[test]
    fn rows_of_a_host_that_is_busy_are_not_read() {
        let outbox = Outbox::new((0..1000).map(|number| format!("http://a.example/{number}")));
        let mut dispatch = outbox.dispatch(4);
        assert_eq!(outbox.taken(&mut dispatch), [1, 2]);
        let before = *outbox.reads.lock();
        dispatch.take(&outbox, at(0)).map(drop).expect("readable");
        assert_eq!(*outbox.reads.lock(), before);
        end(&mut dispatch, 1, Ending::Worked);
        assert_eq!(outbox.taken(&mut dispatch), [3]);
        let reads = *outbox.reads.lock() - before;
        assert!(reads < 10, "{reads}");
    }

    #[test]
    fn the_hosts_and_endpoints_that_are_remembered_are_bounded() {
        let count = i64::try_from(SUSPECTS_MAX).expect("small") + 10;
        let outbox = Outbox::new((0..count).map(|number| format!("http://h{number}.example/")));
        let mut dispatch = outbox.dispatch(4);
        for _ in 0..count {
            for id in outbox.taken(&mut dispatch) {
                end(&mut dispatch, id, Ending::Failed);
            }
        }
        assert!(
            dispatch.hosts.len() <= SUSPECTS_MAX,
            "{}",
            dispatch.hosts.len()
        );
    }

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
