//! Rust sources taken apart, as far as the rules of `tidy` ask: code, strings, test modules, paths.

use std::fs;
use std::path::Path;

/// A Rust file. Its views have blanks for what they leave out, so an offset means the same in each.
pub(super) struct Source {
    /// From the root of the project, with forward slashes.
    pub(super) path: String,
    pub(super) text: String,
    /// No comments, no contents of strings, no test code.
    pub(super) code: String,
    /// No comments, no contents of strings.
    pub(super) code_with_tests: String,
    /// Nothing but strings, and none of test code.
    pub(super) strings: String,
}

impl Source {
    pub(super) fn is_in(&self, folder: &str) -> bool {
        self.path.split('/').next() == Some(folder)
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1
    }

    pub(super) fn report(&self, offset: usize, text: &str) -> String {
        format!("{}:{}: {text}", self.path, self.line(offset))
    }

    /// The names from the root of the crate down: `["store", "sqlite"]`.
    fn place(&self) -> Vec<&str> {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inner = inner.strip_suffix(".rs").unwrap_or(inner);
        inner
            .strip_suffix("/mod")
            .unwrap_or(inner)
            .split('/')
            .collect()
    }

    /// The top-level module that the file belongs to.
    pub(super) fn module(&self) -> &str {
        self.place()[0]
    }

    /// What the file names at the root of the crate, by `crate::` or by as many `super::` as lead there.
    pub(super) fn root_names(&self) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        for (offset, path) in paths(&self.code) {
            let up = path.iter().take_while(|name| **name == "super").count();
            let above = match path[0] {
                "crate" => 1,
                "super" if up == self.place().len() => up,
                _ => continue,
            };
            found.extend(path.get(above).map(|name| (offset, *name)));
        }
        found
    }
}

/// The files of `folders` of this project.
pub(super) fn tree(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in folders {
        collect(&root.join(folder), folder, &mut files);
    }
    parse(files)
}

fn collect(folder: &Path, name: &str, files: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("a folder of the project can be listed").path();
        let file = path
            .file_name()
            .expect("an entry has a name")
            .to_string_lossy();
        let name = format!("{name}/{file}");
        if path.is_dir() {
            collect(&path, &name, files);
        } else if name.ends_with(".rs") {
            files.push((name, fs::read_to_string(&path).expect("a source is UTF-8")));
        }
    }
}

/// Takes files apart, given as path and text; in order of their paths.
pub(super) fn parse(files: impl IntoIterator<Item = (String, String)>) -> Vec<Source> {
    let mut sources: Vec<Source> = files
        .into_iter()
        .map(|(path, text)| read(path, text))
        .collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    let mut test_files = Vec::new();
    for source in &mut sources {
        let folder = match source.path.rsplit_once('/') {
            Some((folder, "lib.rs" | "mod.rs")) => folder.to_owned(),
            _ => source.path.trim_end_matches(".rs").to_owned(),
        };
        for module in test_modules(&source.code) {
            match module {
                TestModule::Inline { start, end } => {
                    blank(&mut source.code, start, end);
                    blank(&mut source.strings, start, end);
                }
                TestModule::File { name } => test_files.push(format!("{folder}/{name}")),
            }
        }
    }
    for source in &mut sources {
        let inner = source.path.trim_end_matches(".rs");
        let is_test = |file: &String| inner == file || inner.starts_with(&format!("{file}/"));
        if test_files.iter().any(is_test) {
            let end = source.text.len();
            blank(&mut source.code, 0, end);
            blank(&mut source.strings, 0, end);
        }
    }
    sources
}

fn read(path: String, text: String) -> Source {
    let (mut code, mut strings) = (blanks(&text), blanks(&text));
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let (piece, len) = piece(&bytes[at..]);
        let end = at + len;
        match piece {
            Piece::Code => code[at..end].copy_from_slice(&bytes[at..end]),
            Piece::Text => strings[at..end].copy_from_slice(&bytes[at..end]),
            Piece::Comment => {}
        }
        at = end;
    }
    let code = String::from_utf8(code).expect("pieces end between characters");
    let strings = String::from_utf8(strings).expect("pieces end between characters");
    Source {
        path,
        text,
        code_with_tests: code.clone(),
        code,
        strings,
    }
}

enum Piece {
    Code,
    Text,
    Comment,
}

/// The kind and length of what `rest` begins with.
fn piece(rest: &[u8]) -> (Piece, usize) {
    let find = |from: usize, end: &[u8]| {
        let found = rest[from..]
            .windows(end.len())
            .position(|window| window == end);
        found.map_or(rest.len(), |at| from + at + end.len())
    };
    match rest {
        [b'/', b'/', ..] => (Piece::Comment, find(2, b"\n")),
        [b'/', b'*', ..] => (Piece::Comment, block_comment(rest)),
        [b'"', ..] => (Piece::Text, quoted(rest, b'"')),
        [b'\'', b'\\', ..] => (Piece::Text, quoted(rest, b'\'')),
        [b'\'', ..] => {
            // A literal has one character and a quote; anything else is a lifetime.
            let close = rest[1..]
                .iter()
                .skip(1)
                .position(|byte| byte & 0xC0 != 0x80);
            let end = close.map_or(rest.len(), |at| at + 2);
            if rest.get(end) == Some(&b'\'') {
                (Piece::Text, end + 1)
            } else {
                (Piece::Code, 1)
            }
        }
        [first, ..] if first.is_ascii_alphanumeric() || *first == b'_' || !first.is_ascii() => {
            let in_name = |b: &&u8| b.is_ascii_alphanumeric() || **b == b'_' || !b.is_ascii();
            let len = rest.iter().take_while(in_name).count();
            let hashes = rest[len..].iter().take_while(|byte| **byte == b'#').count();
            let raw = matches!(&rest[..len], b"r" | b"br" | b"cr");
            if raw && rest.get(len + hashes) == Some(&b'"') {
                let end = [&b"\""[..], &b"#".repeat(hashes)].concat();
                (Piece::Text, find(len + hashes + 1, &end))
            } else {
                (Piece::Code, len)
            }
        }
        _ => (Piece::Code, 1),
    }
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (2, 1);
    while at < rest.len() && depth > 0 {
        let step = match &rest[at..] {
            [b'/', b'*', ..] => 1,
            [b'*', b'/', ..] => -1,
            _ => 0,
        };
        depth += step;
        at += if step == 0 { 1 } else { 2 };
    }
    at
}

enum TestModule {
    Inline { start: usize, end: usize },
    File { name: String },
}

/// The modules marked `#[cfg(test)]`. A single item marked so is no module: it counts as code.
fn test_modules(code: &str) -> Vec<TestModule> {
    let tokens = tokens(code);
    let gate = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut found = Vec::new();
    for start in 0..tokens.len() {
        let word = |at: usize| tokens.get(at).map_or("", |(_, token)| *token);
        if !(0..gate.len()).all(|index| word(start + index) == gate[index]) {
            continue;
        }
        let close = |at: usize, open: &str, shut: &str| {
            let mut depth = 0;
            let end = (at..tokens.len()).find(|at| {
                depth += i32::from(word(*at) == open) - i32::from(word(*at) == shut);
                depth == 0
            });
            end.unwrap_or(tokens.len() - 1)
        };
        let mut at = start + gate.len();
        while word(at) == "#" {
            at = close(at + 1, "[", "]") + 1;
        }
        match (word(at), word(at + 2)) {
            ("mod", "{") => {
                let end = tokens[close(at + 2, "{", "}")].0 + 1;
                found.push(TestModule::Inline {
                    start: tokens[start].0,
                    end,
                });
            }
            ("mod", ";") => found.push(TestModule::File {
                name: word(at + 1).to_owned(),
            }),
            _ => {}
        }
    }
    found
}

fn blank(view: &mut String, start: usize, end: usize) {
    let blanks = String::from_utf8(blanks(&view[start..end])).expect("blanks are ASCII");
    view.replace_range(start..end, &blanks);
}

/// As many bytes, all blank, in the same lines.
fn blanks(text: &str) -> Vec<u8> {
    text.bytes()
        .map(|byte| if byte == b'\n' { b'\n' } else { b' ' })
        .collect()
}

// ---- Tokens and paths. ----

/// Names, numbers, `::` and single signs, each with its offset.
pub(super) fn tokens(view: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut rest = view.trim_start();
    while let Some(first) = rest.chars().next() {
        let in_name = |c: char| c.is_alphanumeric() || c == '_';
        let len = if in_name(first) {
            rest.find(|c| !in_name(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        found.push((view.len() - rest.len(), &rest[..len]));
        rest = rest[len..].trim_start();
    }
    found
}

pub(super) fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Where `wanted` tokens follow each other.
pub(super) fn sequences(view: &str, wanted: &[&str]) -> Vec<usize> {
    let tokens = tokens(view);
    let hits = tokens
        .windows(wanted.len())
        .filter(|window| window.iter().map(|(_, token)| token).eq(wanted));
    hits.map(|window| window[0].0).collect()
}

pub(super) type Paths<'a> = Vec<(usize, Vec<&'a str>)>;

/// Every path that the code names, with its offset. Trees are spelled out: `a::{b, c::d}` is `a::b` and `a::c::d`. A single name
/// counts only where it is imported.
pub(super) fn paths(code: &str) -> Paths<'_> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (_, token) = tokens[at];
        let imported = at > 0 && tokens[at - 1].1 == "use";
        if imported && token == "{" {
            at = group(&tokens, at, &[], &mut found);
        } else if is_name(token) {
            let known = found.len();
            at = path(&tokens, at, &[], &mut found);
            if !imported && found.len() == known + 1 && found[known].1.len() == 1 {
                found.pop();
            }
        } else {
            at += 1;
        }
    }
    found
}

/// Reads the path or tree that begins at `at`; returns where it ends.
fn path<'a>(
    tokens: &[(usize, &'a str)],
    mut at: usize,
    above: &[&'a str],
    found: &mut Paths<'a>,
) -> usize {
    let start = tokens[at].0;
    let mut names = above.to_vec();
    while let Some((_, token)) = tokens.get(at) {
        match *token {
            "{" => return group(tokens, at, &names, found),
            token if is_name(token) || token == "*" => names.push(token),
            _ => break,
        }
        at += 1;
        if tokens.get(at).is_none_or(|(_, token)| *token != "::") {
            break;
        }
        at += 1;
    }
    found.push((start, names));
    at
}

/// Reads the branches of a tree, from its opening brace; returns where it ends.
fn group<'a>(
    tokens: &[(usize, &'a str)],
    mut at: usize,
    above: &[&'a str],
    found: &mut Paths<'a>,
) -> usize {
    at += 1;
    while let Some((_, token)) = tokens.get(at) {
        at = match *token {
            "}" => return at + 1,
            "as" => at + 2,
            token if is_name(token) || token == "*" => path(tokens, at, above, found),
            _ => at + 1,
        };
    }
    at
}
