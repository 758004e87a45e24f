//! Deliveries and endpoints that break S2, S11 and S12, and what must be found of each. Test code.

use super::Way;

/// A delivery of the end of job 22, over, with a change of the log for each of its ends: which change, and after how many tries. One
/// try is recorded.
macro_rules! ended {
    ($status:literal, $($seq:literal: $change:literal after $tries:literal),+) => {
        concat!(
            "INSERT INTO delivery VALUES (24576, 1, 22, 8, 'http://a', '{}', ", $status, ", 1, NULL, 5, 6, 200, NULL);
            INSERT INTO delivery_try VALUES (1, 24576, 5, 5, 200, NULL, 'ok');",
            $(
                "INSERT INTO event SELECT ", $seq, ", 1, last_seq, 0, 22, 2, 2, ", $change, ", 1, 1, 1,
                  '{\"delivery_id\":24576,\"job\":\"completed\",\"tries\":", $tries, "}', '22 12 2 2 3 2 1' FROM job WHERE id = 22;
                UPDATE job SET last_seq = ", $seq, " WHERE id = 22;",
            )+
        )
    };
}

pub(super) const WAYS: &[Way] = &[
    // ---- S11 ----
    (
        "a delivery that nobody sends",
        "INSERT INTO delivery VALUES (22785, 9, 19, 0, 'http://a', '{}', 0, 0, 5, 5, NULL, NULL, NULL)",
        &["S11 delivery 22785: is pending, and its endpoint 9 is gone"],
    ),
    (
        "a delivery that waits for ever",
        "INSERT INTO endpoint VALUES (1, 'a', 'http://a', 1, '[]', 1, NULL);
        INSERT INTO delivery VALUES (22785, 1, 19, 0, 'http://a', '{}', 0, 0, NULL, 5, NULL, NULL, NULL)",
        &["S11 delivery 22785: waits for an earlier one, and there is none"],
    ),
    (
        "a delivery before its turn",
        "INSERT INTO endpoint VALUES (1, 'a', 'http://a', 1, '[]', 1, NULL);
        INSERT INTO delivery VALUES (22785, 1, 19, 0, 'http://a', '{}', 0, 0, 5, 5, NULL, NULL, NULL),
          (22786, 1, 19, 0, 'http://a', '{}', 0, 0, 5, 5, NULL, NULL, NULL)",
        &[
            "S11 delivery 22786: endpoint 1 has another one of event 89",
            "S11 delivery 22786: may be sent, and an earlier one of its line is pending",
        ],
    ),
    (
        "two deliveries of one event in their order",
        "INSERT INTO endpoint VALUES (1, 'a', 'http://a', 1, '[]', 1, NULL), (2, 'b', 'http://b', 1, '[]', 1, NULL);
        INSERT INTO delivery VALUES (22784, 1, 19, 0, 'http://a', '{}', 0, 0, 5, 5, NULL, NULL, NULL),
          (22785, 2, 19, 0, 'http://b', '{}', 0, 0, 5, 5, NULL, NULL, NULL),
          (22786, 1, 19, 0, 'http://a', '{}', 0, 0, NULL, 5, NULL, NULL, NULL)",
        &["S11 delivery 22786: endpoint 1 has another one of event 89"],
    ),
    (
        "a delivery of what never happened, of a kind that does not exist",
        "INSERT INTO endpoint VALUES (1, 'a', 'http://a', 1, '[]', 1, NULL);
        INSERT INTO delivery VALUES (25600000, 1, 19, 60, 'http://a', 'x', 0, 0, 5, 5, NULL, NULL, NULL)",
        &[
            "S11 delivery 25600000: tells of kind 60, which no endpoint can want",
            "S11 delivery 25600000: its event 100000 is not in the log",
            "S12 delivery 25600000: body: it is not JSON",
        ],
    ),
    (
        "a delivery of another job's event",
        "INSERT INTO endpoint VALUES (1, 'a', 'http://a', 1, '[]', 1, NULL);
        INSERT INTO delivery VALUES (23041, 1, 19, 0, 'http://a', '{}', 0, 0, 5, 5, NULL, NULL, NULL)",
        &["S11 delivery 23041: tells of job 19, event 90 is of job 20"],
    ),
    (
        "a delivery of another kind than its event",
        "INSERT INTO endpoint VALUES (1, 'a', 'http://a', 1, '[]', 1, NULL);
        INSERT INTO delivery VALUES (23041, 1, 20, 8, 'http://a', '{}', 0, 0, 5, 5, NULL, NULL, NULL)",
        &["S11 delivery 23041: tells of kind 8, event 90 is job:created"],
    ),
    (
        "an end that is not told",
        "INSERT INTO delivery VALUES (24576, 1, 22, 8, 'http://a', '{}', 1, 1, NULL, 5, 6, 200, NULL)",
        &["S11 delivery 24576: is delivered, and the log does not tell of it"],
    ),
    (
        "an end that is told, and another one",
        ended!(2, 97: 16 after 1),
        &["S11 delivery 24576: the log says delivered, the row says failed"],
    ),
    (
        "delivered twice",
        ended!(1, 97: 16 after 1, 98: 16 after 1),
        &["S11 delivery 24576: its ends in the log tell of 2 tries, 1 are recorded"],
    ),
    (
        "delivered after it was given up",
        ended!(1, 97: 17 after 1, 98: 16 after 2),
        &["S11 delivery 24576: its ends in the log tell of 3 tries, 1 are recorded"],
    ),
    (
        "the end of a delivery without its number",
        concat!(
            ended!(1, 97: 16 after 1),
            "UPDATE event SET data = '{\"job\":\"completed\"}' WHERE seq = 97"
        ),
        &["S11 event 97: tells of the end of a delivery, and not which, or after how many tries"],
    ),
    (
        "a try of nothing",
        "INSERT INTO delivery_try VALUES (1, 7, 5, 5, 200, NULL, NULL)",
        &["S11 try 1: delivery 7 is gone"],
    ),
    // ---- S12 ----
    (
        "URLs that are too long, and none",
        "INSERT INTO endpoint VALUES (1, 'a', 'http://' || hex(zeroblob(1021)), 1, '[]', 1, NULL),
          (2, 'b', '', 1, '[]', 1, NULL), (3, 'c', 'http://a/' || hex(zeroblob(1019)) || 'x', 1, '[]', 1, NULL);
        INSERT INTO delivery VALUES (22785, 1, 19, 0, 'http://' || hex(zeroblob(1021)), '{}', 0, 0, 5, 5, NULL, NULL, NULL)",
        &[
            "S12 endpoint 1: url has 2049 bytes",
            "S12 endpoint 2: url has 0 bytes",
            "S12 delivery 22785: url has 2049 bytes",
        ],
    ),
    (
        "an endpoint whose name is none",
        "INSERT INTO endpoint VALUES (1, 'a b', 'http://a', 1, '[]', 1, NULL)",
        &["S12 endpoint 1: name \"a b\" is not a name: allowed are the characters A-Z a-z 0-9 _ . : -"],
    ),
    (
        "an answer that is kept whole",
        "INSERT INTO endpoint VALUES (1, 'a', 'http://a', 1, '[]', 1, NULL);
        INSERT INTO delivery VALUES (22785, 1, 19, 0, 'http://a', '{}', 0, 2, 5, 5, NULL, NULL, NULL);
        INSERT INTO delivery_try VALUES (1, 22785, 5, 5, 500, NULL, 'x' || hex(zeroblob(1024))),
          (2, 22785, 5, 5, 500, NULL, hex(zeroblob(1024)))",
        &["S12 try 1 of delivery 22785: answer has 2049 bytes"],
    ),
    (
        "endpoints of jobs that have none",
        "INSERT INTO job_endpoint VALUES (19, 9), (999, 9); UPDATE job SET flags = flags | 32 WHERE id = 6",
        &[
            "S2 job 19: endpoint 9 is not one of a job",
            "S2 job 999: endpoint 9 is not one of a job",
            "S2 endpoint 9: belongs to job 999, which is gone",
            "S2 job 6: has a flag and no endpoint",
            "S2 job 19: has an endpoint and no flag",
        ],
    ),
];
