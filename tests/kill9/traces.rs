//! What the journal says of one job, line by line, and whether that may be.

use std::collections::HashMap;

use super::number;
use crate::counters::Counters;

/// What the journal says of one job.
#[derive(Debug, Default)]
pub(super) struct Traces {
    /// The phase whose handler is inside.
    pub(super) inside: Option<u32>,
    /// Phases whose completion was durable for sure.
    pub(super) durable: u32,
    pub(super) is_completed: bool,
    /// A retry from the start was asked for: once, phases may start again.
    pub(super) may_restart: u32,
    /// The newest result that a handler returned, by phase.
    pub(super) results: HashMap<u32, String>,
    /// The last thing that happened: the handler of this phase returned a result.
    pub(super) returned: Option<u32>,
    /// And then its process was killed.
    pub(super) is_killed: bool,
    /// The phase whose handler was the last to return, in this process: the outcome may not be durable.
    pub(super) left: Option<u32>,
    /// Kills that may have hit it inside a handler, since it was tried again by hand.
    pub(super) kills: u32,
    /// The newest kill is counted among them, if its file says that this phase was under way.
    pub(super) killed_in: Option<u32>,
    /// The newest checkpoint, saved for sure, and the newest one that was tried.
    pub(super) saved: HashMap<u32, (u64, u64)>,
    pub(super) cancels_asked: usize,
    pub(super) cancels_done: usize,
    pub(super) retries_asked: usize,
    pub(super) retries_done: usize,
    /// Asked and not answered yet.
    pub(super) open_cancels: usize,
    pub(super) open_retries: usize,
    /// A retry was under way while a cancel was: which came first is not known.
    pub(super) is_mixed: bool,
    /// Its cancel was acknowledged, and no retry has been asked for since.
    pub(super) is_cancelled: bool,
    /// The line of that answer, if the process that runs the jobs gave it: from then on no handler is entered.
    pub(super) cancelled_at: usize,
    pub(super) starts_after_cancel: usize,
    pub(super) is_delete_asked: bool,
    pub(super) is_delete_done: bool,
    pub(super) was_unreadable: bool,
}

impl Traces {
    pub(super) fn take(
        &mut self,
        kind: &str,
        rest: &[&str],
        counters: &mut Counters,
    ) -> Result<(), String> {
        match (kind, rest) {
            ("W", [phase, seen @ ..]) => return self.sees(number(phase), seen),
            ("L", [phase, position]) => {
                let (least, most) = self.saved.get(&number(phase)).copied().unwrap_or_default();
                let position: u64 = number(position);
                if position > 0 {
                    counters.add("checkpoint resumed");
                }
                if (position < least && self.may_restart == 0) || position > most {
                    return Err(format!("the checkpoint was {least}, at most {most}"));
                }
            }
            ("v", [phase, position]) => {
                self.saved.entry(number(phase)).or_default().1 = number(position)
            }
            ("V", [phase, position]) => {
                self.saved.entry(number(phase)).or_default().0 = number(position)
            }
            ("D", [status, done]) => return self.is_seen(status, number(done)),
            ("C?", []) => {
                self.cancels_asked += 1;
                self.is_mixed = self.open_retries > 0 || (self.is_mixed && self.open_cancels > 0);
                self.open_cancels += 1;
            }
            ("C-", []) => {
                self.cancels_asked -= 1;
                self.open_cancels = self.open_cancels.saturating_sub(1);
            }
            ("R?", [from]) => {
                self.retries_asked += 1;
                self.open_retries += 1;
                self.is_mixed = true;
                self.may_restart += u32::from(*from == "start");
                self.is_cancelled = false;
                self.returned = None;
            }
            ("R-", [from]) => {
                self.retries_asked -= 1;
                self.retried(from, "refused", counters);
            }
            ("R!", [from, answer]) => self.retried(from, answer, counters),
            ("D?", []) => self.is_delete_asked = true,
            ("D!", []) => {
                self.is_delete_done = true;
                counters.add("deleted");
            }
            ("G", ["none"]) => self.was_unreadable = true,
            _ => return Err("not understood".to_owned()),
        }
        Ok(())
    }

    /// Its handler is inside. The worker was free for it since then.
    pub(super) fn starts(
        &mut self,
        phase: u32,
        since: usize,
        counters: &mut Counters,
    ) -> Result<(), String> {
        if let Some(other) = self.inside.replace(phase) {
            return Err(format!("H4: its handler of phase {other} is still inside"));
        }
        if self.is_completed {
            return Err("H3: the job was completed, durably".to_owned());
        }
        if self.is_cancelled {
            if since > self.cancelled_at {
                return Err("H6: entered after its cancel was acknowledged".to_owned());
            }
            // A handler that was entered before the cancel may be late to say so. One, for each cancel.
            self.starts_after_cancel += 1;
            if self.starts_after_cancel > 1 {
                return Err("H6: a second phase started after it was cancelled".to_owned());
            }
            counters.add("entered during its cancel");
        }
        self.left = None;
        let is_killed = std::mem::take(&mut self.is_killed);
        if self.returned.take() == Some(phase) {
            counters.add(if is_killed {
                "killed between a handler's return and its commit"
            } else {
                "late result fenced"
            });
        }
        if phase < self.durable {
            if !self.take_restart() {
                return Err(format!(
                    "H3: {} phases were completed, durably",
                    self.durable
                ));
            }
            self.saved.clear();
        }
        if phase != self.durable {
            self.saved.remove(&phase);
        }
        self.durable = phase;
        Ok(())
    }

    pub(super) fn ends(&mut self, phase: u32, end: &[&str], counters: &mut Counters) {
        (self.inside, self.returned, self.is_killed) = (None, None, false);
        self.left = Some(phase);
        if let ["ok", result] = end {
            self.results.insert(phase, (*result).to_owned());
            if self.is_cancelled {
                counters.add("late result fenced");
            } else {
                self.returned = Some(phase);
            }
        }
    }

    /// The phases before it have the results that their handlers returned last, since no handler starts before them.
    fn sees(&self, phase: u32, seen: &[&str]) -> Result<(), String> {
        for (earlier, seen) in (0..phase).zip(seen) {
            let result = self.results.get(&earlier).map_or("none", String::as_str);
            if result != *seen {
                return Err(format!("H5: phase {earlier} had returned {result}"));
            }
        }
        Ok(())
    }

    /// The file was looked at, no process having been at it.
    fn is_seen(&mut self, status: &str, done: u32) -> Result<(), String> {
        self.is_completed = status == "completed";
        let was_inside = |phase| status == "running" && phase >= done;
        if self
            .killed_in
            .take()
            .is_some_and(|phase| !was_inside(phase))
        {
            self.kills -= 1;
        }
        if done < self.durable {
            if !self.take_restart() {
                return Err(format!("{} phases were completed, durably", self.durable));
            }
            self.saved.clear();
        }
        if self.returned.is_some_and(|phase| phase < done) {
            self.returned = None;
        }
        self.durable = done;
        Ok(())
    }

    /// Uses up one of the retries from the start that were asked for; false when there is none.
    fn take_restart(&mut self) -> bool {
        let is_left = self.may_restart > 0;
        self.may_restart = self.may_restart.saturating_sub(1);
        is_left
    }

    fn retried(&mut self, from: &str, answer: &str, counters: &mut Counters) {
        self.open_retries = self.open_retries.saturating_sub(1);
        if answer != "ok" {
            if from == "start" {
                self.take_restart();
            }
            if answer != "refused" {
                counters.add("retry lost to another");
            }
            return;
        }
        self.retries_done += 1;
        (self.kills, self.killed_in) = (0, None);
        counters.add(match from {
            "start" => "retried by hand, from the start",
            _ => "retried by hand, resuming",
        });
    }

    pub(super) fn cancelled(&mut self, answer: &str, line: usize, counters: &mut Counters) {
        self.open_cancels = self.open_cancels.saturating_sub(1);
        match answer {
            "cancelled" => {
                self.cancels_done += 1;
                self.is_cancelled = !self.is_mixed;
                (self.starts_after_cancel, self.cancelled_at) = (0, line);
                if self.inside.is_none() && self.returned.is_some() {
                    counters.add("cancelled at a phase boundary");
                }
                self.returned = None;
            }
            "already-completed" => counters.add("cancel lost to completion"),
            _ => {}
        }
    }
}
