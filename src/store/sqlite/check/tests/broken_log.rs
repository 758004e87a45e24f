//! Logs that break S8 to S10, and what must be found of each. Test code.

use super::Way;

/// In the file with the whole log.
pub(super) const WAYS: &[Way] = &[
    // ---- S8 ----
    (
        "a gap in the log",
        "DELETE FROM event WHERE seq = 85",
        &[
            "S8 event 86: the number that follows in the log is 85",
            "S8 event 86: creates job 17, the next id is 16",
            "S8 event 86: counts [9, 2, 1, 2, 2] jobs, the changes since lead to [8, 2, 1, 2, 2]",
            "S9 job 16: its newest event, 85, is not in the log",
        ],
    ),
    (
        "a span that reaches into the next row",
        "UPDATE event SET span = 2 WHERE seq = 86",
        &[
            "S8 event 86: says that the newest id is 17, it is 18",
            "S8 event 87: the number that follows in the log is 88",
            "S9 job 18: is created once more by event 88",
            "S8 event 88: counts [9, 2, 1, 3, 2] jobs, the changes since lead to [8, 2, 1, 3, 2]",
        ],
    ),
    (
        "a run of jobs that is too long",
        "UPDATE event SET span = 1 << 40 WHERE seq = 89",
        &[
            "S8 event 89: the row stands for 1099511627776 events",
            "S8 event 92: the number that follows in the log is 1099511627865",
        ],
    ),
    (
        "a newest row without a head",
        "UPDATE event SET head = NULL WHERE seq = 95",
        &["S8 event 95: the newest row of the log has no counters"],
    ),
    (
        "a commit without a head",
        "UPDATE event SET head = NULL WHERE seq = 40",
        &["S8 event 40: the last row of its commit has no counters"],
    ),
    (
        "a head that counts wrongly",
        "UPDATE event SET head = '7 4 0 1 2 0 1' WHERE seq = 40",
        &[
            "S8 event 40: counts [4, 0, 1, 2, 0] jobs, the changes since lead to [3, 1, 1, 2, 0]",
            "S8 event 42: counts [4, 1, 1, 2, 0] jobs, the changes since lead to [5, 0, 1, 2, 0]",
        ],
    ),
    (
        "a head with another newest id",
        "UPDATE event SET head = '9 3 1 1 2 0 1' WHERE seq = 40",
        &[
            "S8 event 40: says that the newest id is 9, it is 7",
            "S8 event 42: creates job 8, the next id is 10",
        ],
    ),
    (
        "a newest head that counts wrongly",
        "UPDATE event SET head = '22 12 2 2 3 3 1' WHERE seq = 95",
        &[
            "S8 event 95: counts [12, 2, 2, 3, 3] jobs, the changes since lead to [12, 2, 2, 3, 2]",
            "S8 the log counts 3 cancelled jobs, there are 2",
        ],
    ),
    (
        "an id that was left out",
        "UPDATE event SET job_id = 23 WHERE seq = 92;
        UPDATE event SET job_id = 23, head = '23 12 2 2 3 2 1' WHERE seq = 95;
        UPDATE event SET head = '23 12 3 1 3 2 1' WHERE seq = 92;
        UPDATE job SET id = 23 WHERE id = 22;
        UPDATE phase SET id = 23 * 256 WHERE id = 22 * 256",
        &["S8 event 92: creates job 23, the next id is 22"],
    ),
    (
        "an event before the first",
        "INSERT INTO event VALUES (-3, 4, 0, 0, 40, 2, 2, 2, 1, 0, 0, NULL, NULL)",
        &[
            "S8 event -3: the number that follows in the log is 1",
            "S1 event -3: table event, row -3: column seq has the value -3, which stepwell never writes",
        ],
    ),
    // ---- S9 ----
    (
        "another status",
        "UPDATE job SET status = 1, finished_at_ms = NULL, phase_started_at_ms = 1 WHERE id = 4",
        &[
            "S4 job 4: is not completed, and all its phases are",
            "S4 job 4: has run in no attempt",
            "S9 job 4: the log says completed, the row says running",
            "S8 the log counts 2 running jobs, there are 3",
            "S8 the log counts 2 completed jobs, there are 1",
        ],
    ),
    (
        "a job without its end",
        "UPDATE job SET status = 0, finished_at_ms = NULL WHERE id = 13",
        &[
            "S9 job 13: the log says cancelled, the row says pending",
            "S8 the log counts 12 pending jobs, there are 13",
            "S8 the log counts 2 cancelled jobs, there are 1",
        ],
    ),
    (
        "another attempt",
        "UPDATE job SET attempt = 2 WHERE id = 7",
        &["S9 job 7: the log says attempt 1, the row says 2"],
    ),
    (
        "another claim",
        "UPDATE job SET epoch = 5 WHERE id = 7",
        &["S9 job 7: the log says epoch 1, the row says 5"],
    ),
    (
        "another phase",
        "UPDATE job SET phase_index = 0, flags = 1 WHERE id = 6;
        DELETE FROM phase WHERE id >> 8 = 6;
        DELETE FROM checkpoint WHERE id >> 8 = 6",
        &["S9 job 6: the log says phase_index 1, the row says 0"],
    ),
    (
        "a later phase of a job that waits",
        "UPDATE job SET phase_index = 2 WHERE id = 15;
        INSERT INTO phase VALUES (15 * 256, 1, 1, 1, '1'), (15 * 256 + 1, 1, 1, 1, '1')",
        &["S9 job 15: the log says phase_index 1, the row says 2"],
    ),
    (
        "an earlier phase after a change that leads to none",
        "UPDATE job SET phase_index = 0 WHERE id = 8; DELETE FROM phase WHERE id >> 8 = 8",
        &["S9 job 8: the log says phase_index 1, the row says 0"],
    ),
    (
        "an earlier phase in the log after a change that leads to none",
        "INSERT INTO event VALUES (97, 1, (SELECT last_seq FROM job WHERE id = 8), 0, 8, 1, 1, 10, 1, 0, 0, NULL, '22 11 2 2 3 3 1');
        UPDATE job SET status = 4, finished_at_ms = 1, last_seq = 97, phase_index = 0 WHERE id = 8;
        DELETE FROM phase WHERE id >> 8 = 8",
        &["S9 job 8: event 97 tells of phase 0, the log before it of 1"],
    ),
    (
        "another end",
        "UPDATE job SET finished_at_ms = 5 WHERE id = 5",
        &["S9 job 5: the log says finished_at_ms 1800000000019, the row says 5"],
    ),
    (
        "another start",
        "UPDATE job SET run_at_ms = 5 WHERE id = 6",
        &["S9 job 6: the log says run_at_ms 1800000060024, the row says 5"],
    ),
    (
        "another start of a job that was not run yet",
        "UPDATE job SET run_at_ms = 5 WHERE id = 20",
        &["S9 job 20: the log says run_at_ms 1800000060061, the row says 5"],
    ),
    (
        "another start of a job that was given back",
        "UPDATE job SET run_at_ms = 5 WHERE id = 8",
        &["S9 job 8: the log says run_at_ms 1800000000031, the row says 5"],
    ),
    (
        "another plan",
        "INSERT INTO plan VALUES (3, '[[\"x\",1]]'); UPDATE job SET plan_id = 3 WHERE id = 13",
        &["S9 job 13: the log says plan_id 2, the row says 3"],
    ),
    (
        "another type",
        "UPDATE job SET type_id = 1 WHERE id = 16",
        &["S9 job 16: the log says type_id 3, the row says 1"],
    ),
    (
        "another plan in the log",
        "UPDATE event SET plan_id = 2 WHERE seq = 40",
        &[
            "S9 job 7: event 40 tells of another type or plan",
            "S9 job 7: the log says plan_id 2, the row says 1",
        ],
    ),
    (
        "another type in the log",
        "UPDATE event SET type_id = 3 WHERE seq = 31",
        &[
            "S9 job 6: event 31 tells of another type or plan",
            "S9 job 6: event 33 tells of another type or plan",
        ],
    ),
    (
        "an older newest event",
        "UPDATE job SET last_seq = 38 WHERE id = 7",
        &["S9 job 7: the log says last_seq 40, the row says 38"],
    ),
    (
        "a chain that leads elsewhere",
        "UPDATE event SET prev_seq = 37 WHERE seq = 40",
        &["S9 job 7: event 40 is linked to event 37, the one before it is 38"],
    ),
    (
        "a creation that is linked",
        "UPDATE event SET prev_seq = 5 WHERE seq = 62",
        &["S9 job 11: is created by event 62, which is linked to event 5"],
    ),
    (
        "a job that was never created",
        "UPDATE event SET change = 10, prev_seq = 0 WHERE seq = 88",
        &[
            "S9 job 18: event 88 is linked to event 0, which is not one of this job",
            "S8 event 88: says that the newest id is 18, it is 17",
            "S9 job 18: the log says cancelled, the row says pending",
        ],
    ),
    (
        "a job that was created twice",
        "UPDATE event SET change = 1, prev_seq = 0 WHERE seq = 63",
        &[
            "S9 job 11: is created once more by event 63",
            "S8 event 63: creates job 11, the next id is 12",
            "S8 event 63: counts [5, 2, 1, 2, 1] jobs, the changes since lead to [6, 2, 1, 2, 0]",
            "S9 job 11: the log says pending, the row says cancelled",
        ],
    ),
    (
        "a row without its job's log",
        "INSERT INTO job SELECT 30, type_id, plan_id, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, NULL, NULL, NULL, NULL, 90, 0, NULL, '1' FROM job WHERE id = 19",
        &[
            "S9 job 30: its newest event, 90, is not in the log",
            "S8 the log counts 12 pending jobs, there are 13",
            "S8 the newest id is 22 in the log, but there is job 30",
        ],
    ),
    (
        "a log without its job's row",
        "DELETE FROM job WHERE id = 19",
        &[
            "S9 job 19: the log says pending, there is no row",
            "S8 the log counts 12 pending jobs, there are 11",
        ],
    ),
    (
        "an attempt of the log that was left out",
        "UPDATE event SET attempt = 3 WHERE seq = 60",
        &[
            "S9 job 10: event 60 tells of attempt 3, the log before it of 1",
            "S9 job 10: the log says attempt 3, the row says 1",
        ],
    ),
    (
        "a phase of the log that was left out",
        "UPDATE event SET phase_index = 1 WHERE seq = 28 - 11",
        &[
            "S9 job 4: event 17 tells of phase 1, the log before it of 0",
            "S9 job 4: event 19 tells of phase 1, the log before it of 2",
        ],
    ),
    (
        "a change that cannot be",
        "UPDATE event SET change = 4, span = 1 WHERE seq = 63",
        &["S8 event 63: the row stands for 1 events"],
    ),
    (
        "a run whose jobs are linked elsewhere",
        "UPDATE event SET prev_step = 2 WHERE seq = 89",
        &[
            "S9 job 20: is created by event 90, which is linked to event 2",
            "S9 job 21: is created by event 91, which is linked to event 4",
        ],
    ),
    (
        "a creation in an attempt",
        "UPDATE event SET attempt = 1 WHERE seq = 85",
        &[
            "S9 job 16: event 85 tells of attempt 1, the log before it of 0",
            "S9 job 16: the log says attempt 1, the row says 0",
        ],
    ),
    // ---- S10 ----
    (
        "two ends of one series",
        "INSERT INTO event VALUES (97, 1, 95, 0, 22, 2, 2, 10, 1, 1, 1, NULL, '22 12 2 1 3 3 1');
        UPDATE job SET status = 4, last_seq = 97 WHERE id = 22",
        &[
            "S4 job 22: is not completed, and all its phases are",
            "S10 job 22: event 97 (job:cancelled) comes after event 95, which ended the job as completed",
            "S9 job 22: the log says finished_at_ms 1, the row says 1800000000063",
        ],
    ),
    (
        "a claim after the end",
        "INSERT INTO event VALUES (97, 2, 73, 0, 13, 2, 2, 3, 1, 0, 2, NULL, '22 12 3 2 3 1 1')",
        &[
            "S10 job 13: event 97 (job:phase:started) comes after event 73, which ended the job as cancelled",
            "S9 job 13: the log says running, the row says cancelled",
            "S9 job 13: the log says last_seq 97, the row says 73",
            "S9 job 13: the log says attempt 2, the row says 1",
            "S9 job 13: the log says epoch 2, the row says 1",
            "S8 the log counts 3 running jobs, there are 2",
            "S8 the log counts 1 cancelled jobs, there are 2",
        ],
    ),
    (
        "a retry that nobody requested",
        "UPDATE event SET data = '{\"reason\":\"failed\",\"from\":\"failed\"}' WHERE seq = 52",
        &["S10 job 9: event 52 (job:retrying) has the reason \"failed\""],
    ),
    (
        "a change after the deletion",
        "INSERT INTO event VALUES (97, 1, 69, 0, 12, 2, 2, 14, 1, 0, 0, '{\"reason\":\"requested\"}', '22 13 2 2 3 2 1')",
        &[
            "S9 job 12: event 97 is linked to event 69, which is not one of this job",
            "S8 event 97: counts 22 jobs, the changes since lead to 21",
            "S9 job 12: the log says pending, there is no row",
            "S8 the log counts 13 pending jobs, there are 12",
        ],
    ),
];

/// In the file whose log begins with event 38.
pub(super) const WAYS_OF_A_CUT_LOG: &[Way] = &[
    (
        "another status of a job that the log has forgotten",
        "UPDATE job SET status = 4 WHERE id = 5",
        &[
            "S8 the log counts 3 failed jobs, there are 2",
            "S8 the log counts 2 cancelled jobs, there are 3",
        ],
    ),
    (
        "a job that the log has forgotten is gone",
        "DELETE FROM job WHERE id = 3",
        &["S8 the log counts 12 pending jobs, there are 11"],
    ),
    (
        "another attempt of a job whose beginning is gone",
        "UPDATE job SET attempt = 3 WHERE id = 7",
        &["S9 job 7: the log says attempt 1, the row says 3"],
    ),
    (
        "a newest event that is not in the log",
        "UPDATE job SET last_seq = 43 WHERE id = 5",
        &["S9 job 5: its newest event, 43, is not in the log"],
    ),
    (
        "a deletion that was not counted",
        "UPDATE event SET head = '22 13 2 1 3 2 1' WHERE seq = 97",
        &[
            "S8 event 97: counts 21 jobs, the changes since lead to 20",
            "S8 the log counts 13 pending jobs, there are 12",
        ],
    ),
    (
        "a chain that leads into what is gone, of a job that is not",
        "UPDATE event SET prev_seq = 5 WHERE seq = 40",
        &["S9 job 7: event 40 is linked to event 5, the one before it is 38"],
    ),
    (
        "an older row that is left",
        "INSERT INTO event VALUES (20, 1, 5, 0, 4, 1, 1, 10, 1, 0, 1, NULL, NULL)",
        &[
            "S8 event 38: the number that follows in the log is 21",
            "S8 event 20: the last row of its commit has no counters",
            "S9 job 7: event 38 is linked to event 37, which is not one of this job",
            "S9 job 4: event 97 is linked to event 21, the one before it is 20",
            "S8 event 97: counts [12, 2, 1, 3, 2] jobs, the changes since lead to [12, 2, 2, 3, 1]",
            "S9 job 5: its newest event, 28, is not in the log",
            "S9 job 6: its newest event, 35, is not in the log",
        ],
    ),
];
