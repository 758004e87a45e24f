//! The unique keys of the file, which nobody shows: each holds for as long as it was asked to.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::testing::FakeClock;
use stepwell::{JobId, JobQueue, NewJob, Retention, Timestamp, While};

use crate::{PATIENCE, VERSIONS, content, copy, id_of, known};

const HOUR: Duration = Duration::from_secs(3600);

/// Which keys still stand for the jobs of the file.
fn held(queue: &JobQueue, jobs: &[(&'static str, JobId)]) -> Vec<&'static str> {
    let is_held = |(key, id): &&(&str, JobId)| {
        let hold = match *key {
            "queued" => While::Queued,
            "live" => While::Live,
            _ => While::For(HOUR),
        };
        let job = NewJob::new("keyed", &Value::Null).expect("it is JSON");
        let job = job.delay(100 * HOUR).unique_key(*key, hold);
        queue.enqueue_job(job).expect("it is stored").id == *id
    };
    jobs.iter().filter(is_held).map(|(key, _)| *key).collect()
}

#[test]
fn the_unique_keys_of_each_version_hold_as_long_as_they_did() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    for version in VERSIONS {
        let path = copy(version, dir.path());
        let known = known(version);
        // Not a moment later than the file.
        let events = known["events"].as_array().expect("a list");
        let newest = events.iter().filter_map(|it| it["at"].as_i64()).max();
        let clock = FakeClock::new(Timestamp::from_millis(newest.expect("there are some")));
        let mut builder = JobQueue::builder(&path)
            .workers(3)
            .clock(&clock)
            .retention(Retention::forever());
        let ((enters, inside), (go, goes)) = (channel(), channel::<()>());
        let goes = Arc::new(Mutex::new(goes));
        content::register(&mut builder, move |name| {
            if name == "keyed" {
                enters.send(()).ok();
                goes.lock().expect("nobody panics there").recv().ok();
            }
        });
        let queue = builder.open().expect("it can be opened");
        let jobs = jobs(&known);
        assert_eq!(held(&queue, &jobs), ["queued", "live", "for", "gone"]);
        queue.resume().expect("it can be resumed");
        clock.advance(HOUR);
        for _ in 0..3 {
            inside.recv_timeout(PATIENCE).expect("they are due");
        }
        assert_eq!(held(&queue, &jobs), ["live", "for", "gone"], "{version}");
        drop(go);
        for (_, id) in &jobs[..3] {
            queue.wait(*id, PATIENCE).expect("it ends");
        }
        assert_eq!(held(&queue, &jobs), ["for", "gone"], "{version}");
        // A day from when they were enqueued, one hour of which is over.
        clock.advance(23 * HOUR - Duration::from_millis(1));
        assert_eq!(held(&queue, &jobs), ["for", "gone"], "{version}");
        clock.advance(Duration::from_millis(1));
        assert_eq!(held(&queue, &jobs), [""; 0], "{version}");
        queue.shutdown(PATIENCE).expect("it ends");
    }
}

/// The keys of the file and their jobs. That of the last is deleted: it is the one that was created behind the others.
fn jobs(known: &Value) -> [(&'static str, JobId); 4] {
    let of = |key: &str| {
        let jobs = known["jobs"].as_array().expect("a list").iter();
        let job = jobs.into_iter().find(|job| job["unique_key"] == json!(key));
        id_of(job.expect("it is there"))
    };
    let after = JobId::from_i64(of("for").as_i64() + 1);
    [
        ("queued", of("queued")),
        ("live", of("live")),
        ("for", of("for")),
        ("gone", after),
    ]
}
