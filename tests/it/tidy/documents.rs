//! What documents name is there: tests, files, and the rows of a table that a reader is sent to.
//!
//! A span of code `file::fact` in `docs/seed-findings.md` is a test. It is looked for in `tests/it`, or in the folder that a span
//! before it in the same cell names, as in "`tests/webhook`: `shutdown::a_fact`". A span that is a path is a file or folder. In any
//! document, a name of five words and more is a test: nothing else is named so.

use std::path::Path;

use super::source::{self, Source, sequences};

const FINDINGS: &str = "docs/seed-findings.md";
const DOCUMENTS: [&str; 6] = [
    FINDINGS,
    "README.md",
    "ARCHITECTURE.md",
    "RELIABILITY.md",
    "BENCHMARKS.md",
    "SECURITY.md",
];
const WORDS_OF_A_FACT: usize = 5;

#[test]
fn every_test_and_file_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = source::tree(&["src", "tests", "examples", "benches"]);
    let mut broken = Vec::new();
    for path in DOCUMENTS {
        let text = std::fs::read_to_string(root.join(path)).expect(path);
        let is_there = |name: &str| root.join(name).exists();
        broken.extend(missing(path, &text, &sources, is_there));
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn a_test_or_file_that_is_not_there_is_caught() {
    let test = |name: &str| format!("#[test]\n#[cfg(unix)]\nfn {name}() {{}}\n");
    let helper = "fn five_words_but_no_test() {}";
    let sources = source::parse([
        ("tests/it/seed.rs".to_owned(), test("it_is_so") + helper),
        ("tests/web/seed.rs".to_owned(), test("a_fact_of_the_web")),
        ("tests/it/tidy/b.rs".to_owned(), test("deep")),
    ]);
    let is_there = |name: &str| ["tests/it", "tests/web", "tests/it/seed.rs"].contains(&name);
    let good = "| `seed::it_is_so` | `tests/web`: `seed::a_fact_of_the_web` | `seed::it_is_so`, `seed.rs` | `b::deep` |\n\
                `JobQueue::open`, `stepwell::Error`, `job:phase:started`, `a_fact_of_the_web`";
    assert!(missing(FINDINGS, good, &sources, is_there).is_empty());
    for bad in [
        "`seed::it_was_so`",
        "`tests/web` | `seed::a_fact_of_the_web`",
        "`tests/web`: `seed::it_is_so`",
        "`seed::five_words_but_no_test`",
        "`tests/gone`",
        "`gone.rs`",
        "`a_fact_of_the_net`",
    ] {
        let text = format!("first line\n| {bad} |");
        let caught = missing(FINDINGS, &text, &sources, is_there);
        assert_eq!(caught.len(), 1, "{bad}: {caught:?}");
        assert!(
            caught[0].starts_with("docs/seed-findings.md:2: "),
            "{caught:?}"
        );
    }
}

fn missing(
    path: &str,
    text: &str,
    sources: &[Source],
    is_there: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut broken = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for cell in line.split('|') {
            let mut folder = "tests/it";
            for span in cell.split('`').skip(1).step_by(2) {
                if is_there(span) && span.starts_with("tests/") {
                    folder = span;
                }
                let known = match kind(path, span) {
                    Kind::Test(file, name) => is_test(sources, folder, file, name),
                    Kind::Fact => sources.iter().any(|source| has_test(source, span)),
                    Kind::File if span.contains('/') => is_there(span),
                    Kind::File => is_there(&format!("{folder}/{span}")),
                    Kind::Other => true,
                };
                if !known {
                    broken.push(format!("{path}:{}: `{span}` is not there", index + 1));
                }
            }
        }
    }
    broken
}

enum Kind<'a> {
    Test(&'a str, &'a str),
    Fact,
    File,
    Other,
}

fn kind<'a>(path: &str, span: &'a str) -> Kind<'a> {
    let is_snake = |name: &str| {
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        !name.is_empty() && name.chars().all(inside)
    };
    let folders = [
        "src/",
        "tests/",
        "docs/",
        "examples/",
        "benches/",
        ".github/",
    ];
    if path == FINDINGS
        && let Some((file, name)) = span.split_once("::")
        && is_snake(file)
        && is_snake(name)
    {
        Kind::Test(file, name)
    } else if is_snake(span) && span.split('_').count() >= WORDS_OF_A_FACT {
        Kind::Fact
    } else if folders.iter().any(|folder| span.starts_with(folder)) && !span.contains([' ', '*'])
        || path == FINDINGS && span.ends_with(".rs")
    {
        Kind::File
    } else {
        Kind::Other
    }
}

/// In `folder/file.rs`, or deeper.
fn is_test(sources: &[Source], folder: &str, file: &str, name: &str) -> bool {
    sources.iter().any(|source| {
        let inner = source.path.strip_prefix(folder);
        inner.is_some_and(|inner| inner.ends_with(&format!("/{file}.rs"))) && has_test(source, name)
    })
}

/// Whether the function `name` is there and is a test; other attributes may stand between the two.
fn has_test(source: &Source, name: &str) -> bool {
    let code = &source.code_with_tests;
    sequences(code, &["fn", name, "("]).into_iter().any(|at| {
        let before = &code[..at];
        let tests = sequences(before, &["#", "[", "test", "]"]);
        tests.last().is_some_and(|test| {
            let between = &before[*test..];
            !between.contains(['{', ';']) && !between.contains("fn ")
        })
    })
}
