//! What handlers and the receiver of webhooks write down, and how they behave. Test code.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;

use serde_json::Value;
use shuttle::rand::Rng;

use crate::delivery::{DeliveryId, DeliveryStatus};
use crate::interleave::world::{PHASES, WAIT, result_of};
use crate::job::{JobId, JobStatus};
use crate::outlet::{Office, OpenOutlet, Outlet};
use crate::phase::context::PhaseContext;
use crate::phase::{Phase, PhaseError};
use crate::store::Reader;
use crate::store::outbox::{Attempted, DeliveryFilter, DeliveryRow};
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering, yield_now};
use crate::time::Moment;
use crate::webhook::{self, Letter};

/// How often a handler outlasts a shutdown, which looks a hundred times whether it has returned.
const SLOW: f64 = 0.1;
const OVERSTAYS: usize = 400;
/// Threads that send.
const COURIERS: usize = 2;

pub(super) struct Record {
    pub(super) reader: Arc<dyn Reader>,
    /// Which queue each handler that is inside belongs to.
    inside: Mutex<BTreeMap<JobId, Vec<usize>>>,
    /// Rung when one leaves.
    left: Condvar,
    /// How often a handler of a phase was entered.
    pub(super) starts: Mutex<BTreeMap<(JobId, u32), usize>>,
    /// Two handlers of a job were inside, of a queue and of the one before it.
    pub(super) has_overlap: AtomicBool,
    /// The next handler panics.
    pub(super) panics: AtomicBool,
    /// Some handlers outlast a shutdown.
    pub(super) are_slow: AtomicBool,
    /// The receiver refuses the next delivery.
    pub(super) refuses: AtomicBool,
    /// Somebody has deliveries sent again, before those that wait.
    pub(super) has_resent: AtomicBool,
    /// What reached it: delivery and body.
    pub(super) letters: Mutex<Vec<(DeliveryId, String)>>,
    /// What must never have happened.
    pub(super) broken: Mutex<Vec<String>>,
    /// How many outcomes of deliveries were recorded.
    recorded: Mutex<usize>,
    bell: Condvar,
}

impl Record {
    pub(super) fn new(reader: Arc<dyn Reader>) -> Record {
        Record {
            reader,
            inside: Mutex::default(),
            left: Condvar::new(),
            starts: Mutex::default(),
            has_overlap: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            are_slow: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            has_resent: AtomicBool::new(false),
            letters: Mutex::default(),
            broken: Mutex::default(),
            recorded: Mutex::default(),
            bell: Condvar::new(),
        }
    }

    fn enter(&self, id: JobId, queue: usize) {
        let mut inside = self.inside.lock();
        let others = inside.entry(id).or_default();
        assert!(!others.contains(&queue), "two handlers of job {id}");
        if !others.is_empty() {
            self.has_overlap.store(true, Ordering::SeqCst);
        }
        others.push(queue);
    }

    fn leave(&self, id: JobId, queue: usize) {
        let mut inside = self.inside.lock();
        inside
            .entry(id)
            .or_default()
            .retain(|other| *other != queue);
        self.left.notify_all();
    }

    /// Every handler returns, although nobody ends the queue.
    pub(super) fn wait_for_handlers(&self) {
        let mut inside = self.inside.lock();
        while inside.values().any(|queues| !queues.is_empty()) {
            self.left.wait(&mut inside);
        }
    }

    /// The handler of both phases.
    pub(super) fn handler(
        self: &Arc<Record>,
        queue: usize,
    ) -> impl Fn(&PhaseContext<Value>) -> Result<i64, PhaseError> + Send + Sync + use<> {
        let record = self.clone();
        move |cx| {
            let id = cx.job_id();
            record.enter(id, queue);
            let phase_index = u32::from(cx.phase() == PHASES[1]);
            *record.starts.lock().entry((id, phase_index)).or_default() += 1;
            if phase_index == 1 {
                let before: i64 = cx.get(Phase::new(PHASES[0]))?;
                assert_eq!(before, result_of(id, 0), "as it was saved");
            }
            for _ in 0..record.patience() {
                yield_now();
            }
            record.wait_to_be_told(cx);
            let panics = record.panics.swap(false, Ordering::SeqCst);
            record.leave(id, queue);
            if panics {
                // Without the hook, which would tell shuttle that the run has failed.
                resume_unwind(Box::new("on purpose"));
            }
            Ok(result_of(id, phase_index))
        }
    }

    /// How long a handler takes.
    fn patience(&self) -> usize {
        let is_slow = self.are_slow.load(Ordering::SeqCst);
        if is_slow && shuttle::rand::thread_rng().gen_bool(SLOW) {
            OVERSTAYS
        } else {
            3
        }
    }

    /// Whoever ended the claim has the handler told. If nobody does it waits for ever, and shuttle says so.
    fn wait_to_be_told(&self, cx: &PhaseContext<Value>) {
        let claim = self.reader.claim(cx.job_id()).expect("readable");
        if claim != Some((JobStatus::Running, cx.epoch())) {
            cx.sleep(WAIT).ok();
        }
    }

    /// The courier, and a receiver that takes everything but what it is to refuse.
    pub(super) fn outlet(self: &Arc<Record>) -> OpenOutlet {
        let record = self.clone();
        let open = webhook::outlet(COURIERS, move |letter| record.receive(letter));
        let record = self.clone();
        Box::new(move |office: Office| {
            let inner = open(office);
            Arc::new(Watched { inner, record }) as Arc<dyn Outlet>
        })
    }

    fn receive(&self, letter: &Letter<'_>) -> u16 {
        let number = letter.webhook_id.rsplit('_').next();
        let id = number.and_then(|number| number.parse().ok());
        let id: DeliveryId = id.expect("it ends with the number of the delivery");
        let rows = self.deliveries();
        // One that is cut off here is of a queue that has let the store go, and another may have sent it since.
        if !(letter.is_cut)() {
            let status = rows.iter().find(|row| row.id == id).map(|row| row.status);
            if status != Some(DeliveryStatus::Pending) {
                let problem = format!("delivery {id} is sent, and is {status:?}");
                self.broken.lock().push(problem);
            }
            let waits = |row: &&DeliveryRow| row.id < id && row.status == DeliveryStatus::Pending;
            if rows.iter().any(|row| waits(&row)) && !self.has_resent.load(Ordering::SeqCst) {
                let problem = format!("delivery {id} is sent, and one before it has not ended");
                self.broken.lock().push(problem);
            }
        }
        self.letters.lock().push((id, letter.body.to_owned()));
        yield_now();
        if self.refuses.swap(false, Ordering::SeqCst) {
            return 500;
        }
        200
    }

    /// All of them, newest first.
    pub(super) fn deliveries(&self) -> Vec<DeliveryRow> {
        let filter = DeliveryFilter::default();
        let found = self.reader.deliveries(&filter, None, 1000);
        found.expect("readable").0
    }

    /// Every delivery ends, by itself. If one does not, shuttle says so.
    pub(super) fn wait_for_deliveries(&self) {
        loop {
            let before = *self.recorded.lock();
            let rows = self.deliveries();
            if rows.iter().all(|row| row.status != DeliveryStatus::Pending) {
                return;
            }
            let mut recorded = self.recorded.lock();
            while *recorded == before {
                self.bell.wait(&mut recorded);
            }
        }
    }
}

/// The courier; who waits for the end of deliveries hears of each.
struct Watched {
    inner: Arc<dyn Outlet>,
    record: Arc<Record>,
}

impl Outlet for Watched {
    fn arrived(&self, endpoints: &[i64]) {
        self.inner.arrived(endpoints);
    }

    fn recorded(&self, attempted: &Attempted) {
        self.inner.recorded(attempted);
        *self.record.recorded.lock() += 1;
        self.record.bell.notify_all();
    }

    fn not_recorded(&self, attempted: &Attempted) {
        self.inner.not_recorded(attempted);
        let problem = format!("delivery {}: its outcome is refused", attempted.id);
        self.record.broken.lock().push(problem);
    }

    fn look(&self) {
        self.inner.look();
    }

    fn again(&self) -> Option<Moment> {
        self.inner.again()
    }

    fn drain(&self) {
        self.inner.drain();
    }

    fn is_drained(&self) -> bool {
        self.inner.is_drained()
    }

    fn close(&self, patience: std::time::Duration) {
        self.inner.close(patience);
    }
}
