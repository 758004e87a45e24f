//! The threads that send deliveries. L3.
//!
//! They are started when there is something to send for the first time. One of those that are free holds the dispatch and waits for
//! the next delivery; it takes it, lets another one hold the dispatch, and sends. So only one thread ever waits for a
//! time, and an idle outbox costs nothing.
//!
//! The engine never waits for a thread here: what it has to say goes into the inbox, which is held for moments only.
//!
//! | step | on disk | in the dispatch |
//! |---|---|---|
//! | taken | pending | under way |
//! | sent | pending | under way; the breaker knows |
//! | recorded, in a commit | delivered, failed, or pending at a later time | free again |
//! | cut off by the shutdown | pending | free again: no try is charged |
//! | the process dies | pending: it is sent again, under the same id | |

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::delivery::{DeliveryId, shown_url};
use crate::error::Result;
use crate::outlet::{Office, Outlet, START_AGAIN};
use crate::store::outbox::{Attempted, Verdict};
use crate::sync::{Condvar, JoinHandle, Mutex, pause, spawn};
use crate::time::{Moment, RECHECK, Timestamp, monotonic};
use crate::webhook::dispatch::{Dispatch, Ending, Taken, Task};
use crate::webhook::schedule::Schedule;
use crate::webhook::sender::{Carrier, Post, Sent};

/// After the outbox could not be read.
const READ_PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Courier {
    office: Office,
    sender: Box<dyn Carrier>,
    schedule: Schedule,
    threads_max: usize,
    inbox: Mutex<Inbox>,
    bell: Condvar,
    dispatch: Mutex<Dispatch>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    me: Weak<Courier>,
}

/// What the one who holds the dispatch is to hear.
#[derive(Default)]
struct Inbox {
    arrived: Vec<i64>,
    ended: Vec<(DeliveryId, Ending)>,
    released: Vec<DeliveryId>,
    stuck: Vec<DeliveryId>,
    look: bool,
    is_draining: bool,
    is_closed: bool,
    /// There are threads.
    is_started: bool,
    /// There could be none: when that is tried again.
    again: Option<Moment>,
    /// Nothing is under way, nothing can be taken now, and nothing has been said since.
    is_resting: bool,
}

impl Inbox {
    fn has_news(&self) -> bool {
        let is_empty = self.arrived.is_empty() && self.ended.is_empty();
        self.look || !(is_empty && self.released.is_empty() && self.stuck.is_empty())
    }
}

impl Courier {
    pub(crate) fn new(
        office: Office,
        sender: Box<dyn Carrier>,
        schedule: Schedule,
        threads_max: usize,
    ) -> Arc<Courier> {
        Arc::new_cyclic(|me| Courier {
            office,
            sender,
            schedule,
            threads_max,
            inbox: Mutex::default(),
            bell: Condvar::default(),
            dispatch: Mutex::new(Dispatch::new(threads_max)),
            threads: Mutex::default(),
            me: me.clone(),
        })
    }

    fn tell(&self, say: impl FnOnce(&mut Inbox)) {
        let mut inbox = self.inbox.lock();
        say(&mut inbox);
        inbox.is_resting = false;
        let is_first = !inbox.is_started && !inbox.is_closed && inbox.has_news();
        if is_first {
            (inbox.is_started, inbox.again) = (true, None);
        }
        drop(inbox);
        self.bell.notify_one();
        if is_first && let Err(error) = self.start() {
            log::error!("a thread that sends webhooks cannot be started: {error}");
            if self.threads.lock().is_empty() {
                let again = self.office.clock.moment().after(START_AGAIN);
                let mut inbox = self.inbox.lock();
                (inbox.is_started, inbox.again) = (false, Some(again));
            }
        }
    }

    fn start(&self) -> Result<()> {
        for _ in 0..self.threads_max {
            let Some(me) = self.me.upgrade() else { break };
            let thread = spawn("stepwell-webhook", move || me.run())?;
            self.threads.lock().push(thread);
        }
        Ok(())
    }

    /// A thread.
    fn run(&self) {
        while let Some(task) = self.next() {
            let id = task.delivery.id;
            if catch_unwind(AssertUnwindSafe(|| self.send(&task))).is_err() {
                log::error!("delivery {id}: a bug of stepwell ended its try; it stays pending");
                self.tell(|inbox| {
                    inbox.ended.push((id, Ending::Failed));
                    inbox.released.push(id);
                });
            }
        }
    }

    /// Waits for something to send; nothing at the end.
    fn next(&self) -> Option<Box<Task>> {
        let mut dispatch = self.dispatch.lock();
        loop {
            if !self.hear(&mut dispatch) {
                return None;
            }
            let now = self.office.clock.now();
            let again = now.after(READ_PAUSE);
            let wake = match dispatch.take(&*self.office.reader, now) {
                Ok(Taken::Task(task)) => return Some(task),
                Ok(Taken::Nothing(wake)) if dispatch.must_look => {
                    wake.min(Some(again)).or(Some(again))
                }
                Ok(Taken::Nothing(wake)) => wake,
                Err(error) => {
                    log::warn!("the outbox cannot be read, this is tried again: {error}");
                    Some(again)
                }
            };
            self.wait(&dispatch, wake, now);
        }
    }

    /// Takes in what was said; false at the end.
    fn hear(&self, dispatch: &mut Dispatch) -> bool {
        let mut inbox = self.inbox.lock();
        if inbox.is_closed {
            return false;
        }
        dispatch.is_draining = inbox.is_draining;
        let now = self.office.clock.now();
        for (id, ending) in inbox.ended.drain(..) {
            dispatch.ended(id, ending, now);
        }
        for endpoint_id in inbox.arrived.drain(..) {
            dispatch.arrived(endpoint_id);
        }
        for id in inbox.released.drain(..) {
            dispatch.released(id);
        }
        for id in inbox.stuck.drain(..) {
            dispatch.stuck(id);
        }
        let look = std::mem::take(&mut inbox.look) || dispatch.must_look;
        drop(inbox);
        if look && let Err(error) = dispatch.look(&*self.office.reader) {
            log::warn!("the outbox cannot be read, this is tried again: {error}");
        }
        true
    }

    /// Until `wake`, or until something is said.
    fn wait(&self, dispatch: &Dispatch, wake: Option<Timestamp>, now: Timestamp) {
        let mut inbox = self.inbox.lock();
        if inbox.has_news() || inbox.is_closed || inbox.is_draining != dispatch.is_draining {
            return;
        }
        inbox.is_resting = !dispatch.has_under_way();
        let clock = &self.office.clock;
        match wake.and_then(|at| clock.sleep_for(at.since(now), RECHECK)) {
            Some(time) => drop(self.bell.wait_for(&mut inbox, time)),
            None => self.bell.wait(&mut inbox),
        }
    }

    fn send(&self, task: &Task) {
        let (delivery, endpoint) = (&task.delivery, &task.endpoint);
        if !endpoint.is_enabled {
            return self.give_up(task);
        }
        let (at, started) = (self.office.clock.now(), monotonic());
        let id = delivery.id;
        let sent = self.sender.send(&Post {
            url: &delivery.url,
            webhook_id: &id.webhook_id(&self.office.file_id),
            secrets: &endpoint.spec.secrets,
            body: &delivery.body,
            at: self.office.clock.wall(),
        });
        let took = started.elapsed();
        let now = self.office.clock.now();
        let failed = delivery.tries.saturating_add(1);
        let again = |asked| {
            let seed = id.as_i64().unsigned_abs();
            let delay = self.schedule.next_delay(failed, asked, seed);
            delay.map_or(Verdict::GiveUp, |delay| Verdict::RetryAt(now.after(delay)))
        };
        let (verdict, status, error, answer) = match sent {
            Sent::Cut => {
                self.tell(|inbox| {
                    inbox.ended.push((id, Ending::Cut));
                    inbox.released.push(id);
                });
                return;
            }
            Sent::Answered {
                status,
                answer,
                retry_after,
            } => {
                let verdict = match status {
                    200..=299 => Verdict::Delivered,
                    410 => Verdict::Gone,
                    _ => again(retry_after),
                };
                let error = (verdict != Verdict::Delivered).then(|| format!("status {status}"));
                (verdict, Some(status), error, Some(answer))
            }
            Sent::Failed(error) => (again(None), None, Some(error), None),
            Sent::Refused(error) => (Verdict::GiveUp, None, Some(error), None),
        };
        if let (Some(error), Verdict::GiveUp | Verdict::Gone) = (&error, verdict) {
            log::warn!(
                "delivery {id} to {} is given up: {error}",
                shown_url(&delivery.url)
            );
        }
        let ending = if verdict == Verdict::Delivered {
            Ending::Worked
        } else {
            Ending::Failed
        };
        self.tell(|inbox| inbox.ended.push((id, ending)));
        (self.office.post)(Attempted {
            id,
            due: delivery.next_at,
            at,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            status,
            error,
            answer: answer.filter(|answer| !answer.is_empty()),
            verdict,
        });
    }
}

impl Courier {
    /// Its endpoint has said 410 to another delivery, and wants no more.
    fn give_up(&self, task: &Task) {
        let id = task.delivery.id;
        let problem = task.endpoint.problem.as_deref().unwrap_or_default();
        let error = format!("not sent, its endpoint is disabled: {problem}");
        log::warn!("delivery {id} is given up: {error}");
        self.tell(|inbox| inbox.ended.push((id, Ending::Cut)));
        (self.office.post)(Attempted {
            id,
            due: task.delivery.next_at,
            at: self.office.clock.now(),
            took_ms: 0,
            status: None,
            error: Some(error),
            answer: None,
            verdict: Verdict::Unwanted,
        });
    }
}

impl Outlet for Courier {
    fn arrived(&self, endpoints: &[i64]) {
        self.tell(|inbox| inbox.arrived.extend_from_slice(endpoints));
    }

    fn recorded(&self, attempted: &Attempted) {
        self.tell(|inbox| inbox.released.push(attempted.id));
    }

    fn not_recorded(&self, attempted: &Attempted) {
        self.tell(|inbox| inbox.stuck.push(attempted.id));
    }

    fn look(&self) {
        let is_awaited = {
            let inbox = self.inbox.lock();
            inbox.is_started || inbox.again.is_some()
        };
        // What cannot be read may be there.
        let has_some = || {
            let waiting = self.office.reader.waiting();
            waiting.map_or(true, |waiting| !waiting.is_empty())
        };
        if is_awaited || has_some() {
            self.tell(|inbox| inbox.look = true);
        }
    }

    fn again(&self) -> Option<Moment> {
        self.inbox.lock().again
    }

    fn drain(&self) {
        self.tell(|inbox| inbox.is_draining = true);
    }

    fn is_drained(&self) -> bool {
        let inbox = self.inbox.lock();
        inbox.is_resting || !inbox.is_started
    }

    fn close(&self, patience: Duration) {
        self.tell(|inbox| inbox.is_closed = true);
        self.bell.notify_all();
        self.sender.cut();
        let threads = std::mem::take(&mut *self.threads.lock());
        let started = monotonic();
        while started.elapsed() < patience && threads.iter().any(|thread| !thread.is_finished()) {
            pause(Duration::from_millis(1));
        }
        for thread in threads.into_iter().filter(JoinHandle::is_finished) {
            if thread.join().is_err() {
                log::error!("a thread that sends webhooks ended by a panic");
            }
        }
    }
}
