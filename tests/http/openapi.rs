//! The document at `/api/openapi.json` is true of the code: every path and method is called, every answer is one that the document
//! has, of the shape that it says, and every answer that the document has was seen.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use stepwell::JobStatus;

use crate::support::{Answer, Served, builder, job_type, local};

const TOKEN: &str = "0123456789abcdef0123";
const JSON: &str = "Content-Type: application/json\r\n";

/// Calls, and compares each answer with the document.
struct Walk {
    document: Value,
    seen: BTreeSet<String>,
}

impl Walk {
    /// `path` as in the document; `id` stands for `{id}`, `query` and `headers` are added.
    fn answer(&mut self, method: &str, path: &str, answer: &Answer) {
        let at = format!("{method} {path} {}", answer.status);
        let operation = &self.document["paths"][path][method.to_lowercase()];
        let responses = operation["responses"].as_object();
        let responses = responses.unwrap_or_else(|| panic!("not in the document: {at}"));
        let response = responses
            .get(&answer.status.to_string())
            .unwrap_or_else(|| panic!("not in the document: {at}: {}", answer.body));
        let response = self.resolve(response);
        let media = answer.header("Content-Type").unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().to_owned();
        match response.get("content").and_then(Value::as_object) {
            None => assert_eq!((&media[..], &answer.body[..]), ("", ""), "{at}"),
            Some(content) => {
                let described = content.get(&media);
                let described = described.unwrap_or_else(|| panic!("{at} is {media}: {content:?}"));
                let schema = described.get("schema");
                if let Some(schema) = schema.filter(|_| media.ends_with("json"))
                    && let Err(problem) = self.check(schema, &answer.json(), "")
                {
                    panic!("{at}: {problem}: {}", answer.body);
                }
            }
        }
        self.seen.insert(at);
    }

    fn resolve<'a>(&'a self, at: &'a Value) -> &'a Value {
        match at.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.document.pointer(&reference[1..]).unwrap(),
            None => at,
        }
    }

    /// JSON Schema 2020-12, as much of it as the document uses; a word that is not known here is a failure. An object has no
    /// member that is not described, unless the schema says so.
    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolve(schema).as_object().unwrap();
        let wrong = |what: &str| Err(format!("{at}: {what}: {value}"));
        for (word, says) in schema {
            match &word[..] {
                "description" | "default" => {}
                "type" if !is_of_type(says, value) => return wrong(&format!("is no {says}")),
                "const" if value != says => return wrong("is not the constant"),
                "enum" if !says.as_array().unwrap().contains(value) => {
                    return wrong("is not listed");
                }
                "pattern" => {
                    let start = says.as_str().unwrap().strip_prefix('^').unwrap();
                    if !value.as_str().unwrap().starts_with(start) {
                        return wrong("does not fit the pattern");
                    }
                }
                "minimum" if value.as_i64() < says.as_i64() => return wrong("is too small"),
                "required" if value.is_object() => {
                    let names = says
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|it| it.as_str().unwrap());
                    if let Some(name) = names.into_iter().find(|name| value.get(name).is_none()) {
                        return wrong(&format!("has no {name}"));
                    }
                }
                "properties" => {
                    for (name, schema) in says.as_object().unwrap() {
                        if let Some(member) = value.get(name) {
                            self.check(schema, member, &format!("{at}.{name}"))?;
                        }
                    }
                }
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        self.check(says, item, &format!("{at}[]"))?;
                    }
                }
                "allOf" => {
                    for part in says.as_array().unwrap() {
                        self.check(part, value, at)?;
                    }
                }
                "anyOf" => {
                    let mut parts = says.as_array().unwrap().iter();
                    if !parts.any(|part| self.check(part, value, at).is_ok()) {
                        return wrong("fits none");
                    }
                }
                "type" | "const" | "enum" | "minimum" | "required" | "additionalProperties" => {}
                _ => panic!("{at}: the document uses {word:?}, which is not checked here"),
            }
        }
        let is_open = schema.get("additionalProperties") == Some(&json!(true));
        match (self.members(schema), value.as_object()) {
            (Some(known), Some(members))
                if !is_open && at.is_empty() | schema.contains_key("properties") =>
            {
                match members.keys().find(|name| !known.contains(*name)) {
                    Some(name) if !self.is_part(schema) => {
                        wrong(&format!("{name} is not described"))
                    }
                    Some(_) | None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// `JobSummary` is a job's first part as well as the whole of a list's entry.
    fn is_part(&self, schema: &serde_json::Map<String, Value>) -> bool {
        let job = &self.document["components"]["schemas"]["Job"]["allOf"];
        let mut parts = job.as_array().unwrap().iter();
        parts.any(|part| self.resolve(part).as_object() == Some(schema))
    }

    fn members(&self, schema: &serde_json::Map<String, Value>) -> Option<BTreeSet<String>> {
        let own = schema.get("properties").and_then(Value::as_object);
        let parts = schema.get("allOf").and_then(Value::as_array);
        if own.is_none() && parts.is_none() {
            return None;
        }
        let mut known: BTreeSet<String> = own
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone())
            .collect();
        for part in parts.into_iter().flatten() {
            known.extend(self.members(self.resolve(part).as_object().unwrap())?);
        }
        Some(known)
    }
}

fn is_of_type(says: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("no type {other}"),
    };
    says.as_array()
        .map_or_else(|| is(says), |names| names.iter().any(is))
}

/// Everything that is called: method, path of the document, id, query, body; and the statuses that it gives.
fn call(
    walk: &mut Walk,
    served: &Served,
    headers: &str,
    what: (&str, &str, i64, &str, &str),
) -> u16 {
    let (method, path, id, query, body) = what;
    let target = path.replace("{id}", &id.to_string()) + query;
    let answer = served.send(method, &target, headers, body);
    walk.answer(method, path, &answer);
    answer.status
}

fn without_a_token(walk: &mut Walk) {
    let served = Served::with(local().token(TOKEN));
    let paths = walk.document["paths"].as_object().unwrap().clone();
    for (path, item) in &paths {
        for method in item
            .as_object()
            .unwrap()
            .keys()
            .filter(|it| *it != "parameters")
        {
            let open = ["/api/session", "/healthz"].contains(&&path[..]);
            if !open {
                let method = method.to_uppercase();
                assert_eq!(call(walk, &served, JSON, (&method, path, 1, "", "")), 401);
            }
        }
    }
    let session = |body| ("POST", "/api/session", 0, "", body);
    assert_eq!(
        call(walk, &served, JSON, session("{\"token\":\"wrong\"}")),
        401
    );
    let right = format!("{{\"token\":\"{TOKEN}\"}}");
    assert_eq!(call(walk, &served, JSON, session(&right)), 204);
    assert_eq!(call(walk, &served, JSON, session("{")), 400);
    assert_eq!(call(walk, &served, "", session(&right)), 415);
    let forget = ("DELETE", "/api/session", 0, "", "");
    assert_eq!(call(walk, &served, JSON, forget), 204);
    assert_eq!(call(walk, &served, "", forget), 415);
    let garbled = ("DELETE", "/api/session", 0, "", "{");
    assert_eq!(call(walk, &served, JSON, garbled), 400);
}

fn reads(walk: &mut Walk, served: &Served, failed: i64) {
    let head = served.queue.stats().unwrap().head_seq;
    let last = format!("?last_event_id={}-{head}", served.queue.file_id().unwrap());
    let cases = [
        (200, "/", 0, ""),
        (200, "/jobs/{id}/events", failed, ""),
        (204, "/jobs/{id}/events", failed, &last[..]),
        (400, "/jobs/{id}/events", failed, "?type=x"),
        (404, "/jobs/{id}/events", 999, ""),
        (400, "/events", 0, "?type=x"),
        (200, "/api/jobs", 0, "?with=error"),
        (200, "/api/jobs", 0, "?limit=1"),
        (400, "/api/jobs", 0, "?limit=0"),
        (200, "/api/jobs/{id}", failed, ""),
        (200, "/api/jobs/{id}", failed, "?payloads=text"),
        (400, "/api/jobs/{id}", failed, "?payloads=x"),
        (400, "/api/jobs/{id}", 0, ""),
        (404, "/api/jobs/{id}", 999, ""),
        (200, "/api/stats", 0, ""),
        (400, "/api/stats", 0, "?x=1"),
        (200, "/api/openapi.json", 0, ""),
        (200, "/healthz", 0, ""),
        (200, "/metrics", 0, ""),
        (400, "/metrics", 0, "?x=1"),
    ];
    for (status, path, id, query) in cases {
        assert_eq!(
            call(walk, served, "", ("GET", path, id, query, "")),
            status,
            "{path}{query}"
        );
    }
}

fn writes(walk: &mut Walk, served: &Served, failed: i64, waiting: i64) {
    let job = "/api/jobs/{id}";
    let (cancel, retry) = ("/api/jobs/{id}/cancel", "/api/jobs/{id}/retry");
    let (bulk, from) = ("/api/jobs/bulk", "{\"from\":\"failed\"}");
    let none = "{\"action\":\"delete\",\"status\":\"completed\",\"expect_count\":0}";
    let many = "{\"action\":\"delete\",\"status\":\"completed\",\"expect_count\":7}";
    let ids = format!("{{\"action\":\"retry\",\"from\":\"start\",\"ids\":[{failed}]}}");
    let cases = [
        (200, "POST", cancel, waiting, "", JSON),
        (200, "POST", cancel, failed, "", JSON),
        (400, "POST", cancel, 0, "", JSON),
        (404, "POST", cancel, 999, "", JSON),
        (415, "POST", cancel, 1, "", ""),
        (200, "POST", retry, waiting, from, JSON),
        (409, "POST", retry, waiting, from, JSON),
        (400, "POST", retry, failed, "{}", JSON),
        (404, "POST", retry, 999, from, JSON),
        (415, "POST", retry, 1, from, ""),
        (200, "POST", bulk, 0, none, JSON),
        (409, "POST", bulk, 0, many, JSON),
        (400, "POST", bulk, 0, "{}", JSON),
        (415, "POST", bulk, 0, "{}", ""),
        (409, "DELETE", job, waiting, "", JSON),
        (400, "DELETE", job, 0, "", JSON),
        (404, "DELETE", job, 999, "", JSON),
        (415, "DELETE", job, 1, "", ""),
        (200, "POST", bulk, 0, &ids, JSON),
    ];
    for (status, method, path, id, body, headers) in cases {
        assert_eq!(
            call(walk, served, headers, (method, path, id, "", body)),
            status,
            "{method} {path} {body}"
        );
    }
    served.wait_for(stepwell::JobId::from_i64(failed), JobStatus::Failed);
    assert_eq!(
        call(walk, served, JSON, ("DELETE", job, failed, "", "")),
        200
    );
    for path in ["/api/queue/pause", "/api/queue/resume"] {
        assert_eq!(
            call(
                walk,
                served,
                JSON,
                ("POST", path, 0, "", "{\"type\":\"work\"}")
            ),
            200
        );
        assert_eq!(
            call(walk, served, JSON, ("POST", path, 0, "", "{\"type\":7}")),
            400
        );
        assert_eq!(call(walk, served, "", ("POST", path, 0, "", "{}")), 415);
    }
    let session = ("POST", "/api/session", 0, "", "{\"token\":\"x\"}");
    assert_eq!(call(walk, served, JSON, session), 409, "there is no token");
}

#[cfg(feature = "webhook")]
fn deliveries(walk: &mut Walk, served: &Served) {
    use stepwell::webhook::Endpoint;
    use stepwell::{DeliveryQuery, EventKind, NewJob};

    // Loopback is not allowed: it is given up at once.
    let endpoint = Endpoint::new("http://127.0.0.1:9/").unwrap();
    let job = NewJob::new("work", &json!(1))
        .unwrap()
        .webhook(endpoint.events([EventKind::Completed]));
    let id = served.queue.enqueue_job(job).unwrap().id;
    served.queue.wait(id, crate::support::PATIENCE).unwrap();
    let of_job = DeliveryQuery::new().job(id);
    let one = served.queue.deliveries(&of_job).unwrap().deliveries[0]
        .id
        .as_i64();
    let (get, again) = ("/api/deliveries/{id}", "/api/deliveries/{id}/redeliver");
    assert_eq!(
        call(
            walk,
            served,
            "",
            ("GET", "/api/jobs/{id}", id.as_i64(), "", "")
        ),
        200
    );
    for (status, method, path, id, headers) in [
        (200, "GET", get, one, ""),
        (400, "GET", get, 0, ""),
        (404, "GET", get, 999, ""),
        (400, "POST", again, 0, JSON),
        (404, "POST", again, 999, JSON),
        (415, "POST", again, one, ""),
        (200, "POST", again, one, JSON),
    ] {
        assert_eq!(
            call(walk, served, headers, (method, path, id, "", "")),
            status,
            "{method} {path}"
        );
    }
}

#[cfg(not(feature = "webhook"))]
fn deliveries(walk: &mut Walk, _: &Served) {
    walk.document["paths"]
        .as_object_mut()
        .unwrap()
        .retain(|path, _| !path.contains("deliveries"));
}

/// An event stream has no end: its head is looked at.
fn stream(walk: &mut Walk, served: &Served) {
    let opened = served.stream("/events", "");
    let head = opened.head.trim_end().to_owned();
    let answer = Answer {
        status: opened.status,
        head,
        body: String::new(),
    };
    walk.answer("GET", "/events", &answer);
}

fn failed_store(walk: &mut Walk) {
    let served = Served::new();
    crate::health::break_store(&served);
    assert_eq!(call(walk, &served, "", ("GET", "/healthz", 0, "", "")), 503);
}

#[test]
fn every_answer_is_in_the_document_and_everything_in_the_document_is_answered() {
    let served = Served::with(local().show_payloads());
    let document = served.get("/api/openapi.json").json();
    let mut walk = Walk {
        document,
        seen: BTreeSet::new(),
    };
    let failed = served.run(&json!({"fail": "boom"})).as_i64();
    let waiting = served.jobs.enqueue(&json!({"wait": true})).unwrap();
    served.wait_for(waiting, JobStatus::Running);
    reads(&mut walk, &served, failed);
    let running = ("GET", "/api/jobs/{id}", waiting.as_i64(), "", "");
    assert_eq!(call(&mut walk, &served, "", running), 200);
    stream(&mut walk, &served);
    writes(&mut walk, &served, failed, waiting.as_i64());
    deliveries(&mut walk, &served);
    without_a_token(&mut walk);
    failed_store(&mut walk);
    let mut described = BTreeSet::new();
    for (path, item) in walk.document["paths"].as_object().unwrap() {
        for (method, operation) in item
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "parameters")
        {
            for status in operation["responses"]
                .as_object()
                .unwrap()
                .keys()
                .filter(|it| *it != "default")
            {
                described.insert(format!("{} {path} {status}", method.to_uppercase()));
            }
        }
    }
    assert_eq!(walk.seen, described);
}

/// What is refused before anything is looked up has one shape, on every page.
#[test]
fn what_is_refused_is_a_problem_of_the_shape_that_the_document_has() {
    let served = Served::new();
    let mut builder = builder(&served.dir.path().join("other.db"));
    builder.register(job_type());
    let document = served.get("/api/openapi.json").json();
    let schema = &document["components"]["responses"]["Refused"]["content"]["application/problem+json"]
        ["schema"];
    let walk = Walk {
        document: document.clone(),
        seen: BTreeSet::new(),
    };
    for (method, path, headers, status) in [
        ("PUT", "/api/jobs", JSON, 405),
        ("GET", "/api/jobs/bulk", "", 405),
        ("GET", "/nowhere", "", 404),
        ("GET", "/api/jobs", "Host: evil.example\r\n", 421),
        ("GET", "/api/jobs", "Origin: http://evil.example\r\n", 403),
        ("POST", "/api/queue/pause", "", 415),
    ] {
        let answer = served.send(method, path, headers, "");
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(
            answer.header("Content-Type"),
            Some("application/problem+json")
        );
        walk.check(schema, &answer.json(), "").unwrap();
    }
}
