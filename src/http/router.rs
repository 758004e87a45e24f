//! Which request goes where. L3.
//!
//! One table: the routes, what each needs, and who answers. `/api/openapi.json` describes the same, and a test compares them.

use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::delivery::DeliveryId;
use crate::engine::Engine;
use crate::error::Error;
use crate::http::answer::{Answer, problem};
use crate::http::feed::Feed;
use crate::http::gate::Gauges;
use crate::http::guard::Guard;
use crate::http::server::Request;
use crate::http::stream::Start;
use crate::http::{api, bulk, events, metrics, pages};
use crate::job::JobId;

/// What answers have to do with.
pub(super) struct Site {
    pub(super) engine: Arc<Engine>,
    pub(super) feed: Arc<Feed>,
    pub(super) guard: Guard,
    pub(super) gauges: Arc<Gauges>,
    pub(super) shows_payloads: bool,
}

pub(super) enum Reply {
    Answer(Answer),
    Stream(Box<Start>),
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Reply {
        Reply::Answer(answer)
    }
}

/// A request, taken apart.
pub(super) struct Call<'a> {
    pub(super) request: &'a Request,
    query: Vec<(String, String)>,
    /// What stands for `{id}` in the path.
    id: Option<&'a str>,
    pub(super) body: Map<String, Value>,
}

type Handler = fn(&Site, &Call<'_>) -> Result<Reply, Answer>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Says nothing that is worth a token.
    Open,
    Known,
    /// As `Known`, but a stranger gets the sign-in page.
    Page,
}

pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    access: Access,
    handler: Handler,
}

const fn route(method: &'static str, path: &'static str, handler: Handler) -> Route {
    Route {
        method,
        path,
        access: Access::Known,
        handler,
    }
}

const fn open(method: &'static str, path: &'static str, handler: Handler) -> Route {
    Route {
        access: Access::Open,
        ..route(method, path, handler)
    }
}

pub(super) const ROUTES: &[Route] = &[
    Route {
        access: Access::Page,
        ..route("GET", "/", pages::dashboard)
    },
    route("GET", "/events", events::all),
    route("GET", "/jobs/{id}/events", events::of_job),
    route("GET", "/api/jobs", api::jobs),
    route("POST", "/api/jobs/bulk", bulk::run),
    route("GET", "/api/jobs/{id}", api::job),
    route("DELETE", "/api/jobs/{id}", api::delete),
    route("POST", "/api/jobs/{id}/cancel", api::cancel),
    route("POST", "/api/jobs/{id}/retry", api::retry),
    route("GET", "/api/deliveries/{id}", api::delivery),
    route("POST", "/api/deliveries/{id}/redeliver", api::redeliver),
    route("POST", "/api/queue/pause", api::pause),
    route("POST", "/api/queue/resume", api::resume),
    route("GET", "/api/stats", api::stats),
    route("GET", "/api/openapi.json", pages::openapi),
    open("POST", "/api/session", pages::sign_in),
    open("DELETE", "/api/session", pages::sign_out),
    open("GET", "/healthz", metrics::healthz),
    route("GET", "/metrics", metrics::metrics),
];

impl Site {
    pub(super) fn reply(&self, request: &Request) -> Reply {
        let headers = match self.guard.origin(request) {
            Ok(headers) => headers,
            Err(answer) => return answer.into(),
        };
        match self.dispatch(request) {
            Ok(Reply::Answer(answer)) | Err(answer) => answer.with_all(&headers).into(),
            Ok(Reply::Stream(mut start)) => {
                start.headers.push_str(&headers);
                Reply::Stream(start)
            }
        }
    }

    fn dispatch(&self, request: &Request) -> Result<Reply, Answer> {
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((&request.target, ""));
        let method = if request.method == "HEAD" {
            "GET"
        } else {
            &request.method
        };
        let mut known: Vec<_> = ROUTES
            .iter()
            .filter_map(|route| Some((route, matches(route.path, path)?)))
            .collect();
        if known.iter().any(|(_, id)| id.is_none()) {
            // A name is no id: `/api/jobs/bulk` is not a job.
            known.retain(|(_, id)| id.is_none());
        }
        if known.is_empty() {
            return Err(problem(404, "there is no such page"));
        }
        if method == "OPTIONS" {
            return Ok(preflight(&known).into());
        }
        let Some((route, id)) = known.iter().find(|(route, _)| route.method == method) else {
            let allowed = problem(405, "the page does not take this method");
            return Err(allowed.with("Allow", &methods(&known)));
        };
        if route.access != Access::Open && !self.guard.is_known(request) {
            return Err(match route.access {
                Access::Page => pages::sign_in_page(),
                Access::Known | Access::Open => {
                    problem(401, "send the token as `Authorization: Bearer ...`")
                        .with("WWW-Authenticate", "Bearer")
                }
            });
        }
        let body = if route.method == "GET" {
            Map::new()
        } else {
            body(request)?
        };
        let call = Call {
            request,
            query: parse_query(query)?,
            id: *id,
            body,
        };
        (route.handler)(self, &call)
    }
}

/// What stands for `{id}`, if the path is of this pattern.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    let (mut parts, mut id) = (path.split('/'), None);
    for wanted in pattern.split('/') {
        let part = parts.next()?;
        match wanted {
            "{id}" => id = Some(part),
            _ if wanted == part => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some(id)
}

fn methods(routes: &[(&Route, Option<&str>)]) -> String {
    let names: Vec<_> = routes.iter().map(|(route, _)| route.method).collect();
    names.join(", ")
}

/// A browser asks whether a script of another origin may; the origin itself was looked at before.
fn preflight(routes: &[(&Route, Option<&str>)]) -> Answer {
    Answer::empty()
        .with("Allow", &methods(routes))
        .with("Access-Control-Allow-Methods", &methods(routes))
        .with(
            "Access-Control-Allow-Headers",
            "authorization, content-type, last-event-id",
        )
        .with("Access-Control-Max-Age", "600")
}

/// A JSON object, or nothing. The content type is asked for also then: it is what a foreign page cannot send.
fn body(request: &Request) -> Result<Map<String, Value>, Answer> {
    if !Guard::is_json(request) {
        return Err(problem(415, "send `Content-Type: application/json`"));
    }
    if request.body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&request.body)
        .map_err(|error| problem(400, &format!("the body is not a JSON object: {error}")))
}

fn parse_query(query: &str) -> Result<Vec<(String, String)>, Answer> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            decode(name).zip(decode(value))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| problem(400, "the query is not percent-encoded UTF-8"))
}

/// Source: WHATWG URL, "application/x-www-form-urlencoded parsing".
fn decode(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                let digits = std::str::from_utf8(digits)
                    .ok()
                    .filter(|it| !it.starts_with('+'))?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = after;
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

impl Call<'_> {
    pub(super) fn job_id(&self) -> Result<JobId, Answer> {
        self.parse_id()
    }

    pub(super) fn delivery_id(&self) -> Result<DeliveryId, Answer> {
        self.parse_id()
    }

    fn parse_id<T: FromStr<Err = Error>>(&self) -> Result<T, Answer> {
        let text = self.id.unwrap_or_default();
        text.parse()
            .map_err(|error| problem(400, &format!("{error}")))
    }

    /// The last value of a parameter; an empty one counts as none.
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.params(name).last()
    }

    pub(super) fn params(&self, name: &str) -> impl Iterator<Item = &str> {
        let of_name = self.query.iter().filter(move |(other, _)| other == name);
        of_name
            .map(|(_, value)| &value[..])
            .filter(|value| !value.is_empty())
    }

    /// Refuses parameters that would be ignored: a misspelt filter shows too much, and deletes too much.
    pub(super) fn only(&self, names: &[&str]) -> Result<(), Answer> {
        let in_query = self.query.iter().map(|(name, _)| name);
        let unknown = in_query
            .chain(self.body.keys())
            .find(|name| !names.contains(&&name[..]));
        match unknown {
            Some(name) => Err(problem(
                400,
                &format!("there is no {name:?} here; there is: {}", names.join(", ")),
            )),
            None => Ok(()),
        }
    }

    /// A string of the body.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Answer> {
        match self.body.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(problem(400, &format!("{name:?} is to be a string"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_matches_whole() {
        assert_eq!(matches("/api/jobs/{id}", "/api/jobs/7"), Some(Some("7")));
        assert_eq!(
            matches("/jobs/{id}/events", "/jobs/7/events"),
            Some(Some("7"))
        );
        for path in ["/api/jobs", "/api/jobs/7/", "/api/jobs/7/x", "api/jobs/7"] {
            assert_eq!(matches("/api/jobs/{id}", path), None, "{path}");
        }
        assert_eq!(matches("/", "/"), Some(None));
    }

    #[test]
    fn a_query_is_decoded_or_refused() {
        let pairs = parse_query("a=1&b=%C3%A9+x&c&&d=%00").unwrap_or_default();
        let expected = [("a", "1"), ("b", "\u{e9} x"), ("c", ""), ("d", "\0")];
        assert_eq!(
            pairs,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        for bad in ["%", "%4", "%zz", "a=%ff", "%+1"] {
            assert!(parse_query(bad).is_err(), "{bad}");
        }
    }

    /// The document is true of the code: the same paths, the same methods, a summary and an answer for each.
    #[test]
    fn the_openapi_document_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(pages::OPENAPI).expect("JSON");
        assert_eq!(document["openapi"], "3.1.0");
        let mut described = Vec::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("methods") {
                if method == "parameters" {
                    continue;
                }
                assert!(operation["summary"].is_string(), "{method} {path}");
                assert!(operation["responses"].is_object(), "{method} {path}");
                described.push(format!("{} {path}", method.to_uppercase()));
            }
            let has_id = path.contains("{id}");
            assert_eq!(item["parameters"].is_array(), has_id, "{path}");
        }
        let mut routed: Vec<_> = ROUTES
            .iter()
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        described.sort();
        routed.sort();
        assert_eq!(described, routed);
    }

    /// Every reference leads somewhere.
    #[test]
    fn the_openapi_document_has_what_it_refers_to() {
        fn walk(root: &Value, at: &Value) {
            if let Some(reference) = at.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').expect("a local reference");
                assert!(root.pointer(pointer).is_some(), "{reference}");
            }
            let members = at.as_object().into_iter().flat_map(|map| map.values());
            for member in members.chain(at.as_array().into_iter().flatten()) {
                walk(root, member);
            }
        }
        let document: Value = serde_json::from_str(pages::OPENAPI).expect("JSON");
        walk(&document, &document);
    }
}
