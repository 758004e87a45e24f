//! Who waits, and who wakes them. Waits have no limit here: loom reports a thread that nobody wakes.
//!
//! The store is one atomic for each job: what is committed is published, and no more order is taken for granted than that.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use crate::bus::{Bus, Heard};
use crate::error::{Error, ErrorKind};
use crate::job::JobId;
use crate::latch::Latch;
use crate::store::Done;
use crate::ticket::{Promise, Ticket};
use crate::time::monotonic;

const WAIT: Duration = Duration::from_secs(1);

/// A job that ends, and who waits for it.
#[derive(Clone)]
struct Job {
    id: JobId,
    bus: Arc<Bus>,
    is_over: Arc<AtomicBool>,
}

impl Job {
    fn new(bus: &Arc<Bus>, id: i64) -> Job {
        Job {
            id: JobId(id),
            bus: bus.clone(),
            is_over: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Commits its end, and tells it.
    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.bus.is_over(self.id);
    }

    fn wait(&self) {
        let is_over = || Ok::<_, Infallible>(self.is_over.load(Ordering::Acquire));
        self.bus.wait_over(self.id, WAIT, is_over).expect("read");
    }
}

/// The tests with three threads look at all orders with so many changes of the thread that were not called for.
fn with_three_threads(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

#[test]
fn who_waits_for_a_job_is_woken_by_its_end() {
    loom::model(|| {
        let job = Job::new(&Arc::default(), 1);
        let ended = job.clone();
        let ending = thread::spawn(move || ended.end());
        job.wait();
        ending.join().expect("it ends");
    });
}

/// The end of the one clears the flag for both, if nobody else is there.
#[test]
fn who_waits_for_a_job_is_woken_although_another_one_ends() {
    with_three_threads(|| {
        let bus = Arc::default();
        let (one, other) = (Job::new(&bus, 1), Job::new(&bus, 2));
        let waiting = {
            let one = one.clone();
            thread::spawn(move || one.wait())
        };
        let ending = {
            let other = other.clone();
            thread::spawn(move || {
                one.end();
                other.end();
            })
        };
        other.wait();
        waiting.join().expect("it ends");
        ending.join().expect("it ends");
    });
}

/// Another process has ended the job and rung: what is waited for is looked up.
#[test]
fn who_waits_for_a_job_is_found_by_who_hears_of_its_end() {
    loom::model(|| {
        let job = Job::new(&Arc::default(), 1);
        let ended = job.clone();
        let ending = thread::spawn(move || {
            ended.is_over.store(true, Ordering::Release);
            for id in ended.bus.waited_for() {
                ended.bus.is_over(id);
            }
        });
        job.wait();
        ending.join().expect("it ends");
    });
}

#[test]
fn who_waits_for_a_job_is_sent_back_at_the_end_of_the_queue() {
    loom::model(|| {
        let job = Job::new(&Arc::default(), 1);
        let bus = job.bus.clone();
        let closing = thread::spawn(move || bus.close());
        job.wait();
        closing.join().expect("it ends");
    });
}

#[test]
fn who_listens_hears_what_was_published_and_then_the_end() {
    loom::model(|| {
        let bus = Arc::new(Bus::default());
        let published = bus.clone();
        let publishing = thread::spawn(move || {
            published.ring(1);
            published.close();
        });
        assert_eq!(bus.wait(0, 0, None), Heard::More);
        assert_eq!(bus.wait(1, 0, None), Heard::Closed);
        publishing.join().expect("it ends");
    });
}

#[test]
fn who_called_gets_the_answer() {
    loom::model(|| {
        let ticket = Arc::new(Ticket::default());
        let promise = Promise::new(&ticket);
        let leading = thread::spawn(move || promise.keep(Ok(Done::Nothing)));
        assert_eq!(ticket.wait(), Ok(Done::Nothing));
        leading.join().expect("it ends");
    });
}

#[test]
fn who_called_gets_an_answer_from_a_promise_that_is_dropped() {
    loom::model(|| {
        let ticket = Arc::new(Ticket::default());
        let promise = Promise::new(&ticket);
        let leading = thread::spawn(move || drop(promise));
        assert_eq!(ticket.wait(), Err(Error(ErrorKind::Closed)));
        leading.join().expect("it ends");
    });
}

#[test]
fn one_of_those_who_ask_for_the_end_brings_it_about_and_all_hear_of_it() {
    with_three_threads(|| {
        let latch = Arc::new(Latch::default());
        let ask = |name: u8| {
            let latch = latch.clone();
            move || {
                let deadline = monotonic() + Duration::from_secs(3600);
                let is_first = latch.ask(deadline);
                if is_first {
                    latch.close(name);
                }
                (is_first, latch.wait_until(deadline, WAIT))
            }
        };
        let other = thread::spawn(ask(1));
        let waiting = {
            let latch = latch.clone();
            thread::spawn(move || latch.wait())
        };
        let (is_first, seen) = ask(2)();
        let (is_other_first, other_seen) = other.join().expect("it ends");
        assert!(is_first != is_other_first, "one brings it about");
        let name = if is_first { 2 } else { 1 };
        assert_eq!((seen, other_seen), (Some(name), Some(name)));
        assert_eq!(waiting.join().expect("it ends"), name);
    });
}
