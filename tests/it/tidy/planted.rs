//! Each rule of `tidy` is shown a violation, beside code that is allowed, and must catch exactly that.

use super::*;

#[test]
fn a_long_file_is_caught() {
    let lines = |count| "\n".repeat(count);
    let good = [("src/a.rs", &*lines(600))];
    let bad = [("src/a.rs", &*lines(601)), ("tests/it/b.rs", &*lines(700))];
    catches(
        too_long,
        &good,
        &bad,
        &["src/a.rs:601", "tests/it/b.rs:700"],
    );
}

#[test]
fn a_crate_out_of_place_is_caught() {
    let good = [
        ("src/store/sqlite/open.rs", "use rusqlite::Connection;"),
        ("src/webhook/mod.rs", "fn f() { ureq::get(1); }"),
        ("src/http/sse.rs", "use tiny_http::Server;"),
        ("src/queue/signals.rs", "use ctrlc;"),
        (
            "src/store/mod.rs",
            "//! No rusqlite::Row.\n/* rusqlite::Row */ const A: &str = \"rusqlite::Row\";",
        ),
        ("tests/it/a.rs", "use rusqlite::Connection;"),
    ];
    let bad = [
        ("src/store/mod.rs", "//! Doc.\n\nuse rusqlite::Row;"),
        ("src/http/mod.rs", "fn f() {\n    ureq::get(1);\n}"),
        ("src/queue.rs", "use {std::fmt, tiny_http};"),
        ("src/shutdown.rs", "use ctrlc as c;"),
    ];
    let caught = [
        "src/http/mod.rs:2",
        "src/queue.rs:1",
        "src/shutdown.rs:1",
        "src/store/mod.rs:3",
    ];
    catches(crates_out_of_place, &good, &bad, &caught);
}

#[test]
fn a_lock_or_thread_outside_sync_is_caught() {
    let good = [
        (
            "src/sync.rs",
            "pub(crate) use parking_lot::Mutex;\nuse std::thread;",
        ),
        (
            "src/pool.rs",
            "use std::sync::{Arc, OnceLock, Weak};\nuse crate::sync::Mutex;",
        ),
    ];
    let bad = [
        ("src/a.rs", "use parking_lot::Mutex;"),
        ("src/b.rs", "use std::sync::{Arc,\n    Mutex};"),
        ("src/c.rs", "use std::{fmt, thread};"),
        ("src/d.rs", "fn f(a: &core::sync::atomic::AtomicBool) {}"),
        ("src/e.rs", "fn f() { crossbeam_channel::bounded(1); }"),
        ("src/f.rs", "use std::sync;"),
    ];
    let caught = [
        "src/a.rs:1",
        "src/b.rs:2",
        "src/c.rs:1",
        "src/d.rs:1",
        "src/e.rs:1",
        "src/f.rs:1",
    ];
    catches(threading_outside_sync, &good, &bad, &caught);
}

#[test]
fn a_clock_outside_time_is_caught() {
    let good = [
        ("src/time.rs", "fn f() { Instant::now(); }"),
        ("src/pool.rs", "fn f() { clock.now(); }"),
    ];
    let bad = [
        ("src/pool.rs", "fn f() { Instant::now(); }"),
        (
            "src/queue.rs",
            "fn f() {\n    std::time::SystemTime::now()\n}",
        ),
    ];
    catches(
        clock_outside_time,
        &good,
        &bad,
        &["src/pool.rs:1", "src/queue.rs:2"],
    );
}

#[test]
fn a_file_or_thread_in_a_low_layer_is_caught() {
    let good = [
        ("src/sync.rs", "use std::thread;"),
        ("src/owner/mod.rs", "use std::fs::File;"),
    ];
    let bad = [
        ("src/config.rs", "use std::fs;"),
        ("src/job.rs", "use std::thread::spawn;"),
        ("src/transition.rs", "fn f(a: rusqlite::Row) {}"),
    ];
    let caught = ["src/config.rs:1", "src/job.rs:1", "src/transition.rs:1"];
    catches(impure_low_layers, &good, &bad, &caught);
}

#[test]
fn an_import_upwards_is_caught() {
    let good = [
        ("src/lib.rs", "mod queue;\npub use crate::queue::Queue;"),
        (
            "src/job.rs",
            "use crate::{error::Error, sync::Flag};\n/// See `crate::queue::Queue`.\nfn f() {}",
        ),
        (
            "src/store/sqlite/mod.rs",
            "use super::Rows;\nuse super::super::transition::decide;",
        ),
        (
            "src/queue.rs",
            "use crate::unlisted::A;\nuse crate::store::Store;",
        ),
        (
            "src/time.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::queue::Queue;\n}",
        ),
    ];
    let bad = [
        ("src/event.rs", "use crate::transition::Row;"),
        (
            "src/job.rs",
            "use crate::{\n    error::Error,\n    queue::{Queue, Stats},\n};",
        ),
        ("src/store/mod.rs", "fn f(pool: &crate::unlisted::Pool) {}"),
        (
            "src/store/sqlite/mod.rs",
            "use super::super::engine::Engine;",
        ),
        (
            "src/time.rs",
            "#[cfg(test)]\nmod tests {}\nuse crate::Queue;",
        ),
    ];
    let caught = [
        "src/event.rs:1",
        "src/job.rs:3",
        "src/job.rs:3",
        "src/store/mod.rs:1",
        "src/store/sqlite/mod.rs:1",
        "src/time.rs:3",
    ];
    let unlisted = [("src/unlisted.rs", "")];
    let with = |files: &[(&'static str, &'static str)]| [files, &unlisted[..]].concat();
    catches(imports_upwards, &with(&good), &with(&bad), &caught);
}

#[test]
fn an_acquaintance_of_strangers_is_caught() {
    let good = [
        ("src/runner.rs", "use crate::phase::Phase;"),
        ("src/pool.rs", "use crate::store::Store;"),
    ];
    let bad = [
        ("src/http/mod.rs", "use crate::webhook::Hook;"),
        ("src/http/sse.rs", "use crate::pool::Pool;"),
        ("src/runner.rs", "use crate::store::Store;"),
        ("src/webhook/guard.rs", "use crate::pool::Pool;"),
        ("src/webhook/mod.rs", "use crate::http::Frame;"),
    ];
    let caught = bad.map(|(path, _)| format!("{path}:1"));
    catches(
        acquainted_strangers,
        &good,
        &bad,
        &caught.each_ref().map(String::as_str),
    );
}

#[test]
fn a_cycle_is_caught_and_spelled_out() {
    let good = [
        ("src/a.rs", "use crate::b::B;"),
        ("src/b/mod.rs", "use crate::c::C;\nuse crate::b::inner::I;"),
        ("src/b/inner.rs", "use crate::b::B;"),
        ("src/c.rs", "#[cfg(test)]\nmod tests;"),
        ("src/c/tests.rs", "use crate::a::A;"),
        ("src/lib.rs", "pub use crate::a::A;"),
    ];
    let mut bad = good.to_vec();
    bad.push(("src/b/other.rs", "\nuse crate::d::D;"));
    bad.push(("src/d.rs", "use crate::a::A;"));
    let whole = "cycle: a -> b (src/a.rs:1) -> d (src/b/other.rs:2) -> a (src/d.rs:1)";
    catches(cycles, &good, &bad, &[whole]);
}

#[test]
fn a_write_outside_the_seam_is_caught() {
    let good = [
        (
            SEAM,
            "const A: &str = \"INSERT INTO job (id)\";\nconst B: &str = \"UPDATE event SET a\";",
        ),
        (PRUNE, "const A: &str = \"DELETE FROM event WHERE a\";"),
        (UPDATES, "const A: &str = \"UPDATE job SET a = 1\";"),
        ("tests/it/a.rs", "const A: &str = \"DELETE FROM job\";"),
        (
            "src/store/sqlite/a.rs",
            "const A: &str = \"INSERT INTO job_error\"; // UPDATE job\nconst B: &str = \"SELECT a FROM job\";",
        ),
        (
            "src/store/sqlite/b.rs",
            "#[cfg(test)]\nmod tests {\n const A: &str = \"UPDATE job SET a = 1\";\n}",
        ),
    ];
    let bad = [
        (PRUNE, "const A: &str = \"UPDATE job SET a\";"),
        (
            UPDATES,
            "const A: &str = \"UPDATE event SET a = 1\";\nconst B: &str = \"INSERT INTO job (a)\";",
        ),
        (
            "src/store/sqlite/a.rs",
            "const A: &str = \"INSERT\n  INTO\n  job (id)\";\nconst B: &str = r#\"DELETE FROM event\"#;",
        ),
        (
            "src/store/sqlite/b.rs",
            "const A: &str = \"UPDATE OR IGNORE job SET a\";",
        ),
    ];
    let caught = [
        "src/store/sqlite/a.rs:2",
        "src/store/sqlite/a.rs:4",
        "src/store/sqlite/b.rs:1",
        "src/store/sqlite/prune.rs:1",
        "src/store/sqlite/updates.rs:1",
        "src/store/sqlite/updates.rs:2",
    ];
    catches(writes_outside_the_seam, &good, &bad, &caught);
}

#[test]
fn an_unwrap_in_src_is_caught() {
    let good = [
        (
            "src/a.rs",
            "fn f() { a.unwrap_or_default(); \".unwrap()\"; } // .unwrap()\n/// .unwrap()\nfn g() {}",
        ),
        (
            "src/b.rs",
            "#[cfg(test)]\n#[allow(dead_code, reason = \"}\")]\nmod tests {\n fn f() { a.unwrap() }\n}",
        ),
        ("tests/it/c.rs", "fn f() { a.unwrap() }"),
    ];
    let bad = [
        (
            "src/a.rs",
            "fn f<'a>(b: &'a str) {\n    let c = ('\"', '\\'', b);\n    a\n        .unwrap();\n}",
        ),
        (
            "src/b.rs",
            "#[cfg(test)]\nmod tests {\n}\nfn f() { a.unwrap() }",
        ),
    ];
    catches(unwraps, &good, &bad, &["src/a.rs:4", "src/b.rs:4"]);
}

#[test]
fn a_crate_that_allows_unsafe_code_is_caught() {
    let good = [("src/lib.rs", "//! Doc.\n#![forbid(unsafe_code)]")];
    let bad = [("src/lib.rs", "//! Doc.\n// #![forbid(unsafe_code)]")];
    catches(unsafe_not_forbidden, &good, &bad, &["src/lib.rs:1"]);
}

#[test]
fn unfinished_work_is_caught() {
    let good = [
        ("src/a.rs", "// todo\nfn f() { todo(\"dbg\"); }"),
        (
            "examples/b.rs",
            concat!("fn f() { std::thread::", "sleep(d); }"),
        ),
    ];
    let macros = UNFINISHED.map(|name| format!("#[cfg(test)]\nmod tests {{\n {name}!()\n}}"));
    let ignored = format!("#[test]\n#[{}]\nfn f() {{}}", "ignore");
    let bad = [
        ("src/a.rs", &*macros[0]),
        ("src/b.rs", &*macros[1]),
        ("tests/it/a.rs", &*macros[2]),
        ("tests/it/b.rs", &*ignored),
        ("tests/it/c.rs", concat!("fn f() { thread::", "sleep(d); }")),
    ];
    let caught = [
        "src/a.rs:3",
        "src/b.rs:3",
        "tests/it/a.rs:3",
        "tests/it/b.rs:2",
        "tests/it/c.rs:1",
    ];
    catches(unfinished, &good, &bad, &caught);
}

#[test]
fn a_file_without_a_header_is_caught() {
    let good = [
        ("src/a.rs", "//! What it is."),
        ("tests/it/b.rs", "fn f() {}"),
    ];
    let bad = [("src/a.rs", "// What it is.\n//! Late.")];
    catches(without_header, &good, &bad, &["src/a.rs:1"]);
}

/// `rule` has nothing to say of `good`, and one thing of each place in `caught` when it reads `bad`.
fn catches(rule: Rule, good: &[(&str, &str)], bad: &[(&str, &str)], caught: &[&str]) {
    let read = |files: &[(&str, &str)]| {
        source::parse(
            files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), (*text).to_owned())),
        )
    };
    assert_eq!(rule(&read(good)), Vec::<String>::new());
    let broken = rule(&read(bad));
    let as_expected = |(text, place): (&String, &&str)| {
        text.strip_prefix(*place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
    };
    let all = broken.len() == caught.len() && broken.iter().zip(caught).all(as_expected);
    assert!(all, "caught {broken:#?}, expected {caught:#?}");
}
