//! The rules of the layout, kept by reading the sources.
//!
//! Each rule is a function over sources that returns what breaks it, as `file:line: what`. So it is tested twice: on the tree as it
//! stands, and on planted violations beside code that is allowed. Comments never count; neither does test code, where it says so.

mod source;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use source::{Source, is_name, paths, sequences, tokens};

// ---- The rules as tables: edit here. ----

const LINES_MAX: usize = 600;
const FOLDERS: [&str; 4] = ["src", "tests", "examples", "benches"];

/// The layer of each top-level module of `src`; one that is not listed is L3.
const LAYERS: [(u8, &[&str]); 5] = [
    (
        0,
        &[
            "config", "context", "delivery", "error", "event", "job", "new_job", "phase", "retry",
            "time",
        ],
    ),
    (1, &["sync", "transition"]),
    (2, &["store"]),
    (
        3,
        &[
            "bus",
            "committer",
            "engine",
            "http",
            "listener",
            "live",
            "owner",
            "pool",
            "requests",
            "retention",
            "runner",
            "scheduler",
            "shutdown",
            "webhook",
        ],
    ),
    (
        4,
        &[
            "builder", "client", "explain", "handle", "lib", "queue", "signals", "testing",
        ],
    ),
];
const LAYER_UNLISTED: u8 = 3;
/// Every layer may use it, and it alone names locks and threads.
const SYNC: &str = "sync";

/// Pairs of a module and another that it must not know, whatever their layers.
const STRANGERS: [(&str, &str); 5] = [
    ("runner", "store"),
    ("webhook", "http"),
    ("webhook", "pool"),
    ("http", "webhook"),
    ("http", "pool"),
];

/// Crates that one file or folder keeps to itself.
const CRATES: [(&str, &str); 4] = [
    ("rusqlite", "src/store/sqlite/"),
    ("ureq", "src/webhook/"),
    ("tiny_http", "src/http/"),
    ("ctrlc", "src/signals.rs"),
];

/// What only `src/sync.rs` names. Of `std::sync`, only the names in [`SHARING`] are free.
const THREADING: [&str; 4] = ["parking_lot", "crossbeam_channel", "std::thread", "std::sync"];
const SHARING: [&str; 5] = ["Arc", "Weak", "Once", "OnceLock", "LazyLock"];

const SYSTEM_CLOCK: [[&str; 2]; 2] = [["SystemTime", "now"], ["Instant", "now"]];

/// What L0 and L1 do without, [`SYNC`]'s threads aside.
const NOT_IN_PURE: [&str; 5] = ["rusqlite", "ureq", "tiny_http", "std::fs", "std::thread"];

const TABLES_OF_THE_SEAM: [&str; 2] = ["job", "event"];
const SEAM: &str = "src/store/sqlite/commit.rs";
/// May delete from them, and no more.
const PRUNE: &str = "src/store/sqlite/prune.rs";

const UNFINISHED: [&str; 3] = ["todo", "unimplemented", "dbg"];

// ---- The tree keeps the rules. ----

#[test]
fn no_file_is_longer_than_its_ceiling() {
    holds(too_long);
}

#[test]
fn each_foreign_crate_is_named_in_its_own_place_only() {
    holds(crates_out_of_place);
}

#[test]
fn only_sync_names_locks_channels_threads_and_atomics() {
    holds(threading_outside_sync);
}

#[test]
fn only_time_reads_the_system_clock() {
    holds(clock_outside_time);
}

#[test]
fn the_two_lowest_layers_know_no_file_thread_network_or_database() {
    holds(impure_low_layers);
}

#[test]
fn imports_go_down_only() {
    holds(imports_upwards);
}

#[test]
fn strangers_do_not_know_each_other() {
    holds(acquainted_strangers);
}

#[test]
fn modules_form_no_cycle() {
    holds(cycles);
}

#[test]
fn only_the_seam_writes_jobs_and_events() {
    holds(writes_outside_the_seam);
}

#[test]
fn src_does_not_unwrap() {
    holds(unwraps);
}

#[test]
fn the_crate_forbids_unsafe_code() {
    holds(unsafe_not_forbidden);
}

#[test]
fn nothing_is_left_unfinished_ignored_or_waiting_on_time() {
    holds(unfinished);
}

#[test]
fn every_src_file_says_what_it_is() {
    holds(without_header);
}

// ---- The rules. ----

type Rule = fn(&[Source]) -> Vec<String>;

fn too_long(sources: &[Source]) -> Vec<String> {
    let long = |source: &&Source| source.text.lines().count() > LINES_MAX;
    let report = |source: &Source| {
        let count = source.text.lines().count();
        format!("{}:{count}: more than {LINES_MAX} lines", source.path)
    };
    sources.iter().filter(long).map(report).collect()
}

fn crates_out_of_place(sources: &[Source]) -> Vec<String> {
    named_paths(sources, |source, path| {
        let (name, place) = CRATES.iter().find(|(name, _)| path[0] == *name)?;
        (!source.path.starts_with(place)).then(|| format!("`{name}` is named outside {place}"))
    })
}

fn threading_outside_sync(sources: &[Source]) -> Vec<String> {
    named_paths(sources, |source, path| {
        let name = THREADING.iter().find(|name| is_under(path, name))?;
        let shares = *name == "std::sync" && path.get(2).is_some_and(|it| SHARING.contains(it));
        let allowed = shares || source.module() == SYNC;
        (!allowed).then(|| format!("`{}` is named outside src/sync.rs", path.join("::")))
    })
}

fn clock_outside_time(sources: &[Source]) -> Vec<String> {
    named_paths(sources, |source, path| {
        let reads = SYSTEM_CLOCK.iter().any(|clock| path.ends_with(clock));
        (reads && source.path != "src/time.rs")
            .then(|| format!("`{}` is named outside src/time.rs", path.join("::")))
    })
}

fn impure_low_layers(sources: &[Source]) -> Vec<String> {
    named_paths(sources, |source, path| {
        let name = NOT_IN_PURE.iter().find(|name| is_under(path, name))?;
        let layer = layer_of(source.module());
        (layer <= 1 && source.module() != SYNC).then(|| format!("L{layer} knows `{name}`"))
    })
}

fn imports_upwards(sources: &[Source]) -> Vec<String> {
    imports(sources, |from, to| {
        let (low, high) = (layer_of(from), layer_of(to));
        (high > low && to != SYNC).then(|| format!("{from} (L{low}) uses {to} (L{high})"))
    })
}

fn acquainted_strangers(sources: &[Source]) -> Vec<String> {
    imports(sources, |from, to| {
        let strange = STRANGERS.contains(&(from, to));
        strange.then(|| format!("{from} must not know {to}"))
    })
}

/// The shortest cycle through each module, each cycle once.
fn cycles(sources: &[Source]) -> Vec<String> {
    let mut edges: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.module() != "lib") {
        for (offset, to) in modules_used(source, sources) {
            let place = format!("{}:{}", source.path, source.line(offset));
            let known = edges.entry(source.module()).or_default();
            known.entry(to).or_insert(place);
        }
    }
    let mut found = BTreeMap::new();
    for start in edges.keys() {
        if let Some(cycle) = shortest_cycle(&edges, start) {
            let members: BTreeSet<&str> = cycle.iter().copied().collect();
            found.entry(members).or_insert(cycle);
        }
    }
    let report = |cycle: &Vec<&str>| {
        let mut text = format!("cycle: {}", cycle[0]);
        for (index, from) in cycle.iter().enumerate() {
            let to = cycle[(index + 1) % cycle.len()];
            text += &format!(" -> {to} ({})", edges[from][to]);
        }
        text
    };
    found.values().map(report).collect()
}

fn shortest_cycle<'a>(
    edges: &BTreeMap<&'a str, BTreeMap<&'a str, String>>,
    start: &'a str,
) -> Option<Vec<&'a str>> {
    let mut seen = BTreeSet::new();
    let mut ways = VecDeque::from([vec![start]]);
    while let Some(way) = ways.pop_front() {
        for next in edges.get(way[way.len() - 1])?.keys().copied() {
            if next == start {
                return Some(way);
            }
            if edges.contains_key(next) && seen.insert(next) {
                ways.push_back([&way[..], &[next]].concat());
            }
        }
    }
    None
}

/// Statements are found in strings, by their words in upper case, as all SQL here is written.
fn writes_outside_the_seam(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources {
        let mut words = tokens(&source.strings);
        words.retain(|(_, word)| is_name(word));
        for (index, (offset, word)) in words.iter().enumerate() {
            let word_at = |index: usize| words.get(index).map_or("", |(_, word)| *word);
            let after_or = if word_at(index + 1) == "OR" { 2 } else { 0 };
            let (verb, table) = match *word {
                "INTO" => ("INSERT INTO", word_at(index + 1)),
                "UPDATE" => ("UPDATE", word_at(index + 1 + after_or)),
                "DELETE" if word_at(index + 1) == "FROM" => ("DELETE FROM", word_at(index + 2)),
                _ => continue,
            };
            let allowed = source.path == SEAM || (source.path == PRUNE && verb == "DELETE FROM");
            if TABLES_OF_THE_SEAM.contains(&table) && !allowed {
                broken.push(source.report(*offset, &format!("`{verb} {table}` outside {SEAM}")));
            }
        }
    }
    broken
}

fn unwraps(sources: &[Source]) -> Vec<String> {
    let in_src = sources.iter().filter(|source| source.is_in("src"));
    let each = in_src.flat_map(|source| {
        let hits = sequences(&source.code, &[".", "unwrap", "("]);
        hits.map(|offset| source.report(offset, "`unwrap` (say with `expect` why it cannot fail)"))
    });
    each.collect()
}

fn unsafe_not_forbidden(sources: &[Source]) -> Vec<String> {
    let attribute = ["#", "!", "[", "forbid", "(", "unsafe_code", ")", "]"];
    let root = sources.iter().find(|source| source.path == "src/lib.rs");
    match root {
        Some(root) if sequences(&root.code, &attribute).next().is_some() => Vec::new(),
        _ => vec!["src/lib.rs:1: no `#![forbid(unsafe_code)]`".to_owned()],
    }
}

/// Holds for test code too.
fn unfinished(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    let places = sources.iter();
    for source in places.filter(|source| source.is_in("src") || source.is_in("tests")) {
        for name in UNFINISHED {
            let hits = sequences(&source.code_with_tests, &[name, "!"]);
            broken.extend(hits.map(|offset| source.report(offset, &format!("`{name}!`"))));
        }
        let ignored = sequences(&source.code_with_tests, &["#", "[", "ignore"]);
        broken.extend(ignored.map(|offset| source.report(offset, "an ignored test")));
        for (offset, path) in paths(&source.code_with_tests) {
            if path.ends_with(&["thread", "sleep"]) {
                broken.push(source.report(offset, "waits on time: wait on an event"));
            }
        }
    }
    broken
}

fn without_header(sources: &[Source]) -> Vec<String> {
    let bare = |source: &&Source| source.is_in("src") && !source.text.starts_with("//!");
    let report = |source: &Source| source.report(0, "does not open with `//!`");
    sources.iter().filter(bare).map(report).collect()
}

// ---- What the rules ask. ----

fn layer_of(module: &str) -> u8 {
    let listed = LAYERS.iter().find(|(_, names)| names.contains(&module));
    listed.map_or(LAYER_UNLISTED, |(layer, _)| *layer)
}

/// Asks `objection` of each path that a file under `src` names.
fn named_paths(
    sources: &[Source],
    objection: impl Fn(&Source, &[&str]) -> Option<String>,
) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| source.is_in("src")) {
        for (offset, path) in paths(&source.code) {
            broken.extend(objection(source, &path).map(|text| source.report(offset, &text)));
        }
    }
    broken
}

/// Asks `objection` of each module that a file under `src` uses from another.
fn imports(
    sources: &[Source],
    objection: impl Fn(&str, &str) -> Option<String>,
) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources {
        for (offset, to) in modules_used(source, sources) {
            let objected = objection(source.module(), to);
            broken.extend(objected.map(|text| source.report(offset, &text)));
        }
    }
    broken
}

/// The other top-level modules that a file under `src` names. A name that is no module is one that the root exports, so the
/// root, `lib`, is what is used.
fn modules_used<'a>(source: &'a Source, sources: &[Source]) -> Vec<(usize, &'a str)> {
    let is_module = |name: &str| {
        LAYERS.iter().any(|(_, names)| names.contains(&name))
            || sources.iter().any(|source| source.is_in("src") && source.module() == name)
    };
    let names = if source.is_in("src") { source.from_root() } else { Vec::new() };
    let modules = names.into_iter().map(|(offset, name)| (offset, if is_module(name) { name } else { "lib" }));
    modules.filter(|(_, name)| *name != source.module()).collect()
}

/// Whether `path` is `name`, or something in it; `core` counts as `std`.
fn is_under(path: &[&str], name: &str) -> bool {
    let root = if path[0] == "core" { "std" } else { path[0] };
    let mut names = name.split("::");
    names.next() == Some(root) && names.eq(path[1..].iter().copied().take(name.matches("::").count()))
}

// ---- The rules catch what breaks them. ----

#[test]
fn a_long_file_is_caught() {
    let lines = |count| "\n".repeat(count);
    let good = [("src/a.rs", &*lines(600))];
    let bad = [("src/a.rs", &*lines(601)), ("tests/it/b.rs", &*lines(700))];
    catches(too_long, &good, &bad, &["src/a.rs:601", "tests/it/b.rs:700"]);
}

#[test]
fn a_crate_out_of_place_is_caught() {
    let good = [
        ("src/store/sqlite/open.rs", "use rusqlite::Connection;"),
        ("src/webhook/mod.rs", "fn f() { ureq::get(1); }"),
        ("src/http/sse.rs", "use tiny_http::Server;"),
        ("src/signals.rs", "use ctrlc;"),
        ("src/store/mod.rs", "//! No rusqlite::Row.\n/* rusqlite::Row */ const A: &str = \"rusqlite::Row\";"),
        ("tests/it/a.rs", "use rusqlite::Connection;"),
    ];
    let bad = [
        ("src/store/mod.rs", "//! Doc.\n\nuse rusqlite::Row;"),
        ("src/http/mod.rs", "fn f() {\n    ureq::get(1);\n}"),
        ("src/queue.rs", "use {std::fmt, tiny_http};"),
        ("src/shutdown.rs", "use ctrlc as c;"),
    ];
    let caught = ["src/http/mod.rs:2", "src/queue.rs:1", "src/shutdown.rs:1", "src/store/mod.rs:3"];
    catches(crates_out_of_place, &good, &bad, &caught);
}

#[test]
fn a_lock_or_thread_outside_sync_is_caught() {
    let good = [
        ("src/sync.rs", "pub(crate) use parking_lot::Mutex;\nuse std::thread;"),
        ("src/pool.rs", "use std::sync::{Arc, OnceLock, Weak};\nuse crate::sync::Mutex;"),
    ];
    let bad = [
        ("src/a.rs", "use parking_lot::Mutex;"),
        ("src/b.rs", "use std::sync::{Arc,\n    Mutex};"),
        ("src/c.rs", "use std::{fmt, thread};"),
        ("src/d.rs", "fn f(a: &core::sync::atomic::AtomicBool) {}"),
        ("src/e.rs", "fn f() { crossbeam_channel::bounded(1); }"),
        ("src/f.rs", "use std::sync;"),
    ];
    let caught = ["src/a.rs:1", "src/b.rs:2", "src/c.rs:1", "src/d.rs:1", "src/e.rs:1", "src/f.rs:1"];
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
        ("src/queue.rs", "fn f() {\n    std::time::SystemTime::now()\n}"),
    ];
    catches(clock_outside_time, &good, &bad, &["src/pool.rs:1", "src/queue.rs:2"]);
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
        ("src/job.rs", "use crate::{error::Error, sync::Flag};\n/// See `crate::queue::Queue`.\nfn f() {}"),
        ("src/store/sqlite/mod.rs", "use super::Rows;\nuse super::super::transition::decide;"),
        ("src/queue.rs", "use crate::unlisted::A;\nuse crate::store::Store;"),
        ("src/time.rs", "#[cfg(test)]\nmod tests {\n    use crate::queue::Queue;\n}"),
    ];
    let bad = [
        ("src/event.rs", "use crate::transition::Row;"),
        ("src/job.rs", "use crate::{\n    error::Error,\n    queue::{Queue, Stats},\n};"),
        ("src/store/mod.rs", "fn f(pool: &crate::unlisted::Pool) {}"),
        ("src/store/sqlite/mod.rs", "use super::super::engine::Engine;"),
        ("src/time.rs", "#[cfg(test)]\nmod tests {}\nuse crate::Queue;"),
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
    catches(acquainted_strangers, &good, &bad, &caught.each_ref().map(String::as_str));
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
        (SEAM, "const A: &str = \"INSERT INTO job (id)\";\nconst B: &str = \"UPDATE event SET a\";"),
        (PRUNE, "const A: &str = \"DELETE FROM event WHERE a\";"),
        ("src/store/sqlite/a.rs", "const A: &str = \"INSERT INTO job_error\"; // UPDATE job\nconst B: &str = \"SELECT a FROM job\";"),
        ("src/store/sqlite/b.rs", "#[cfg(test)]\nmod tests {\n const A: &str = \"UPDATE job SET a = 1\";\n}"),
    ];
    let bad = [
        (PRUNE, "const A: &str = \"UPDATE job SET a\";"),
        ("src/store/sqlite/a.rs", "const A: &str = \"INSERT\n  INTO\n  job (id)\";\nconst B: &str = r#\"DELETE FROM event\"#;"),
        ("src/store/sqlite/b.rs", "const A: &str = \"UPDATE OR IGNORE job SET a\";"),
    ];
    let caught = [
        "src/store/sqlite/a.rs:2",
        "src/store/sqlite/a.rs:4",
        "src/store/sqlite/b.rs:1",
        "src/store/sqlite/prune.rs:1",
    ];
    catches(writes_outside_the_seam, &good, &bad, &caught);
}

#[test]
fn an_unwrap_in_src_is_caught() {
    let good = [
        ("src/a.rs", "fn f() { a.unwrap_or_default(); \".unwrap()\"; } // .unwrap()\n/// .unwrap()\nfn g() {}"),
        ("src/b.rs", "#[cfg(test)]\n#[allow(dead_code, reason = \"}\")]\nmod tests {\n fn f() { a.unwrap() }\n}"),
        ("tests/it/c.rs", "fn f() { a.unwrap() }"),
    ];
    let bad = [
        ("src/a.rs", "fn f<'a>(b: &'a str) {\n    let c = ('\"', '\\'', b);\n    a\n        .unwrap();\n}"),
        ("src/b.rs", "#[cfg(test)]\nmod tests {\n}\nfn f() { a.unwrap() }"),
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
        ("examples/b.rs", "fn f() { std::thread::sleep(d); }"),
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
    let caught = ["src/a.rs:3", "src/b.rs:3", "tests/it/a.rs:3", "tests/it/b.rs:2", "tests/it/c.rs:1"];
    catches(unfinished, &good, &bad, &caught);
}

#[test]
fn a_file_without_a_header_is_caught() {
    let good = [("src/a.rs", "//! What it is."), ("tests/it/b.rs", "fn f() {}")];
    let bad = [("src/a.rs", "// What it is.\n//! Late.")];
    catches(without_header, &good, &bad, &["src/a.rs:1"]);
}

// ---- Helpers of the tests. ----

fn holds(rule: Rule) {
    let sources = source::tree(&FOLDERS);
    let root = sources.iter().any(|source| source.path == "src/lib.rs");
    assert!(root, "the sources were not found");
    let broken = rule(&sources);
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// `rule` has nothing to say of `good`, and one thing of each place in `caught` when it reads `bad`.
fn catches(rule: Rule, good: &[(&str, &str)], bad: &[(&str, &str)], caught: &[&str]) {
    let read = |files: &[(&str, &str)]| {
        source::parse(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())))
    };
    assert_eq!(rule(&read(good)), Vec::<String>::new());
    let broken = rule(&read(bad));
    let as_expected = |(text, place): (&String, &&str)| {
        text.strip_prefix(*place).is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
    };
    let all = broken.len() == caught.len() && broken.iter().zip(caught).all(as_expected);
    assert!(all, "caught {broken:#?}, expected {caught:#?}");
}
