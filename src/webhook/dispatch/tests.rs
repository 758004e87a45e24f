//! Whose turn it is, over an outbox of the tests' own.

use super::*;
use crate::delivery::{DeliveryStatus, DeliveryTry, EndpointSpec, Kinds};
use crate::error::{Error, ErrorKind};
use crate::event::EventKind;
use crate::store::outbox::DeliveryFilter;
use crate::sync::Mutex;

/// An outbox of one pending delivery for each endpoint: its number is the endpoint's, its URL is given.
struct Outbox {
    urls: Vec<(i64, String)>,
    /// More of them: of which endpoint, their own number, and from when on.
    later: Vec<(i64, i64, Timestamp)>,
    /// This read fails, and none after it.
    fails: Mutex<usize>,
    reads: Mutex<usize>,
}

impl Outbox {
    fn new(urls: impl IntoIterator<Item = String>) -> Outbox {
        Outbox {
            urls: (1..).zip(urls).collect(),
            later: Vec::new(),
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
        self.read()?;
        Ok(self.urls.iter().map(|(id, _)| (*id, at(0))).collect())
    }

    fn next_of(&self, _: i64) -> Result<Option<Timestamp>> {
        self.read()?;
        Ok(Some(at(0)))
    }

    fn sendable(&self, id: i64, _: usize) -> Result<Vec<DeliveryRow>> {
        self.read()?;
        let urls = self
            .urls
            .iter()
            .filter(|(endpoint_id, _)| *endpoint_id == id);
        let later = (self.later.iter()).filter(|(endpoint_id, ..)| *endpoint_id == id);
        let later = later.map(|(_, number, at)| (*number, "http://a.example/", *at));
        let row = |(number, url, next_at): (i64, &str, Timestamp)| DeliveryRow {
            id: DeliveryId::from_i64(number),
            endpoint_id: id,
            job_id: JobId::from_i64(number),
            kind: EventKind::Created,
            url: url.to_owned(),
            body: "{}".into(),
            status: DeliveryStatus::Pending,
            tries: 0,
            next_at: Some(next_at),
            created_at: at(0),
            finished_at: None,
            last_status: None,
            last_error: None,
        };
        let urls = urls.map(|(number, url)| (*number, &**url, at(0)));
        Ok(urls.chain(later).map(row).collect())
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

/// What a client had enqueued was not sent until something else happened.
#[test]
fn a_look_that_failed_is_not_forgotten() {
    let outbox = Outbox::new(["http://a.example/".to_owned()]);
    *outbox.fails.lock() = 1;
    let mut dispatch = Dispatch::new(4);
    assert!(dispatch.look(&outbox).is_err() && dispatch.must_look);
    assert!(outbox.taken(&mut dispatch).is_empty());
    assert!(dispatch.look(&outbox).is_ok() && !dispatch.must_look);
    assert_eq!(outbox.taken(&mut dispatch), [1]);
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

/// With one under way or stuck that had been due before, nobody woke up for the next: a retry waited for other news.
#[test]
fn what_is_due_later_is_waited_for_while_something_is_under_way() {
    let mut outbox = Outbox::new(["http://a.example/".to_owned()]);
    outbox.later.push((1, 2, at(5)));
    let mut dispatch = outbox.dispatch(4);
    assert_eq!(outbox.taken(&mut dispatch), [1]);
    let is_at_five = |taken| matches!(taken, Ok(Taken::Nothing(Some(wake))) if wake == at(5));
    assert!(is_at_five(dispatch.take(&outbox, at(1))), "under way");
    dispatch.ended(DeliveryId::from_i64(1), Ending::Worked, at(1));
    dispatch.stuck(DeliveryId::from_i64(1));
    assert!(is_at_five(dispatch.take(&outbox, at(1))), "stuck");
    let taken = dispatch.take(&outbox, at(5)).expect("readable");
    assert!(matches!(taken, Taken::Task(task) if task.delivery.id.as_i64() == 2));
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
