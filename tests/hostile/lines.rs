//! Job lines of the runner.

use stepwell::JobQueue;

use crate::job_line;

/// What is taken can be stored, and what it is stored as can be read again and planned.
pub(crate) fn parse(bytes: &[u8]) {
    let jobs = match job_line::parse(bytes) {
        Ok(jobs) => jobs,
        Err(problem) => {
            assert!(problem.starts_with("line "), "{problem}");
            return;
        }
    };
    let queue = JobQueue::in_memory().workers(0).open().expect("a queue");
    let count = jobs.len();
    let ids = queue.enqueue_all(jobs).expect("they were checked");
    assert_eq!(ids.len(), count);
    for enqueued in ids {
        let job = queue.get(enqueued.id).expect("it can be read");
        let job = job.expect("it was stored");
        let pipeline: job_line::Pipeline =
            serde_json::from_value(job.input).expect("it is a pipeline");
        assert_eq!(pipeline.phases.len(), job.phases.len());
        // That it can be planned at all is what is asked.
        drop(pipeline.plan());
    }
}
