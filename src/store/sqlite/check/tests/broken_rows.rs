//! Rows that break S1 to S7 and S12, and what must be found of each. Test code.

use super::Way;

pub(super) const WAYS: &[Way] = &[
    // ---- S1 ----
    (
        "a status that does not exist",
        "UPDATE job SET status = 7, finished_at_ms = 1 WHERE id = 19",
        &[
            "S1 CHECK constraint failed in job",
            "S1 job 19: table job, row 19: column status has the value 7, which stepwell never writes",
        ],
    ),
    (
        "text in a column of numbers",
        "UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '') WHERE name = 'job';
        -- reopen
        UPDATE job SET attempt = 'one' WHERE id = 6;
        -- reopen
        UPDATE sqlite_schema SET sql = sql || ' STRICT' WHERE name = 'job';",
        &[
            "S1 non-INTEGER value in job.attempt",
            "S1 job 6: the store cannot be read: Invalid column type Text at index: 7, name: attempt",
        ],
    ),
    (
        "a negative number",
        "UPDATE job SET crash_count = -1 WHERE id = 8",
        &["S1 job 8: table job, row 8: column crash_count has the value -1, which stepwell never writes"],
    ),
    (
        "a row that an index does not know",
        "INSERT INTO meta SELECT 'kept', rootpage FROM sqlite_schema WHERE name = 'job_over';
        DELETE FROM sqlite_schema WHERE name = 'job_over';
        -- reopen
        UPDATE job SET finished_at_ms = 5 WHERE id = 4;
        -- reopen
        INSERT INTO sqlite_schema
        SELECT 'index', 'job_over', 'job', value + 0, 'CREATE INDEX job_over ON job (status, finished_at_ms) WHERE status >= 2'
        FROM meta WHERE key = 'kept';
        DELETE FROM meta WHERE key = 'kept';",
        &[
            "S1 row 4 missing from index job_over",
            "S9 job 4: the log says finished_at_ms 1800000000014, the row says 5",
        ],
    ),
    (
        "an index that is gone",
        "DROP INDEX job_over",
        &["S1 index job_over is missing, or another one"],
    ),
    (
        "a table that is gone",
        "DROP TABLE checkpoint",
        &["S1 table checkpoint is missing, or another one"],
    ),
    (
        "a table that is not STRICT",
        "UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '') WHERE name = 'phase'",
        &["S1 table phase is missing, or another one"],
    ),
    (
        "no file_id",
        "DELETE FROM meta",
        &["S1 meta: there is no file_id"],
    ),
    (
        "a pause that is neither",
        "INSERT INTO meta VALUES ('paused', 'yes')",
        &["S1 meta: paused is yes"],
    ),
    (
        "an id below 1",
        "UPDATE job SET id = -1 WHERE id = 16",
        &[
            "S1 job -1: is no id that is ever given",
            "S1 job -1: table job, row -1: column id has the value -1, which stepwell never writes",
            "S9 job 16: the log says pending, there is no row",
        ],
    ),
    (
        "a priority out of range",
        "UPDATE job SET priority = 1 << 40 WHERE id = 19",
        &[
            "S1 job 19: priority is 1099511627776",
            "S1 job 19: the store cannot be read: Integer 1099511627776 out of range at index 4",
        ],
    ),
    (
        "a flag that does not exist",
        "UPDATE job SET flags = flags | 128 WHERE id = 5",
        &["S1 job 5: flags are 137"],
    ),
    (
        "a cause that does not exist",
        "UPDATE job_error SET cause = 'gremlins' WHERE job_id = 5",
        &["S1 job_error 4 of job 5: cause is gremlins"],
    ),
    (
        "an interruption without a reason",
        "UPDATE job_error SET message = 'boom' WHERE job_id = 1",
        &["S1 job_error 1 of job 1: is an interruption without a reason"],
    ),
    (
        "a change that does not exist",
        "UPDATE event SET change = 99 WHERE seq = 62",
        &["S1 event 62: table event, row 62: column change has the value 99, which stepwell never writes"],
    ),
    (
        "data that is no object",
        "UPDATE event SET data = '[1]' WHERE seq = 63",
        &["S1 event 63: table event, row 63: column data has the value [1], which stepwell never writes"],
    ),
    (
        "a reason that does not exist",
        "UPDATE event SET data = '{\"charged\":false,\"entered\":false,\"reason\":\"bored\"}' WHERE seq = 45",
        &["S1 job 8: event 45 (job:interrupted) has the reason \"bored\""],
    ),
    (
        "a snooze that somebody requested",
        "UPDATE event SET data = '{\"reason\":\"requested\"}' WHERE seq = 77",
        &["S1 job 14: event 77 (job:retrying) has the reason \"requested\""],
    ),
    (
        "a deletion without a reason",
        "UPDATE event SET data = '{\"deletedJobId\":12}' WHERE seq = 69",
        &["S1 job 12: event 69 (job:deleted) has no reason"],
    ),
    (
        "a head that is none",
        "UPDATE event SET head = 'lost' WHERE seq = 40",
        &["S1 table event, row 40: column head has the value \"lost\""],
    ),
    // ---- S2 ----
    (
        "a type that does not exist",
        "UPDATE job SET type_id = 9 WHERE id = 16",
        &[
            "S2 job 16: type_id 9 is of no job type",
            "S9 job 16: the log says type_id 3, the row says 9",
        ],
    ),
    (
        "a plan that does not exist",
        "UPDATE job SET plan_id = 9 WHERE id = 19",
        &["S2 job 19: plan_id 9 is of no plan"],
    ),
    (
        "a plan of the log that does not exist",
        "UPDATE event SET plan_id = 9 WHERE seq = 62",
        &["S1 event 62: table plan, row 9: column id has the value of no row, which stepwell never writes"],
    ),
    (
        "another number of phases",
        "UPDATE job SET phase_count = 4 WHERE id = 6",
        &["S2 job 6: phase_count is 4, its plan has other phases"],
    ),
    (
        "a plan of a type that does not exist",
        "UPDATE job_type SET plan_id = 9 WHERE id = 2",
        &["S2 job type 2: plan_id 9 is of no plan"],
    ),
    (
        "a job without input",
        "DELETE FROM payload",
        &["S2 job 18: has no input"],
    ),
    (
        "a job with two inputs",
        "INSERT INTO payload VALUES (5, '1')",
        &["S2 job 5: has two inputs"],
    ),
    (
        "an input of no job",
        "INSERT INTO payload VALUES (99, '1')",
        &["S2 payload of job 99: there is no such job"],
    ),
    (
        "a result of no job",
        "INSERT INTO phase VALUES (99 * 256, 1, 1, 1, '1')",
        &["S2 result of job 99, phase 0: there is no such job"],
    ),
    (
        "a checkpoint of no job",
        "INSERT INTO checkpoint VALUES (99 * 256, '1')",
        &["S2 checkpoint of job 99, phase 0: there is no such job"],
    ),
    (
        "an error of no job",
        "INSERT INTO job_error VALUES (99, 99, NULL, 1, 1, NULL, 'error', 'boom', NULL)",
        &["S2 job_error 99 of job 99: there is no such job"],
    ),
    (
        "a job that lost its errors",
        "DELETE FROM job_error WHERE job_id = 5",
        &[
            "S2 job 5: has a flag and no errors",
            "S5 job 5: has failed, and no error says why",
        ],
    ),
    (
        "errors of a job that has none",
        "UPDATE job SET flags = flags & ~1 WHERE id = 5",
        &["S2 job 5: has errors and no flag"],
    ),
    (
        "a key of no type",
        "INSERT INTO unique_key VALUES (9, 'z', 99, 0, 0)",
        &["S2 unique key 'z': type_id 9 is of no job type"],
    ),
    (
        "a key of another job",
        "UPDATE unique_key SET job_id = 19",
        &["S2 unique key 'k': job 19 was not enqueued with it"],
    ),
    (
        "a key of a job of another type",
        "INSERT INTO unique_key VALUES (1, 'k', 18, 0, 0)",
        &["S2 unique key 'k': job 18 was not enqueued with it"],
    ),
    (
        "a key of no job that ever was",
        "INSERT INTO unique_key VALUES (1, 'z', 0, 0, 0)",
        &["S2 unique key 'z': job 0 was not enqueued with it"],
    ),
    (
        "a key that expires while its job lives",
        "UPDATE unique_key SET expires_ms = 5",
        &["S2 unique key 'k': expires, and is held by what becomes of job 18"],
    ),
    // ---- S3 ----
    (
        "more phases done than there are",
        "UPDATE job SET phase_index = 4 WHERE id = 4",
        &[
            "S3 job 4: is at phase 4 of 3",
            "S3 job 4: a result is missing of 4",
            "S9 job 4: the log says phase_index 3, the row says 4",
        ],
    ),
    (
        "a result that is gone",
        "DELETE FROM phase WHERE id = 4 * 256 + 1",
        &["S3 job 4: a result is missing of 3"],
    ),
    (
        "a result of a phase that was not run",
        "INSERT INTO phase VALUES (6 * 256 + 1, 1, 1, 1, '1')",
        &["S3 job 6: phase 1 has a result, the next one is 1"],
    ),
    (
        "a result behind a gap",
        "UPDATE phase SET id = id + 1 WHERE id = 6 * 256",
        &[
            "S3 job 6: a result is missing of 1",
            "S3 job 6: phase 1 has a result, the next one is 1",
        ],
    ),
    (
        "a checkpoint of another phase",
        "UPDATE checkpoint SET id = id + 1 WHERE id = 6 * 256 + 1",
        &[
            "S3 job 6: phase 2 has a checkpoint, the next one is 1",
            "S3 job 6: has a flag and no checkpoint",
        ],
    ),
    (
        "a checkpoint of a completed job",
        "INSERT INTO checkpoint VALUES (4 * 256 + 3, '1')",
        &[
            "S3 job 4: phase 3 has a checkpoint, the next one is 3",
            "S3 job 4: has a checkpoint and no flag",
        ],
    ),
    (
        "a checkpoint that is gone",
        "DELETE FROM checkpoint WHERE id = 6 * 256 + 1",
        &["S3 job 6: has a flag and no checkpoint"],
    ),
    (
        "a checkpoint that nobody looks for",
        "UPDATE job SET flags = flags & ~8 WHERE id = 6",
        &["S3 job 6: has a checkpoint and no flag"],
    ),
    // ---- S4 ----
    (
        "completed too early",
        "UPDATE job SET phase_index = 2 WHERE id = 4",
        &[
            "S3 job 4: phase 2 has a result, the next one is 2",
            "S4 job 4: is completed at phase 2 of 3",
            "S9 job 4: the log says phase_index 3, the row says 2",
        ],
    ),
    (
        "all phases done and pending",
        "UPDATE job SET phase_index = 1 WHERE id = 9; INSERT INTO phase VALUES (9 * 256, 1, 1, 1, '1')",
        &[
            "S4 job 9: is not completed, and all its phases are",
            "S9 job 9: the log says phase_index 0, the row says 1",
        ],
    ),
    (
        "running without a plan",
        "UPDATE job SET plan_id = 0, phase_count = 0 WHERE id = 10",
        &[
            "S4 job 10: runs without a plan",
            "S9 job 10: the log says plan_id 1, the row says 0",
        ],
    ),
    (
        "running and no phase is",
        "UPDATE job SET phase_started_at_ms = NULL WHERE id = 7",
        &["S4 job 7: runs, and no phase has started"],
    ),
    (
        "over and a phase is running",
        "UPDATE job SET phase_started_at_ms = 1 WHERE id = 5",
        &["S4 job 5: does not run, and a phase has started"],
    ),
    (
        "running in no attempt",
        "UPDATE job SET phase_attempt = 0 WHERE id = 7",
        &["S4 job 7: has run in no attempt"],
    ),
    (
        "tries of a phase that are none of the job",
        "UPDATE job SET phase_attempt = 2 WHERE id = 5",
        &["S4 job 5: phase_attempt is 2, attempt only 1"],
    ),
    (
        "completed and waiting",
        "UPDATE job SET flags = 2 WHERE id = 4",
        &["S4 job 4: waits and does not"],
    ),
    (
        "failed by its handler, and no phase has failed",
        "UPDATE job SET phase_attempt = 0 WHERE id = 5",
        &["S4 job 5: has failed and no phase of it has, for error"],
    ),
    (
        "failed at its crash limit, and no phase was cut off",
        "UPDATE job SET phase_attempt = 0 WHERE id = 2",
        &["S4 job 2: has failed and no phase of it has, for crash_limit"],
    ),
    (
        "a phase that cannot decode its input, and has not failed",
        "UPDATE job_error SET cause = 'decode' WHERE job_id = 17",
        &["S4 job 17: has failed and no phase of it has, for decode"],
    ),
    // ---- S5 ----
    (
        "over without an end",
        "UPDATE job SET finished_at_ms = NULL WHERE id = 4",
        &[
            "S1 CHECK constraint failed in job",
            "S5 job 4: is over and has no end",
        ],
    ),
    (
        "an end of a job that is not over",
        "UPDATE job SET finished_at_ms = 1 WHERE id = 7",
        &[
            "S1 CHECK constraint failed in job",
            "S5 job 7: is not over and has an end",
        ],
    ),
    (
        "running and never started",
        "UPDATE job SET started_at_ms = NULL WHERE id = 7",
        &["S5 job 7: was never started"],
    ),
    (
        "a result of no attempt",
        "UPDATE phase SET attempt = 0 WHERE id = 4 * 256",
        &["S5 job 4: the result of phase 0 is of attempt 0"],
    ),
    (
        "a failure without an error",
        "DELETE FROM job_error WHERE job_id = 17; UPDATE job SET flags = flags & ~1 WHERE id = 17",
        &["S5 job 17: has failed, and no error says why"],
    ),
    (
        "a failure without a kind",
        "UPDATE event SET data = NULL WHERE seq = 28",
        &["S5 job 5: event 28 is a failure that names no kind of error"],
    ),
    (
        "a failure of a kind that does not exist",
        "UPDATE event SET data = '{\"kind\":\"gremlins\"}' WHERE seq = 87",
        &["S5 job 17: event 87 is a failure that names no kind of error"],
    ),
    // ---- S7 ----
    (
        "a crash too many",
        "UPDATE job SET crash_count = 2, attempt = 2 WHERE id = 1",
        &[
            "S9 job 1: the log says attempt 1, the row says 2",
            "S7 job 1: the log says crash_count 1, the row says 2",
        ],
    ),
    (
        "a crash of the series before",
        "UPDATE job SET crash_count = 1, flags = flags | 16 WHERE id = 10",
        &["S7 job 10: the log says crash_count 0, the row says 1"],
    ),
    (
        "more crashes than tries",
        "UPDATE job SET crash_count = 2 WHERE id = 1",
        &[
            "S7 job 1: crash_count is 2, attempt only 1",
            "S7 job 1: the log says crash_count 1, the row says 2",
        ],
    ),
    (
        "a crash that was no interruption",
        "UPDATE job SET flags = flags & ~16 WHERE id = 1",
        &["S7 job 1: has crashed and was not interrupted"],
    ),
    (
        "a charge outside of a handler",
        "UPDATE event SET data = replace(data, '\"entered\":true', '\"entered\":false') WHERE seq = 10",
        &["S7 job 1: event 10 charges a job that was in no handler when its process died"],
    ),
    (
        "a charge for a shutdown",
        "UPDATE event SET data = replace(data, 'process_died', 'shutdown') WHERE seq = 10",
        &["S7 job 1: event 10 charges a job that was in no handler when its process died"],
    ),
    (
        "a crash limit without a crash",
        "UPDATE event SET data = replace(data, '\"charged\":true', '\"charged\":false') WHERE seq = 11",
        &["S7 job 2: event 11 ends a job at its crash limit without a crash"],
    ),
    // ---- S12 ----
    (
        "a type without a name",
        "UPDATE job_type SET name = '' WHERE id = 3",
        &["S12 job type 3: name \"\" is not a name: it is empty"],
    ),
    (
        "a phase without a name",
        "INSERT INTO plan VALUES (3, '[[\"a b\",1]]')",
        &["S12 plan 3: phase \"a b\" is not a name: allowed are the characters A-Z a-z 0-9 _ . : -"],
    ),
    (
        "a plan that is none",
        "INSERT INTO plan VALUES (3, 'x')",
        &["S12 plan 3: is not a list of phases"],
    ),
    (
        "an input that is not JSON",
        "UPDATE job SET input = '{' WHERE id = 5",
        &["S12 job 5: input: it is not JSON"],
    ),
    (
        "a large input that is not JSON",
        "UPDATE payload SET input = 'x'",
        &["S12 job 18: input: it is not JSON"],
    ),
    (
        "a result that is not JSON",
        "UPDATE phase SET result = '' WHERE id = 4 * 256",
        &["S12 job 4: result of phase 0: it is not JSON"],
    ),
    (
        "a checkpoint that is not JSON",
        "UPDATE checkpoint SET value = 'nul'  WHERE id = 6 * 256 + 1",
        &["S12 job 6: checkpoint of phase 1: it is not JSON"],
    ),
    (
        "a result that is too deep",
        "UPDATE phase SET result = replace(hex(zeroblob(65)), '0', '[') || replace(hex(zeroblob(65)), '0', ']') WHERE id = 4 * 256",
        &["S12 job 4: result of phase 0: its JSON is 130 levels deep, at most 127 are allowed"],
    ),
    (
        "a key that is empty",
        "UPDATE job SET unique_key = '' WHERE id = 5",
        &["S12 job 5: unique key has 0 bytes"],
    ),
    (
        "a key that is too long",
        "INSERT INTO unique_key VALUES (1, hex(zeroblob(257)), 77, 0, 0)",
        &["S12 unique key of job 77: has 514 bytes"],
    ),
    (
        "a message that is too long",
        "UPDATE job_error SET message = hex(zeroblob(4097)) WHERE job_id = 5",
        &["S12 job_error 4 of job 5: message has 8194 bytes"],
    ),
    (
        "a message in the log that is too long",
        "UPDATE event SET data = '{\"kind\":\"error\",\"message\":\"' || hex(zeroblob(4097)) || '\"}' WHERE seq = 28",
        &["S12 job 5: event 28 has a message that is too long"],
    ),
    (
        "a backtrace that is too long",
        "UPDATE job_error SET backtrace = hex(zeroblob(8193)) WHERE job_id = 5",
        &["S12 job_error 4 of job 5: backtrace has 16386 bytes"],
    ),
    (
        "an error of a phase without a name",
        "UPDATE job_error SET phase = 'a b' WHERE job_id = 5",
        &["S12 job_error 4 of job 5: phase is no name"],
    ),
    (
        "more errors than are kept",
        "INSERT INTO job_error (job_id, attempt, at_ms, cause, message) SELECT 5, 1, 1, 'error', 'boom' FROM event LIMIT 50",
        &["S12 job 5: has 51 errors"],
    ),
    (
        "a plan without phases",
        "INSERT INTO plan VALUES (3, '[]')",
        &["S12 plan 3: it has no phase"],
    ),
];
