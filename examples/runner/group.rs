//! Process groups: how a command is started, ended with everything that it has started, and not left behind.
//!
//! Each command leads a group of its own, so that Ctrl-C on the terminal reaches us alone, and one signal reaches all of it.
//!
//! | who ends | what happens to the group |
//! |---|---|
//! | the command, by itself | what it left running gets SIGTERM, and SIGKILL after [`GRACE`] |
//! | its job: cancelled, timed out, shut down | SIGTERM, and SIGKILL after [`GRACE`] |
//! | its phase, because we cannot go on with it | SIGKILL at once |
//! | we, by kill -9 or a crash | SIGKILL at once, by the guard: the next process runs this phase again, and not beside it |
//!
//! The guard is this program once more, started by `work` with a pipe as its standard input. It is told of each group, and
//! notices our end by the end of the pipe. Descendants that leave the group (`setsid`) go their own way.

use std::collections::HashSet;
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use rustix::process::{kill_process_group, test_kill_process_group, waitid};

/// Between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);
/// How often a watcher looks whether it should end its group. Its end is noticed at once.
const LOOK: Duration = Duration::from_millis(50);
/// How often a group is looked at whose leader has ended.
const LOOK_AT_REST: Duration = Duration::from_millis(10);
/// What makes this program a guard.
const GUARD: &str = "__guard";

/// The groups that are running.
pub struct Groups {
    guard: Mutex<ChildStdin>,
    running: Mutex<HashSet<i32>>,
    ended: Condvar,
}

impl Groups {
    /// Starts the guard.
    pub fn start() -> io::Result<Arc<Groups>> {
        let mut guard = Command::new(std::env::current_exe()?)
            .arg(GUARD)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pipe = guard.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Arc::new(Groups {
            guard: Mutex::new(pipe),
            running: Mutex::default(),
            ended: Condvar::new(),
        }))
    }

    /// Starts `command` as the leader of a group.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Group<'_>> {
        let mut running = lock(&self.running);
        let child = command.process_group(0).spawn()?;
        let id = Pid::from_child(&child);
        running.insert(id.as_raw_pid());
        drop(running);
        let group = Group {
            groups: self,
            child,
            id,
            is_over: false,
        };
        if let Err(error) = self.tell('+', id) {
            let problem = format!("the guard of the process groups is gone: {error}");
            return Err(io::Error::other(problem));
        }
        Ok(group)
    }

    /// Waits until no group is left; false if that takes longer than `patience`.
    pub fn wait_empty(&self, patience: Duration) -> bool {
        let running = lock(&self.running);
        let waited = self
            .ended
            .wait_timeout_while(running, patience, |running| !running.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn tell(&self, sign: char, id: Pid) -> io::Result<()> {
        writeln!(lock(&self.guard), "{sign}{}", id.as_raw_pid())
    }
}

/// One of them. Killed when it is dropped before its end was waited for.
pub struct Group<'a> {
    groups: &'a Groups,
    pub child: Child,
    id: Pid,
    /// Its leader was waited for, so that its number may be another's by now.
    is_over: bool,
}

impl Group<'_> {
    /// Waits until nothing of the group is left. Ends it as soon as `is_stopped` says so.
    pub fn wait(mut self, is_stopped: &(dyn Fn() -> bool + Sync)) -> io::Result<ExitStatus> {
        let asked = self.wait_for_leader(is_stopped)?;
        // From here on the number of the group is its own only while somebody is in it.
        let status = self.child.wait()?;
        self.is_over = true;
        self.end_rest(asked);
        Ok(status)
    }

    /// Answers when SIGTERM was sent, if it was.
    fn wait_for_leader(
        &self,
        is_stopped: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<Option<Instant>> {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let watch = || self.watch(is_stopped, &is_over);
            let watcher = thread::Builder::new().spawn_scoped(scope, watch);
            let watcher = watcher.map_err(no_thread)?;
            let ended = loop {
                match waitid(
                    WaitId::Pid(self.id),
                    WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
                ) {
                    Err(Errno::INTR) => {}
                    ended => break ended,
                }
            };
            is_over.store(true, Ordering::Release);
            watcher.thread().unpark();
            let asked = watcher.join().unwrap_or(None);
            ended?;
            Ok(asked)
        })
    }

    fn watch(
        &self,
        is_stopped: &(dyn Fn() -> bool + Sync),
        is_over: &AtomicBool,
    ) -> Option<Instant> {
        let mut asked: Option<Instant> = None;
        while !is_over.load(Ordering::Acquire) {
            match asked {
                None if is_stopped() => {
                    self.signal(Signal::TERM);
                    asked = Some(Instant::now());
                }
                Some(at) if at.elapsed() >= GRACE => self.signal(Signal::KILL),
                None | Some(_) => {}
            }
            thread::park_timeout(LOOK);
        }
        asked
    }

    /// Ends what the leader has left in its group.
    fn end_rest(&self, mut asked: Option<Instant>) {
        while is_left(self.id) {
            match asked {
                None => {
                    self.signal(Signal::TERM);
                    asked = Some(Instant::now());
                }
                Some(at) if at.elapsed() >= GRACE => self.signal(Signal::KILL),
                Some(_) => {}
            }
            thread::sleep(LOOK_AT_REST);
        }
    }

    /// Ends all of it, with no time to do so by itself: nobody will know what came of it.
    fn kill(&mut self) {
        self.signal(Signal::KILL);
        // That it cannot be waited for means that somebody has.
        self.child.wait().ok();
        while is_left(self.id) {
            self.signal(Signal::KILL);
            thread::sleep(LOOK_AT_REST);
        }
    }

    /// A group that is gone needs no signal.
    fn signal(&self, signal: Signal) {
        kill_process_group(self.id, signal).ok();
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.kill();
        }
        // Without its guard it is ended by us alone.
        self.groups.tell('-', self.id).ok();
        lock(&self.groups.running).remove(&self.id.as_raw_pid());
        self.groups.ended.notify_all();
    }
}

/// Says what the system would not give.
pub fn no_thread(error: io::Error) -> io::Error {
    io::Error::other(format!("no thread can be had for the command: {error}"))
}

/// Whether somebody of the group can still do something. Who has ended and was not waited for cannot: the system goes on to count
/// him among the group, in a container whose first process waits for nobody for ever.
fn is_left(group: Pid) -> bool {
    if test_kill_process_group(group).is_err() {
        return false;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return true;
    };
    let mut stats = processes
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
        .peekable();
    // Without any there is no such directory as Linux has, and nothing is known.
    stats.peek().is_none() || stats.any(|stat| is_running_in(group, &stat))
}

/// Reads a line of `/proc/PID/stat`, <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>: the name of the program is in
/// parentheses, after it come state, parent and group.
fn is_running_in(group: Pid, stat: &str) -> bool {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after_name.split_ascii_whitespace();
    let (state, own) = (fields.next(), fields.nth(1));
    own == Some(&group.as_raw_pid().to_string()) && !matches!(state, Some("Z" | "X"))
}

/// Whether this process was started to be a guard.
pub fn is_guard() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == GUARD)
}

/// Follows the pipe to its end, and kills every group that is left then.
pub fn guard() -> ExitCode {
    // Who ends all of us with one signal wants the groups to be ended, too: that is what we are for.
    ctrlc::set_handler(|| {}).ok();
    let mut running = HashSet::new();
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let (sign, id) = line.split_at(1.min(line.len()));
        let Ok(id) = id.parse::<i32>() else { continue };
        match sign {
            "+" => running.insert(id),
            _ => running.remove(&id),
        };
    }
    for id in running.into_iter().filter_map(Pid::from_raw) {
        kill_process_group(id, Signal::KILL).ok();
    }
    ExitCode::SUCCESS
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bug: a group whose phase ended early, since no thread could be had to read its output, ran on and nobody knew of it.
    #[test]
    fn a_group_that_nobody_waits_for_any_more_is_killed() {
        let mut guard = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("cat");
        let groups = Groups {
            guard: Mutex::new(guard.stdin.take().expect("piped")),
            running: Mutex::default(),
            ended: Condvar::new(),
        };
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 100 & sleep 100"]);
        let group = groups.spawn(&mut command).expect("sh");
        let id = group.id;
        drop(group);
        assert!(groups.wait_empty(Duration::ZERO));
        let is_gone = !is_left(id);
        kill_process_group(id, Signal::KILL).ok();
        assert!(is_gone, "it runs on");
        drop(groups);
        guard.wait().expect("cat ends with its input");
    }

    #[test]
    fn who_has_ended_is_not_running_in_its_group() {
        let group = Pid::from_raw(42).expect("not zero");
        let is_running = |stat| is_running_in(group, stat);
        assert!(is_running("7 (sleep) S 1 42 42 0 -1"));
        assert!(is_running("7 (a) Z 1 42 (b) R 1 42 42 0 -1"));
        assert!(!is_running("7 (sleep) Z 1 42 42 0 -1"));
        assert!(!is_running("7 (sleep) S 42 41 42 0 -1"));
        assert!(!is_running("7 (sleep"));
        assert!(!is_running(""));
    }
}
