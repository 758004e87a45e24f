//! Answers, and the bytes of them. L3, pure.
//!
//! Status line, headers and framing are ours: tiny_http would read a whole body first for HTTP/1.0 and `TE: identity`, and
//! adds a header with its own name. Errors are `application/problem+json` (RFC 9457).

use serde::Serialize;

use crate::error::{Error, ErrorKind};

/// What a browser must know of every answer.
const ALWAYS: &str = "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n";

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    content_type: &'static str,
    /// Each with its CRLF.
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    pub(super) fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Answer {
        Answer {
            status,
            content_type,
            headers: String::new(),
            body: body.into(),
        }
    }

    pub(super) fn json(value: &impl Serialize) -> Answer {
        let body = serde_json::to_vec(value).expect("records have string keys only");
        Answer::new(200, "application/json", body)
    }

    pub(super) fn empty() -> Answer {
        Answer::new(204, "", Vec::new())
    }

    /// Adds a header. Both parts are ours, or were checked.
    pub(super) fn with(mut self, name: &str, value: &str) -> Answer {
        self.headers.push_str(&header(name, value));
        self
    }

    pub(super) fn with_all(mut self, headers: &str) -> Answer {
        self.headers.push_str(headers);
        self
    }

    pub(super) fn into_bytes(self, is_head: bool) -> Vec<u8> {
        let mut text = format!(
            "HTTP/1.1 {} {}\r\n{ALWAYS}{}",
            self.status,
            reason(self.status),
            self.headers
        );
        if self.status != 204 {
            text.push_str(&format!(
                "Content-Type: {}\r\nContent-Length: {}\r\n",
                self.content_type,
                self.body.len()
            ));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        if !is_head && self.status != 204 {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// A header with its CRLF. A value cannot forge another one.
pub(super) fn header(name: &str, value: &str) -> String {
    let value: String = value.chars().filter(|c| !c.is_control()).collect();
    format!("{name}: {value}\r\n")
}

/// What went wrong.
pub(super) fn problem(status: u16, detail: &str) -> Answer {
    let body = serde_json::json!({ "title": reason(status), "status": status, "detail": detail });
    Answer::new(status, "application/problem+json", body.to_string())
}

/// The same for an error of the queue.
pub(super) fn failed(error: &Error) -> Answer {
    let status = match error.kind() {
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::InvalidJob | ErrorKind::InvalidConfig => 400,
        ErrorKind::StorageFull => 507,
        ErrorKind::Closed
        | ErrorKind::Locked
        | ErrorKind::Storage
        | ErrorKind::Poisoned
        | ErrorKind::Timeout => 503,
        ErrorKind::OutcomeUnknown | ErrorKind::Corrupt => 500,
    };
    problem(status, &error.to_string())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_cannot_be_forged_by_a_value() {
        let answer =
            problem(404, "no \"such\" thing\r\nX: y").with("Allow", "GET\r\nSet-Cookie: a=b");
        let text = String::from_utf8(answer.into_bytes(false)).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains("\r\nAllow: GETSet-Cookie: a=b\r\n"), "{head}");
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{head}"
        );
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["detail"], "no \"such\" thing\r\nX: y");
    }

    #[test]
    fn the_answer_to_head_has_no_body() {
        let text = String::from_utf8(Answer::json(&1).into_bytes(true)).expect("text");
        assert!(text.ends_with("Content-Length: 1\r\n\r\n"), "{text}");
        let text = String::from_utf8(Answer::empty().into_bytes(false)).expect("text");
        assert!(
            text.ends_with("close\r\n\r\n") && !text.contains("Content-Length"),
            "{text}"
        );
    }
}
