//! Which plans SQLite makes of the statements. Test code.

use rusqlite::{Connection, StatementStatus, params_from_iter};

use super::Scene;
use crate::config::Durability;
use crate::store::sqlite::*;

const BY_ID: &str = "USING INTEGER PRIMARY KEY";
const BY_KEY: &str = "USING PRIMARY KEY (type_id=? AND key=?)";
const LIVE: &str = "USING INDEX job_live";
const LIVE_ALONE: &str = "USING COVERING INDEX job_live";
const OVER_ALONE: &str = "USING COVERING INDEX job_over";
/// Statements that a queue needs all the time, and what the plan of each must say.
const HOT: &[(&str, &str)] = &[
    (updates::UPDATE_JOB, BY_ID),
    (updates::UPDATE_JOB_IN_PLACE, BY_ID),
    (updates::UPDATE_RUN, BY_ID),
    (updates::UPDATE_RUN_IN_PLACE, BY_ID),
    (commit::DELETE_JOB, BY_ID),
    (commit::DELETE_PAYLOAD, BY_ID),
    (commit::DELETE_PHASES, BY_ID),
    (commit::DELETE_CHECKPOINTS, BY_ID),
    (
        commit::DELETE_ERRORS,
        "USING INDEX job_error_job (job_id=?)",
    ),
    (commit::TRIM_ERRORS, "USING COVERING INDEX job_error_job"),
    (rows::SELECT_INPUT, BY_ID),
    (prune::SELECT_BYTES, BY_ID),
    (
        commit::SELECT_TYPE,
        "USING INDEX sqlite_autoindex_job_type_1",
    ),
    (
        commit::SELECT_PLAN_ID,
        "USING COVERING INDEX sqlite_autoindex_plan_1",
    ),
    (
        commit::SELECT_HOLDER,
        "USING PRIMARY KEY (type_id=? AND key=?)",
    ),
    (commit::COUNT_RUNNING, "(status=? AND type_id=?)"),
    (commit::COUNT_RUNNING, LIVE_ALONE),
    (by_status::SELECT_LIVE_IDS, LIVE_ALONE),
    (by_status::SELECT_LIVE_IDS_OF, LIVE_ALONE),
    (by_status::SELECT_LIVE_IDS_OF, "(status=? AND type_id=?)"),
    (by_status::SELECT_OVER_IDS, OVER_ALONE),
    // The type is in no index of what is over: a look at each row, but no sort.
    (
        by_status::SELECT_OVER_IDS_OF,
        "USING INDEX job_over (status=?)",
    ),
    (by_status::COUNT_LIVE, LIVE_ALONE),
    (by_status::COUNT_OVER, OVER_ALONE),
    (by_status::SELECT_OLDEST_OVER, OVER_ALONE),
    (
        by_status::SELECT_OLDEST_OVER,
        "(status=? AND finished_at_ms>? AND finished_at_ms<?)",
    ),
    (due::SELECT_PRIORITY, LIVE_ALONE),
    (
        due::SELECT_PRIORITY,
        "(status=? AND type_id=? AND priority<?)",
    ),
    (due::SELECT_DUE, LIVE),
    (
        due::SELECT_DUE,
        "(status=? AND type_id=? AND priority=? AND run_at_ms<?)",
    ),
    (due::SELECT_NEXT_DUE, LIVE_ALONE),
    (
        due::SELECT_NEXT_DUE,
        "(status=? AND type_id=? AND priority=? AND run_at_ms>?)",
    ),
    (
        prune::SELECT_HOLDERS,
        "USING PRIMARY KEY ((type_id,key)>(?,?))",
    ),
    (prune::DELETE_HOLDER, BY_KEY),
    (prune::DELETE_HOLDER_OF, BY_KEY),
    (prune::DELETE_OLD_EVENTS, BY_ID),
    (prune::SELECT_EVENT_TIME, BY_ID),
    // In the order of the key, and only as far as the LIMIT.
    (prune::SELECT_OLD_EVENTS, "SCAN event"),
    (rows::SELECT_HEAD, "SCAN event"),
    (rows::SELECT_JOB, BY_ID),
    (rows::SELECT_PHASES, BY_ID),
    (rows::SELECT_ERRORS, "USING INDEX job_error_job (job_id=?)"),
    (read::SELECT_CHANGES, BY_ID),
    (read::SELECT_CHANGE_AT, BY_ID),
    (read::LIST_BY_ID, BY_ID),
    (
        read::LIST_BY_END,
        "USING INDEX job_over (status=? AND finished_at_ms<?)",
    ),
    (read::COUNT_AHEAD, LIVE_ALONE),
    (outbox::SELECT_OF_JOB, "(job_id=?)"),
    (outbox::SELECT_SAME, "USING INDEX endpoint_of_jobs"),
    (outbox::DROP_ENDPOINT, "INDEX job_endpoint_jobs"),
    (outbox::DROP_ENDPOINT, "INDEX delivery_line"),
    (
        outbox::SELECT_FIRST,
        "USING COVERING INDEX delivery_line (endpoint_id=? AND job_id=?)",
    ),
    (outbox::TRIM_TRIES, "USING COVERING INDEX delivery_try_of"),
    (
        outbox::SELECT_OVER,
        "USING INDEX delivery_over (finished_at_ms>?)",
    ),
    (
        outbox::SELECT_OLD,
        "USING INDEX delivery_done (status=? AND rowid<?)",
    ),
    (
        outbox::HAS_DELIVERIES,
        "USING COVERING INDEX delivery_job (job_id=?)",
    ),
    (
        outbox::NEXT_ENDPOINT,
        "USING COVERING INDEX delivery_next (endpoint_id>?)",
    ),
    (
        outbox::NEXT_OF,
        "USING COVERING INDEX delivery_next (endpoint_id=? AND next_at_ms>?)",
    ),
    (
        outbox::SELECT_SENDABLE,
        "USING INDEX delivery_next (endpoint_id=? AND next_at_ms>?)",
    ),
    (outbox::LIST, BY_ID),
    (outbox::LIST_OF_JOB, "USING INDEX delivery_job (job_id=?"),
];

#[test]
fn every_hot_statement_uses_its_index_and_none_sorts() {
    let scene = Scene::new();
    let _store = scene.open().expect("a new file");
    let conn = open::reader(&scene.path()).expect("a reader");
    for (sql, wanted) in HOT {
        let plan = plan_of(&conn, sql);
        assert!(plan.contains(wanted), "{sql}\n{plan}");
        assert!(!plan.contains("SCAN job"), "{sql}\n{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{sql}\n{plan}");
    }
}

fn plan_of(conn: &Connection, sql: &str) -> String {
    let mut statement = conn
        .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
        .expect("valid SQL");
    let params = params_from_iter(vec![1; statement.parameter_count()]);
    let lines = statement
        .query_map(params, |row| row.get::<_, String>(3))
        .expect("a plan");
    let lines: Vec<String> = lines.map(|line| line.expect("a line")).collect();
    lines.join("\n")
}

/// SQLite looks at the value that is bound to a LIMIT when it plans, and so planned the statement anew at each execution, which
/// took longer than the execution.
#[test]
fn a_bound_limit_does_not_have_a_statement_planned_anew() {
    let scene = Scene::new();
    drop(scene.open().expect("a new file"));
    let writer = open::writer(&scene.path(), Durability::Full).expect("a writer");
    let reader = open::reader(&scene.path()).expect("a reader");
    for conn in [writer, reader] {
        for sql in [due::SELECT_DUE, read::SELECT_CHANGES, rows::SELECT_ERRORS] {
            let mut statement = conn.prepare(sql).expect("valid SQL");
            for value in 1..5 {
                let params = params_from_iter(vec![value; statement.parameter_count()]);
                assert!(
                    statement
                        .query(params)
                        .expect("rows")
                        .next()
                        .expect("a step")
                        .is_none()
                );
            }
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "{sql}");
        }
    }
}
