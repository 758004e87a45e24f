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

/// The job types of the file. What jobs do is in their input.
pub(crate) fn register(builder: &mut Builder, stuck: impl Fn() + Send + Sync + 'static) {
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
    builder.register(
        JobType::<Value>::new("stuck")
            .phase(FETCH, |_| Ok(json!("before the end")))
            .phase(STUCK, move |cx| {
                let before: Option<Value> = cx.saved()?;
                cx.save(&json!({ "rows": 41 }))?;
                stuck();
                Ok(json!({ "before": before, "interrupted": cx.interruption() }))
            }),
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
