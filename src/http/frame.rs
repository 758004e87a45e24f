//! Server-sent events as bytes. L3, pure.
//!
//! Format: WHATWG HTML, "Server-sent events", section 9.2.6. A field ends at CR, LF or CRLF, so data that holds one of them
//! could forge a field. It cannot here: data is JSON on one line, in which every control character is escaped; names are those
//! of `event.rs`; an id is a file's name in hexadecimal and a number.

use std::fmt::Write;

use serde::Serialize;

use crate::event::{Event, Seq};

/// Says nothing, and keeps proxies and clients from giving up.
pub(super) const HEARTBEAT: &[u8] = b":\n\n";
/// The first bytes of a stream: a comment, so that a client knows at once that it is connected.
pub(super) const HELLO: &[u8] = b": stepwell\n\n";
/// All that a stream gets for which there is no place. A 503 would stop a browser for good (HTML, section 9.2.3), this makes it
/// come back.
pub(super) const OVERLOADED: &[u8] = b"retry: 5000\n: too many streams are open\n\n";
/// The end of a chunked body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A position in the log of one file.
pub(super) fn id(file_id: &str, seq: Seq) -> String {
    format!("{file_id}-{seq}")
}

/// The position that an id names, if it is of this file.
pub(super) fn parse_id(file_id: &str, text: &str) -> Option<Seq> {
    let (epoch, seq) = text.split_once('-')?;
    let plain = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
    (epoch == file_id && plain).then(|| seq.parse().ok())?
}

/// One event of the log, or one that has no number: progress.
pub(super) fn event(file_id: &str, event: &Event) -> Vec<u8> {
    let id = (event.seq > 0).then(|| id(file_id, event.seq));
    encode(id.as_deref(), event.kind.as_str(), event)
}

/// What a client hears first when the events that it asked for are not there (any more): it has to look at the jobs again, and
/// goes on after `head`.
pub(super) fn reset(file_id: &str, requested: &str, oldest: Seq, head: Seq) -> Vec<u8> {
    let data = serde_json::json!({
        "requested": requested,
        "oldest": id(file_id, oldest),
        "head": id(file_id, head),
    });
    encode(Some(&id(file_id, head)), "reset", &data)
}

fn encode(id: Option<&str>, name: &str, data: &impl Serialize) -> Vec<u8> {
    let mut text = String::with_capacity(192);
    if let Some(id) = id {
        writeln!(text, "id: {id}").expect("writing to a string");
    }
    let json = serde_json::to_string(data).expect("events have string keys only");
    write!(text, "event: {name}\ndata: {json}\n\n").expect("writing to a string");
    text.into_bytes()
}

/// Appends `body` as one chunk (RFC 9112, section 7.1).
pub(super) fn chunk(body: &[u8], out: &mut Vec<u8>) {
    if !body.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;
    use crate::http::fuzz::decode;
    use crate::job::JobId;
    use crate::time::Timestamp;
    use serde_json::{Map, Value};

    /// Strings of what is dangerous, and of anything else: a small generator (xorshift), so that a failure repeats.
    fn text(state: &mut u64) -> String {
        const PARTS: [&str; 14] = [
            "\r",
            "\n",
            "\r\n",
            "\0",
            "\n\n",
            "data: x",
            "id: 9",
            "event: job:completed",
            ": ",
            "\u{2028}",
            "\u{feff}",
            "\\",
            "\"",
            "\u{1f600}",
        ];
        let mut out = String::new();
        for _ in 0..next(state) % 12 {
            match next(state) % 3 {
                0 => out.push(
                    char::from_u32(u32::try_from(next(state) % 0x300).expect("small"))
                        .unwrap_or('?'),
                ),
                _ => out.push_str(PARTS[usize::try_from(next(state) % 14).expect("small")]),
            }
        }
        out
    }

    fn next(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn what_is_decoded_is_what_was_encoded() {
        let mut state = 0x9e37_79b9_7f4a_7c15;
        for round in 1..20_000_i64 {
            let mut data = Map::new();
            for key in ["message", "kind", "url"] {
                data.insert(key.to_owned(), Value::String(text(&mut state)));
            }
            let told = Event {
                seq: round,
                kind: EventKind::ALL[usize::try_from(round).expect("small") % EventKind::ALL.len()],
                job_id: JobId::from_i64(7),
                // Names are checked before they are stored; here nothing is trusted.
                job_type: text(&mut state).into(),
                at: Timestamp::from_millis(5),
                phase: Some(text(&mut state).into()),
                attempt: 1,
                data,
            };
            let bytes = event("0a1b", &told);
            let found = decode(&bytes);
            assert_eq!(found.len(), 1, "{bytes:?}");
            let (id, name, data) = &found[0];
            assert_eq!(
                (&id[..], &name[..]),
                (&*format!("0a1b-{round}"), told.kind.as_str())
            );
            let data: Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(data, serde_json::to_value(&told).expect("JSON"));
        }
    }

    #[test]
    fn a_reset_cannot_be_forged_by_the_id_that_it_repeats() {
        let found = decode(&reset("0a1b", "x\r\rid: 1\n\nevent: job:failed\0", 3, 9));
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].0[..], &found[0].1[..]), ("0a1b-9", "reset"));
        assert_eq!(
            serde_json::from_str::<Value>(&found[0].2).expect("JSON")["requested"],
            "x\r\rid: 1\n\nevent: job:failed\0"
        );
    }

    #[test]
    fn only_an_id_of_this_file_is_a_position() {
        assert_eq!(parse_id("0a1b", "0a1b-17"), Some(17));
        for other in [
            "",
            "17",
            "-17",
            "ffff-17",
            "0a1b-",
            "0a1b-+1",
            "0a1b--1",
            "0a1b-1 ",
            "0a1b-99999999999999999999",
        ] {
            assert_eq!(parse_id("0a1b", other), None, "{other}");
        }
    }

    #[test]
    fn a_comment_is_no_event() {
        assert!(decode(&[HELLO, HEARTBEAT, HEARTBEAT, OVERLOADED].concat()).is_empty());
        let mut out = Vec::new();
        chunk(b"", &mut out);
        chunk(HEARTBEAT, &mut out);
        assert_eq!(out, b"3\r\n:\n\n\r\n");
    }
}
