//! Rust types on both ends of a job, and what happens when they change between two versions of a program.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stepwell::{
    ErrorCause, ErrorKind, JobHandle, JobId, JobPlan, JobQueue, JobStatus, JobType, Phase,
    PhaseError, PhaseSpec, PhaseStatus, RetryFrom, RetryPolicy, Timestamp,
};

use crate::support::{Harness, ONE, THREE, TWO, assert_refused, assert_sound, at_once};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    item: String,
    count: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Price {
    cents: u64,
}

const PRICE: Phase<Price> = Phase::new("price");
const LABEL: Phase<String> = Phase::new("label");

fn orders() -> JobType<Order, String> {
    JobType::<Order>::new("order")
        .retry(RetryPolicy::never())
        .phase(PRICE, |cx| match cx.input().count {
            0 => Err(PhaseError::retry("nothing was ordered")),
            count => Ok(Price {
                cents: u64::from(count) * 250,
            }),
        })
        .phase(LABEL, |cx| {
            let Price { cents } = cx.get(PRICE)?;
            Ok(format!("{}: {cents}", cx.input().item))
        })
}

fn order(count: u32) -> Order {
    let item = "pen".to_owned();
    Order { item, count }
}

#[test]
fn input_results_and_answer_have_their_types() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(orders());
    let id = jobs.enqueue(&order(3)).unwrap();
    assert_eq!(jobs.wait(id, harness.left()).unwrap(), "pen: 750");
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.input, json!({"item": "pen", "count": 3}));
    assert_eq!(jobs.job_type(), "order");
    let ids = jobs.enqueue_many(&[order(1), order(2)]).unwrap();
    let later = jobs.enqueue_at(&order(4), Timestamp::now()).unwrap();
    let answers = ids.iter().chain([&later]);
    let answers: Vec<_> = answers
        .map(|id| jobs.wait(*id, harness.left()).unwrap())
        .collect();
    assert_eq!(answers, ["pen: 250", "pen: 500", "pen: 1000"]);
}

#[test]
fn who_waits_for_a_job_that_goes_wrong_is_told_how() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(orders());
    let id = jobs.enqueue(&order(0)).unwrap();
    assert_refused(
        jobs.wait(id, harness.left()),
        ErrorKind::Conflict,
        &format!("job {id} has failed: nothing was ordered"),
    );
    queue.pause().unwrap();
    let waiting = jobs.enqueue(&order(1)).unwrap();
    assert_refused(
        jobs.wait(waiting, Duration::from_millis(1)),
        ErrorKind::Timeout,
        &format!("job {waiting} is still pending after 1ms"),
    );
    let cancelled = queue.cancel(waiting).unwrap();
    assert_eq!(cancelled, stepwell::CancelOutcome::Cancelled);
    assert_refused(
        jobs.wait(waiting, harness.left()),
        ErrorKind::Conflict,
        &format!("job {waiting} was cancelled"),
    );
    assert_refused(
        jobs.wait(JobId::from_i64(99), harness.left()),
        ErrorKind::NotFound,
        "job 99: there is no such job",
    );
}

#[test]
fn an_input_that_does_not_decode_fails_its_job_at_once() {
    let harness = Harness::new();
    let (queue, _) = harness.open(orders().retry(at_once(5)));
    let id = queue.enqueue("order", &json!({"item": 7})).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Failed);
    assert_eq!((job.attempt, job.errors[0].kind), (1, ErrorCause::Decode));
    assert!(
        job.errors[0]
            .message
            .starts_with("the input cannot be decoded: invalid type: integer, expected"),
        "{}",
        job.errors[0].message
    );
}

/// Which phases ran, in which order.
type Ran = Arc<Mutex<Vec<&'static str>>>;

/// A handler that notes that it ran, and answers with its phase and all results before it.
fn noting(
    ran: &Ran,
    name: &'static str,
) -> impl Fn(&stepwell::PhaseContext<Value>) -> Result<Value, PhaseError> + Send + Sync + 'static {
    let ran = ran.clone();
    move |cx| {
        ran.lock().unwrap().push(name);
        let (plan, index) = cx.plan();
        let before: Result<Vec<Value>, _> = plan[..index]
            .iter()
            .map(|phase| cx.get_json(&phase.name))
            .collect();
        Ok(json!({name: before?.len()}))
    }
}

/// A job whose third of three phases has failed, its queue closed.
fn stuck_at_the_third(harness: &Harness) -> JobId {
    let ran = Ran::default();
    let (queue, jobs) = harness.open(
        JobType::<Value>::new("steps")
            .retry(RetryPolicy::never())
            .phase(ONE, noting(&ran, "one"))
            .phase(TWO, noting(&ran, "two"))
            .phase(THREE, |_| Err::<Value, _>(PhaseError::retry("stuck"))),
    );
    let id = jobs.enqueue(&Value::Null).unwrap();
    harness.wait_for(&queue, id, JobStatus::Failed);
    queue.shutdown(harness.left()).unwrap();
    id
}

/// Opens the file with a new version of the program and retries the job; answers which phases ran then.
fn after_the_update(
    harness: &Harness,
    id: JobId,
    job_type: JobType<Value, Value>,
    ran: &Ran,
) -> (JobQueue, Vec<&'static str>) {
    let (queue, _) = harness.open(job_type);
    queue.retry(id, RetryFrom::Failed).unwrap();
    let job = harness.wait_for(&queue, id, JobStatus::Completed);
    let is_done = |phase: &stepwell::PhaseRecord| phase.status == PhaseStatus::Completed;
    assert!(job.phases.iter().all(is_done));
    assert_sound(&queue);
    let ran = ran.lock().unwrap().clone();
    (queue, ran)
}

#[test]
fn a_phase_of_another_version_and_all_after_it_run_again() {
    const TWO_V2: Phase<Value> = Phase::new("two").version(2);
    let harness = Harness::new();
    let id = stuck_at_the_third(&harness);
    let ran = Ran::default();
    let job_type = JobType::<Value>::new("steps")
        .phase(ONE, noting(&ran, "one"))
        .phase(TWO_V2, noting(&ran, "two"))
        .phase(THREE, noting(&ran, "three"));
    let (queue, ran) = after_the_update(&harness, id, job_type, &ran);
    assert_eq!(ran, ["two", "three"], "the first one's result is kept");
    let job = queue.get(id).unwrap().unwrap();
    let versions: Vec<u32> = job.phases.iter().map(|phase| phase.version).collect();
    assert_eq!(versions, [1, 2, 1]);
}

#[test]
fn a_new_first_version_runs_everything_again() {
    const ONE_V2: Phase<Value> = Phase::new("one").version(2);
    let harness = Harness::new();
    let id = stuck_at_the_third(&harness);
    let ran = Ran::default();
    let job_type = JobType::<Value>::new("steps")
        .phase(ONE_V2, noting(&ran, "one"))
        .phase(TWO, noting(&ran, "two"))
        .phase(THREE, noting(&ran, "three"));
    let (_, ran) = after_the_update(&harness, id, job_type, &ran);
    assert_eq!(ran, ["one", "two", "three"]);
}

#[test]
fn a_phase_that_was_put_in_between_runs_and_so_do_all_after_it() {
    const BETWEEN: Phase<Value> = Phase::new("between");
    let harness = Harness::new();
    let id = stuck_at_the_third(&harness);
    let ran = Ran::default();
    let job_type = JobType::<Value>::new("steps")
        .phase(ONE, noting(&ran, "one"))
        .phase(BETWEEN, noting(&ran, "between"))
        .phase(TWO, noting(&ran, "two"))
        .phase(THREE, noting(&ran, "three"));
    let (_, ran) = after_the_update(&harness, id, job_type, &ran);
    assert_eq!(ran, ["between", "two", "three"]);
}

#[test]
fn a_phase_that_was_taken_out_is_forgotten() {
    let harness = Harness::new();
    let id = stuck_at_the_third(&harness);
    let ran = Ran::default();
    let job_type = JobType::<Value>::new("steps")
        .phase(ONE, noting(&ran, "one"))
        .phase(THREE, noting(&ran, "three"));
    let (queue, ran) = after_the_update(&harness, id, job_type, &ran);
    assert_eq!(ran, ["three"]);
    let job = queue.get(id).unwrap().unwrap();
    let names: Vec<&str> = job.phases.iter().map(|phase| &*phase.name).collect();
    assert_eq!(names, ["one", "three"]);
    assert_eq!(job.phases[1].result, Some(json!({"three": 1})));
}

#[test]
fn phases_are_matched_by_name_and_never_by_place() {
    let harness = Harness::new();
    let id = stuck_at_the_third(&harness);
    let ran = Ran::default();
    let job_type = JobType::<Value>::new("steps")
        .phase(TWO, noting(&ran, "two"))
        .phase(ONE, noting(&ran, "one"))
        .phase(THREE, noting(&ran, "three"));
    let (queue, ran) = after_the_update(&harness, id, job_type, &ran);
    assert_eq!(ran, ["three"], "both are there, in their new places");
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.phases[0].result, Some(json!({"two": 1})));
    assert_eq!(job.phases[1].result, Some(json!({"one": 0})));
}

#[test]
fn a_result_that_does_not_decode_makes_its_phase_run_again() {
    const ONE_AS_PRICE: Phase<Price> = Phase::new("one");
    let harness = Harness::new();
    let id = stuck_at_the_third(&harness);
    let ran = Ran::default();
    let note = ran.clone();
    let job_type = JobType::<Value>::new("steps")
        .retry(at_once(3))
        .phase(ONE_AS_PRICE, move |_| {
            note.lock().unwrap().push("one");
            Ok(Price { cents: 5 })
        })
        .phase(TWO, noting(&ran, "two"))
        .phase(THREE, |cx| Ok(json!(cx.get(ONE_AS_PRICE)?.cents)));
    let (queue, ran) = after_the_update(&harness, id, job_type, &ran);
    assert_eq!(ran, ["one", "two"]);
    let job = queue.get(id).unwrap().unwrap();
    assert_eq!(job.phases[2].result, Some(json!(5)));
    assert_eq!(job.attempt, 2, "the try that found it out is charged");
    let error = job.errors.last().unwrap();
    assert_eq!(error.kind, ErrorCause::Decode);
    let says = "the result of phase \"one\" cannot be decoded: ";
    assert!(error.message.starts_with(says), "{}", error.message);
}

/// A planned type: one phase for each word, one handler for all.
fn planned() -> JobType<Vec<String>, String> {
    JobType::planned(
        "planned",
        |words: &Vec<String>| {
            let patient = words.iter().any(|word| word == "patient");
            let phases = words.iter().map(|word| {
                let spec = PhaseSpec::new(&**word);
                if word == "twice" {
                    spec.retry(at_once(2))
                } else {
                    spec
                }
            });
            let plan = JobPlan::new(phases);
            Ok(if patient {
                plan.retry(at_once(4))
            } else {
                plan
            })
        },
        |cx| match (cx.phase(), cx.attempt()) {
            ("twice", 1) | ("patient", 1..4) => Err(PhaseError::retry("again")),
            (word, _) => Ok(word.to_uppercase()),
        },
    )
    .retry(RetryPolicy::never())
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_planned_type_works_out_the_phases_of_each_job() {
    let harness = Harness::new();
    let (queue, jobs): (JobQueue, JobHandle<Vec<String>, String>) = harness.open(planned());
    for (text, answer, attempts) in [
        ("a", "A", 1),
        ("x y z", "Z", 1),
        ("a twice b", "B", 2),
        ("patient", "PATIENT", 4),
    ] {
        let id = jobs.enqueue(&words(text)).unwrap();
        assert_eq!(jobs.wait(id, harness.left()).unwrap(), answer);
        let job = queue.get(id).unwrap().unwrap();
        let names: Vec<&str> = job.phases.iter().map(|phase| &*phase.name).collect();
        assert_eq!(names, text.split(' ').collect::<Vec<_>>());
        assert_eq!(job.attempt, attempts, "{text}");
    }
    assert_sound(&queue);
}

#[test]
fn a_planned_job_goes_on_in_its_plan_after_a_restart() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(planned());
    queue.pause().unwrap();
    let id = jobs.enqueue(&words("a b c")).unwrap();
    queue.shutdown(harness.left()).unwrap();
    let (queue, jobs) = harness.open(planned());
    queue.resume().unwrap();
    assert_eq!(jobs.wait(id, harness.left()).unwrap(), "C");
}

/// The bug: a number with a fraction was read again with another last digit, so that the next phase, the caller and a retry got
/// another number than the handler had returned.
#[test]
fn numbers_come_back_bit_for_bit() {
    const NUMBERS: Phase<Vec<f64>> = Phase::new("numbers");
    const AGAIN: Phase<Vec<f64>> = Phase::new("again");
    let harness = Harness::new();
    let (_queue, jobs) = harness.open(
        JobType::<Vec<f64>>::new("numbers")
            .phase(NUMBERS, |cx| {
                cx.save(cx.input())?;
                Ok(cx.saved::<Vec<f64>>()?.unwrap_or_default())
            })
            .phase(AGAIN, |cx| cx.get(NUMBERS)),
    );
    // Every magnitude: a multiplier that wanders through all bits.
    let bits = (1..2000_u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut numbers: Vec<f64> = bits
        .map(f64::from_bits)
        .filter(|it| it.is_finite())
        .collect();
    numbers.extend([0.1, 5e-324, f64::MAX, -9_223_373_256_084_775_808.0]);
    let id = jobs.enqueue(&numbers).unwrap();
    let back = jobs.wait(id, harness.left()).unwrap();
    assert_eq!(back.len(), numbers.len());
    for (sent, got) in numbers.iter().zip(&back) {
        assert_eq!(
            sent.to_bits(),
            got.to_bits(),
            "{sent:e} came back as {got:e}"
        );
    }
}

/// The bug: the answer came by way of a `Value`, which has 64 bits for a whole number: what a later phase read to the last digit,
/// `wait` had no place for.
#[test]
fn whole_numbers_beyond_64_bits_come_back_as_they_were() {
    const LARGE: Phase<u128> = Phase::new("large");
    const AGAIN: Phase<u128> = Phase::new("again");
    let harness = Harness::new();
    let (_queue, jobs) = harness.open(
        JobType::<u128>::new("large")
            .phase(LARGE, |cx| Ok(*cx.input()))
            .phase(AGAIN, |cx| cx.get(LARGE)),
    );
    for number in [1 << 64, u128::MAX, 12_345_678_901_234_567_890_123] {
        let id = jobs.enqueue(&number).unwrap();
        assert_eq!(jobs.wait(id, harness.left()).unwrap(), number);
    }
}

/// The bug: what did not fit stood in the error's source, with what it was.
#[test]
fn who_waits_for_another_type_is_not_told_the_result() {
    /// Written as a text, read as a number: as if its type had changed.
    #[derive(Debug)]
    struct Number;
    impl Serialize for Number {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str("hunter2")
        }
    }
    impl<'de> Deserialize<'de> for Number {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
            u32::deserialize(deserializer).map(|_| Number)
        }
    }
    const NUMBER: Phase<Number> = Phase::new("number");
    let harness = Harness::new();
    let (_queue, jobs) =
        harness.open(JobType::<Value>::new("number").phase(NUMBER, |_| Ok(Number)));
    let id = jobs.enqueue(&Value::Null).unwrap();
    let error = jobs.wait(id, harness.left()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let says = format!("job {id} has a result of another type: invalid type: string, expected u32");
    assert!(error.to_string().starts_with(&says), "{error}");
    let mut told = format!("{error} {error:?}");
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        told = format!("{told} {error} {error:?}");
        source = error.source();
    }
    assert!(!told.contains("hunter2"), "{told}");
}

/// As above, for those who print what they have got.
#[test]
fn what_is_printed_for_debugging_has_no_payload() {
    let harness = Harness::new();
    let (queue, jobs) = harness.open(orders());
    let id = jobs.enqueue(&order(3)).unwrap();
    jobs.wait(id, harness.left()).unwrap();
    let job = queue.get(id).unwrap().unwrap();
    let printed = format!("{job:?} {job:#?} {:?}", job.phases);
    assert!(!printed.contains("pen"), "{printed}");
    assert!(!printed.contains("750"), "{printed}");
    let says = r#"input: 24 bytes of JSON, unique_key: None"#;
    assert!(printed.contains(says), "{printed}");
    assert!(
        printed.contains("result: Some(13 bytes of JSON)"),
        "{printed}"
    );
    assert!(printed.contains(r#"job_type: "order""#), "{printed}");
}
