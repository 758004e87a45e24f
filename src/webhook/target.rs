//! Keeps query strings out of what ureq logs. L3.
//!
//! At the log level `trace` ureq prints whole URLs, and a query string can be a secret. So ureq is given the URL without it, and
//! the request line gets it on its way to the connection. A request is written by the thread that asked for it: its query
//! waits there. Like `address`, this needs what ureq keeps out of its promise of stability.

use std::cell::RefCell;
use std::fmt;
use std::io;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

thread_local! {
    /// Of the request that this thread is about to send.
    static QUERY: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What `send` sends goes to the URL of the request with this query string.
pub(super) fn with_query<T>(query: Option<&str>, send: impl FnOnce() -> T) -> T {
    QUERY.set(query.map(str::to_owned));
    let sent = send();
    // It is still there when no connection was made.
    QUERY.set(None);
    sent
}

/// Behind the connector that connects.
#[derive(Debug)]
pub(super) struct AddQuery;

impl<In: Transport> Connector<In> for AddQuery {
    type Out = Adding<In>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Adding<In>>, Error> {
        Ok(chained.map(Adding))
    }
}

pub(super) struct Adding<T>(T);

impl<T> fmt::Debug for Adding<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Adding")
    }
}

impl<T: Transport> Transport for Adding<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    /// The first thing that is sent of a request is its head.
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let Some(query) = QUERY.take() else {
            return self.0.transmit_output(amount, timeout);
        };
        let head = with_target(&self.0.buffers().output()[..amount], &query)
            .ok_or_else(|| io::Error::other("the request has no line of its own"))?;
        let room = self.0.buffers().output().len();
        for part in head.chunks(room.max(1)) {
            self.0.buffers().output()[..part.len()].copy_from_slice(part);
            self.0.transmit_output(part.len(), timeout)?;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}

/// `POST /path HTTP/1.1` and all that follows, with the query behind the path.
fn with_target(head: &[u8], query: &str) -> Option<Vec<u8>> {
    const VERSION: &[u8] = b" HTTP/1.1\r\n";
    let at = head
        .windows(VERSION.len())
        .position(|window| window == VERSION)?;
    let (line, rest) = head.split_at(at);
    Some([line, b"?", query.as_bytes(), rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_goes_behind_the_path() {
        let head = b"POST /hooks HTTP/1.1\r\nhost: a.example\r\n\r\n";
        let full = b"POST /hooks?k=1&l=%20 HTTP/1.1\r\nhost: a.example\r\n\r\n";
        assert_eq!(with_target(head, "k=1&l=%20").as_deref(), Some(&full[..]));
        assert_eq!(with_target(b"POST /hooks", "k=1"), None);
    }

    #[test]
    fn a_query_is_for_one_request() {
        with_query(Some("k=1"), || ());
        assert_eq!(QUERY.take(), None);
    }
}
