//! A job that stands at the edge between two phases, for as long as a test wants.

use serde_json::{Value, json};
use stepwell::{Builder, EventKind, JobId, JobQueue, JobType, NewJob};

use super::{Gate, Harness, ONE, TWO};

/// One worker. The result of the job's first phase is committed and its second phase offered, but the worker is inside the
/// handler of `other`.
pub(crate) struct AtTheEdge {
    pub(crate) queue: JobQueue,
    pub(crate) job: JobId,
    pub(crate) other: JobId,
    /// Where `other` is held; then the job's second phase comes here too.
    pub(crate) gate: Gate,
}

impl AtTheEdge {
    /// The types `steps` and `other` of this scene, to be run by another queue.
    pub(crate) fn register(builder: &mut Builder, gate: &Gate) {
        let (second, other) = (gate.clone(), gate.clone());
        builder.register(
            JobType::<Value>::new("steps")
                .phase(ONE, |_| Ok(json!("first")))
                .phase(TWO, move |cx| {
                    second.pass(cx);
                    cx.get(ONE)
                }),
        );
        builder.register(JobType::<Value>::new("other").phase(ONE, move |cx| {
            other.pass(cx);
            Ok(json!("other"))
        }));
    }

    pub(crate) fn new(harness: &Harness) -> AtTheEdge {
        let gate = Gate::new();
        let mut builder = harness.builder().workers(1);
        AtTheEdge::register(&mut builder, &gate);
        let short =
            builder.register(JobType::<Value>::new("short").phase(ONE, |_| Ok(Value::Null)));
        let queue = builder.open().unwrap();
        // Phases that are much shorter than a commit make the queue claim more jobs than it has workers.
        while queue.stats().unwrap().window < 2 {
            for id in short.enqueue_many(&vec![Value::Null; 100]).unwrap() {
                queue.wait(id, harness.left()).unwrap();
            }
        }
        let new = |name| NewJob::new(name, &Value::Null).unwrap();
        let both = queue.enqueue_all(vec![new("steps"), new("other")]).unwrap();
        let (job, other) = (both[0].id, both[1].id);
        assert_eq!(gate.wait(harness), other);
        harness.wait_event(&queue, job, EventKind::PhaseCompleted);
        AtTheEdge {
            queue,
            job,
            other,
            gate,
        }
    }
}
