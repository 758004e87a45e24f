//! What we sign is what others verify: the libraries of Standard Webhooks and of Svix, from PyPI.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use stepwell::webhook::Secret;
use stepwell::{EventKind, JobQueue, JobType, PhaseError};

use crate::receiver::PATIENCE;
use crate::{Bench, quick};

const COUNT: usize = 1000;

#[test]
fn a_thousand_bodies_are_accepted_by_the_libraries_of_others() {
    let bench = Bench::new();
    let mut python = match python(&bench.dir.path().join("site")) {
        Ok(python) => python,
        Err(problem) => {
            let is_ci = std::env::var_os("CI").is_some();
            assert!(
                !is_ci,
                "the verifying libraries cannot be installed: {problem}"
            );
            skip(&problem);
            return;
        }
    };
    let secret = Secret::generate().unwrap();
    let endpoint = bench
        .endpoint("/ok")
        .events([EventKind::Failed])
        .secret(secret.clone());
    let mut builder = JobQueue::builder(bench.path())
        .workers(2)
        .webhooks(quick().endpoint("audit", endpoint));
    // What a job fails with is in the body: any text there is.
    let fail = |text: &String| Err::<Value, _>(PhaseError::fail(text.clone()));
    let jobs = builder
        .register(JobType::<String>::new("fail").phase(crate::ONE, move |cx| fail(cx.input())));
    let queue = builder.open().unwrap();
    let texts: Vec<String> = (0..COUNT)
        .map(|number| random_text(number as u64))
        .collect();
    jobs.enqueue_many(&texts).unwrap();
    let sent = bench.receiver.wait_for(COUNT);
    queue.shutdown(PATIENCE).unwrap();

    let mut lines = String::new();
    for one in &sent {
        let headers: HashMap<_, _> = one
            .headers
            .iter()
            .filter(|(name, _)| name.starts_with("webhook-"))
            .collect();
        lines +=
            &json!({"headers": headers, "body": one.body, "secret": secret.reveal()}).to_string();
        lines.push('\n');
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/webhook/verify.py");
    let mut verifier = python
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    verifier
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let done = verifier.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(told.trim(), sent.len().to_string());
}

/// A Python with both libraries: the one that the checks have prepared, or the system's with what is installed into `site`.
fn python(site: &Path) -> Result<Command, String> {
    if let Some(clients) = std::env::var_os("STEPWELL_HTTP_CLIENTS") {
        return Ok(Command::new(Path::new(&clients).join("venv/bin/python")));
    }
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
    ];
    let done = Command::new("python3")
        .args(pip)
        .arg(site)
        .args(["standardwebhooks", "svix"])
        .output()
        .map_err(|error| format!("python3: {error}"))?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into_owned());
    }
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", site);
    Ok(python)
}

#[allow(clippy::print_stderr, reason = "what is not tested must be seen")]
fn skip(problem: &str) {
    eprintln!(
        "NOT TESTED: the signatures were verified by nobody else, the libraries cannot be installed: {problem}"
    );
}

/// Characters from everywhere, from a seed.
fn random_text(seed: u64) -> String {
    let mut state = seed;
    let mut next = || {
        // Knuth's multiplicative generator for MMIX; the high bits are the good ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(state >> 33).unwrap()
    };
    let length = next() % 200;
    (0..length)
        .filter_map(|_| char::from_u32(next() % 0x2_ffff))
        .collect()
}
