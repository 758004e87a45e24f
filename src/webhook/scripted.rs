//! Webhooks without a network: the real courier and its threads, and a receiver that a test writes. L3, test code for `interleave`.
//!
//! What takes the place of `sender` keeps its order: cut off is looked at before a request and after it, and an answer counts
//! unless it was cut off before it came.

use std::sync::Arc;
use std::time::Duration;

use crate::outlet::{OpenOutlet, Outlet};
use crate::sync::{AtomicBool, Ordering, yield_now};
use crate::webhook::courier::Courier;
use crate::webhook::schedule::Schedule;
use crate::webhook::sender::{Carrier, Post, Sent};

/// What reaches the receiver.
pub(crate) struct Letter<'a> {
    pub(crate) webhook_id: &'a str,
    pub(crate) body: &'a str,
    /// Whether its sender has been told to stop.
    pub(crate) is_cut: &'a dyn Fn() -> bool,
}

/// Answers a status.
type Receiver = Box<dyn Fn(&Letter<'_>) -> u16 + Send + Sync>;

struct Script {
    receiver: Receiver,
    is_cut: AtomicBool,
}

impl Carrier for Script {
    fn send(&self, post: &Post<'_>) -> Sent {
        let is_cut = || self.is_cut.load(Ordering::Acquire);
        if is_cut() {
            return Sent::Cut;
        }
        let status = (self.receiver)(&Letter {
            webhook_id: post.webhook_id,
            body: post.body,
            is_cut: &is_cut,
        });
        yield_now();
        if is_cut() {
            return Sent::Cut;
        }
        Sent::Answered {
            status,
            answer: String::new(),
            retry_after: None,
        }
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
    }
}

/// The courier, with one try for each delivery: time stands still, and no other one would ever come.
pub(crate) fn outlet(
    threads: usize,
    receiver: impl Fn(&Letter<'_>) -> u16 + Send + Sync + 'static,
) -> OpenOutlet {
    Box::new(move |office| {
        let script = Script {
            receiver: Box::new(receiver),
            is_cut: AtomicBool::new(false),
        };
        let schedule = Schedule {
            delays: vec![Duration::ZERO],
            jitter: 0.0,
        };
        Courier::new(office, Box::new(script), schedule, threads) as Arc<dyn Outlet>
    })
}
