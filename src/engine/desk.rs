//! The workers' side of the engine: takes a phase, runs it, hands its outcome in. L3.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::Engine;
use crate::error::Error;
use crate::job::{ErrorCause, InterruptionReason};
use crate::live::{Offer, Run, Task};
use crate::owner::Inside;
use crate::phase::context::{Attempt, Services};
use crate::phase::stop::StopReason;
use crate::phase::{Answer, PhaseSpec, Resolved};
use crate::pool::{After, Desk};
use crate::runner::{self, Outcome, Refused};
use crate::store::ops::{Fault, Op, Settle};
use crate::time::monotonic;
use crate::transition::{Edge, Entered, Input, JobRow, Tries, Verdict};

impl Desk for Engine {
    fn take(&self, offer: Offer) -> Option<Task> {
        self.live.take(offer, self.clock.moment())
    }

    fn perform(&self, task: Task, worker: usize) -> After {
        let (id, epoch) = (task.row.id, task.row.epoch);
        if let Some(recorder) = &self.recorder {
            let (phase_index, since) = (task.row.phase_index, task.entered.now);
            recorder.enter(
                worker,
                Inside {
                    job_id: id,
                    epoch,
                    phase_index,
                    since,
                    has_returned: false,
                },
            );
        }
        let started = monotonic();
        let settle = match self.replanned(&task) {
            Some(given_back) => {
                if let Some(recorder) = &self.recorder {
                    // No handler is entered: a crash from now on is not its fault.
                    recorder.leave(worker);
                }
                given_back
            }
            None => {
                let outcome = self.attempt(&task);
                self.window.phase_took(started.elapsed());
                // It may ask the user's code for a delay: the handler is inside until then.
                self.settle(&task, outcome)
            }
        };
        let mut returned = self.live.returned(id, epoch);
        if returned.is_none() {
            // Its claim goes on: the outcome counts, whatever comes up before it is on disk.
            self.committer.post(Op::Settle(settle));
            returned = self.live.handed_in(Offer::of(&task.row));
        }
        let is_abandoned = returned.is_some_and(|returned| {
            log::debug!("job {id}: the handler of claim {epoch} returned after its claim was over");
            self.zombie_left(returned);
            self.committer.ring();
            returned.is_abandoned
        });
        if !is_abandoned && self.pool.next() == After::Next {
            return After::Next;
        }
        if let Some(recorder) = &self.recorder {
            recorder.returned(worker);
        }
        After::End
    }

    fn idle(&self, worker: usize) {
        if let Some(recorder) = &self.recorder {
            recorder.returned(worker);
        }
    }

    fn poison(&self, thread: &str, message: &str) {
        Engine::poison(self, thread, message);
    }
}

impl Engine {
    /// Calls the handler.
    fn attempt(&self, task: &Task) -> Outcome {
        let Task {
            run, row, entered, ..
        } = task;
        let phase_index = row.phase_index as usize;
        let resolved = match run.resolved() {
            Ok(resolved) => resolved,
            Err(error) => return refuse(ErrorCause::Decode, error.to_string()),
        };
        let Some(handler) = run.def.handler(phase_index) else {
            return refuse(
                ErrorCause::Decode,
                format!("phase {phase_index} has no handler"),
            );
        };
        let Some(services) = self.me.upgrade() else {
            return refuse(ErrorCause::Error, Error::closed().to_string());
        };
        let timeout = spec(run, resolved, phase_index).and_then(|spec| spec.timeout);
        if let Some(timeout) = timeout {
            // Asked now: it may be the user's code, and whoever finds that the time is over leads a commit.
            let verdict = self.verdict(run, row, None);
            if self.live.set_timeout(task, timeout, verdict) {
                self.committer.ring_before(self.now().after(timeout));
            }
        }
        let timeout_at = timeout.map(|timeout| entered.now.after(timeout));
        let attempt = Attempt {
            job_id: row.id,
            job_type: run.def.name.clone(),
            plan: run.plan.clone(),
            phase_index,
            epoch: row.epoch,
            attempt: row.attempt,
            created_at: row.created_at,
            deadline: [timeout_at, row.deadline].into_iter().flatten().min(),
            last_error: run.last_error.clone(),
            interruption: run.interruption.clone(),
            flag: task.flag.clone(),
            services: services as Arc<dyn Services>,
        };
        runner::run(
            handler,
            attempt,
            &run.input,
            self.config.limits.result_bytes_max,
        )
    }

    /// The outcome as an input of the state machine.
    fn settle(&self, task: &Task, outcome: Outcome) -> Settle {
        let Task {
            run, row, entered, ..
        } = task;
        let epoch = row.epoch;
        let refused = match outcome {
            Outcome::Completed(result) => {
                let input = Input::PhaseCompleted {
                    epoch,
                    edge: Edge::GoOn,
                };
                return Settle {
                    result: Some(result),
                    started_at: entered.now,
                    ..Settle::void(row, input)
                };
            }
            Outcome::Refused(refused) => refused,
        };
        let is_shutdown = task.flag.reason() == Some(StopReason::Shutdown);
        let input = match &refused.answer {
            Answer::Snooze(delay) => {
                let until = self.now().after(*delay);
                if row.deadline.is_some_and(|deadline| until >= deadline) {
                    return self.too_late(task);
                }
                Input::Snooze { epoch, until }
            }
            Answer::Cancel => Input::HandlerCancelled { epoch },
            Answer::Fail => Input::PhaseFailed {
                epoch,
                verdict: Verdict::Fail,
            },
            // What a handler makes of being told to stop is no failure of the job.
            _ if is_shutdown => {
                let reason = InterruptionReason::Shutdown;
                Input::Interrupted {
                    epoch,
                    reason,
                    entered: Entered::Inside,
                    max_crashes: u32::MAX,
                }
            }
            Answer::Retry | Answer::RetryAfter(_) | Answer::Stopped | Answer::Rewind(_) => {
                Input::PhaseFailed {
                    epoch,
                    verdict: self.verdict(run, row, Some(&refused.answer)),
                }
            }
        };
        let is_error = matches!(input, Input::PhaseFailed { .. });
        let Refused {
            cause,
            message,
            backtrace,
            ..
        } = refused;
        let error = is_error.then_some(Fault {
            cause,
            message,
            backtrace,
        });
        Settle {
            error,
            started_at: entered.now,
            ..Settle::void(row, input)
        }
    }

    /// A handler has put its phase off until after the deadline of its job.
    fn too_late(&self, task: &Task) -> Settle {
        let input = Input::PhaseFailed {
            epoch: task.row.epoch,
            verdict: Verdict::Fail,
        };
        let error = Fault {
            cause: ErrorCause::Deadline,
            message: "the handler put the phase off until after the deadline".to_owned(),
            backtrace: None,
        };
        Settle {
            error: Some(error),
            started_at: task.entered.now,
            ..Settle::void(&task.row, input)
        }
    }

    /// What the retry policy says of a failed try. `answer`: the handler's, if it had one.
    pub(crate) fn verdict(&self, run: &Run, row: &JobRow, answer: Option<&Answer>) -> Verdict {
        let Ok(resolved) = run.resolved() else {
            return Verdict::Fail;
        };
        // Going back to an earlier phase begins the tries of this one anew: those of the job must end it.
        let goes_back = matches!(answer, Some(Answer::Rewind(_)));
        let spec = spec(run, resolved, row.phase_index as usize).filter(|_| !goes_back);
        let own = spec.and_then(|spec| spec.retry.as_ref());
        let (policy, failed, tries) = match own {
            Some(policy) => (
                policy,
                row.phase_attempt,
                Tries::OfPhase {
                    max: policy.attempts_max(),
                },
            ),
            None => (
                &resolved.retry,
                row.attempt,
                Tries::OfJob {
                    max: resolved.retry.attempts_max(),
                },
            ),
        };
        let is_last = match tries {
            Tries::OfJob { max } => row.attempt >= max,
            Tries::OfPhase { max } => row.phase_attempt >= max,
        };
        let seed = row.id.as_i64().unsigned_abs() << 16 ^ row.epoch.unsigned_abs();
        let delay: Duration = match answer {
            Some(Answer::RetryAfter(delay)) => *delay,
            _ if is_last => Duration::ZERO,
            _ => policy.next_delay(failed, seed),
        };
        let rewind = match answer {
            Some(Answer::Rewind(name)) => run.plan.iter().position(|phase| phase.name == *name),
            _ => None,
        };
        match rewind.and_then(|index| u32::try_from(index).ok()) {
            Some(phase_index) => Verdict::Rewind {
                tries,
                delay,
                phase_index,
            },
            None => Verdict::Retry { tries, delay },
        }
    }
}

/// The settings of a phase. A planned type may plan anew between a job's tries; names decide what belongs together.
fn spec<'a>(run: &Run, resolved: &'a Resolved, phase_index: usize) -> Option<&'a PhaseSpec> {
    let name = run.plan.get(phase_index)?;
    let at_its_place = resolved
        .specs
        .get(phase_index)
        .filter(|spec| spec.name.name == name.name);
    at_its_place.or_else(|| {
        resolved
            .specs
            .iter()
            .find(|spec| spec.name.name == name.name)
    })
}

fn refuse(cause: ErrorCause, message: String) -> Outcome {
    Outcome::Refused(Refused {
        answer: Answer::Fail,
        cause,
        message,
        backtrace: None,
    })
}
