//! The JSON lines that `submit` and `run` read, and what is stored of them.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stepwell::webhook::{Endpoint, Secret};
use stepwell::{EventKind, JobPlan, NewJob, PhaseName, PhaseSpec, RetryPolicy, While};

use crate::number;

/// The type of the jobs that this program runs.
pub const JOB_TYPE: &str = "command";

/// A line as the user writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    phases: Vec<PhaseLine>,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    delay_ms: u64,
    unique_key: Option<String>,
    max_attempts: Option<u32>,
    backoff_ms: Option<u64>,
    #[serde(default)]
    webhooks: Vec<WebhookLine>,
}

/// Who is told of a job's events.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebhookLine {
    url: String,
    events: Option<Vec<String>>,
    secret: Option<String>,
}

impl WebhookLine {
    fn endpoint(&self) -> std::result::Result<Endpoint, String> {
        let mut endpoint = Endpoint::new(&self.url).map_err(|error| error.to_string())?;
        if let Some(names) = &self.events {
            let mut kinds = Vec::new();
            for name in names {
                let kind: EventKind = name
                    .parse()
                    .map_err(|error: stepwell::Error| error.to_string())?;
                if !Endpoint::DELIVERED.contains(&kind) {
                    return Err(format!("event {name:?} is never delivered"));
                }
                kinds.push(kind);
            }
            endpoint = endpoint.events(kinds);
        }
        match &self.secret {
            None => Ok(endpoint),
            Some(text) => {
                let secret = Secret::parse(text).map_err(|error| error.to_string())?;
                Ok(endpoint.secret(secret))
            }
        }
    }
}

/// One phase of it.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseLine {
    pub name: String,
    pub run: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
}

/// What a job carries: everything that its plan depends on.
#[derive(Deserialize, Serialize)]
pub struct Pipeline {
    pub phases: Vec<PhaseLine>,
    pub input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff_ms: Option<u64>,
}

impl Pipeline {
    /// Its phases with their policies.
    pub fn plan(&self) -> JobPlan {
        let base = Duration::from_millis(self.backoff_ms.unwrap_or(1000));
        let mut policy = RetryPolicy::exponential(base, 2.0);
        if let Some(max) = self.max_attempts {
            policy = policy.max_attempts(max);
        }
        let phases = self.phases.iter().map(|phase| {
            let mut spec = PhaseSpec::new(phase.name.as_str());
            if let Some(ms) = phase.timeout_ms {
                spec = spec.timeout(Duration::from_millis(ms));
            }
            if let Some(max) = phase.max_attempts {
                spec = spec.retry(policy.clone().max_attempts(max));
            }
            spec
        });
        JobPlan::new(phases.collect::<Vec<_>>()).retry(policy.clone())
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.max_attempts == Some(0) {
            return Err("max_attempts is 0: one try is the least".to_owned());
        }
        let mut variables = HashMap::new();
        for phase in &self.phases {
            let name = &phase.name;
            if phase.run.trim().is_empty() {
                return Err(format!(
                    "phase {name:?}: run is empty: expected a shell command"
                ));
            }
            if phase.run.contains('\0') {
                return Err(format!("phase {name:?}: run holds a zero byte"));
            }
            if phase.timeout_ms == Some(0) {
                return Err(format!(
                    "phase {name:?}: timeout_ms is 0: leave it out for no timeout"
                ));
            }
            if phase.max_attempts == Some(0) {
                return Err(format!(
                    "phase {name:?}: max_attempts is 0: one try is the least"
                ));
            }
            let variable = result_variable(name);
            if let Some(other) = variables.insert(variable.clone(), name)
                && other != name
            {
                return Err(format!(
                    "phases {other:?} and {name:?} both mean {variable}: rename one"
                ));
            }
        }
        Ok(())
    }
}

/// The variable with the result of the phase `name`.
pub fn result_variable(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    format!(
        "STEPWELL_RESULT_{}",
        name.chars().map(plain).collect::<String>()
    )
}

/// The jobs of some lines; or which line is bad, and why.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<NewJob>, String> {
    let mut jobs = Vec::new();
    // Some editors begin a file with this mark.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let job = parse_line(line).map_err(|problem| format!("line {}: {problem}", index + 1))?;
        jobs.push(job);
    }
    Ok(jobs)
}

fn parse_line(line: &[u8]) -> std::result::Result<NewJob, String> {
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(
            "expected a JSON object, {\"phases\": [...]}: help submit tells more".to_owned(),
        );
    }
    let text = line;
    let line: Line = serde_json::from_slice(line).map_err(|error| {
        // The parser knows one line only.
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = error.to_string();
        let message = message.strip_suffix(&place).unwrap_or(&message);
        format!("column {}: {message}", error.column())
    })?;
    let changed = std::str::from_utf8(text)
        .ok()
        .and_then(number::first_changed);
    if let Some(text) = changed {
        let printed = number::printed(text).unwrap_or_default();
        // It may be as long as the line.
        let shown: String = text.chars().take(40).collect();
        return Err(format!(
            "number {shown} would become {printed}: write it as a text"
        ));
    }
    let pipeline = Pipeline {
        phases: line.phases,
        input: line.input,
        max_attempts: line.max_attempts,
        backoff_ms: line.backoff_ms,
    };
    pipeline.check()?;
    let names = pipeline
        .phases
        .iter()
        .map(|phase| PhaseName::new(phase.name.as_str()));
    let mut job = NewJob::new(JOB_TYPE, &pipeline)
        .map_err(|error| error.to_string())?
        .phases(names.collect::<Vec<_>>())
        .priority(line.priority)
        .delay(Duration::from_millis(line.delay_ms));
    if let Some(key) = line.unique_key {
        job = job.unique_key(key, While::Live);
    }
    for (index, webhook) in line.webhooks.iter().enumerate() {
        let endpoint = webhook.endpoint();
        job = job.webhook(endpoint.map_err(|problem| format!("webhooks[{index}]: {problem}"))?);
    }
    job.validate().map_err(|error| error.to_string())?;
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines, and what is said of them.
    const BAD: &[(&str, &str)] = &[
        ("{", "line 1: column 1: EOF while parsing an object"),
        ("[]", "line 1: expected a JSON object"),
        ("null", "line 1: expected a JSON object"),
        ("hello", "line 1: expected a JSON object"),
        (
            r#"{"phases":[]}"#,
            "line 1: job type \"command\": it has no phase",
        ),
        (
            r#"{"phases":[{"name":"a","run":" "}]}"#,
            "line 1: phase \"a\": run is empty",
        ),
        (
            r#"{"phases":[{"name":"a b","run":"x"}]}"#,
            "\"a b\" is not a name",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x","timeout_ms":0}]}"#,
            "timeout_ms is 0",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x","timeout":1}]}"#,
            "unknown field `timeout`",
        ),
        (
            r#"{"phases":[{"name":"a.b","run":"x"},{"name":"a-b","run":"x"}]}"#,
            "STEPWELL_RESULT_A_B",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x"},{"name":"a","run":"x"}]}"#,
            "is there twice",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x"}],"max_attempts":0}"#,
            "max_attempts is 0",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x"}],"unique_key":""}"#,
            "unique key has 0 bytes",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x"}],"delay_ms":-1}"#,
            "invalid value",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x"}],"webhooks":[{"url":"a.example"}]}"#,
            "webhooks[0]: webhook URL \"a.example\": expected http:// or https://",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x"}],"webhooks":[{"url":"http://a","events":["job:done"]}]}"#,
            "webhooks[0]: event \"job:done\": there is no such event",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x"}],"webhooks":[{"url":"http://a","events":["job:progress"]}]}"#,
            "event \"job:progress\" is never delivered",
        ),
        (
            r#"{"phases":[{"name":"a","run":"x"}],"webhooks":[{"url":"http://a","secret":"hunter2"}]}"#,
            "webhooks[0]: a webhook secret is not base64",
        ),
        ("\u{fffd}", "line 1: expected a JSON object"),
        (
            r#"{"phases":[{"name":"a","run":"x"}],"input":{"id":12345678901234567890123}}"#,
            "line 1: number 12345678901234567890123 would become 1.2345678901234568e+22: write it as a text",
        ),
    ];

    fn problem(line: &str) -> String {
        parse(line.as_bytes()).expect_err(line)
    }

    #[test]
    fn a_bad_line_is_told_with_its_number_and_reason() {
        let good = r#"{"phases":[{"name":"a","run":"true"}]}"#;
        for (line, says) in BAD {
            let problem = problem(line);
            assert!(problem.contains(says), "{line}: {problem}");
        }
        let third = problem(&format!("{good}\n\n{good} x"));
        assert!(
            third.starts_with("line 3: column 40: trailing characters"),
            "{third}"
        );
        assert_eq!(
            parse(format!("\u{feff}{good}\r\n\n  \n{good}").as_bytes()).map(|jobs| jobs.len()),
            Ok(2)
        );
    }

    #[test]
    fn a_variable_is_the_name_in_upper_case_and_underscores() {
        assert_eq!(
            result_variable("fetch-2.b:c"),
            "STEPWELL_RESULT_FETCH_2_B_C"
        );
    }

    #[test]
    fn an_input_that_is_too_large_is_refused_with_its_line() {
        let line = format!(
            r#"{{"phases":[{{"name":"a","run":"x"}}],"input":"{}"}}"#,
            "x".repeat(300_000)
        );
        assert!(problem(&line).contains("at most 262144 are allowed"));
    }
}
