//! Random histories: the same operations against the plain model and against the file, and after each commit everything that can be
//! seen of both is compared. Test code.
//!
//! What it would catch: a query of the file that disagrees with the obvious one, an index that is read in another order, a row
//! that a rolled back commit left behind, a link in the log that leads elsewhere. `STEPWELL_SEED=n` repeats one history.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Keep, Retention};
use crate::delivery::{DeliveryId, DeliveryStatus, DeliveryTry, EndpointSpec, Kinds};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{EventKind, Plan, Seq};
use crate::job::{BulkAction, ErrorCause, InterruptionReason, Job, JobId, JobStatus, RetryFrom};
use crate::new_job::{NewJob, While};
use crate::store::conformance::{Bench, START, new_job, plan, settle};
use crate::store::ops::{Bulk, ClaimRequest, Fault, Op, PlannedJob, Prune, Recover, Release};
use crate::store::outbox::{
    Attempted, DeliveryFilter, DeliveryRow, EndpointRow, Mail, Verdict as Outcome, Which,
};
use crate::store::seam::{self, Committed};
use crate::store::{Failure, Filter, Head, Position, ops};
use crate::time::Timestamp;
use crate::transition::{Edge, Entered, Input, JobRow, Tries, Verdict};

const SEQUENCES: u64 = 300;
const OPS: usize = 60;
const PLANS: [&str; 6] = ["a", "a b", "a b c", "a:2 b c", "x a b", "b c d e"];
const TYPES: [&str; 5] = ["import", "import", "limited", "planned", "stray"];

#[test]
fn the_file_and_the_plain_model_agree_on_random_histories() {
    sequences(0);
}

#[test]
fn the_file_and_the_plain_model_agree_on_other_random_histories() {
    sequences(1);
}

/// Every second sequence, so that two threads share them. `STEPWELL_SEED` repeats one, `STEPWELL_SEQUENCES` says how many.
fn sequences(first: u64) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("STEPWELL_SEED") {
        Some(seed) => sequence(seed),
        None => {
            let end = number("STEPWELL_SEQUENCES").unwrap_or(SEQUENCES);
            (first..end).step_by(2).for_each(sequence);
        }
    }
}

/// splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn number(&mut self, n: u32) -> u32 {
        u32::try_from(self.below(u64::from(n))).expect("less than n")
    }

    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).expect("less than n")
    }

    /// True once in `n` times.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    fn ms(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.below(most))
    }
}

/// Names the history when it ends in a panic.
struct OnPanic(u64);

impl Drop for OnPanic {
    #[allow(
        clippy::print_stderr,
        reason = "a test that fails says how to repeat it"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with STEPWELL_SEED={}", self.0);
        }
    }
}

fn sequence(seed: u64) {
    let _named = OnPanic(seed);
    let mut rng = Rng(seed);
    let (mut model, mut file) = (Bench::in_memory(), Bench::in_a_file());
    if rng.one_in(5) {
        // A board without a battery: the clock is not set yet.
        (model.now, file.now) = (Timestamp::from_millis(9000), Timestamp::from_millis(9000));
    }
    register(&mut rng, &mut model, &mut file);
    let mut done = 0;
    while done < OPS {
        let (rows, since) = (rows(&model), model.head.seq);
        let count = 1 + rng.index(3);
        let ops: Vec<Op> = (0..count)
            .map(|_| op(&mut rng, &model, &rows, model.now))
            .collect();
        let request = request(&mut rng, &model, &rows);
        done += ops.len();
        let (said, written) = if rng.one_in(12) {
            (
                fail(&mut model, &ops, &request),
                fail(&mut file, &ops, &request),
            )
        } else {
            (model.commit(&ops, &request), file.commit(&ops, &request))
        };
        let (said, written) = (format!("{said:?}"), format!("{written:?}"));
        assert_eq!(said, written, "{ops:#?}\n{request:#?}");
        compare(&model, &file, since, || format!("{ops:#?}\n{request:#?}"));
        if rng.one_in(15) {
            register(&mut rng, &mut model, &mut file);
        }
        let step = match rng.below(10) {
            0 => Duration::ZERO,
            1 => rng.ms(100_000),
            _ => rng.ms(2000),
        };
        model.later(step);
        if rng.one_in(40) {
            model.now = model.now.max(START);
        }
        file.now = model.now;
    }
    compare(&model, &file, 0, String::new);
}

/// Compares every job, every event after `since`, the counts and the lists.
fn compare(model: &Bench, file: &Bench, since: Seq, context: impl Fn() -> String) {
    let (expected, found) = (see(model, since), see(file, since));
    let differ = expected.iter().zip(&found).find(|(a, b)| a != b);
    assert_eq!(differ, None, "{}", context());
    assert_eq!(expected.len(), found.len(), "{}", context());
}

/// A process opens the queue, perhaps with other phases than the one before it.
fn register(rng: &mut Rng, model: &mut Bench, file: &mut Bench) {
    let phases = rng.pick(&PLANS);
    for bench in [model, file] {
        bench.register("import", phases);
        bench.register_as("limited", Some(plan("a b")), Some(2));
        bench.register_as("planned", None, None);
    }
}

/// Runs the operations, and then fails.
fn fail(bench: &mut Bench, ops: &[Op], request: &ClaimRequest) -> Result<Committed> {
    let now = bench.now;
    let outcome = bench.store.transact(&mut |rows| {
        seam::run(rows, ops, request, now, -1)?;
        Err(Error::new(ErrorKind::Storage, "on purpose"))
    });
    assert_eq!(bench.jobs(), bench.seen, "nothing is left behind");
    match outcome {
        Err(Failure::NothingDone(error)) => Err(error),
        other => panic!("{other:?}"),
    }
}

fn rows(bench: &Bench) -> Vec<JobRow> {
    bench.seen.iter().map(|job| bench.row(job.id)).collect()
}

fn request(rng: &mut Rng, bench: &Bench, rows: &[JobRow]) -> ClaimRequest {
    let release = match rng.below(8) {
        0 => Release::Everybody(InterruptionReason::Shutdown),
        1 => Release::Types([bench.types[rng.index(bench.types.len())].type_id].into()),
        _ => Release::Nobody,
    };
    let excluded = rows.iter().filter(|_| rng.one_in(10)).map(|row| row.id);
    ClaimRequest {
        exclude: excluded.collect(),
        room: rng.index(5),
        excess: rng.index(3),
        bytes_max: if rng.one_in(4) { 3 } else { usize::MAX },
        direct: rng.one_in(3),
        from_backlog: !rng.one_in(3),
        release,
        ..bench.request()
    }
}

fn op(rng: &mut Rng, bench: &Bench, rows: &[JobRow], now: Timestamp) -> Op {
    let row = random_row(rng, rows, now);
    match rng.below(28) {
        0 if rng.one_in(3) => Op::Enqueue(alike(rng)),
        0..=5 => Op::Enqueue((0..1 + rng.below(4)).map(|_| planned_job(rng)).collect()),
        6..=13 => outcome(rng, rows, &row, now),
        14 => Op::Cancel(row.id),
        15 => Op::Retry(row.id, rng.pick(&[RetryFrom::Failed, RetryFrom::Start])),
        16 => Op::Delete(row.id),
        17 if rng.one_in(3) => Op::Bulk(bulk(rng)),
        17 | 18 => Op::Save {
            id: row.id,
            epoch: row.epoch,
            phase_index: row.phase_index,
            json: format!("{}", rng.below(1000)),
        },
        19 => Op::SetPaused {
            job_type: (!rng.one_in(3)).then(|| rng.pick(&TYPES).into()),
            paused: rng.one_in(2),
        },
        20 | 21 => Op::SetPlan {
            id: row.id,
            // To a plan, another one and back leads a job back unseen by the log; the engine plans jobs that have none.
            plan: match rng.one_in(4) || row.plan_id != 0 {
                true => Err("no plan".to_owned()),
                false => Ok(plan(rng.pick(&PLANS))),
            },
        },
        22 => Op::Recover(recover(rng, rows)),
        23 | 24 => Op::Attempted(attempted(rng, bench)),
        25 => Op::Mail(mail(rng, bench)),
        _ => Op::Prune(prune(rng)),
    }
}

/// A job that is there, more often one that runs, or one that never was.
fn random_row(rng: &mut Rng, rows: &[JobRow], now: Timestamp) -> JobRow {
    let running: Vec<&JobRow> = rows
        .iter()
        .filter(|row| row.status == JobStatus::Running)
        .collect();
    if !running.is_empty() && rng.one_in(2) {
        return *running[rng.index(running.len())];
    }
    if !rows.is_empty() && !rng.one_in(20) {
        return rows[rng.index(rows.len())];
    }
    JobRow {
        id: JobId::from_i64(i64::from(rng.number(60))),
        type_id: 1,
        plan_id: 1,
        status: JobStatus::Running,
        priority: 0,
        run_at: now,
        epoch: 1,
        attempt: 1,
        phase_index: 0,
        phase_count: 1,
        phase_attempt: 1,
        crash_count: 0,
        created_at: now,
        started_at: None,
        phase_started_at: None,
        finished_at: None,
        deadline: None,
        last_seq: 1,
        flags: crate::transition::Flags::default(),
    }
}

/// Jobs that differ in their inputs, with perhaps one among them that is another.
fn alike(rng: &mut Rng) -> Vec<PlannedJob> {
    let first = planned_job(rng);
    let alike = |rng: &mut Rng| PlannedJob {
        job: NewJob {
            input: rng.below(1000).to_string(),
            ..first.job.clone()
        },
        plan: first.plan.clone(),
    };
    let mut jobs: Vec<_> = (0..rng.below(24)).map(|_| alike(rng)).collect();
    if rng.one_in(2) {
        jobs.insert(rng.index(jobs.len() + 1), planned_job(rng));
    }
    jobs
}

fn planned_job(rng: &mut Rng) -> PlannedJob {
    let name = rng.pick(&TYPES);
    let input = "x".repeat(if rng.one_in(5) { 300 } else { rng.index(6) });
    let mut job = NewJob::new(name, &input).unwrap_or_else(|_| new_job(name));
    job.priority = rng.pick(&[0, 0, 0, 1, -1, 7]);
    if rng.one_in(3) {
        job = job.delay(rng.ms(5000));
    }
    if rng.one_in(6) {
        job = job.deadline(rng.ms(6000));
    }
    if rng.one_in(3) {
        let hold = match rng.below(3) {
            0 => While::Queued,
            1 => While::Live,
            _ => While::For(rng.ms(5000)),
        };
        job = job.unique_key(rng.pick(&["k", "l", "m"]), hold);
    }
    if rng.one_in(3) {
        job.endpoints = vec![endpoint(rng)];
    }
    let plan: Option<Plan> = rng.one_in(2).then(|| plan(rng.pick(&PLANS)));
    PlannedJob { job, plan }
}

fn endpoint(rng: &mut Rng) -> EndpointSpec {
    let kinds = rng.pick(&[
        &[EventKind::Completed, EventKind::Failed][..],
        &[EventKind::Cancelled, EventKind::Deleted],
        &EventKind::ALL[..4],
    ]);
    EndpointSpec {
        url: format!("http://a.example/{}", rng.below(2)),
        events: Kinds::of(kinds.iter().copied()),
        secrets: vec!["whsec_a".to_owned()],
    }
}

fn mail(rng: &mut Rng, bench: &Bench) -> Mail {
    let name = rng.pick(&["one", "two"]);
    match rng.below(5) {
        0 => Mail::Configure(
            (0..rng.below(2))
                .map(|_| (name.into(), endpoint(rng)))
                .collect(),
        ),
        1 => Mail::Put(name.into(), endpoint(rng)),
        2 => Mail::Enable(name.into(), rng.one_in(2)),
        3 => {
            let from = bench.now.before(rng.ms(9000));
            Mail::Redeliver(Which::Between(from, from.after(rng.ms(3000))))
        }
        _ => Mail::Redeliver(Which::One(random_delivery(rng, bench))),
    }
}

/// A delivery that is there, or one that never was.
fn random_delivery(rng: &mut Rng, bench: &Bench) -> DeliveryId {
    let filter = DeliveryFilter::default();
    let (rows, _) = bench.reader.deliveries(&filter, None, 50).expect("a list");
    if rows.is_empty() || rng.one_in(20) {
        return DeliveryId::from_i64(7);
    }
    rows[rng.index(rows.len())].id
}

fn attempted(rng: &mut Rng, bench: &Bench) -> Attempted {
    let verdict = match rng.below(9) {
        0..=2 => Outcome::Delivered,
        3..=5 => Outcome::RetryAt(bench.now.after(rng.ms(3000))),
        6 => Outcome::GiveUp,
        7 => Outcome::Unwanted,
        _ => Outcome::Gone,
    };
    let id = random_delivery(rng, bench);
    let found = bench.reader.find_delivery(id).expect("readable");
    Attempted {
        id,
        due: found.and_then(|(row, _)| row.next_at.filter(|_| !rng.one_in(5))),
        at: bench.now,
        took_ms: rng.below(100),
        status: rng.one_in(2).then_some(500),
        error: rng.one_in(2).then(|| "refused".to_owned()),
        answer: None,
        verdict,
    }
}

fn outcome(rng: &mut Rng, rows: &[JobRow], row: &JobRow, now: Timestamp) -> Op {
    let epoch = row.epoch - i64::from(rng.one_in(10));
    let tries = rng.pick(&[Tries::OfJob { max: 3 }, Tries::OfPhase { max: 2 }]);
    let delay = rng.ms(3000);
    let input = match rng.below(12) {
        0..=5 => Input::PhaseCompleted {
            epoch,
            edge: Edge::GoOn,
        },
        6 | 7 => Input::PhaseFailed {
            epoch,
            verdict: Verdict::Retry { tries, delay },
        },
        8 => Input::PhaseFailed {
            epoch,
            verdict: Verdict::Rewind {
                tries,
                delay,
                phase_index: rng.number(row.phase_count + 1),
            },
        },
        9 => Input::PhaseFailed {
            epoch,
            verdict: Verdict::Fail,
        },
        10 => match rows.len() % 2 {
            0 => Input::Snooze {
                epoch,
                until: now.after(delay),
            },
            _ => Input::HandlerCancelled { epoch },
        },
        _ => Input::Interrupted {
            epoch,
            reason: rng.pick(&InterruptionReason::ALL[2..]),
            entered: rng.pick(&[Entered::Inside, Entered::No]),
            max_crashes: 3,
        },
    };
    let result = format!("{{ \"n\":{} }}", rng.below(1000));
    // The engine says of each failure why.
    let fails = matches!(input, Input::PhaseFailed { .. });
    let error = (rng.one_in(2) || fails).then(|| Fault {
        cause: rng.pick(&[ErrorCause::Error, ErrorCause::Panic, ErrorCause::Timeout]),
        message: format!("boom {}", rng.below(1000)),
        backtrace: rng.one_in(3).then(|| "at x".to_owned()),
    });
    let is_replanned = format!("{input:?}").contains("Replanned");
    let mut settle = settle(row, input, now, Some(&result), error);
    settle.plan = is_replanned.then(|| plan(rng.pick(&PLANS)));
    Op::Settle(settle)
}

fn bulk(rng: &mut Rng) -> Bulk {
    let action = match rng.below(3) {
        0 => BulkAction::Cancel,
        1 => BulkAction::Retry(RetryFrom::Failed),
        _ => BulkAction::Delete,
    };
    let filter = Filter {
        status: (!rng.one_in(9)).then(|| rng.pick(&JobStatus::ALL)),
        job_type: rng.one_in(2).then(|| rng.pick(&TYPES).to_owned()),
    };
    let expect = rng.one_in(4).then(|| rng.index(3));
    let jobs = ops::Chosen::Found { filter, expect };
    Bulk { action, jobs }
}

fn recover(rng: &mut Rng, rows: &[JobRow]) -> Recover {
    let all_entered = rng.one_in(4);
    let running = rows.iter().filter(|row| row.status == JobStatus::Running);
    let noted = running.map(|row| (row.id, row.epoch, row.phase_index, row.run_at));
    let (inside, rest) = noted.partition::<Vec<_>, _>(|_| !rng.one_in(3));
    let returned = rest.into_iter().filter(|_| rng.one_in(2)).collect();
    Recover {
        reason: match all_entered {
            true => InterruptionReason::MachineWentDown,
            false => InterruptionReason::ProcessDied,
        },
        inside,
        returned,
        all_entered,
        max_crashes: vec![("limited".into(), 0)],
        max_crashes_default: 1,
    }
}

fn prune(rng: &mut Rng) -> Prune {
    let mut keep = |most_ms: u64| match rng.below(4) {
        0 => Keep::FOREVER,
        1 => Keep::for_age(rng.ms(most_ms)),
        2 => Keep::newest(rng.below(4)),
        _ => Keep::for_age(rng.ms(most_ms)).and_newest(rng.below(6)),
    };
    let mut retention = Retention::forever()
        .completed(keep(9000))
        .failed(keep(9000))
        .cancelled(keep(9000));
    let events = match rng.below(3) {
        0 => Keep::FOREVER,
        1 => Keep::for_age(rng.ms(20_000)),
        _ => Keep::newest(100 + rng.below(60)),
    };
    if rng.one_in(2) {
        retention = retention.deliveries(rng.ms(9000));
    }
    Prune {
        retention: retention.events(events),
        jobs_max: rng.index(5),
        events_max: rng.index(20),
    }
}

/// What a reader can see, fact by fact.
#[derive(Debug, PartialEq)]
enum Fact {
    Job(String, JobRow),
    Parts(u32, Option<String>, Option<String>),
    History(JobId, Vec<Seq>),
    Event(String),
    Page(Option<JobStatus>, Vec<JobId>, Option<Position>),
    Log(Head, Seq),
    Pauses(bool, Vec<Arc<str>>),
    Endpoints(Vec<EndpointRow>, Vec<(i64, Timestamp)>),
    Delivery(DeliveryRow, Vec<DeliveryTry>),
    Sendable(Vec<DeliveryId>, Option<Timestamp>),
}

fn see(bench: &Bench, since: Seq) -> Vec<Fact> {
    let mut facts = Vec::new();
    let log = (bench.reader.head(), bench.reader.oldest_seq());
    facts.push(Fact::Log(log.0.expect("a head"), log.1.expect("a log")));
    let (queue, types) = bench.reader.pauses().expect("readable");
    facts.push(Fact::Pauses(queue, types));
    for job in &bench.seen {
        see_job(bench, job, &mut facts);
    }
    see_outbox(bench, &mut facts);
    for event in bench.events(since) {
        facts.push(Fact::Event(serde_json::to_string(&event).expect("JSON")));
    }
    for status in JobStatus::ALL.into_iter().map(Some).chain([None]) {
        for job_type in ["import", "stray"] {
            see_list(bench, status, job_type, &mut facts);
        }
        see_list(bench, status, "", &mut facts);
    }
    facts
}

fn see_outbox(bench: &Bench, facts: &mut Vec<Fact>) {
    let reader = &bench.reader;
    let endpoints = reader.all_endpoints().expect("endpoints");
    let waiting = reader.waiting().expect("what waits");
    for endpoint in &endpoints {
        let sendable = reader.sendable(endpoint.id, 5).expect("a list");
        let ids = sendable.iter().map(|row| row.id).collect();
        let next = reader.next_of(endpoint.id).expect("readable");
        facts.push(Fact::Sendable(ids, next));
    }
    facts.push(Fact::Endpoints(endpoints, waiting));
    for status in DeliveryStatus::ALL.map(Some).into_iter().chain([None]) {
        let filter = DeliveryFilter { status, job: None };
        let (mut before, mut count) = (None, 0);
        while count < 30 {
            let (rows, next) = reader.deliveries(&filter, before, 7).expect("a list");
            count += rows.len() + 1;
            for row in rows {
                let found = reader.find_delivery(row.id).expect("readable");
                let (same, tries) = found.expect("it is there");
                assert_eq!(same, row);
                facts.push(Fact::Delivery(row, tries));
            }
            before = next;
            if before.is_none() {
                break;
            }
        }
    }
}

fn see_job(bench: &Bench, job: &Job, facts: &mut Vec<Fact>) {
    let id = job.id;
    let situation = bench.reader.situation(id, bench.now).expect("readable");
    let situation = situation.expect("the job is there");
    let ahead = (
        situation.ahead,
        situation.running_of_type,
        situation.type_paused,
    );
    let json = serde_json::to_string(job).expect("JSON");
    facts.push(Fact::Job(format!("{json} {ahead:?}"), situation.row));
    assert_eq!(bench.reader.status(id).expect("readable"), Some(job.status));
    for index in 0..=job.phase_count {
        let result = bench.reader.result(id, index).expect("readable");
        let saved = bench.reader.checkpoint(id, index).expect("readable");
        facts.push(Fact::Parts(index, result, saved));
    }
    let history = bench.reader.changes_of(id, 5).expect("readable");
    let history = history.iter().map(|change| change.seq).collect();
    facts.push(Fact::History(id, history));
}

fn see_list(bench: &Bench, status: Option<JobStatus>, job_type: &str, facts: &mut Vec<Fact>) {
    let job_type = (!job_type.is_empty()).then(|| job_type.to_owned());
    let filter = Filter { status, job_type };
    let mut from = None;
    loop {
        let slice = bench.reader.list(&filter, from, 7).expect("a list");
        let ids = slice.jobs.iter().map(|job| job.id).collect();
        facts.push(Fact::Page(status, ids, slice.next));
        from = slice.next;
        if from.is_none() {
            return;
        }
    }
}
