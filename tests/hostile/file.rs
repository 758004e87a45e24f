//! Files that were damaged, or written by somebody who means harm.
//!
//! The golden file of this version (`tests/golden`) is changed as the bytes say: bits, rows, values of any type, the schema, the
//! files beside it. Then it is opened and everything is done with it. An error is fine; a panic, a hang, a thread that dies or a
//! call that takes a second is not. Where the check finds nothing, lists, counts and jobs agree: else one of them lies.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::types::Value as Sql;
use serde_json::{Value, json};
use stepwell::{
    Client, DeliveryQuery, Durability, Error, ErrorKind, EventKind, JobId, JobQueue, JobStatus,
    JobType, Keep, ListFilter, NewJob, Phase, Retention, RetryFrom, While,
};

use crate::tools::Bytes;

const WHOLE: &[u8] = include_bytes!(concat!("../golden/", "0.1.0", ".queue"));
const BESIDE: [&str; 3] = ["-wal", "-owner", "-wake"];
/// Enough to break anything.
const CHANGES_MAX: usize = 12;
/// For one change.
const FORGING_MAX: Duration = Duration::from_millis(500);
/// No call may take longer, whatever the file says. It is a small one: most take a few milliseconds.
const CALL_MAX: Duration = Duration::from_secs(1);
/// A busy machine makes a call slow now and then; a file does so each time.
const ROUNDS: usize = 3;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// The calls that took too long.
#[derive(Default)]
struct Calls(RefCell<Vec<(&'static str, Duration)>>);

impl Calls {
    fn time<T>(&self, what: &'static str, call: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let answer = call();
        let took = started.elapsed();
        if took >= CALL_MAX {
            self.0.borrow_mut().push((what, took));
        }
        answer
    }
}

/// One forged file, and everything that can be done with it. One at a time: a panic in any thread is this input's.
pub(crate) fn use_forged(bytes: &[u8]) {
    let mut slow = Vec::new();
    for _ in 0..ROUNDS {
        let Calls(calls) = use_once(bytes);
        if calls.borrow().is_empty() {
            return;
        }
        slow.push(calls.into_inner());
    }
    panic!("calls take too long, in each of {ROUNDS} rounds: {slow:?}");
}

fn use_once(bytes: &[u8]) -> Calls {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let shown = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            shown(info);
        }));
    });
    let panics = PANICS.load(Ordering::SeqCst);
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("jobs.db");
    std::fs::write(&path, WHOLE).expect("it can be written");
    let mut bytes = Bytes(bytes);
    for _ in 0..CHANGES_MAX {
        if bytes.is_empty() {
            break;
        }
        change(&path, &mut bytes);
    }
    let calls = Calls::default();
    let mut new = None;
    if let Ok(queue) = calls.time("open", || open(&path)) {
        new = use_queue(&queue, &calls);
        assert_eq!(queue.health().poisoned, None);
        let shutdown = || queue.shutdown(Duration::from_millis(200));
        calls.time("shutdown", shutdown).ok();
    }
    if let Ok(client) = calls.time("Client::open", || Client::open(&path)) {
        calls.time("Client::stats", || client.stats()).ok();
        let checked = calls.time("Client::check", || client.check());
        if checked.is_ok_and(|broken| broken.is_empty()) {
            let judged = judge(&client, new, &calls);
            let kind = judged.as_ref().map_err(Error::kind).err();
            assert!(
                matches!(kind, None | Some(ErrorKind::Corrupt)),
                "{judged:?}"
            );
        }
    }
    assert_eq!(
        PANICS.load(Ordering::SeqCst),
        panics,
        "a thread has panicked"
    );
    calls
}

/// One change. What cannot be done, on a file that is broken already, is left.
fn change(path: &Path, bytes: &mut Bytes<'_>) {
    match bytes.byte() % 8 {
        0 | 1 => flip(path, bytes),
        2 => cut(path, bytes),
        3 => beside(path, bytes),
        4 => drop(sql(path, |conn| schema(conn, bytes))),
        5 => drop(sql(path, |conn| rows(conn, bytes))),
        _ => drop(sql(path, |conn| value(conn, bytes))),
    }
}

fn flip(path: &Path, bytes: &mut Bytes<'_>) {
    let mut file = std::fs::read(path).expect("it is there");
    // Most of the damage is to be where it is read: heads of pages.
    let at = match bytes.byte() % 3 {
        0 => bytes.number(),
        _ => usize::from(bytes.byte()) * 4096 + usize::from(bytes.byte()),
    };
    let with = bytes.some();
    for (offset, byte) in with.iter().enumerate() {
        if let Some(place) = file.get_mut(at + offset) {
            *place ^= byte;
        }
    }
    std::fs::write(path, file).expect("it can be written");
}

fn cut(path: &Path, bytes: &mut Bytes<'_>) {
    let mut file = std::fs::read(path).expect("it is there");
    let len = match bytes.byte() % 2 {
        0 => bytes.number(),
        _ => usize::from(bytes.byte()) * 4096,
    };
    file.resize(len.min(2 * WHOLE.len()), 0);
    std::fs::write(path, file).expect("it can be written");
}

fn beside(path: &Path, bytes: &mut Bytes<'_>) {
    let mut name = path.as_os_str().to_owned();
    name.push(bytes.pick(&BESIDE));
    let repeated = bytes.some().repeat(1 + usize::from(bytes.byte()));
    std::fs::write(PathBuf::from(name), repeated).expect("it can be written");
}

fn sql(path: &Path, act: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    let conn = Connection::open(path)?;
    conn.execute_batch("PRAGMA ignore_check_constraints = ON; PRAGMA writable_schema = ON;")?;
    // A table that is damaged already may have no end. That is SQLite's answer to the forger, and not what is looked for.
    let interrupt = conn.get_interrupt_handle();
    let (acting, is_over) = channel::<()>();
    let watch = std::thread::spawn(move || {
        if is_over.recv_timeout(FORGING_MAX) == Err(RecvTimeoutError::Timeout) {
            interrupt.interrupt();
        }
    });
    let acted = act(&conn);
    drop(acting);
    watch.join().expect("it only waits");
    acted
}

/// What an attacker writes where a name or a number is expected.
fn forged(bytes: &mut Bytes<'_>) -> Sql {
    const NUMBERS: [i64; 12] = [
        i64::MIN,
        i64::MAX,
        -1,
        0,
        1,
        2,
        255,
        256,
        1 << 31,
        (1 << 31) - 1,
        1 << 53,
        1_700_000_000_000,
    ];
    match bytes.byte() % 8 {
        0 | 1 => Sql::Integer(bytes.pick(&NUMBERS)),
        2 => Sql::Integer(i64::from(bytes.byte())),
        3 => Sql::Null,
        4 => Sql::Blob(bytes.some().to_vec()),
        5 => Sql::Real(f64::from(bytes.byte()) * 1e300),
        6 => {
            let (open, close) =
                bytes.pick(&[("[", "]"), ("{\"a\":", "}"), ("x", "x"), ("\"", "\"")]);
            let times = bytes.number() % 100_000;
            Sql::Text(open.repeat(times) + "1" + &close.repeat(times))
        }
        _ => Sql::Text(String::from_utf8_lossy(bytes.some()).into_owned()),
    }
}

const TABLES: [&str; 14] = [
    "meta",
    "job_type",
    "plan",
    "job",
    "payload",
    "phase",
    "checkpoint",
    "job_error",
    "event",
    "unique_key",
    "endpoint",
    "job_endpoint",
    "delivery",
    "delivery_try",
];

/// The columns of a table.
fn columns(conn: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let names = statement.query_map([table], |row| row.get(0))?;
    names.collect()
}

/// Which rows: one, the newest, or all.
fn which(conn: &Connection, table: &str, bytes: &mut Bytes<'_>) -> rusqlite::Result<String> {
    let first = columns(conn, table)?.into_iter().next().unwrap_or_default();
    Ok(match bytes.byte() % 4 {
        0 => "1".to_owned(),
        1 => format!("{first} = (SELECT max({first}) FROM {table})"),
        _ => {
            let skip = bytes.byte();
            format!(
                "{first} = (SELECT {first} FROM {table} ORDER BY {first} LIMIT 1 OFFSET {skip})"
            )
        }
    })
}

fn value(conn: &Connection, bytes: &mut Bytes<'_>) -> rusqlite::Result<()> {
    let table = bytes.pick(&TABLES);
    let names = columns(conn, table)?;
    let Some(column) = names.get(usize::from(bytes.byte()) % names.len().max(1)) else {
        return Ok(());
    };
    let which = which(conn, table, bytes)?;
    let value = forged(bytes);
    conn.execute(
        &format!("UPDATE OR REPLACE {table} SET {column} = ?1 WHERE {which}"),
        [value],
    )?;
    Ok(())
}

fn rows(conn: &Connection, bytes: &mut Bytes<'_>) -> rusqlite::Result<()> {
    let table = bytes.pick(&TABLES);
    let which = which(conn, table, bytes)?;
    if bytes.byte().is_multiple_of(2) {
        conn.execute(&format!("DELETE FROM {table} WHERE {which}"), [])?;
        return Ok(());
    }
    // The same row again, by another key.
    let mut names = columns(conn, table)?;
    if names.is_empty() {
        return Ok(());
    }
    names.remove(0);
    let others = names.join(", ");
    let key = i64::from(bytes.byte()) * 1000;
    conn.execute(
        &format!(
            "INSERT OR REPLACE INTO {table} SELECT {key}, {others} FROM {table} WHERE {which}"
        ),
        [],
    )?;
    Ok(())
}

fn schema(conn: &Connection, bytes: &mut Bytes<'_>) -> rusqlite::Result<()> {
    const FORGED: [&str; 16] = [
        "UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '')",
        "UPDATE sqlite_schema SET sql = replace(sql, 'CHECK', 'CHECK (1) CHECK')",
        "DELETE FROM sqlite_schema WHERE type = 'index'",
        "DELETE FROM sqlite_schema WHERE name = 'job_live'",
        "DROP TABLE event",
        "DROP TABLE delivery",
        "DROP TABLE meta",
        "ALTER TABLE job DROP COLUMN input",
        "ALTER TABLE job RENAME TO jobs",
        "ALTER TABLE event ADD COLUMN more TEXT",
        "PRAGMA user_version = -1",
        "PRAGMA user_version = 99",
        "PRAGMA application_id = 1",
        "CREATE TRIGGER forged AFTER INSERT ON event BEGIN DELETE FROM event; END",
        // Without an end.
        "CREATE TRIGGER forged AFTER INSERT ON event BEGIN
           SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n);
         END",
        "ALTER TABLE meta RENAME TO data;
         CREATE VIEW meta AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
           SELECT 'file_id' AS key, i AS value FROM n WHERE i < 0;",
    ];
    conn.execute_batch(bytes.pick(&FORGED))
}

const FETCH: Phase<Value> = Phase::new("fetch");
const PARSE: Phase<Value> = Phase::new("parse").version(2);

fn open(path: &Path) -> stepwell::Result<JobQueue> {
    // Retention has something to do: it walks through most of the file.
    let retention = Retention::forever()
        .completed(Keep::newest(5))
        .events(Keep::newest(100));
    let mut builder = JobQueue::builder(path)
        .workers(1)
        .durability(Durability::Normal)
        .retention(retention);
    builder.register(
        JobType::<Value>::new("import")
            .phase(FETCH, |_| Ok(json!("new")))
            .phase(PARSE, |cx| cx.get(FETCH)),
    );
    for name in ["held", "snoozing", "later"] {
        builder.register(JobType::<Value>::new(name).phase(FETCH, |_| Ok(Value::Null)));
    }
    builder.open()
}

/// Everything that can be asked; what the answers are is not the question. Returns the job that it was told is new.
fn use_queue(queue: &JobQueue, calls: &Calls) -> Option<JobId> {
    let job =
        || Ok::<_, stepwell::Error>(NewJob::new("import", &1)?.unique_key("live", While::Live));
    let enqueue = || job().and_then(|job| queue.enqueue_job(job));
    let new = calls.time("enqueue", enqueue);
    calls.time("resume", || queue.resume()).ok();
    calls.time("check", || queue.check()).ok();
    calls.time("stats", || queue.stats()).ok();
    calls.time("events", || queue.events_after(0, 1000)).ok();
    calls.time("endpoints", || queue.endpoints()).ok();
    let query = DeliveryQuery::new();
    let page = calls.time("deliveries", || queue.deliveries(&query));
    for delivery in page.into_iter().flat_map(|page| page.deliveries) {
        calls.time("delivery", || queue.delivery(delivery.id)).ok();
        let redeliver = || queue.redeliver(delivery.id);
        calls.time("redeliver", redeliver).ok();
    }
    for status in JobStatus::ALL {
        let filter = ListFilter::new().status(status).limit(4);
        let page = calls.time("list", || queue.list(&filter));
        for summary in page.into_iter().flat_map(|page| page.jobs) {
            let id = summary.id;
            calls.time("get", || queue.get(id)).ok();
            calls.time("events of a job", || queue.events_of(id)).ok();
            calls.time("explain", || queue.explain(id)).ok();
            match status {
                JobStatus::Pending | JobStatus::Running => {
                    drop(calls.time("cancel", || queue.cancel(id)));
                }
                JobStatus::Failed | JobStatus::Cancelled => {
                    drop(calls.time("retry", || queue.retry(id, RetryFrom::Failed)));
                }
                JobStatus::Completed => drop(calls.time("delete", || queue.delete(id))),
            }
        }
    }
    let new = new.ok()?;
    let wait = || queue.wait(new.id, Duration::from_millis(50));
    calls.time("wait", wait).ok();
    new.is_new.then_some(new.id)
}

/// A file in which the check finds nothing says the same whichever way it is asked. What cannot be read is no lie: flipped bits in a
/// text are found when it is read.
fn judge(client: &Client, new: Option<JobId>, calls: &Calls) -> stepwell::Result<()> {
    let stats = client.stats()?;
    let mut known = BTreeMap::new();
    for (status, count) in [
        (JobStatus::Pending, stats.pending),
        (JobStatus::Running, stats.running),
        (JobStatus::Completed, stats.completed),
        (JobStatus::Failed, stats.failed),
        (JobStatus::Cancelled, stats.cancelled),
    ] {
        let mut filter = ListFilter::new().status(status).limit(1000);
        let mut listed = 0;
        loop {
            let page = calls.time("Client::list", || client.list(&filter))?;
            for summary in page.jobs {
                listed += 1;
                assert_eq!(summary.status, status);
                let job = calls.time("Client::get", || client.get(summary.id))?;
                let job = job.expect("it was listed");
                assert_eq!((job.id, job.status), (summary.id, status));
                assert_eq!(job.job_type, summary.job_type);
                assert!(known.insert(job.id, job).is_none(), "it is listed twice");
            }
            match page.next {
                Some(next) => filter = ListFilter::new().status(status).limit(1000).after(next),
                None => break,
            }
        }
        assert_eq!(listed, count, "{status}");
    }
    let mut last = 0;
    loop {
        let events = calls.time("Client::events_after", || client.events_after(last, 1000))?;
        let Some(newest) = events.last() else { break };
        assert!(events.is_sorted_by(|one, next| one.seq < next.seq));
        assert!(events[0].seq > last && newest.seq <= stats.head_seq);
        last = newest.seq;
    }
    let Some(id) = new else { return Ok(()) };
    match known.get(&id) {
        Some(job) => assert_eq!((&*job.job_type, &job.input), ("import", &json!(1))),
        None => {
            let events = calls.time("Client::events_of", || client.events_of(id))?;
            let last = events.last().map(|event| event.kind);
            let is_told = last.is_none_or(|kind| kind == EventKind::Deleted);
            assert!(is_told, "job {id} was acknowledged and is gone: {last:?}");
        }
    }
    Ok(())
}
