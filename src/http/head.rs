//! The head of a request: is it whole, is it sound, and what of it goes on. L3, pure.
//!
//! What the backend gets to see is written anew from what was understood here: one request, `Connection: close`, a
//! `Content-Length` that is ours, and only headers from a list. So the two parsers cannot disagree about where a request ends
//! (request smuggling, RFC 9112 section 11.2), and what trips tiny_http (`TE: identity`, `Expect`, HTTP/1.0, headers
//! that are not ASCII) never reaches it.

/// A browser's head has 1 to 2 KiB, its cookies included; proxies refuse more than 8 to 16 KiB.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A body here is a filter, a list of at most 1000 ids or a token.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;
/// More than any browser or proxy sends.
const HEADERS_MAX: usize = 96;
/// The header in which the gate tells the backend which connection it is.
pub(super) const CONNECTION: &str = "stepwell-connection";

/// What a handler may ask for, `cookie` aside, of which a part may go on; everything else is dropped.
const FORWARDED: [&str; 8] = [
    "accept",
    "authorization",
    "content-type",
    "host",
    "last-event-id",
    "origin",
    "sec-fetch-site",
    "access-control-request-method",
];

/// A head that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    pub(super) is_http_10: bool,
    /// Bytes of the head itself.
    pub(super) bytes: usize,
    /// Bytes of body that follow.
    pub(super) body_bytes: usize,
    /// The client waits for a word before it sends the body.
    pub(super) expects_continue: bool,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The beginning of a head.
    Partial,
    Whole(Head),
    /// Not acceptable: the status to answer with, and why.
    Refused(u16, &'static str),
}

/// Looks at what a client has sent so far.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(end)) if end <= HEAD_BYTES_MAX => whole(&request, end),
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => Parsed::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            Parsed::Refused(431, "the head of the request is too large")
        }
        Err(httparse::Error::Version) => Parsed::Refused(505, "only HTTP/1.1 and HTTP/1.0"),
        Err(_) => Parsed::Refused(400, "this is not an HTTP request"),
    }
}

fn whole(request: &httparse::Request<'_, '_>, end: usize) -> Parsed {
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Parsed::Refused(400, "this is not an HTTP request");
    };
    if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Parsed::Refused(400, "the target of the request is not a path");
    }
    let mut head = Head {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: Vec::new(),
        is_http_10: minor == 0,
        bytes: end,
        body_bytes: 0,
        expects_continue: false,
    };
    let mut has_length = false;
    for header in request.headers.iter() {
        let name = header.name.to_ascii_lowercase();
        if name == "cookie" {
            let cookies = plain_cookies(header.value);
            head.headers.extend(cookies.map(|cookies| (name, cookies)));
            continue;
        }
        let Ok(value) = std::str::from_utf8(header.value) else {
            continue;
        };
        match &name[..] {
            "transfer-encoding" => return Parsed::Refused(411, "send a Content-Length"),
            "content-length" => {
                let all_digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                match value.parse() {
                    Ok(length) if all_digits && !has_length => head.body_bytes = length,
                    _ => return Parsed::Refused(400, "the Content-Length is not one number"),
                }
                has_length = true;
            }
            "expect" => head.expects_continue = value.eq_ignore_ascii_case("100-continue"),
            _ if FORWARDED.contains(&&name[..]) && is_plain(value) => {
                // A second one could be meant for another reader than the first.
                if name == "host" && head.headers.iter().any(|(other, _)| *other == name) {
                    return Parsed::Refused(400, "there are two Host headers");
                }
                head.headers.push((name, value.to_owned()));
            }
            _ => {}
        }
    }
    if head.body_bytes > BODY_BYTES_MAX {
        return Parsed::Refused(413, "the body of the request is too large");
    }
    Parsed::Whole(head)
}

/// What tiny_http can read.
fn is_plain(value: &str) -> bool {
    value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// The cookies without those that are not plain. Other programs on the same host have theirs in the same header, whatever
/// their ports, and must not hide ours.
fn plain_cookies(value: &[u8]) -> Option<String> {
    let pairs = value.split(|byte| *byte == b';');
    let pairs = pairs.filter_map(|pair| std::str::from_utf8(pair.trim_ascii()).ok());
    let plain: Vec<_> = pairs.filter(|it| !it.is_empty() && is_plain(it)).collect();
    (!plain.is_empty()).then(|| plain.join("; "))
}

impl Head {
    /// The request as the backend gets it, without its body.
    pub(super) fn rewritten(&self, connection: &str) -> Vec<u8> {
        let mut text = format!(
            "{} {} HTTP/1.1\r\n{CONNECTION}: {connection}\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.method, self.target, self.body_bytes
        );
        for (name, value) in &self.headers {
            text.push_str(name);
            text.push_str(": ");
            text.push_str(value);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> u16 {
        match parse(text.as_bytes()) {
            Parsed::Refused(status, _) => status,
            other @ (Parsed::Partial | Parsed::Whole(_)) => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn a_head_is_partial_until_its_empty_line() {
        let text = "GET /events?x=1 HTTP/1.0\r\nHost: a\r\nTE: identity\r\nConnection: keep-alive\r\n\r\nrest";
        for end in 0..text.len() - 4 {
            assert_eq!(parse(&text.as_bytes()[..end]), Parsed::Partial, "{end}");
        }
        let Parsed::Whole(head) = parse(text.as_bytes()) else {
            panic!("whole");
        };
        assert!(head.is_http_10);
        assert_eq!(head.bytes, text.len() - 4);
        let sent = String::from_utf8(head.rewritten("k-1")).expect("text");
        assert_eq!(
            sent,
            "GET /events?x=1 HTTP/1.1\r\nstepwell-connection: k-1\r\nconnection: close\r\ncontent-length: 0\r\nhost: a\r\n\r\n"
        );
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        let post = |headers: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
        let cases = [
            (post("Content-Length: 1\r\nContent-Length: 1"), 400),
            (post("Content-Length: +1"), 400),
            (post("Content-Length: 99999999999999999999"), 400),
            (post("Transfer-Encoding: chunked"), 411),
            (post("Content-Length: 65537"), 413),
            (post("Host: b"), 400),
            ("GET http://a/ HTTP/1.1\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/2.0\r\n\r\n".to_owned(), 505),
            ("\u{1}\r\n\r\n".to_owned(), 400),
            (
                format!("GET /{} HTTP/1.1\r\n", "a".repeat(HEAD_BYTES_MAX)),
                431,
            ),
            (post(&"a: b\r\n".repeat(200)), 431),
        ];
        for (text, status) in cases {
            assert_eq!(refused(&text), status, "{text:.60}");
        }
    }

    #[test]
    fn of_the_cookies_those_that_are_plain_go_on() {
        let sent = |cookies: &[u8]| {
            let bytes = [&b"GET / HTTP/1.1\r\nCookie: "[..], cookies, b"\r\n\r\n"].concat();
            let Parsed::Whole(head) = parse(&bytes) else {
                panic!("whole");
            };
            let text = String::from_utf8(head.rewritten("k-1")).expect("text");
            let cookie = text.split("\r\n").find(|line| line.starts_with("cookie"));
            cookie.map(str::to_owned)
        };
        for (cookies, expected) in [
            (&b"a=1; b=2"[..], Some("cookie: a=1; b=2")),
            (b"a=1; n=\xc3\xa9; b=2", Some("cookie: a=1; b=2")),
            (b"n=\xe9; b=2", Some("cookie: b=2")),
            (b"b=2; n=\xff\xfe", Some("cookie: b=2")),
            (b"n=\t1;b=2", Some("cookie: b=2")),
            (b"n=\xe9", None),
        ] {
            assert_eq!(sent(cookies).as_deref(), expected, "{cookies:?}");
        }
    }

    #[test]
    fn a_client_cannot_say_which_connection_it_is() {
        let text = "GET / HTTP/1.1\r\nStepwell-Connection: forged\r\nX-Bad: \u{e9}\r\n\r\n";
        let Parsed::Whole(head) = parse(text.as_bytes()) else {
            panic!("whole");
        };
        let sent = String::from_utf8(head.rewritten("true")).expect("text");
        assert!(!sent.contains("forged") && sent.contains("stepwell-connection: true\r\n"));
    }
}
