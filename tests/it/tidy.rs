//! The rules of the layout, kept by reading the sources.
//!
//! Each rule is a function over sources that returns what breaks it, as `file:line: what`. So it is tested twice: on the tree as it
//! stands, and on planted violations beside code that is allowed. Comments never count; test code counts only
//! where a rule says so.

mod documents;
mod planted;
mod source;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::LazyLock;

use source::{Source, is_name, paths, sequences, tokens};

// ---- The rules as tables: edit here. ----

const LINES_MAX: usize = 600;
const FOLDERS: [&str; 4] = ["src", "tests", "examples", "benches"];

/// The top-level modules of `src` by layer, L0 first; one that is not listed is L3.
const LAYERS: [&str; 5] = [
    "config delivery error event job json new_job phase retry time",
    "sync transition",
    "store",
    "bus committer engine explain http listener live outbox outlet owner pool requests retention runner scheduler shutdown webhook",
    "client fuzzing handle interleave lib queue testing",
];
const LAYER_UNLISTED: usize = 3;
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
const CRATES: [(&str, &str); 5] = [
    ("rusqlite", "src/store/sqlite/"),
    ("ureq", "src/webhook/"),
    ("tiny_http", "src/http/"),
    ("fs4", "src/store/sqlite/"),
    ("ctrlc", "src/queue/signals.rs"),
];

/// What only `src/sync.rs` names. Of `std::sync`, only the names in [`SHARING`] are free.
const THREADING: [&str; 4] = [
    "parking_lot",
    "crossbeam_channel",
    "std::thread",
    "std::sync",
];
const SHARING: [&str; 5] = ["Arc", "Weak", "Once", "OnceLock", "LazyLock"];

const SYSTEM_CLOCK: [[&str; 2]; 2] = [["SystemTime", "now"], ["Instant", "now"]];

/// What L0 and L1 do without, [`SYNC`]'s threads aside.
const NOT_IN_PURE: [&str; 5] = ["rusqlite", "ureq", "tiny_http", "std::fs", "std::thread"];

const TABLES_OF_THE_SEAM: [&str; 2] = ["job", "event"];
const SEAM: &str = "src/store/sqlite/commit.rs";
/// Writes the updates that [`SEAM`] has put off, and no more.
const UPDATES: &str = "src/store/sqlite/updates.rs";
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

fn holds(rule: Rule) {
    static TREE: LazyLock<Vec<Source>> = LazyLock::new(|| source::tree(&FOLDERS));
    let root = TREE.iter().any(|source| source.path == "src/lib.rs");
    assert!(root, "the sources were not found");
    let broken = rule(&TREE);
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
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
    for source in sources.iter().filter(|source| source.is_in("src")) {
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
            let allowed = source.path == SEAM
                || (source.path == PRUNE && verb == "DELETE FROM")
                || (source.path == UPDATES && (verb, table) == ("UPDATE", "job"));
            if TABLES_OF_THE_SEAM.contains(&table) && !allowed {
                broken.push(source.report(*offset, &format!("`{verb} {table}` outside {SEAM}")));
            }
        }
    }
    broken
}

fn unwraps(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| source.is_in("src")) {
        for offset in sequences(&source.code, &[".", "unwrap", "("]) {
            broken.push(source.report(offset, "`unwrap`: say with `expect` why it cannot fail"));
        }
    }
    broken
}

fn unsafe_not_forbidden(sources: &[Source]) -> Vec<String> {
    let attribute = ["#", "!", "[", "forbid", "(", "unsafe_code", ")", "]"];
    let root = sources.iter().find(|source| source.path == "src/lib.rs");
    match root {
        Some(root) if !sequences(&root.code, &attribute).is_empty() => Vec::new(),
        _ => vec!["src/lib.rs:1: no `#![forbid(unsafe_code)]`".to_owned()],
    }
}

/// Holds for test code too.
fn unfinished(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources {
        if !source.is_in("src") && !source.is_in("tests") {
            continue;
        }
        let code = &source.code_with_tests;
        for name in UNFINISHED {
            for offset in sequences(code, &[name, "!"]) {
                broken.push(source.report(offset, &format!("`{name}!`")));
            }
        }
        for offset in sequences(code, &["#", "[", "ignore"]) {
            broken.push(source.report(offset, "an ignored test"));
        }
        for (offset, path) in paths(code) {
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

fn layer_listed(module: &str) -> Option<usize> {
    let has_it = |names: &&str| names.split(' ').any(|name| name == module);
    LAYERS.iter().position(has_it)
}

fn layer_of(module: &str) -> usize {
    layer_listed(module).unwrap_or(LAYER_UNLISTED)
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
fn imports(sources: &[Source], objection: impl Fn(&str, &str) -> Option<String>) -> Vec<String> {
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
    let is_file = |name: &str| {
        sources
            .iter()
            .any(|it| it.is_in("src") && it.module() == name)
    };
    let mut used = source.root_names();
    used.retain(|_| source.is_in("src"));
    for (_, name) in &mut used {
        if layer_listed(name).is_none() && !is_file(name) {
            *name = "lib";
        }
    }
    used.retain(|(_, name)| *name != source.module());
    used
}

/// Whether `path` is `name`, or something in it; `core` counts as `std`.
fn is_under(path: &[&str], name: &str) -> bool {
    let root = if path[0] == "core" { "std" } else { path[0] };
    let mut names = name.split("::");
    names.next() == Some(root)
        && names.eq(path[1..].iter().copied().take(name.matches("::").count()))
}
