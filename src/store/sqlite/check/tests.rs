//! A sound file has no finding; and each invariant is seen broken, one way at a time. Test code.
//!
//! A check that cannot fail is worse than none. So a file with every kind of job is built through the seam, then broken with SQL as
//! only another program could, and the findings must be exactly those that name the damage. Together the ways to break it must
//! reach every query of [`rules`].

mod broken_log;
mod broken_outbox;
mod broken_rows;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::json;

use crate::config::{Durability, Keep, Retention};
use crate::error::{ErrorKind, Result};
use crate::event::Plan;
use crate::job::{ErrorCause, InterruptionReason, JobId, JobStatus, PhaseName, RetryFrom};
use crate::new_job::{NewJob, While};
use crate::store::ops::{ClaimRequest, Claimable, Fault, Op, PlannedJob, Prune, Recover, Settle};
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::check::{FINDINGS_MAX, Findings, rules, run_with};
use crate::store::{Done, Store, seam};
use crate::time::Timestamp;
use crate::transition::{Edge, Input, JobRow, Tries, Verdict};

/// What was done, with which SQL, and every line that is to be found.
type Way = (&'static str, &'static str, &'static [&'static str]);

const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
/// SQLite's default.
const PAGE: usize = 4096;
const MINUTE: Duration = Duration::from_secs(60);

/// A file that is being written.
struct Author {
    store: SqliteStore,
    now: Timestamp,
    types: Arc<[Claimable]>,
}

impl Author {
    fn new(path: &Path) -> Author {
        let plans = [
            ("import", Some(plan("fetch load store"))),
            ("mail", Some(plan("send"))),
            ("planned", None),
        ];
        let store = SqliteStore::open(path, Durability::Normal).expect("a new file");
        let mut author = Author {
            store,
            now: START,
            types: Arc::new([]),
        };
        let named = plans.map(|(name, plan)| (Arc::from(name), plan));
        author.run(Op::Register(named.to_vec()));
        let claimable = |(id, (job_type, plan)): (i64, (Arc<str>, Option<Plan>))| Claimable {
            type_id: id,
            job_type,
            plan: plan.map(|plan| (id, plan)),
            concurrency: None,
        };
        author.types = (1..).zip(named).map(claimable).collect();
        author
    }

    /// One commit, a millisecond after the one before it.
    fn commit(&mut self, ops: &[Op], request: &ClaimRequest) -> seam::Committed {
        self.now = self.now.after(Duration::from_millis(1));
        let (now, mut committed) = (self.now, None);
        let outcome = self.store.transact(&mut |rows| {
            committed = Some(seam::run(rows, ops, request, now, 1)?);
            Ok(())
        });
        outcome.expect("a commit");
        let committed = committed.expect("it was run");
        for answer in &committed.answers {
            assert!(answer.is_ok(), "{answer:?}");
        }
        committed
    }

    fn run(&mut self, op: Op) {
        self.commit(&[op], &ClaimRequest::default());
    }

    fn enqueue(&mut self, jobs: Vec<NewJob>) {
        let planned = jobs.into_iter().map(|job| PlannedJob { job, plan: None });
        self.run(Op::Enqueue(planned.collect()));
    }

    fn request(&self) -> ClaimRequest {
        ClaimRequest {
            room: 1,
            bytes_max: usize::MAX,
            types: self.types.clone(),
            from_backlog: true,
            ..ClaimRequest::default()
        }
    }

    /// Claims this job and no other.
    fn claim(&mut self, id: i64) -> JobRow {
        let others: HashSet<JobId> = (1..99).map(JobId::from_i64).collect();
        let request = ClaimRequest {
            exclude: others.into_iter().filter(|it| it.as_i64() != id).collect(),
            ..self.request()
        };
        let claims = self.commit(&[], &request).claims;
        claims.claimed.first().expect("it is due").row
    }

    /// Enqueues the job, which becomes number `id`, and claims it.
    fn start(&mut self, id: i64, job: NewJob) -> JobRow {
        self.enqueue(vec![job]);
        self.claim(id)
    }

    fn settle(&mut self, row: &JobRow, input: Input) -> JobRow {
        let fails = matches!(input, Input::PhaseFailed { .. });
        let settle = Settle {
            started_at: self.now,
            result: Some(r#"{"n":1}"#.to_owned()),
            error: fails.then(|| Fault {
                cause: ErrorCause::Error,
                message: "boom".to_owned(),
                backtrace: None,
            }),
            ..Settle::void(row, input)
        };
        let mut committed = self.commit(&[Op::Settle(settle)], &ClaimRequest::default());
        match committed.answers.remove(0) {
            Ok(Done::Settled(Some(row))) => row,
            other => panic!("{other:?}"),
        }
    }

    fn complete(&mut self, row: &JobRow) -> JobRow {
        let (epoch, edge) = (row.epoch, Edge::GoOn);
        self.settle(row, Input::PhaseCompleted { epoch, edge })
    }

    fn fail(&mut self, row: &JobRow, verdict: Verdict) -> JobRow {
        let epoch = row.epoch;
        self.settle(row, Input::PhaseFailed { epoch, verdict })
    }

    fn save(&mut self, row: &JobRow) {
        let (id, epoch, phase_index) = (row.id, row.epoch, row.phase_index);
        self.run(Op::Save {
            id,
            epoch,
            phase_index,
            json: "7".to_owned(),
        });
    }
}

fn plan(names: &str) -> Plan {
    names.split(' ').map(PhaseName::new).collect()
}

fn job(job_type: &str) -> NewJob {
    NewJob::new(job_type, &json!({})).expect("plain JSON")
}

const AGAIN: Verdict = Verdict::Retry {
    tries: Tries::OfJob { max: 9 },
    delay: MINUTE,
};

/// 1 to 3: what a restart makes of jobs that were running.
fn crashed(author: &mut Author) {
    let first = author.start(1, job("import"));
    let second = author.start(2, job("mail"));
    author.start(3, job("import"));
    author.run(Op::Recover(Recover {
        reason: InterruptionReason::ProcessDied,
        inside: vec![
            (first.id, first.epoch, 0, START),
            (second.id, second.epoch, 0, START),
        ],
        returned: Vec::new(),
        all_entered: false,
        max_crashes: vec![("mail".into(), 0)],
        max_crashes_default: 3,
    }));
}

/// 4 completed, 5 failed, 6 waiting, 7 running, each after one phase and with a checkpoint in the next one; 8 at its edge.
fn under_way(author: &mut Author) {
    let row = author.start(4, job("import"));
    let row = author.complete(&row);
    author.save(&row);
    let row = author.complete(&row);
    author.complete(&row);
    for (id, verdict) in [(5, Some(Verdict::Fail)), (6, Some(AGAIN)), (7, None)] {
        let row = author.start(id, job("import"));
        let row = author.complete(&row);
        author.save(&row);
        if let Some(verdict) = verdict {
            author.fail(&row, verdict);
        }
    }
    let row = author.start(8, job("import"));
    let edge = Edge::Release(InterruptionReason::Shutdown);
    let epoch = row.epoch;
    author.settle(&row, Input::PhaseCompleted { epoch, edge });
}

/// 9 retried after its failure, 10 retried from the start and running again, 11 cancelled, 12 deleted, 13 cancelled by its handler.
fn asked_for(author: &mut Author) {
    let row = author.start(9, job("mail"));
    author.fail(&row, Verdict::Fail);
    author.run(Op::Retry(row.id, RetryFrom::Failed));
    let row = author.start(10, job("import"));
    author.complete(&row);
    author.run(Op::Cancel(row.id));
    author.run(Op::Retry(row.id, RetryFrom::Start));
    author.claim(10);
    author.enqueue(vec![job("mail")]);
    author.run(Op::Cancel(JobId::from_i64(11)));
    let row = author.start(12, job("mail"));
    author.complete(&row);
    author.run(Op::Delete(row.id));
    let row = author.start(13, job("mail"));
    let epoch = row.epoch;
    author.settle(&row, Input::HandlerCancelled { epoch });
}

/// 14 snoozed, 15 rewound, 16 without a plan, 17 past its deadline, 18 with a unique key and a large input, 19 to 21 enqueued
/// together, 22 completed without having waited.
fn others(author: &mut Author) {
    let row = author.start(14, job("import"));
    let (epoch, until) = (row.epoch, author.now.after(MINUTE));
    author.settle(&row, Input::Snooze { epoch, until });
    let row = author.start(15, job("import"));
    let row = author.complete(&row);
    let verdict = Verdict::Rewind {
        tries: Tries::OfJob { max: 9 },
        delay: MINUTE,
        phase_index: 0,
    };
    author.fail(&row, verdict);
    author.enqueue(vec![
        job("planned"),
        job("mail").deadline(Duration::from_millis(1)),
    ]);
    let overdue = ClaimRequest {
        exclude: [9, 11, 13].map(JobId::from_i64).into(),
        types: [author.types[1].clone()].into(),
        ..author.request()
    };
    let claims = author.commit(&[], &overdue).claims;
    assert_eq!(claims.ended, [(JobId::from_i64(17), JobStatus::Failed)]);
    let large = NewJob::new("mail", &"x".repeat(300)).expect("plain JSON");
    author.enqueue(vec![
        large.delay(MINUTE).priority(5).unique_key("k", While::Live),
    ]);
    let late = || job("mail").delay(MINUTE);
    author.enqueue(vec![late(), late(), late()]);
    let (now, planned) = (job("mail"), Some(plan("send")));
    let enqueue = Op::Enqueue(vec![PlannedJob {
        job: now,
        plan: planned,
    }]);
    let direct = ClaimRequest {
        direct: true,
        from_backlog: false,
        ..author.request()
    };
    let claims = author.commit(&[enqueue], &direct).claims;
    author.complete(&claims.claimed[0].row);
}

/// The bytes of a file with all these jobs; and of one whose log has lost its old end and whose job 4 is deleted.
static FILES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("jobs.db");
    let mut author = Author::new(&path);
    crashed(&mut author);
    under_way(&mut author);
    asked_for(&mut author);
    others(&mut author);
    let mut bytes = || {
        author.store.checkpoint().expect("nobody reads");
        std::fs::read(&path).expect("the file")
    };
    let whole = bytes();
    let retention = Retention::forever()
        .completed(Keep::newest(1))
        .events(Keep::newest(60));
    author.run(Op::Prune(Prune {
        retention,
        jobs_max: 9,
        events_max: 1000,
    }));
    author.store.checkpoint().expect("nobody reads");
    let cut = std::fs::read(&path).expect("the file");
    [whole, cut]
});

/// A copy of one of the files.
struct Copy {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Copy {
    fn of(bytes: &[u8]) -> Copy {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("jobs.db");
        std::fs::write(&path, bytes).expect("a file");
        Copy { _dir: dir, path }
    }

    /// Each piece of SQL with a connection of its own, that of a program that knows no rules.
    fn damage(&self, sql: &str) {
        for piece in sql.split("-- reopen") {
            let conn = Connection::open(&self.path).expect("SQLite opens what SQLite wrote");
            let free = "PRAGMA ignore_check_constraints = ON; PRAGMA writable_schema = ON;";
            conn.execute_batch(free).expect("settings");
            conn.execute_batch(piece)
                .unwrap_or_else(|error| panic!("{error}: {piece}"));
        }
    }

    fn check(&self) -> Vec<String> {
        self.try_check().expect("damage is no error")
    }

    fn try_check(&self) -> Result<Vec<String>> {
        SqliteStore::open(&self.path, Durability::Normal)?
            .reader()
            .check()
    }
}

#[test]
fn a_sound_file_has_no_finding() {
    for bytes in &*FILES {
        assert_eq!(Copy::of(bytes).check(), Vec::<String>::new());
    }
}

#[test]
fn a_broken_row_is_found_and_named() {
    assert_found(broken_rows::WAYS, &FILES[0]);
}

#[test]
fn a_broken_outbox_is_found_and_named() {
    assert_found(broken_outbox::WAYS, &FILES[0]);
}

#[test]
fn a_broken_log_is_found_and_named() {
    assert_found(broken_log::WAYS, &FILES[0]);
}

#[test]
fn a_broken_log_is_found_when_its_old_end_is_gone() {
    assert_found(broken_log::WAYS_OF_A_CUT_LOG, &FILES[1]);
}

/// A file that has one is not opened.
#[test]
fn a_trigger_that_comes_while_a_file_is_open_is_found() {
    let file = Copy::of(&FILES[0]);
    let store = SqliteStore::open(&file.path, Durability::Normal).expect("a sound file");
    let reader = store.reader();
    reader.head().expect("a connection that is kept");
    file.damage("CREATE TRIGGER mine AFTER INSERT ON job BEGIN DELETE FROM event; END");
    let found = reader.check().expect("a check");
    assert_eq!(found, ["S1 trigger mine is not of stepwell"]);
}

fn assert_found(ways: &[Way], bytes: &[u8]) {
    for (what, sql, finds) in ways {
        let file = Copy::of(bytes);
        file.damage(sql);
        assert_eq!(file.check(), *finds, "{what}");
    }
}

#[test]
fn every_query_is_seen_to_find_something() {
    let mut silent: Vec<&str> = rules::RULES.iter().map(|(_, sql)| *sql).collect();
    for (_, sql, _) in broken_rows::WAYS.iter().chain(broken_outbox::WAYS) {
        let file = Copy::of(&FILES[0]);
        file.damage(sql);
        let conn = Connection::open(&file.path).expect("a file");
        silent.retain(|sql| !finds(&conn, sql));
    }
    assert_eq!(silent, Vec::<&str>::new());
}

/// A file may have millions of jobs: what is sorted is kept, in memory or beside the file.
#[test]
fn no_query_sorts() {
    let file = Copy::of(&FILES[0]);
    let conn = Connection::open(&file.path).expect("a file");
    for (_, sql) in rules::RULES {
        let explain = format!("EXPLAIN QUERY PLAN {sql}");
        let mut statement = conn.prepare(&explain).expect("a query");
        // Which values the parameters have makes no difference.
        let mut steps = statement.raw_query();
        while let Some(step) = steps.next().expect("a plan") {
            let step: String = step.get(3).expect("a step");
            assert!(!step.contains("TEMP B-TREE"), "{sql}: {step}");
        }
    }
}

fn finds(conn: &Connection, sql: &'static str) -> bool {
    let mut findings = Findings::default();
    let asked = rules::ask(conn, &("", sql), &rules::Parameters::new(), &mut findings);
    // Without its table a query has no answer.
    asked.is_ok() && !findings.into_lines().is_empty()
}

#[test]
fn a_value_over_the_limit_is_found() {
    let file = Copy::of(&FILES[0]);
    let conn = Connection::open(&file.path).expect("a file");
    let expected = "S12 job 18: input: it has 302 bytes, at most 301 are allowed: keep the data elsewhere and pass a reference";
    assert_eq!(run_with(&conn, 301).expect("readable"), [expected]);
    assert_eq!(run_with(&conn, 302).expect("readable"), [""; 0]);
}

#[test]
fn the_first_hundred_findings_are_listed_and_more_are_mentioned() {
    let file = Copy::of(&FILES[0]);
    file.damage("UPDATE job SET type_id = 9, plan_id = 9, phase_attempt = 9, flags = flags | 128, epoch = 99, last_seq = 0");
    let lines = file.check();
    assert_eq!(lines.len(), FINDINGS_MAX + 1);
    assert_eq!(lines[FINDINGS_MAX], "and more: these are the first 100");
    let mut findings = Findings::default();
    for n in 0..FINDINGS_MAX {
        findings.add("S1", n);
    }
    assert_eq!(findings.into_lines().len(), FINDINGS_MAX);
}

/// Each of two damaged rows alone could be right; a log that creates more jobs than there are rows for cannot.
#[test]
fn a_log_that_creates_too_many_jobs_is_not_followed() {
    let file = Copy::of(&FILES[0]);
    file.damage("UPDATE event SET span = 50 WHERE seq IN (86, 89)");
    let lines = file.check();
    let found = |event| lines.contains(&format!("S8 event {event}: the row stands for 50 events"));
    assert_eq!((found(86), found(89)), (false, true), "{lines:#?}");
}

/// A log whose old end is gone may tell of jobs that it has not created: each row of a small file stood for a thousand of them
/// in memory.
#[test]
fn a_log_that_tells_of_too_many_jobs_is_not_followed() {
    let file = Copy::of(&FILES[0]);
    file.damage(
        "DELETE FROM event;
        INSERT INTO event SELECT 100000 + 1024 * value, 1024, 5, 0, 1000 + 1024 * value, 2, 2, 10, 1, 0, 1, NULL, NULL
        FROM json_each('[0, 1, 2, 3]')",
    );
    let lines = file.check();
    let found = lines.contains(&"S8 event 100000: the row stands for 1024 events".to_owned());
    assert!(found, "{lines:#?}");
    let missing = lines.iter().filter(|line| line.contains("there is no row"));
    assert_eq!(missing.count(), 0, "{lines:#?}");
}

/// Each page of the file in turn is lost, as by a torn write or a bad sector.
#[test]
fn a_lost_page_is_found() {
    let bytes = &FILES[0];
    for page in 1..bytes.len() / PAGE {
        let mut torn = bytes.clone();
        torn[page * PAGE..(page + 1) * PAGE].fill(0);
        match Copy::of(&torn).try_check() {
            Ok(lines) => assert!(!lines.is_empty(), "page {}", page + 1),
            // One that says what tables there are: nothing can be opened without it.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "page {}", page + 1),
        }
    }
}

/// 300 files with one random byte changed: the check ends, with or without a finding, and does not panic. A byte of the user's
/// own data or of a time can be any other one, so that not each of them is to be found.
#[test]
fn a_changed_byte_never_stops_the_check() {
    let mut seed: u64 = 42;
    for _ in 0..300 {
        let mut next = || {
            // Knuth's multiplicative generator for MMIX; the high bits are the good ones.
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).expect("31 bits")
        };
        let mut bytes = FILES[0].clone();
        let at = PAGE + next() % (bytes.len() - PAGE);
        bytes[at] ^= 1 << (next() % 8);
        Copy::of(&bytes).try_check().ok();
    }
}
