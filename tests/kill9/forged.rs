//! Who tests the judge? What a few kills left is judged to be sound, and then one thing in it is forged: the judge must say so.

use std::path::Path;

use stepwell::{Client, EventKind, JobId, JobStatus};

use crate::counters::Counters;
use crate::history::History;
use crate::rounds::{self, ROUNDS_OF_A_FILE};

/// What is forged may not be in one file: then in the next.
const FILES_MAX: u64 = 6;

/// The lines of a journal, and the file that they are about.
struct Story<'a> {
    lines: Vec<String>,
    client: &'a Client,
}

type Forgery = (&'static str, fn(&mut Story<'_>) -> Option<()>);

/// What the judge must say, and what was done to the journal.
const FORGERIES: [Forgery; 18] = [
    ("W1: sent again, although its end", sent_after_its_end),
    ("W1: received with another body", |story| {
        story.edit("w?", |words| words[3] += "7")
    }),
    ("is not in the outbox", |story| {
        story.edit("w?", |words| words[4] += "7")
    }),
    ("W1: delivered, by the file, and never accepted", |story| {
        let count = story.lines.len();
        story
            .lines
            .retain(|line| !line.starts_with("w! ") || !line.ends_with(" 200 ."));
        (story.lines.len() < count).then_some(())
    }),
    ("W2: sent again by the process", |story| {
        let at = story.find(0, |words| words[0] == "w!" && words[2] == "200")?;
        let number = story.word(at, 1);
        let seen = story.find(0, |words| words[0] == "w?" && words[1] == number)?;
        let again = story.lines[seen].clone();
        story.lines.insert(at + 1, again);
        Some(())
    }),
    ("and never sent again", never_sent_again),
    ("W1: delivery", out_of_order),
    ("were over, and are not", |story| {
        let last = story.rfind(|words| words[0] == "m")?;
        let words = Story::words(&story.lines[last]);
        let before = story.lines[..last]
            .iter()
            .rposition(|line| line.starts_with("m "))?;
        let pending = Story::words(&story.lines[before]);
        let number = pending[2..]
            .iter()
            .find(|number| **number != "." && words.contains(number))?;
        story.lines[before] = story.lines[before].replace(&format!(" {number} "), " ");
        Some(())
    }),
    ("H8: heard after", |story| {
        let first = story.find(0, |words| words[0] == "e")?;
        let second = story.find(first + 1, |words| words[0] == "e")?;
        let _third = story.find(second + 1, |words| words[0] == "e")?;
        story.lines.remove(second);
        Some(())
    }),
    ("was heard, (", |story| {
        let heard = story.rfind(|words| words[0] == "e")?;
        let look = story.find(heard, |words| words[0] == "M")?;
        let before = story.number(heard, 1)? - 1;
        story.lines[look] = format!("M {before} 0 .");
        Some(())
    }),
    ("was heard as", |story| {
        story.edit("e", |words| words[2] = "job:nothing".to_owned())
    }),
    ("called again, it had panicked", |story| {
        let at = story.find(0, |words| words[0] == "p")?;
        let again = story.lines[at].clone();
        story.lines.insert(at + 1, again);
        Some(())
    }),
    (
        "inside its handler, and not charged",
        inside_and_not_charged,
    ),
    ("charged, and never inside", |story| {
        never_entered(story, usize::MAX)
    }),
    ("8 handlers inside, ", |story| {
        let at = never_entered_at(story, 1)?;
        for id in 0..8 {
            let line = format!("S {} 0 stepwell-none-{id} .", 1_000_000 + id);
            story.lines.insert(at, line);
        }
        Some(())
    }),
    ("H8: job", |story| {
        let at = story.find(0, |words| words[0] == "E" && words[3] == "no")?;
        let (job, phase) = (story.word(at, 1), story.word(at, 2));
        // More often than it may have been claimed and not entered.
        for _ in 0..5 {
            story.lines.insert(at + 1, format!("E {job} {phase} no ."));
            story.lines.insert(at + 1, format!("S {job} {phase} x ."));
        }
        Some(())
    }),
    ("H5: phase 0 had returned", |story| {
        let at = story.find(0, |words| words[0] == "W" && words.len() > 4)?;
        story.lines[at] = story.lines[at].replace(" .", "7 .");
        Some(())
    }),
    ("its handler returned", |story| {
        // Of a job that is there to be asked.
        let client = story.client;
        let is_there = |job: &str| {
            let id = job.parse::<JobId>().ok();
            let job = id.and_then(|id| client.get(id).ok().flatten());
            job.is_some_and(|job| job.status == JobStatus::Completed)
        };
        let is_it = |words: &[String]| words[0] == "E" && words[3] == "ok" && is_there(&words[1]);
        let last = story.rfind(is_it)?;
        story.lines[last] = story.lines[last].replace(" .", "7 .");
        Some(())
    }),
];

/// What is done to the file instead.
const FORGED_FILES: [(&str, &str); 4] = [
    (
        "was never written for",
        "DELETE FROM delivery WHERE id = (SELECT max(id) FROM delivery)",
    ),
    (
        "unwanted",
        // A query is not shown, and so would not be missed.
        "UPDATE delivery SET url = CASE instr(url, '?') WHEN 0 THEN url || 'x' ELSE replace(url, '?', 'x?') END
            WHERE id = (SELECT max(id) FROM delivery)",
    ),
    (
        "the log says",
        "UPDATE delivery SET body = '{}' WHERE id = (SELECT max(id) FROM delivery)",
    ),
    (
        "its end is job:webhook:failed",
        "UPDATE delivery SET status = 2 WHERE id = (SELECT min(id) FROM delivery WHERE status = 1)",
    ),
];

impl Story<'_> {
    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn word(&self, at: usize, index: usize) -> String {
        Story::words(&self.lines[at]).swap_remove(index)
    }

    fn number(&self, at: usize, index: usize) -> Option<i64> {
        self.word(at, index).parse().ok()
    }

    /// The first line from `start` on.
    fn find(&self, start: usize, is_it: impl Fn(&[String]) -> bool) -> Option<usize> {
        let rest = self.lines[start..].iter();
        let found = rest
            .map(|line| Story::words(line))
            .position(|words| is_it(&words));
        found.map(|at| start + at)
    }

    fn rfind(&self, is_it: impl Fn(&[String]) -> bool) -> Option<usize> {
        let lines = self.lines.iter();
        lines
            .map(|line| Story::words(line))
            .rposition(|words| is_it(&words))
    }

    /// Changes the first line of this kind.
    fn edit(&mut self, kind: &str, change: impl Fn(&mut Vec<String>)) -> Option<()> {
        let at = self.find(0, |words| words[0] == kind)?;
        let mut words = Story::words(&self.lines[at]);
        change(&mut words);
        self.lines[at] = words.join(" ");
        Some(())
    }
}

/// What was pending at a look, and came after it, is said to have been over.
fn sent_after_its_end(story: &mut Story<'_>) -> Option<()> {
    let look = story.rfind(|words| words[0] == "m")?;
    let words = Story::words(&story.lines[look]);
    let came = |number: &&String| {
        let request = format!("w? {number} ");
        story.lines[look..]
            .iter()
            .any(|line| line.starts_with(&request))
    };
    let number = words[2..].iter().find(came)?;
    story.lines[look] = story.lines[look].replace(&format!(" {number} "), " ");
    Some(())
}

/// Drops the requests that come again after a kill.
fn never_sent_again(story: &mut Story<'_>) -> Option<()> {
    let mut start = 0;
    loop {
        let look = story.find(start, |words| words[0] == "m")?;
        let process = story.lines[..look]
            .iter()
            .rposition(|line| line.starts_with("P "))?;
        let words = Story::words(&story.lines[look]);
        let owed = words[2..].iter().find(|number| {
            let accepted = format!("w! {number} 200 .");
            story.lines[process..look].contains(&accepted)
        });
        if let Some(number) = owed {
            let is_its = |line: &str| {
                line.starts_with(&format!("w? {number} "))
                    || line.starts_with(&format!("w! {number} "))
            };
            let rest = story.lines.split_off(look + 1);
            story
                .lines
                .extend(rest.into_iter().filter(|line| !is_its(line)));
            return Some(());
        }
        start = look + 1;
    }
}

/// Two requests of one endpoint and job change places.
fn out_of_order(story: &mut Story<'_>) -> Option<()> {
    let mut start = 0;
    loop {
        let first = story.find(start, |words| words[0] == "w?")?;
        let (number, path) = (story.word(first, 1), story.word(first, 2));
        let number: i64 = number.parse().ok()?;
        let job = |number: i64| {
            let record = story
                .client
                .delivery(stepwell::DeliveryId::from_i64(number));
            record.ok().flatten().map(|record| record.delivery.job_id)
        };
        let second = story.find(first + 1, |words| {
            words[0] == "w?"
                && words[2] == path
                && words[1]
                    .parse()
                    .is_ok_and(|other| other > number && job(other) == job(number))
        });
        if let Some(second) = second {
            story.lines.swap(first, second);
            return Some(());
        }
        start = first + 1;
    }
}

/// A job whose claim had not been entered at a kill is said to have been inside.
fn inside_and_not_charged(story: &mut Story<'_>) -> Option<()> {
    let events = story.client.events_after(0, 10_000).ok()?;
    for (index, event) in events.iter().enumerate() {
        let is_it = event.kind == EventKind::Interrupted
            && event.data["reason"] == "process_died"
            && event.data["charged"] == false;
        let claim = events[..index].iter().rposition(|claim| {
            claim.job_id == event.job_id && claim.kind == EventKind::PhaseStarted
        });
        let (true, Some(claim)) = (is_it, claim) else {
            continue;
        };
        let (job, seq) = (event.job_id.to_string(), events[claim].seq);
        // The look after the claim, and the kill before that look.
        let look = story.find(0, |words| {
            words[0] == "M" && words[1].parse::<i64>().is_ok_and(|newest| newest >= seq)
        })?;
        let kill = story.lines[..look]
            .iter()
            .rposition(|line| line.starts_with("K "))?;
        let before = story.lines[..kill]
            .iter()
            .rposition(|line| line.starts_with("M "));
        let was_entered = story.lines[before.unwrap_or(0)..kill]
            .iter()
            .any(|line| line.starts_with(&format!("S {job} ")));
        let since = before.map_or(0, |before| story.word(before, 1).parse().unwrap_or(0));
        let claims = events[..=claim].iter().filter(|claim| {
            claim.job_id == event.job_id
                && claim.kind == EventKind::PhaseStarted
                && claim.seq > since
        });
        if !was_entered && claims.count() == 1 {
            let phase = events[..claim].iter().filter(|done| {
                done.job_id == event.job_id && done.kind == EventKind::PhaseCompleted
            });
            let line = format!("S {job} {} stepwell-none .", phase.count());
            story.lines.insert(kill, line);
            return Some(());
        }
    }
    None
}

/// Forgets for `most` kills who was inside.
fn never_entered(story: &mut Story<'_>, most: usize) -> Option<()> {
    never_entered_at(story, most).map(|_| ())
}

/// The place of the last of these kills.
fn never_entered_at(story: &mut Story<'_>, most: usize) -> Option<usize> {
    let events = story.client.events_after(0, 10_000).ok()?;
    let mut inside: Vec<(String, usize)> = Vec::new();
    let (mut forgotten, mut kills) = (Vec::new(), Vec::new());
    for (at, line) in story.lines.iter().enumerate() {
        let words = Story::words(line);
        match &*words[0] {
            "S" => inside.push((words[1].clone(), at)),
            "E" => inside.retain(|(job, _)| *job != words[1]),
            "K" => {
                // By the recovery that followed: between the look after this kill and the next one.
                let mut looks = story.lines[at..].iter().filter_map(|line| {
                    let words = Story::words(line);
                    (words[0] == "M").then(|| words[1].parse::<i64>().ok())?
                });
                let (from, to) = (looks.next().unwrap_or(0), looks.next().unwrap_or(i64::MAX));
                let is_charged = |job: &str| {
                    events.iter().any(|event| {
                        event.kind == EventKind::Interrupted
                            && (from < event.seq && event.seq <= to)
                            && event.job_id.to_string() == job
                            && event.data["charged"] == true
                    })
                };
                let charged = inside.drain(..).filter(|(job, _)| is_charged(job));
                let before = forgotten.len();
                forgotten.extend(charged.map(|(_, at)| at));
                if forgotten.len() > before {
                    kills.push(at);
                }
            }
            _ => {}
        }
        if kills.len() == most {
            break;
        }
    }
    for at in forgotten.iter().rev() {
        story.lines.remove(*at);
    }
    kills.last().map(|kill| kill - forgotten.len())
}

fn judge(journal: &Path, lines: &[String], client: &Client) -> Vec<String> {
    std::fs::write(journal, lines.join("\n") + "\n").expect("it can be written");
    let mut counters = Counters::default();
    History::read(journal, &mut counters).compare(client, &mut counters)
}

/// What some kills left.
fn file(number: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let rounds = number * ROUNDS_OF_A_FILE..(number + 1) * ROUNDS_OF_A_FILE;
    let problems = rounds::one_file(dir.path(), rounds, 7, &mut Counters::default());
    assert_eq!(problems, Vec::<String>::new(), "nothing is forged yet");
    dir
}

#[test]
fn a_forged_journal_or_outbox_is_noticed() {
    if std::env::var(rounds::CHILD).is_ok() {
        return;
    }
    rounds::silence_handlers();
    let mut left: Vec<&Forgery> = FORGERIES.iter().collect();
    for number in 0..FILES_MAX {
        let dir = file(number);
        let client = Client::open(dir.path().join("jobs.db")).expect("it can be opened");
        let text = std::fs::read_to_string(dir.path().join("journal")).expect("it is there");
        let lines: Vec<String> = text
            .lines()
            .filter(|line| line.len() > 2)
            .map(str::to_owned)
            .collect();
        left.retain(|(says, forge)| {
            let mut story = Story {
                lines: lines.clone(),
                client: &client,
            };
            if forge(&mut story).is_none() {
                return true;
            }
            // What it falls on is a matter of chance, and so is whether that can be told: then another file has to show it.
            let found = judge(&dir.path().join("forged"), &story.lines, &client);
            !found.iter().any(|problem| problem.contains(says))
        });
        if number == 0 {
            forged_files(dir.path(), &lines);
        }
        if left.is_empty() {
            return;
        }
    }
    let left: Vec<_> = left.iter().map(|(says, _)| says).collect();
    panic!("in none of {FILES_MAX} files was it noticed: {left:?}");
}

fn forged_files(dir: &Path, lines: &[String]) {
    for (says, sql) in FORGED_FILES {
        let copy = tempfile::tempdir().expect("a directory can be made");
        let path = copy.path().join("jobs.db");
        let file = rusqlite::Connection::open(dir.join("jobs.db")).expect("it can be opened");
        file.execute("VACUUM INTO ?1", [path.to_str()])
            .expect("it can be copied");
        let file = rusqlite::Connection::open(&path).expect("it can be opened");
        let changed = file.execute(sql, []).expect("it can be changed");
        assert_eq!(changed, 1, "{sql}");
        drop(file);
        let client = Client::open(&path).expect("it can be opened");
        let found = judge(&copy.path().join("forged"), lines, &client);
        assert!(
            found.iter().any(|problem| problem.contains(says)),
            "{says:?} was not noticed: {found:#?}"
        );
    }
}
