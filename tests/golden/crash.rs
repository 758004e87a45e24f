//! What a process notes beside the file, for the one that comes after a crash: the header and the slots of the owner file.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use stepwell::testing::FakeClock;
use stepwell::{JobQueue, JobStatus, Retention, Timestamp};

use crate::{PATIENCE, VERSIONS, content, copy, folder, id_of, known};

/// The header: 8 bytes of a generation, 8 of a state, 64 of the machine's start, and at its end a sum of what stands before.
const HEADER: std::ops::Range<usize> = 64..192;
const START: std::ops::Range<usize> = 80..144;
const SUM: std::ops::Range<usize> = 184..192;

/// What the process of that version noted, as if the machine had been started then.
pub(crate) fn note(version: &str, path: &Path, start: &str) {
    let noted = std::fs::read(folder().join(format!("{version}.owner")));
    let mut noted = noted.expect("it is there");
    noted[START].fill(0);
    noted[START.start..START.start + start.len()].copy_from_slice(start.as_bytes());
    let sum = fnv(&noted[HEADER.start..SUM.start]).to_le_bytes();
    noted[SUM].copy_from_slice(&sum);
    let mut name = path.as_os_str().to_owned();
    name.push("-owner");
    std::fs::write(name, noted).expect("it can be written");
}

/// FNV-1a, 64 bit. Source: <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The sum above is that of the file: else the tests would only see what they have written.
#[test]
fn what_each_version_noted_has_the_sum_that_it_says() {
    for version in VERSIONS {
        let noted = std::fs::read(folder().join(format!("{version}.owner"))).expect("it is there");
        let sum = fnv(&noted[HEADER.start..SUM.start]).to_le_bytes();
        assert_eq!(noted[SUM], sum, "{version}");
    }
}

#[test]
fn what_a_process_of_each_version_was_inside_of_when_it_died_is_charged() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let start = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let start = start.expect("Linux tells it");
    for version in VERSIONS {
        let path = copy(version, dir.path());
        note(version, &path, start.trim());
        let clock = FakeClock::new(Timestamp::now());
        let mut builder = JobQueue::builder(&path)
            .workers(2)
            .clock(&clock)
            .retention(Retention::forever());
        content::register(&mut builder, |_| {});
        let queue = builder.open().expect("it can be opened");
        queue.resume().expect("it can be resumed");
        let known = known(version);
        let jobs = known["jobs"].as_array().expect("a list").iter();
        let inside: Vec<_> = jobs.filter(|job| job["status"] == "running").collect();
        assert_eq!(inside.len(), 2, "{version}");
        for then in inside {
            let job = ended(&queue, then);
            let crashes = then["crash_count"].as_i64().expect("a number") + 1;
            assert_eq!(job["crash_count"], crashes, "{version}: {job:#}");
            let last = |list: &Value| list.as_array().and_then(|list| list.last().cloned());
            let last_error = last(&job["errors"]).expect("it has one");
            match then["type"].as_str() {
                Some("stuck") => {
                    let told = &job["phases"][1]["result"]["interrupted"];
                    assert_eq!(told["reason"], "process_died", "{version}: {job:#}");
                    assert_eq!(told["since"], then["phases"][1]["started_at"], "{version}");
                    assert_eq!(told["phase"], "stuck", "{version}");
                }
                _ => assert_eq!(last_error["kind"], "crash_limit", "{version}: {job:#}"),
            }
        }
        assert_eq!(queue.check().expect("it can be read"), [""; 0], "{version}");
        queue.shutdown(PATIENCE).expect("it ends");
    }
}

fn ended(queue: &JobQueue, then: &Value) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let job = queue.get(id_of(then)).expect("it can be read");
        let job = job.expect("it is there");
        if !matches!(job.status, JobStatus::Pending | JobStatus::Running) {
            return json!(job);
        }
        assert!(Instant::now() < until, "{:?}", queue.explain(job.id));
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
}
