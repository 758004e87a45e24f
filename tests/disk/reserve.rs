//! The disk is full, and some room was kept for what is under way.

use std::path::Path;

use serde_json::Value;
use stepwell::{CancelOutcome, Client, ErrorKind, JobId, JobQueue, JobStatus};

use crate::full::{Gate, LONG, WORKERS, assert_told_once, builder, job};
use crate::{Alone, SmallDisk, wait_for};

const RESERVE: u64 = 512 << 10;

fn open(disk: &SmallDisk) -> (JobQueue, Gate) {
    let (builder, gate) = builder(disk);
    let queue = builder.disk_reserve(RESERVE).open();
    (queue.expect("the queue can be opened"), gate)
}

fn reserve_bytes(disk: &SmallDisk) -> u64 {
    let mut path = disk.db().into_os_string();
    path.push("-reserve");
    std::fs::metadata(Path::new(&path)).map_or(0, |found| found.len())
}

fn enqueue_gated(queue: &JobQueue, count: usize) -> Vec<JobId> {
    (0..count)
        .map(|_| {
            queue
                .enqueue("gated", &Value::Null)
                .expect("there is space")
        })
        .collect()
}

/// Enqueues until the disk is full.
fn enqueue_until_refused(queue: &JobQueue) -> Vec<JobId> {
    let mut acknowledged = Vec::new();
    for tag in 0..5000 {
        match queue.enqueue_job(job(tag)) {
            Ok(enqueued) => acknowledged.push(enqueued.id),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                assert!(error.to_string().contains("make room"), "{error}");
                return acknowledged;
            }
        }
    }
    panic!("the disk of 4 MiB took 10 MB");
}

fn assert_refused(queue: &JobQueue) {
    let refused = queue
        .enqueue_job(job(90_000))
        .expect_err("the disk is full");
    assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
    assert!(refused.to_string().contains("make room"), "{refused}");
}

fn assert_all_complete(queue: &JobQueue, ids: impl IntoIterator<Item = JobId>) {
    for id in ids {
        let job = queue.wait(id, LONG).expect("it ends");
        assert_eq!((job.status, job.attempt), (JobStatus::Completed, 1), "{id}");
    }
}

#[test]
fn jobs_under_way_end_on_a_full_disk_and_no_new_one_takes_their_room() {
    let alone = Alone::new();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let Some(disk) = SmallDisk::mount(dir.path(), "4m") else {
        return;
    };
    let (queue, gate) = open(&disk);
    assert_eq!(reserve_bytes(&disk), RESERVE);
    let gated = enqueue_gated(&queue, WORKERS);
    gate.wait_entered(WORKERS);
    // These wait behind the gated ones.
    let waiting = enqueue_gated(&queue, 2);
    disk.fill();
    let acknowledged = enqueue_until_refused(&queue);
    assert_eq!(reserve_bytes(&disk), 0, "it was given away");
    // Whoever wants more does not get what was given away, however often they ask.
    for _ in 0..300 {
        assert_refused(&queue);
        let retried = queue.retry(gated[0], stepwell::RetryFrom::Start);
        assert_eq!(
            retried.expect_err("it adds work").kind(),
            ErrorKind::StorageFull
        );
    }
    let client = Client::open(disk.db()).expect("it can be opened");
    let refused = client.enqueue("quick", &Value::Null);
    assert_eq!(
        refused.expect_err("it adds work").kind(),
        ErrorKind::StorageFull
    );
    // Two phases each: they are recorded, and the second one is entered.
    gate.let_go(WORKERS);
    assert_all_complete(&queue, gated.iter().copied());
    // Nothing is claimed, and what waits can be cancelled and deleted.
    assert_eq!(
        queue.status(waiting[0]).expect("it can be read"),
        Some(JobStatus::Pending)
    );
    let cancelled = queue.cancel(waiting[0]).expect("there is room for it");
    assert_eq!(cancelled, CancelOutcome::Cancelled);
    queue.delete(gated[0]).expect("there is room for it");
    assert!(!queue.health().is_good());
    assert_refused(&queue);
    disk.free();
    wait_for("it works again", || queue.health().is_good());
    assert_eq!(reserve_bytes(&disk), RESERVE, "it is kept again");
    gate.wait_entered(1);
    gate.let_go(1);
    let new = queue.enqueue_job(job(90_001)).expect("there is space").id;
    let other = client.enqueue("quick", &Value::Null);
    let other = other.expect("there is space");
    assert_all_complete(
        &queue,
        acknowledged.into_iter().chain([waiting[1], new, other]),
    );
    assert_told_once(&alone, "the store failed");
    assert_told_once(&alone, "the store works again");
    assert_eq!(
        queue.check().expect("it can be checked"),
        Vec::<String>::new()
    );
    assert_eq!(alone.panics(), 0);
}

#[test]
fn a_queue_can_be_opened_on_a_full_disk() {
    let alone = Alone::new();
    let dir = tempfile::tempdir().expect("a directory can be made");
    let Some(disk) = SmallDisk::mount(dir.path(), "4m") else {
        return;
    };
    let (queue, gate) = open(&disk);
    queue.pause().expect("there is space");
    let gated = enqueue_gated(&queue, 2);
    queue.shutdown(LONG).expect("nothing is under way");
    drop((queue, gate));
    disk.fill();
    // Twice: the second time the room was given away before.
    for _ in 0..2 {
        let (queue, _gate) = open(&disk);
        assert_eq!(reserve_bytes(&disk), 0, "it was given away");
        assert_refused(&queue);
        queue.resume().expect("there is room for it");
        assert!(!queue.health().is_good());
        let job = queue.get(gated[0]).expect("it can be read");
        assert_eq!(job.expect("it is there").status, JobStatus::Pending);
        queue.shutdown(LONG).expect("nothing is under way");
    }
    disk.free();
    let (queue, gate) = open(&disk);
    gate.wait_entered(2);
    gate.let_go(2);
    for id in gated {
        let job = queue.wait(id, LONG).expect("it ends");
        assert_eq!(job.status, JobStatus::Completed);
    }
    assert_eq!(reserve_bytes(&disk), RESERVE);
    queue.shutdown(LONG).expect("nothing is under way");
    let broken = Client::open(disk.db()).expect("it can be opened").check();
    assert_eq!(broken.expect("it can be checked"), Vec::<String>::new());
    assert_eq!(alone.panics(), 0);
}
