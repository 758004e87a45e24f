//! Files that were damaged, or written by somebody who means harm.
//!
//! The golden file of this version (`tests/golden`) is changed as the bytes say: bits, rows, values of any type, the schema, the
//! files beside it. Then it is opened and everything is done with it. An error is fine; a panic, a hang or a thread that dies is
//! not. Where the check finds nothing, lists, counts and jobs agree: else one of them lies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

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
const FORGING_MAX: Duration = Duration::from_secs(2);

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// One forged file, and everything that can be done with it. One at a time: a panic in any thread is this input's.
pub(crate) fn use_forged(bytes: &[u8]) {
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
    let mut new = None;
    if let Ok(queue) = open(&path) {
        new = use_queue(&queue);
        assert_eq!(queue.health().poisoned, None);
        queue.shutdown(Duration::from_millis(200)).ok();
    }
    if let Ok(client) = Client::open(&path) {
        client.stats().ok();
        if client.check().is_ok_and(|broken| broken.is_empty()) {
            let judged = judge(&client, new);
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
fn use_queue(queue: &JobQueue) -> Option<JobId> {
    let job =
        || Ok::<_, stepwell::Error>(NewJob::new("import", &1)?.unique_key("live", While::Live));
    let new = job().and_then(|job| queue.enqueue_job(job));
    queue.resume().ok();
    queue.check().ok();
    queue.stats().ok();
    queue.events_after(0, 1000).ok();
    queue.endpoints().ok();
    let query = DeliveryQuery::new();
    for delivery in queue
        .deliveries(&query)
        .into_iter()
        .flat_map(|page| page.deliveries)
    {
        queue.delivery(delivery.id).ok();
        queue.redeliver(delivery.id).ok();
    }
    for status in JobStatus::ALL {
        let page = queue.list(&ListFilter::new().status(status).limit(4));
        for summary in page.into_iter().flat_map(|page| page.jobs) {
            let id = summary.id;
            queue.get(id).ok();
            queue.events_of(id).ok();
            queue.explain(id).ok();
            match status {
                JobStatus::Pending | JobStatus::Running => drop(queue.cancel(id)),
                JobStatus::Failed | JobStatus::Cancelled => {
                    drop(queue.retry(id, RetryFrom::Failed))
                }
                JobStatus::Completed => drop(queue.delete(id)),
            }
        }
    }
    let new = new.ok()?;
    queue.wait(new.id, Duration::from_millis(50)).ok();
    new.is_new.then_some(new.id)
}

/// A file in which the check finds nothing says the same whichever way it is asked. What cannot be read is no lie: flipped bits in a
/// text are found when it is read.
fn judge(client: &Client, new: Option<JobId>) -> stepwell::Result<()> {
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
            let page = client.list(&filter)?;
            for summary in page.jobs {
                listed += 1;
                assert_eq!(summary.status, status);
                let job = client.get(summary.id)?;
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
        let events = client.events_after(last, 1000)?;
        let Some(newest) = events.last() else { break };
        assert!(events.is_sorted_by(|one, next| one.seq < next.seq));
        assert!(events[0].seq > last && newest.seq <= stats.head_seq);
        last = newest.seq;
    }
    let Some(id) = new else { return Ok(()) };
    match known.get(&id) {
        Some(job) => assert_eq!((&*job.job_type, &job.input), ("import", &json!(1))),
        None => {
            let events = client.events_of(id)?;
            let last = events.last().map(|event| event.kind);
            let is_told = last.is_none_or(|kind| kind == EventKind::Deleted);
            assert!(is_told, "job {id} was acknowledged and is gone: {last:?}");
        }
    }
    Ok(())
}
