//! What threads share without a lock, and how they wake each other, under loom: every interleaving of the threads, and every value
//! that an atomic may still show. The files of `src` are compiled here as they are, with loom's types in the place of the real ones.
//!
//! | file | what it would catch |
//! |---|---|
//! | `phase/stop.rs` | a flag that is seen before its reason, a second reason in the place of the first, a sleeper who misses the bell |
//! | `bus.rs` | a job that is over and whose waiter sleeps on, a listener who misses what was published, one who sleeps on after the end |
//! | `committer/ticket.rs` | a caller without an answer |
//! | `shutdown/latch.rs` | two who bring the end about, one who waits for it and sleeps on |
//! | `pool/surplus.rs` | more workers that end than there are too many, or fewer |
//!
//! Built with `--cfg stepwell_shuttle` only, by `.ci/interleave`.
//! Source: loom, <https://github.com/tokio-rs/loom>.
//!
//! Broken on purpose, and what came of it:
//!
//! | what was broken | noticed by |
//! |---|---|
//! | who publishes an end looks at the flag of waiters without a fence; or who waits looks at the job without one: as it was | deadlock, in all three tests of a job's end |
//! | who waits sets the flag after its look at the job | deadlock, in the same |
//! | the end of one job clears the flag, although another one is waited for; or clears it after the list was let go | deadlock, in `who_waits_for_a_job_is_woken_although_another_one_ends` alone |
//! | who waits does not ask whether the bus is closed | deadlock, in `who_waits_for_a_job_is_sent_back_at_the_end_of_the_queue` |
//! | the bell is rung before the bus is closed, or before the answer is there | deadlock |
//! | the count of workers that are too many is read and written, not changed at once | more end |
//! | it is counted down by whoever has seen one, however many did | more end, in `no_more_workers_end_than_were_replaced` |
//! | whether the end was asked for is looked at, and written later | two bring it about |
#![cfg(stepwell_shuttle)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the library uses and exports what the tests do not"
)]

#[path = "../../src/bus.rs"]
mod bus;
mod error;
mod event;
mod job;
#[path = "../../src/shutdown/latch.rs"]
mod latch;
#[path = "../../src/phase/stop.rs"]
mod stop;
mod store;
#[path = "../../src/pool/surplus.rs"]
mod surplus;
mod sync;
#[path = "../../src/committer/ticket.rs"]
mod ticket;
mod time;

mod counts;
mod flag;
mod waits;
