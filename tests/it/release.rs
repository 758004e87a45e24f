//! The gate in front of a release: nothing is published that was not verified.

use std::fs;
use std::path::Path;

/// The lines of the job `name`, without those of other jobs.
fn job(workflow: &str, name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows");
    let text = fs::read_to_string(path.join(workflow)).unwrap();
    let lines = text.lines().map(|line| line.split(" #").next().unwrap());
    let mut lines = lines.skip_while(|line| *line != format!("  {name}:"));
    assert!(lines.next().is_some(), "{workflow} has no job {name}");
    let inside = |line: &&str| line.is_empty() || line.starts_with("   ");
    let own = lines.take_while(inside);
    own.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn nothing_is_published_before_everything_was_verified() {
    let has = |lines: &[String], wanted: &str| lines.iter().any(|line| line == wanted);
    let publish = job("publish.yml", "publish");
    assert!(has(&publish, "needs: verify"), "{publish:#?}");
    assert!(publish.iter().any(|line| line.contains("cargo publish")));
    // The job would run after a failure, too.
    assert!(
        !publish.iter().any(|line| line.starts_with("if:")),
        "{publish:#?}"
    );
    let gate = job("publish.yml", "verify");
    assert!(has(&gate, "uses: ./.github/workflows/ci.yml"), "{gate:#?}");
    let verify = job("ci.yml", "verify");
    assert!(has(&verify, "- run: bash .ci/run"), "{verify:#?}");
    assert!(
        !verify
            .iter()
            .any(|line| line.starts_with("continue-on-error"))
    );
}
