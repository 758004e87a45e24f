//! The job types of the golden files, and what is read of such a file.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::{
    Builder, Client, DeliveryQuery, JobPlan, JobType, ListFilter, Phase, PhaseError, PhaseSpec,
    RetryPolicy,
};

const HOUR: Duration = Duration::from_secs(3600);
const FETCH: Phase<Value> = Phase::new("fetch");
const PARSE: Phase<Value> = Phase::new("parse").version(2);
const STUCK: Phase<Value> = Phase::new("stuck");
const BRIEF: Phase<Value> = Phase::new("brief").timeout(Duration::from_secs(60));
/// What is stored under the name of [`BRIEF`] is no number.
const NUMBER: Phase<u64> = Phase::new("brief");
/// The key of the endpoint `audit`, and those of a job's own endpoint.
pub(crate) const AUDIT: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub(crate) const NEWER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
pub(crate) const OLDER: &str = "whsec_YSBrZXkgdGhhdCB3aWxsIGJlIHJldGlyZWQ=";
/// More than a result may have.
const TOO_LARGE: usize = 2 << 20;

/// The job types of the file. What jobs do is in their input. `inside` is called with the name of the type in those handlers that may
/// be held up.
pub(crate) fn register(
    builder: &mut Builder,
    inside: impl Fn(&str) + Clone + Send + Sync + 'static,
) {
    let import = JobType::<Value>::new("import")
        .retry(RetryPolicy::fixed(HOUR).max_attempts(2))
        .phase(FETCH, |cx| Ok(json!({ "fetched": cx.input() })))
        .phase(PARSE, |cx| match cx.input()["fails"].as_str() {
            Some("once") if cx.attempt() > 1 => Ok(json!("at last")),
            Some("always" | "once") => Err(PhaseError::retry("it does not work")),
            Some("for good") => Err(PhaseError::fail("it never will")),
            Some("panic") => panic!("on purpose"),
            _ => cx.get(FETCH),
        });
    builder.register(import);
    builder.register(JobType::<Value>::planned(
        "planned",
        |input| {
            let names = input["phases"].as_array().ok_or("phases are missing")?;
            let names = names.iter().filter_map(Value::as_str);
            Ok(JobPlan::new(
                names.map(|name| PhaseSpec::new(name.to_owned())),
            ))
        },
        |cx| Ok(json!(cx.phase())),
    ));
    for name in ["held", "snoozing"] {
        let work = JobType::<Value>::new(name).phase(FETCH, |cx| {
            if cx.job_type() == "snoozing" && cx.saved::<Value>()?.is_none() {
                cx.save(&json!("once is enough"))?;
                return Err(PhaseError::snooze(HOUR));
            }
            Ok(Value::Null)
        });
        builder.register(work);
    }
    builder.register(JobType::<Value>::new("batch").phase(FETCH, |_| Ok(Value::Null)));
    register_stoppable(builder, inside);
}

/// A type whose jobs nobody can plan.
pub(crate) fn register_planless(builder: &mut Builder) {
    builder.register(JobType::<Value>::planned(
        "planless",
        |_| Err("there is nothing to do".to_owned()),
        |_| Ok(Value::Null),
    ));
}

fn register_stoppable(
    builder: &mut Builder,
    inside: impl Fn(&str) + Clone + Send + Sync + 'static,
) {
    let enters = inside.clone();
    builder.register(
        JobType::<Value>::new("stuck")
            .phase(FETCH, |_| Ok(json!("before the end")))
            .phase(STUCK, move |cx| {
                let before: Option<Value> = cx.saved()?;
                cx.save(&json!({ "rows": 41 }))?;
                enters("stuck");
                Ok(json!({ "before": before, "interrupted": cx.interruption() }))
            }),
    );
    let enters = inside.clone();
    builder.register(
        JobType::<Value>::new("faulty")
            .retry(RetryPolicy::never())
            .phase(BRIEF, move |cx| match cx.input()["fails"].as_str() {
                Some("slow") => {
                    enters("faulty");
                    cx.sleep(HOUR)?;
                    Ok(Value::Null)
                }
                Some("large") => Ok(json!("x".repeat(TOO_LARGE))),
                _ => Ok(json!("no number")),
            })
            .phase(PARSE, |cx| cx.get(NUMBER).map(Value::from)),
    );
    for (name, crashes) in [("fragile", 0), ("keyed", 3)] {
        let enters = inside.clone();
        let work = JobType::<Value>::new(name).max_crashes(crashes);
        builder.register(work.phase(FETCH, move |_| {
            enters(name);
            Ok(Value::Null)
        }));
    }
    builder.register(
        JobType::<Value>::new("resting")
            .phase(FETCH, move |_| {
                inside("resting");
                Ok(json!("before the pause"))
            })
            .phase(PARSE, |cx| cx.get(FETCH)),
    );
}

/// Everything that a client can read of a file.
pub(crate) fn read(path: &Path) -> Value {
    let client = Client::open(path).expect("the file can be opened");
    let stats = client.stats().expect("it can be read");
    let filter = ListFilter::new().limit(1000);
    let page = client.list(&filter).expect("it can be read");
    let jobs = page.jobs.iter().rev();
    let jobs = jobs.map(|it| client.get(it.id).expect("it can be read"));
    let jobs: Vec<_> = jobs.collect();
    let query = DeliveryQuery::new().limit(1000);
    let page = client.deliveries(&query).expect("it can be read");
    let deliveries = page.deliveries.iter().rev();
    let deliveries = deliveries.map(|it| client.delivery(it.id).expect("it can be read"));
    let deliveries: Vec<_> = deliveries.collect();
    json!({
        "stats": stats,
        "jobs": jobs,
        "events": client.events_after(0, 10_000).expect("it can be read"),
        "deliveries": deliveries,
        "endpoints": client.endpoints().expect("it can be read"),
    })
}
