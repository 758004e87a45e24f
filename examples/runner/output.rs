//! What is printed: JSON lines, or tables for people. Errors and remarks go to standard error.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use serde::Serialize;
use serde_json::Value;
use stepwell::JobStatus;

use crate::{Failure, Result};

/// Columns of free text are cut to this in tables. JSON has all of it.
const TEXT_CHARS_MAX: usize = 80;

/// Standard output. That it cannot be written stops nobody half-way who acts: it is told by [`Output::finish`].
pub struct Output {
    to: BufWriter<Stdout>,
    is_json: bool,
    is_coloured: bool,
    /// Nothing more is written.
    problem: Option<io::Error>,
}

/// What stands in a table.
pub enum Cell {
    Text(String),
    Number(String),
    Status(JobStatus),
}

impl Cell {
    pub fn text(text: impl ToString) -> Cell {
        Cell::Text(tame(&text.to_string(), TEXT_CHARS_MAX))
    }

    pub fn number(number: impl ToString) -> Cell {
        Cell::Number(number.to_string())
    }

    /// Nothing is shown as `-`.
    pub fn maybe(text: Option<impl ToString>) -> Cell {
        text.map_or_else(|| Cell::Text("-".to_owned()), Cell::text)
    }

    fn plain(&self) -> &str {
        match self {
            Cell::Text(text) | Cell::Number(text) => text,
            Cell::Status(status) => status.as_str(),
        }
    }
}

impl Output {
    pub fn new(is_json: bool) -> Output {
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Output {
            to: BufWriter::new(io::stdout()),
            is_json,
            is_coloured: io::stdout().is_terminal() && !wants_none,
            problem: None,
        }
    }

    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// Whether nobody gets what is printed from now on.
    pub fn is_lost(&self) -> bool {
        self.problem.is_some()
    }

    pub fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(value)?;
        line.push('\n');
        self.write(&line);
        Ok(())
    }

    pub fn line(&mut self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    /// A table with a line of headings; numbers to the right.
    pub fn table<const N: usize>(&mut self, headings: [&str; N], rows: &[[Cell; N]]) {
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].plain().chars().count());
            cells.max().unwrap_or(0).max(headings[column].len())
        };
        let widths: [usize; N] = std::array::from_fn(width);
        let headings = headings.map(|heading| Cell::Text(heading.to_owned()));
        for row in std::iter::once(&headings).chain(rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let blanks = " ".repeat(widths[column] - cell.plain().chars().count());
                let is_right = rows
                    .first()
                    .is_some_and(|row| matches!(row[column], Cell::Number(_)));
                if is_right {
                    line.push_str(&blanks);
                }
                line.push_str(&self.coloured(cell));
                if !is_right {
                    line.push_str(&blanks);
                }
            }
            self.line(line.trim_end());
        }
    }

    pub fn flush(&mut self) {
        if self.problem.is_none() {
            self.problem = self.to.flush().err();
        }
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// When something could not be written, unless whoever reads us has seen enough.
    pub fn finish(mut self) -> Result<()> {
        self.flush();
        match self.problem {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(format!("standard output: {error}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn coloured(&self, cell: &Cell) -> String {
        let Cell::Status(status) = cell else {
            return cell.plain().to_owned();
        };
        let colour = match status {
            JobStatus::Pending => 33,
            JobStatus::Running => 36,
            JobStatus::Completed => 32,
            JobStatus::Failed => 31,
            JobStatus::Cancelled => 35,
        };
        if self.is_coloured {
            format!("\x1b[{colour}m{status}\x1b[0m")
        } else {
            status.to_string()
        }
    }

    fn write(&mut self, text: &str) {
        if self.problem.is_none() {
            self.problem = self.to.write_all(text.as_bytes()).err();
        }
    }
}

/// One line, without what a terminal would obey.
pub fn tame(text: &str, chars_max: usize) -> String {
    let mut tamed: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(chars_max)
        .collect();
    if text.chars().nth(chars_max).is_some() {
        tamed.push_str("...");
    }
    tamed
}

/// A string as its text, everything else as JSON.
pub fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// `1 job`, `2 jobs`.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A remark on standard error.
pub fn remark(text: &str) {
    // Nobody can be told that nobody can be told.
    writeln!(io::stderr(), "{text}").ok();
}

/// An error on standard error.
pub fn complain(problem: &str) {
    remark(&format!("error: {problem}"));
}

/// Passes stepwell's warnings on.
pub struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_lowercase();
            remark(&format!("{level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_tables_is_one_tame_line() {
        assert_eq!(tame("a\x1b[31m\nb", 80), "a [31m b");
        assert_eq!(tame("äöü", 2), "äö...");
        assert_eq!(tame("äö", 2), "äö");
    }
}
