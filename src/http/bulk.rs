//! `POST /api/jobs/bulk`: one thing done to many jobs, by a filter on the server or by their ids. L3; delegates.

use serde_json::{Value, json};

use crate::http::answer::{Answer, failed, problem};
use crate::http::api::{parse_from, parse_status};
use crate::http::router::{Call, Reply, Site};
use crate::job::{BulkAction, JobId};
use crate::requests;

/// Their commit holds up all others.
const IDS_MAX: usize = 1000;

pub(super) fn run(site: &Site, call: &Call<'_>) -> std::result::Result<Reply, Answer> {
    call.only(&["action", "from", "status", "type", "expect_count", "ids"])?;
    let action = match call.text("action")? {
        Some("cancel") => BulkAction::Cancel,
        Some("retry") => BulkAction::Retry(parse_from(call)?),
        Some("delete") => BulkAction::Delete,
        Some(_) | None => {
            return Err(problem(
                400,
                "\"action\" is to be \"cancel\", \"retry\" or \"delete\"",
            ));
        }
    };
    if call.body.contains_key("ids") {
        return by_ids(site, action, ids(call)?);
    }
    let Some(status) = call.text("status")? else {
        return Err(problem(400, "\"status\" or \"ids\" is to say which jobs"));
    };
    let expect = match call.body.get("expect_count") {
        None | Some(Value::Null) => None,
        Some(count) => {
            // For JSON, 7.0 is a whole number too.
            let count = count.to_string();
            let count = count.strip_suffix(".0").unwrap_or(&count).parse().ok();
            Some(count.ok_or_else(|| problem(400, "\"expect_count\" is to be a whole number"))?)
        }
    };
    let (status, job_type) = (parse_status(status)?, call.text("type")?);
    let changed = requests::bulk(&*site.engine, action, status, job_type, expect)
        .map_err(|error| failed(&error))?;
    Ok(Answer::json(&json!({ "changed": changed })).into())
}

fn ids(call: &Call<'_>) -> std::result::Result<Vec<JobId>, Answer> {
    let wrong = || {
        problem(
            400,
            &format!(
                "\"ids\" is to be a list of 1 to {IDS_MAX} job ids, without a filter beside it"
            ),
        )
    };
    let alone = ["status", "type", "expect_count"]
        .iter()
        .all(|name| !call.body.contains_key(*name));
    let list = call
        .body
        .get("ids")
        .and_then(Value::as_array)
        .filter(|list| alone && (1..=IDS_MAX).contains(&list.len()));
    let ids = list
        .ok_or_else(wrong)?
        .iter()
        .map(|id| id.as_i64().filter(|id| (1..=JobId::MAX).contains(id)));
    let ids: Option<Vec<_>> = ids.map(|id| id.map(JobId::from_i64)).collect();
    ids.ok_or_else(wrong)
}

/// Jobs that are gone, or have moved on meanwhile, are left as they are, and counted. In one commit: after an error
/// none has changed, or, if it says so, all or none.
fn by_ids(site: &Site, action: BulkAction, ids: Vec<JobId>) -> std::result::Result<Reply, Answer> {
    let listed = ids.len();
    let changed =
        requests::bulk_listed(&*site.engine, action, ids).map_err(|error| failed(&error))?;
    let skipped = listed.saturating_sub(changed);
    Ok(Answer::json(&json!({ "changed": changed, "skipped": skipped })).into())
}
