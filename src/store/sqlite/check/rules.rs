//! S1 to S5, S7, S11 and S12 as queries: each answers with what is broken, and with nothing for a sound file. L2.
//!
//! They ask the columns themselves and not the types of [`rows`](crate::store::sqlite::rows), so that one damaged value hides no
//! other. What is asked of another table is asked by its key; each query reads its table once, and none sorts.

use rusqlite::{Connection, ToSql};
use serde_json::json;

use crate::config::{
    ANSWER_BYTES_MAX, BACKTRACE_BYTES_MAX, ERRORS_KEPT, MESSAGE_BYTES_MAX, NAME_BYTES_MAX,
    UNIQUE_KEY_BYTES_MAX, URL_BYTES_MAX,
};
use crate::delivery::Kinds;
use crate::error::{Error, ErrorKind, Result};
use crate::job::{ErrorCause, InterruptionReason, JobId};
use crate::store::sqlite::check::Findings;
use crate::store::sqlite::rows::{limit, read};
use crate::transition::Flags;

/// An invariant, and the query for what breaks it.
pub(super) type Rule = (&'static str, &'static str);

pub(super) const RULES: &[Rule] = &[
    // ---- S1: words and numbers that stepwell writes ----
    (
        "S1",
        "SELECT 'meta: there is no file_id'
        WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key = 'file_id' AND length(value) = 12 AND value NOT GLOB '*[^0-9a-f]*')",
    ),
    (
        "S1",
        "SELECT 'meta: paused is ' || value FROM meta WHERE key = 'paused' AND value NOT IN ('0', '1') ORDER BY key",
    ),
    (
        "S1",
        "SELECT 'job ' || id || ': is no id that is ever given' FROM job WHERE id NOT BETWEEN 1 AND :job_id_max ORDER BY id",
    ),
    (
        "S1",
        "SELECT 'job ' || id || ': priority is ' || priority FROM job
        WHERE priority NOT BETWEEN -2147483648 AND 2147483647 ORDER BY id",
    ),
    (
        "S1",
        "SELECT 'job ' || id || ': flags are ' || flags FROM job WHERE flags & ~:flags <> 0 ORDER BY id",
    ),
    (
        "S1",
        "SELECT 'job_error ' || id || ' of job ' || job_id || ': cause is ' || cause FROM job_error
        WHERE cause NOT IN (SELECT value FROM json_each(:causes)) ORDER BY id",
    ),
    (
        "S1",
        "SELECT 'job_error ' || id || ' of job ' || job_id || ': is an interruption without a reason' FROM job_error
        WHERE cause = 'interrupted' AND message NOT IN (SELECT value FROM json_each(:reasons)) ORDER BY id",
    ),
    // ---- S2: what refers to something ----
    (
        "S2",
        "SELECT 'job ' || id || ': type_id ' || type_id || ' is of no job type' FROM job
        WHERE type_id NOT IN (SELECT id FROM job_type) ORDER BY id",
    ),
    (
        "S2",
        "SELECT 'job ' || id || ': plan_id ' || plan_id || ' is of no plan' FROM job
        WHERE plan_id <> 0 AND NOT EXISTS (SELECT 1 FROM plan WHERE plan.id = plan_id) ORDER BY id",
    ),
    (
        "S2",
        "SELECT 'job ' || job.id || ': phase_count is ' || phase_count || ', its plan has other phases' FROM job
        LEFT JOIN plan ON plan.id = plan_id
        WHERE phase_count <> CASE WHEN plan_id = 0 THEN 0 WHEN json_valid(phases) THEN json_array_length(phases) ELSE phase_count END
        ORDER BY job.id",
    ),
    (
        "S2",
        "SELECT 'job type ' || id || ': plan_id ' || plan_id || ' is of no plan' FROM job_type
        WHERE plan_id <> 0 AND NOT EXISTS (SELECT 1 FROM plan WHERE plan.id = plan_id) ORDER BY id",
    ),
    (
        "S2",
        "SELECT 'job ' || job.id || ': has ' || iif(job.input IS NULL, 'no input', 'two inputs') FROM job
        LEFT JOIN payload ON job_id = job.id
        WHERE (job.input IS NULL) = (payload.input IS NULL) ORDER BY job.id",
    ),
    (
        "S2",
        "SELECT 'payload of job ' || job_id || ': there is no such job' FROM payload
        WHERE NOT EXISTS (SELECT 1 FROM job WHERE id = job_id) ORDER BY job_id",
    ),
    (
        "S2",
        "SELECT 'result of job ' || (id >> 8) || ', phase ' || (id & 255) || ': there is no such job' FROM phase
        WHERE NOT EXISTS (SELECT 1 FROM job WHERE job.id = phase.id >> 8) ORDER BY id",
    ),
    (
        "S2",
        "SELECT 'checkpoint of job ' || (id >> 8) || ', phase ' || (id & 255) || ': there is no such job' FROM checkpoint
        WHERE NOT EXISTS (SELECT 1 FROM job WHERE job.id = checkpoint.id >> 8) ORDER BY id",
    ),
    (
        "S2",
        "SELECT 'job_error ' || id || ' of job ' || job_id || ': there is no such job' FROM job_error
        WHERE NOT EXISTS (SELECT 1 FROM job WHERE job.id = job_id) ORDER BY id",
    ),
    (
        "S2",
        "SELECT 'job ' || id || ': has ' || iif(flags & :errors, 'a flag and no errors', 'errors and no flag') FROM job
        WHERE (flags & :errors <> 0) <> EXISTS (SELECT 1 FROM job_error WHERE job_id = job.id) ORDER BY id",
    ),
    (
        "S2",
        "SELECT 'unique key ' || quote(key) || ': type_id ' || type_id || ' is of no job type' FROM unique_key
        WHERE type_id NOT IN (SELECT id FROM job_type) ORDER BY type_id, key",
    ),
    (
        "S2",
        "SELECT 'unique key ' || quote(key) || ': job ' || job_id || ' was not enqueued with it' FROM unique_key
        LEFT JOIN job ON job.id = job_id
        WHERE job_id < 1 OR (job.id IS NOT NULL AND (job.type_id, job.unique_key) IS NOT (unique_key.type_id, key))
        ORDER BY unique_key.type_id, key",
    ),
    (
        "S2",
        "SELECT 'unique key ' || quote(key) || ': expires, and is held by what becomes of job ' || job_id FROM unique_key
        WHERE hold < 2 AND expires_ms <> 0 ORDER BY type_id, key",
    ),
    // ---- S3: results and checkpoints ----
    (
        "S3",
        "SELECT 'job ' || id || ': is at phase ' || phase_index || ' of ' || phase_count FROM job
        WHERE phase_index > phase_count ORDER BY id",
    ),
    (
        "S3",
        "SELECT 'job ' || id || ': a result is missing of ' || phase_index FROM job
        WHERE phase_index > 0
          AND (SELECT count(*) FROM phase WHERE phase.id >= job.id * 256 AND phase.id < job.id * 256 + phase_index) <> phase_index
        ORDER BY id",
    ),
    (
        "S3",
        "SELECT 'job ' || job.id || ': phase ' || (phase.id & 255) || ' has a result, the next one is ' || phase_index FROM phase
        JOIN job ON job.id = phase.id >> 8
        WHERE phase.id & 255 >= phase_index ORDER BY phase.id",
    ),
    (
        "S3",
        "SELECT 'job ' || job.id || ': phase ' || (checkpoint.id & 255) || ' has a checkpoint, the next one is ' || phase_index
        FROM checkpoint JOIN job ON job.id = checkpoint.id >> 8
        WHERE checkpoint.id & 255 <> phase_index OR status = 2 ORDER BY checkpoint.id",
    ),
    (
        "S3",
        "SELECT 'job ' || id || ': has ' || iif(flags & :saved, 'a flag and no checkpoint', 'a checkpoint and no flag') FROM job
        WHERE (flags & :saved <> 0) <> EXISTS (SELECT 1 FROM checkpoint WHERE checkpoint.id = job.id * 256 + phase_index)
        ORDER BY id",
    ),
    // ---- S4: the columns fit the status ----
    (
        "S4",
        "SELECT 'job ' || id || ': is completed at phase ' || phase_index || ' of ' || phase_count FROM job
        WHERE status = 2 AND (phase_index < phase_count OR phase_count = 0) ORDER BY id",
    ),
    (
        "S4",
        "SELECT 'job ' || id || ': is not completed, and all its phases are' FROM job
        WHERE status <> 2 AND phase_count > 0 AND phase_index = phase_count ORDER BY id",
    ),
    (
        "S4",
        "SELECT 'job ' || id || ': runs without a plan' FROM job WHERE status = 1 AND phase_count = 0 ORDER BY id",
    ),
    (
        "S4",
        "SELECT 'job ' || id || ': ' || iif(status = 1, 'runs, and no phase has', 'does not run, and a phase has') || ' started'
        FROM job WHERE (status = 1) <> (phase_started_at_ms IS NOT NULL) ORDER BY id",
    ),
    (
        "S4",
        "SELECT 'job ' || id || ': has run in no attempt' FROM job
        WHERE status IN (1, 2) AND (attempt < 1 OR epoch < 1 OR (status = 1 AND phase_attempt < 1)) ORDER BY id",
    ),
    (
        "S4",
        "SELECT 'job ' || id || ': phase_attempt is ' || phase_attempt || ', attempt only ' || attempt FROM job
        WHERE phase_attempt > attempt ORDER BY id",
    ),
    (
        "S4",
        "SELECT 'job ' || id || ': waits and does not' FROM job
        WHERE flags & :waiting <> 0 AND status NOT IN (0, 3) ORDER BY id",
    ),
    // A phase has failed if it was tried. Without one, a job fails when it is not claimed before its deadline, or when nobody can
    // plan it: then its error has no phase. Whoever reaches the crash limit was inside a phase.
    (
        "S4",
        "SELECT 'job ' || job.id || ': has failed and no phase of it has, for ' || cause FROM job
        JOIN job_error ON job_error.id =
          (SELECT last.id FROM job_error AS last WHERE last.job_id = job.id ORDER BY last.id DESC LIMIT 1)
        WHERE status = 3 AND phase_attempt = 0 AND cause <> :deadline AND (cause <> :decode OR phase IS NOT NULL) ORDER BY job.id",
    ),
    // ---- S5: ends and starts ----
    (
        "S5",
        "SELECT 'job ' || id || ': is ' || iif(status >= 2, 'over and has no end', 'not over and has an end') FROM job
        WHERE (status >= 2) <> (finished_at_ms IS NOT NULL) ORDER BY id",
    ),
    (
        "S5",
        "SELECT 'job ' || id || ': was never started' FROM job
        WHERE status IN (1, 2) AND started_at_ms IS NULL ORDER BY id",
    ),
    (
        "S5",
        "SELECT 'job ' || (id >> 8) || ': the result of phase ' || (id & 255) || ' is of attempt ' || attempt FROM phase
        WHERE attempt < 1 ORDER BY id",
    ),
    (
        "S5",
        "SELECT 'job ' || id || ': has failed, and no error says why' FROM job
        WHERE status = 3 AND NOT EXISTS (SELECT 1 FROM job_error WHERE job_id = job.id) ORDER BY id",
    ),
    // ---- S7: crashes ----
    (
        "S7",
        "SELECT 'job ' || id || ': crash_count is ' || crash_count || ', attempt only ' || attempt FROM job
        WHERE crash_count > attempt ORDER BY id",
    ),
    (
        "S7",
        "SELECT 'job ' || id || ': has crashed and was not interrupted' FROM job
        WHERE crash_count > 0 AND flags & :interrupted = 0 ORDER BY id",
    ),
    // ---- S11: deliveries and their endpoints ----
    (
        "S11",
        "SELECT 'delivery ' || id || ': tells of kind ' || kind || ', which no endpoint can want' FROM delivery
        WHERE kind NOT BETWEEN 0 AND 62 OR :kinds & (1 << kind) = 0 ORDER BY id",
    ),
    (
        "S11",
        "SELECT 'delivery ' || id || ': its event ' || (id >> 8) || ' is not in the log' FROM delivery
        WHERE id >> 8 >= (SELECT min(seq) FROM event)
          AND (SELECT seq + span FROM event WHERE seq <= delivery.id >> 8 ORDER BY seq DESC LIMIT 1) <= id >> 8 ORDER BY id",
    ),
    (
        "S11",
        "SELECT 'delivery ' || id || ': endpoint ' || endpoint_id || ' has another one of event ' || (id >> 8) FROM delivery
        WHERE EXISTS (SELECT 1 FROM delivery AS twin
          WHERE twin.id >= (delivery.id >> 8) << 8 AND twin.id < delivery.id AND twin.endpoint_id = delivery.endpoint_id)
        ORDER BY id",
    ),
    (
        "S11",
        "SELECT 'delivery ' || id || ': is pending, and its endpoint ' || endpoint_id || ' is gone' FROM delivery
        WHERE status = 0 AND endpoint_id NOT IN (SELECT id FROM endpoint) ORDER BY id",
    ),
    (
        "S11",
        "SELECT 'delivery ' || id || ': waits for an earlier one, and there is none' FROM delivery
        WHERE status = 0 AND next_at_ms IS NULL AND NOT EXISTS (SELECT 1 FROM delivery AS earlier
          WHERE earlier.status = 0 AND earlier.endpoint_id = delivery.endpoint_id AND earlier.job_id = delivery.job_id
            AND earlier.id < delivery.id)
        ORDER BY id",
    ),
    (
        "S11",
        "SELECT 'delivery ' || id || ': may be sent, and an earlier one of its line is pending' FROM delivery
        WHERE next_at_ms IS NOT NULL AND EXISTS (SELECT 1 FROM delivery AS earlier
          WHERE earlier.status = 0 AND earlier.endpoint_id = delivery.endpoint_id AND earlier.job_id = delivery.job_id
            AND earlier.id < delivery.id)
        ORDER BY id",
    ),
    (
        "S11",
        "SELECT 'try ' || id || ': delivery ' || delivery_id || ' is gone' FROM delivery_try
        WHERE NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.id = delivery_id) ORDER BY id",
    ),
    (
        "S2",
        "SELECT 'job ' || job_id || ': endpoint ' || endpoint_id || ' is not one of a job' FROM job_endpoint
        WHERE NOT EXISTS (SELECT 1 FROM endpoint WHERE endpoint.id = endpoint_id AND name IS NULL) ORDER BY job_id, endpoint_id",
    ),
    (
        "S2",
        "SELECT 'endpoint ' || endpoint_id || ': belongs to job ' || job_id || ', which is gone' FROM job_endpoint
        WHERE NOT EXISTS (SELECT 1 FROM job WHERE job.id = job_id)
          AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.job_id = job_endpoint.job_id) ORDER BY job_id, endpoint_id",
    ),
    (
        "S2",
        "SELECT 'job ' || id || ': has ' || iif(flags & :endpoints, 'a flag and no endpoint', 'an endpoint and no flag') FROM job
        WHERE (flags & :endpoints <> 0) <> EXISTS (SELECT 1 FROM job_endpoint WHERE job_id = job.id) ORDER BY id",
    ),
    // ---- S12: sizes ----
    (
        "S12",
        "SELECT 'job ' || id || ': unique key has ' || octet_length(unique_key) || ' bytes' FROM job
        WHERE octet_length(unique_key) NOT BETWEEN 1 AND :key_max ORDER BY id",
    ),
    (
        "S12",
        "SELECT 'unique key of job ' || job_id || ': has ' || octet_length(key) || ' bytes' FROM unique_key
        WHERE octet_length(key) NOT BETWEEN 1 AND :key_max ORDER BY type_id, key",
    ),
    (
        "S12",
        "SELECT 'job_error ' || id || ' of job ' || job_id || ': message has ' || octet_length(message) || ' bytes' FROM job_error
        WHERE octet_length(message) > :message_max ORDER BY id",
    ),
    (
        "S12",
        "SELECT 'job_error ' || id || ' of job ' || job_id || ': backtrace has ' || octet_length(backtrace) || ' bytes' FROM job_error
        WHERE octet_length(backtrace) > :backtrace_max ORDER BY id",
    ),
    (
        "S12",
        "SELECT 'job_error ' || id || ' of job ' || job_id || ': phase is no name' FROM job_error
        WHERE octet_length(phase) NOT BETWEEN 1 AND :name_max OR phase GLOB '*[^A-Za-z0-9_.:-]*' ORDER BY id",
    ),
    (
        "S12",
        "SELECT 'job ' || job_id || ': has ' || count(*) || ' errors' FROM job_error
        GROUP BY job_id HAVING count(*) > :errors_max ORDER BY job_id",
    ),
    (
        "S12",
        "SELECT 'endpoint ' || id || ': url has ' || octet_length(url) || ' bytes' FROM endpoint
        WHERE octet_length(url) NOT BETWEEN 1 AND :url_max ORDER BY id",
    ),
    (
        "S12",
        "SELECT 'delivery ' || id || ': url has ' || octet_length(url) || ' bytes' FROM delivery
        WHERE octet_length(url) NOT BETWEEN 1 AND :url_max ORDER BY id",
    ),
    (
        "S12",
        "SELECT 'try ' || id || ' of delivery ' || delivery_id || ': answer has ' || octet_length(answer) || ' bytes' FROM delivery_try
        WHERE octet_length(answer) > :answer_max ORDER BY id",
    ),
];

pub(super) fn check(conn: &Connection, findings: &mut Findings) -> Result<()> {
    let parameters = Parameters::new();
    for rule in RULES {
        if findings.is_full() {
            return Ok(());
        }
        let asked = ask(conn, rule, &parameters, findings);
        findings.note(asked)?;
    }
    Ok(())
}

pub(super) fn ask(
    conn: &Connection,
    (name, sql): &Rule,
    parameters: &Parameters,
    findings: &mut Findings,
) -> Result<()> {
    let mut statement = read(conn.prepare(sql))?;
    let mut values = Vec::new();
    for index in 1..=statement.parameter_count() {
        values.push(parameters.value(statement.parameter_name(index))?);
    }
    let mut rows = read(statement.query(&*values))?;
    while let Some(row) = read(rows.next())?
        && !findings.is_full()
    {
        let what: String = read(row.get(0))?;
        findings.add(name, what);
    }
    Ok(())
}

/// The limits and words that the queries name.
pub(super) struct Parameters(Vec<(&'static str, Box<dyn ToSql>)>);

impl Parameters {
    pub(super) fn new() -> Parameters {
        let flags = Flags::ERRORS
            | Flags::WAITING
            | Flags::WEBHOOK_SENT
            | Flags::SAVED
            | Flags::INTERRUPTED
            | Flags::ENDPOINTS
            | Flags::MOVED
            | Flags::TIME;
        let reasons = InterruptionReason::ALL.map(InterruptionReason::as_str);
        Parameters(vec![
            (":job_id_max", Box::new(JobId::MAX)),
            (":flags", Box::new(flags)),
            (":errors", Box::new(Flags::ERRORS)),
            (":waiting", Box::new(Flags::WAITING)),
            (":saved", Box::new(Flags::SAVED)),
            (":interrupted", Box::new(Flags::INTERRUPTED)),
            (":endpoints", Box::new(Flags::ENDPOINTS)),
            (":kinds", Box::new(Kinds::all().0)),
            (":causes", Box::new(json!(ErrorCause::ALL).to_string())),
            (":reasons", Box::new(json!(reasons).to_string())),
            (":deadline", Box::new(ErrorCause::Deadline.as_str())),
            (":decode", Box::new(ErrorCause::Decode.as_str())),
            (":key_max", Box::new(limit(UNIQUE_KEY_BYTES_MAX))),
            (":message_max", Box::new(limit(MESSAGE_BYTES_MAX))),
            (":backtrace_max", Box::new(limit(BACKTRACE_BYTES_MAX))),
            (":name_max", Box::new(limit(NAME_BYTES_MAX))),
            (":errors_max", Box::new(limit(ERRORS_KEPT))),
            (":url_max", Box::new(limit(URL_BYTES_MAX))),
            (":answer_max", Box::new(limit(ANSWER_BYTES_MAX))),
        ])
    }

    fn value(&self, name: Option<&str>) -> Result<&dyn ToSql> {
        let known = self.0.iter().find(|(known, _)| Some(*known) == name);
        let unknown = || Error::new(ErrorKind::Storage, format!("no rule has a limit {name:?}"));
        known.map(|(_, value)| &**value).ok_or_else(unknown)
    }
}
