//! What readers see: lists, the log, one job's history; and what a commit that fails leaves behind. Test code.

use crate::error::{Error, ErrorKind};
use crate::event;
use crate::job::{JobId, JobStatus};
use crate::store::conformance::{Bench, MS, SECOND, START, ids, new_job, plan, refused};
use crate::store::ops::{ClaimRequest, Op, PlannedJob};
use crate::store::{Done, Failure, Filter, seam};
use crate::transition::Verdict;

/// The ids of each page of a list.
fn pages(bench: &Bench, status: Option<JobStatus>, job_type: Option<&str>) -> Vec<Vec<i64>> {
    let filter = Filter {
        status,
        job_type: job_type.map(str::to_owned),
    };
    let (mut from, mut pages) = (None, Vec::new());
    loop {
        let slice = bench.reader.list(&filter, from, 2).expect("a list");
        pages.push(slice.jobs.iter().map(|job| job.id.as_i64()).collect());
        from = slice.next;
        if from.is_none() {
            return pages;
        }
    }
}

pub(super) fn lists_are_paged_newest_first(bench: &mut Bench) {
    assert_eq!(pages(bench, None, None), [[0; 0]; 1]);
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    bench.enqueue_all(vec![
        new_job("import"),
        new_job("export"),
        new_job("import"),
        new_job("export").delay(SECOND),
        new_job("import").delay(SECOND),
    ]);
    bench.claim();
    assert_eq!(pages(bench, None, None), [vec![5, 4], vec![3, 2], vec![1]]);
    assert_eq!(
        pages(bench, Some(JobStatus::Running), None),
        [vec![3, 2], vec![1]]
    );
    assert_eq!(
        pages(bench, Some(JobStatus::Pending), None),
        [vec![5, 4], vec![]]
    );
    assert_eq!(pages(bench, None, Some("import")), [vec![5, 3], vec![1]]);
    assert_eq!(
        pages(bench, Some(JobStatus::Running), Some("export")),
        [vec![2]]
    );
    assert_eq!(pages(bench, None, Some("unheard.of")), [[0; 0]; 1]);
    assert_eq!(pages(bench, Some(JobStatus::Failed), None), [[0; 0]; 1]);
    // A page that began before new jobs came goes on where it was.
    let slice = bench
        .reader
        .list(&Filter::default(), None, 2)
        .expect("a list");
    bench.enqueue(new_job("import"));
    let next = bench
        .reader
        .list(&Filter::default(), slice.next, 2)
        .expect("a list");
    assert_eq!(next.jobs[0].id.as_i64(), 3);
}

pub(super) fn lists_of_jobs_that_are_over_go_by_their_end(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.enqueue_all(vec![new_job("import"); 5]);
    let rows: Vec<_> = bench
        .claim()
        .claimed
        .iter()
        .map(|claimed| claimed.row)
        .collect();
    for index in [3, 0, 4] {
        bench.later(MS);
        bench.complete(&rows[index], "1");
    }
    bench.complete(&rows[1], "1");
    bench.fail(&rows[2], Verdict::Fail);
    let done = Some(JobStatus::Completed);
    assert_eq!(pages(bench, done, None), [vec![5, 2], vec![1, 4], vec![]]);
    assert_eq!(pages(bench, Some(JobStatus::Failed), None), [vec![3]]);
    assert_eq!(pages(bench, done, Some("import")).concat(), [5, 2, 1, 4]);
}

pub(super) fn readers_resume_in_the_middle_of_a_change(bench: &mut Bench) {
    bench.register("import", "fetch load");
    bench.enqueue_all(vec![new_job("import"); 3]); // 1-3
    let row = bench.claim().claimed[0].row; // 4-5, 6-7, 8-9
    bench.complete(&row, "1"); // 10-11
    let all = bench.events(0);
    assert_eq!(
        all.iter().map(|event| event.seq).collect::<Vec<_>>(),
        (1..=11).collect::<Vec<_>>()
    );
    for after in 0..=12 {
        let left: Vec<_> = all
            .iter()
            .filter(|event| event.seq > after)
            .cloned()
            .collect();
        assert_eq!(bench.events(after), left, "after {after}");
    }
    // A limit counts changes; the last one of a piece says where the next begins.
    let (mut after, mut events) = (0, Vec::new());
    loop {
        let changes = bench.reader.changes_after(after, 2).expect("a log");
        let Some(last) = changes.last() else { break };
        for change in &changes {
            event::expand(change, after, &mut events);
        }
        after = last.seq + last.span - 1;
    }
    assert_eq!(events, all);
    assert_eq!(bench.reader.oldest_seq().expect("readable"), 1);
}

pub(super) fn history_of_one_job_has_its_newest_changes(bench: &mut Bench) {
    assert_eq!(bench.reader.oldest_seq().expect("readable"), 0);
    bench.register("import", "fetch load");
    bench.enqueue_all(vec![new_job("import"); 3]); // 1-3
    let rows: Vec<_> = bench
        .claim()
        .claimed
        .iter()
        .map(|claimed| claimed.row)
        .collect();
    let row = bench.complete(&rows[1], "1"); // 10-11
    bench.complete(&rows[0], "1"); // 12-13
    bench.complete(&row, "1"); // 14-15
    for id in rows.iter().map(|row| row.id) {
        let mut events = Vec::new();
        for change in bench.reader.changes_of(id, 99).expect("readable") {
            event::expand(&change, 0, &mut events);
        }
        let mut expected = bench.events(0);
        expected.retain(|event| event.job_id == id);
        assert_eq!(events, expected, "job {id}");
    }
    let newest = bench.reader.changes_of(row.id, 2).expect("readable");
    assert_eq!(
        newest.iter().map(|change| change.seq).collect::<Vec<_>>(),
        [10, 14]
    );
    assert!(
        bench
            .reader
            .changes_of(JobId::from_i64(9), 9)
            .expect("readable")
            .is_empty()
    );
}

pub(super) fn explain_counts_the_jobs_ahead(bench: &mut Bench) {
    bench.register("import", "fetch");
    bench.register("export", "fetch");
    let running = bench.start(new_job("import"));
    bench.enqueue_all(vec![
        new_job("import"),                           // 2
        new_job("export"),                           // 3
        new_job("import").priority(1),               // 4
        new_job("import").priority(1).delay(SECOND), // 5
        new_job("import"),                           // 6
    ]);
    let look = |bench: &Bench, id| {
        let situation = bench.reader.situation(JobId::from_i64(id), bench.now);
        let situation = situation.expect("readable").expect("there");
        assert!(!situation.queue_paused && !situation.type_paused);
        (
            situation.job_type.to_string(),
            situation.running_of_type,
            situation.ahead,
        )
    };
    assert_eq!(look(bench, 6), ("import".to_owned(), 1, 2));
    assert_eq!(look(bench, 2), ("import".to_owned(), 1, 1));
    assert_eq!(look(bench, 4), ("import".to_owned(), 1, 0));
    assert_eq!(look(bench, 3), ("export".to_owned(), 0, 0));
    bench.later(SECOND);
    assert_eq!(look(bench, 6).2, 3, "one more is due");
    assert_eq!(bench.row(running.id), running);
}

fn enqueue_op(job_type: &str) -> Op {
    Op::Enqueue(vec![PlannedJob {
        job: new_job(job_type),
        plan: Some(plan("fetch")),
    }])
}

pub(super) fn a_refused_operation_leaves_its_neighbours_alone(bench: &mut Bench) {
    bench.register("import", "fetch");
    let ops = [
        enqueue_op("import"),
        Op::Delete(JobId::from_i64(1)),
        Op::Cancel(JobId::from_i64(9)),
        enqueue_op("import"),
        Op::Retry(JobId::from_i64(77), crate::job::RetryFrom::Start),
        Op::Cancel(JobId::from_i64(1)),
        Op::Delete(JobId::from_i64(1)),
    ];
    let request = bench.request();
    let committed = bench.commit(&ops, &request).expect("a commit");
    let is_ok: Vec<bool> = committed.answers.iter().map(Result::is_ok).collect();
    assert_eq!(is_ok, [true, false, true, true, false, true, true]);
    assert_eq!(
        ids(&committed.claims),
        [JobId::from_i64(2)],
        "claims follow the operations"
    );
    assert_eq!(bench.head.counts, [0, 1, 0, 0, 0]);
    assert_eq!(bench.told(JobId::from_i64(1)), "created cancelled deleted");
}

/// Runs the operations, and then fails as a full disk would.
fn run_and_fail(bench: &mut Bench, ops: &[Op], request: &ClaimRequest) {
    let now = bench.now;
    let outcome = bench.store.transact(&mut |rows| {
        let committed = seam::run(rows, ops, request, now, 7)?;
        assert!(committed.answers.iter().all(Result::is_ok));
        Err(Error::new(ErrorKind::StorageFull, "the disk is full"))
    });
    match outcome {
        Err(Failure::NothingDone(error)) => assert_eq!(error.kind(), ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
}

pub(super) fn an_error_after_writes_undoes_the_whole_commit(bench: &mut Bench) {
    bench.register("import", "fetch load");
    let row = bench.start(new_job("import"));
    let row = bench.complete(&row, "1");
    let failed = bench.start(new_job("import"));
    bench.fail(&failed, Verdict::Fail);
    let key = || new_job("import").unique_key("k", crate::new_job::While::Live);
    let (jobs, head, events) = (bench.jobs(), bench.head, bench.events(0));
    let ops = [
        enqueue_op("import"),
        Op::Enqueue(vec![PlannedJob {
            job: key(),
            plan: None,
        }]),
        Op::Save {
            id: row.id,
            epoch: row.epoch,
            phase_index: 1,
            json: "1".to_owned(),
        },
        Op::Cancel(row.id),
        Op::Delete(failed.id),
        Op::SetPaused {
            job_type: None,
            paused: true,
        },
    ];
    let request = bench.request();
    run_and_fail(bench, &ops, &request);
    assert_eq!(bench.reader.head().expect("a head"), head);
    assert_eq!((bench.jobs(), bench.events(0)), (jobs, events));
    assert_eq!(bench.reader.checkpoint(row.id, 1).expect("readable"), None);
    assert!(!bench.reader.pauses().expect("readable").0);
    let enqueued = bench.enqueue_all(vec![key()]);
    assert!(enqueued[0].is_new, "the key was not taken");
    assert_eq!(enqueued[0].id.as_i64(), 3, "nor was the id");
    assert_eq!(bench.complete(&row, "2").status, JobStatus::Completed);
}

pub(super) fn names_given_out_in_a_failed_commit_are_free_again(bench: &mut Bench) {
    let nothing = ClaimRequest::default();
    run_and_fail(bench, &[enqueue_op("first")], &nothing);
    bench.register("second", "other");
    let id = bench.enqueue(new_job("second"));
    bench.register("first", "fetch");
    let first = bench.enqueue(new_job("first"));
    assert_eq!(&*bench.job(id).job_type, "second");
    assert_eq!(&*bench.job(id).phases[0].name, "other");
    assert_eq!(&*bench.job(first).job_type, "first");
    assert_eq!(&*bench.job(first).phases[0].name, "fetch");
}

pub(super) fn the_tag_of_a_commit_is_found_by_its_last_row(bench: &mut Bench) {
    let ops = [enqueue_op("import"), enqueue_op("export")];
    let nothing = ClaimRequest::default();
    let committed = bench.commit(&ops, &nothing).expect("a commit");
    assert_eq!((committed.last_row_seq, committed.head.tag), (2, bench.tag));
    let tag = bench.tag;
    bench.look(|rows| {
        let tags = [rows.tag_at(1)?, rows.tag_at(2)?, rows.tag_at(3)?];
        assert_eq!(tags, [None, Some(tag), None]);
        Ok(())
    });
    bench.store.reopen().expect("opened anew");
    assert_eq!(bench.reader.head().expect("a head").tag, tag);
    let refused = refused(bench.one(Op::Delete(JobId::from_i64(1))));
    assert_eq!(refused.0, ErrorKind::Conflict);
    assert_eq!(
        bench.reader.head().expect("a head").tag,
        tag,
        "nothing was written"
    );
    assert!(matches!(
        bench.one(enqueue_op("import")),
        Ok(Done::Enqueued(_))
    ));
    assert_eq!(bench.job(JobId::from_i64(1)).created_at, START);
}
