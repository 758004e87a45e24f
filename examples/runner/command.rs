//! One phase: its command, what it is told by its environment, and what becomes of its end.

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use stepwell::{PhaseContext, PhaseError};

use crate::group::{Groups, no_thread};
use crate::job_line::{Pipeline, result_variable};
use crate::number;
use crate::output::plain;

/// What stepwell stores of a result.
const RESULT_BYTES_MAX: usize = 1024 * 1024;
/// What is kept of standard error.
const TAIL_BYTES: usize = 4096;
/// What Linux allows for one variable, its name and the zero byte included.
const VARIABLE_BYTES_MAX: usize = 128 * 1024;
/// For the last output of a group that has ended: longer only if somebody outside of it holds the pipe.
const PIPE_PATIENCE: Duration = Duration::from_secs(1);
/// Failed for good.
const EXIT_FAIL: i32 = 100;

type Result<T> = std::result::Result<T, PhaseError>;

/// Runs the phase's command to its end.
pub fn run(cx: &PhaseContext<Pipeline>, groups: &Groups) -> Result<Value> {
    let Some(phase) = cx
        .input()
        .phases
        .iter()
        .find(|phase| phase.name == cx.phase())
    else {
        return Err(PhaseError::fail(format!(
            "the job has no command for phase {:?}",
            cx.phase()
        )));
    };
    let mut command = Command::new("sh");
    command.args(["-c", &phase.run]).envs(environment(cx)?);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut group = groups
        .spawn(&mut command)
        .map_err(|error| PhaseError::retry(format!("sh cannot be started: {error}")))?;
    let stdout = Pipe::start(group.child.stdout.take(), Keep::First(RESULT_BYTES_MAX))?;
    let stderr = Pipe::start(group.child.stderr.take(), Keep::Last(TAIL_BYTES))?;
    let status = {
        let kept = &*stdout.kept;
        group.wait(&|| cx.is_cancelled() || is_overfull(kept))?
    };
    cx.check()?;
    if is_overfull(&stdout.kept) {
        return Err(PhaseError::fail(format!(
            "it printed more than {RESULT_BYTES_MAX} bytes, too much for a result: write it to a file and print the file's name"
        )));
    }
    match outcome(status) {
        Ok(()) => Ok(result(&stdout.end())),
        Err((is_final, problem)) => {
            let tail = String::from_utf8_lossy(&stderr.end()).trim_end().to_owned();
            let message = if tail.is_empty() {
                problem
            } else {
                format!("{problem}: {tail}")
            };
            Err(if is_final {
                PhaseError::fail(message)
            } else {
                PhaseError::retry(message)
            })
        }
    }
}

fn environment(cx: &PhaseContext<Pipeline>) -> Result<Vec<(String, String)>> {
    let mut variables = vec![
        ("STEPWELL_JOB_ID".to_owned(), cx.job_id().to_string()),
        ("STEPWELL_PHASE".to_owned(), cx.phase().to_owned()),
        ("STEPWELL_ATTEMPT".to_owned(), cx.attempt().to_string()),
        ("STEPWELL_KEY".to_owned(), cx.idempotency_key()),
        ("STEPWELL_INPUT".to_owned(), cx.input().input.to_string()),
    ];
    let (plan, here) = cx.plan();
    for phase in &plan[..here] {
        let text = plain(&cx.get_json(&phase.name)?);
        variables.push((result_variable(&phase.name), text));
    }
    for (name, value) in &variables {
        let problem = if name.len() + value.len() + 2 > VARIABLE_BYTES_MAX {
            format!(
                "has {} bytes, more than an environment variable holds",
                value.len()
            )
        } else if value.contains('\0') {
            "holds a zero byte, which no environment variable can".to_owned()
        } else {
            continue;
        };
        return Err(PhaseError::fail(format!(
            "{name} {problem}: write it to a file and print the file's name"
        )));
    }
    Ok(variables)
}

/// JSON if it is JSON and gives its numbers back, else text without the line ends at its end. A number alone must be the same to
/// the letter, since it may be a version or an identity; within JSON it must be the same number.
fn result(output: &[u8]) -> Value {
    let text = String::from_utf8_lossy(output);
    let text = text.trim_end_matches(['\n', '\r']);
    match serde_json::from_str(text) {
        Ok(Value::Number(_)) if !number::is_kept(text.trim()) => Value::from(text),
        Ok(_) if number::is_any_changed(text) => Value::from(text),
        Ok(value) => value,
        Err(_) => Value::from(text),
    }
}

/// Why it failed, and whether for good.
fn outcome(status: ExitStatus) -> std::result::Result<(), (bool, String)> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err((code == EXIT_FAIL, format!("exit status {code}"))),
        (None, Some(signal)) => Err((false, format!("killed by signal {signal}"))),
        (None, None) => Err((false, "it ended without a status".to_owned())),
    }
}

#[derive(Clone, Copy)]
enum Keep {
    First(usize),
    Last(usize),
}

/// Reads one of a command's outputs on a thread of its own, so that the command never waits for us.
struct Pipe {
    kept: Arc<Mutex<Kept>>,
    ended: Receiver<()>,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    is_overfull: bool,
}

impl Pipe {
    /// An error if no thread can be had for it.
    fn start(source: Option<impl Read + Send + 'static>, keep: Keep) -> io::Result<Pipe> {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (tx, ended) = channel();
        let shared = kept.clone();
        let read = move || {
            if let Some(mut source) = source {
                copy(&mut source, &shared, keep);
            }
            // Nobody hears it who has lost patience.
            tx.send(()).ok();
        };
        thread::Builder::new().spawn(read).map_err(no_thread)?;
        Ok(Pipe { kept, ended })
    }

    /// What was kept, after the end of the command.
    fn end(self) -> Vec<u8> {
        self.ended.recv_timeout(PIPE_PATIENCE).ok();
        std::mem::take(
            &mut self
                .kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .bytes,
        )
    }
}

fn is_overfull(kept: &Mutex<Kept>) -> bool {
    kept.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .is_overfull
}

fn copy(source: &mut impl Read, shared: &Mutex<Kept>, keep: Keep) {
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = read(source, &mut buffer) {
        let mut kept = shared.lock().unwrap_or_else(PoisonError::into_inner);
        match keep {
            Keep::First(max) => {
                let room = max.saturating_sub(kept.bytes.len()).min(count);
                kept.is_overfull |= room < count;
                kept.bytes.extend_from_slice(&buffer[..room]);
            }
            Keep::Last(max) => {
                kept.bytes.extend_from_slice(&buffer[..count]);
                let surplus = kept.bytes.len().saturating_sub(max);
                kept.bytes.drain(..surplus);
            }
        }
    }
}

fn read(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_result_is_json_or_text() {
        assert_eq!(result(b"{\"a\": 1}\n"), json!({"a": 1}));
        assert_eq!(result(b"two words\n\n"), json!("two words"));
        assert_eq!(result(b""), json!(""));
        assert_eq!(result(b"\n"), json!(""));
        assert_eq!(result(b"42\n"), json!(42));
        assert_eq!(result(b" 42 \n"), json!(42));
        // What the commands after it get is what was printed, and not `1000.0`.
        assert_eq!(result(b"1e3"), json!("1e3"));
        assert_eq!(result(b"3.10"), json!("3.10"));
        assert_eq!(result(b"-0"), json!("-0"));
        assert_eq!(result(b"1234e56"), json!("1234e56"));
        assert_eq!(result(b"{\"a\": [3.10]}"), json!({"a": [3.1]}));
        assert_eq!(
            result(b"{\"a\": 123456789012345678901}"),
            json!("{\"a\": 123456789012345678901}")
        );
        assert_eq!(
            result(b"123456789012345678901"),
            json!("123456789012345678901")
        );
        assert_eq!(result(b"\xff\n"), json!("\u{fffd}"));
    }

    #[test]
    fn a_pipe_keeps_the_beginning_or_the_end() {
        let end = |keep| {
            let pipe = Pipe::start(Some(&b"0123456789"[..]), keep).expect("a thread");
            pipe.ended.recv().expect("its thread ends");
            (
                is_overfull(&pipe.kept),
                std::mem::take(&mut pipe.kept.lock().expect("not poisoned").bytes),
            )
        };
        assert_eq!(end(Keep::First(10)), (false, b"0123456789".to_vec()));
        assert_eq!(end(Keep::First(9)), (true, b"012345678".to_vec()));
        assert_eq!(end(Keep::Last(3)), (false, b"789".to_vec()));
    }
}
