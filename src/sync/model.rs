//! The same names on shuttle, a scheduler that chooses which thread goes on, again and again, another way each time. L1, test code.
//!
//! What is not there is written on its mutex and condvar. Its time stands still: waits with a limit do not end by themselves, and
//! the monotonic clock moves by what threads pause for (`passed`).
//! Source: shuttle, <https://github.com/awslabs/shuttle>.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::AtomicBool as PlainBool;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

pub(crate) use shuttle::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence,
};
pub(crate) use shuttle::thread::ThreadId;

use crate::error::Result;

/// A lock without poisoning.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// None only while it waits or is unlocked.
    held: Option<shuttle::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        MutexGuard {
            mutex: self,
            held: Some(held),
        }
    }
}

impl<T> MutexGuard<'_, T> {
    pub(crate) fn unlocked<U>(guard: &mut Self, run: impl FnOnce() -> U) -> U {
        drop(guard.held.take());
        let ran = run();
        *guard = guard.mutex.lock();
        ran
    }
}

impl<T> std::ops::Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("it is locked")
    }
}

impl<T> std::ops::DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("it is locked")
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(shuttle::sync::Condvar);

/// What a wait with a limit says.
pub(crate) struct Waited;

impl Condvar {
    pub(crate) fn new() -> Condvar {
        Condvar::default()
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        if let Some(held) = guard.held.take() {
            let held = self.0.wait(held).unwrap_or_else(PoisonError::into_inner);
            guard.held = Some(held);
        }
    }

    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Duration) -> Waited {
        self.wait(guard);
        Waited
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[derive(Debug)]
struct Channel<T> {
    state: Mutex<State<T>>,
    bell: Condvar,
}

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Channel<T>>);

#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Channel<T>>);

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TryRecvError {
    Empty,
    Disconnected,
}

pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    let state = State {
        queue: VecDeque::new(),
        senders: 1,
        receivers: 1,
    };
    let channel = Arc::new(Channel {
        state: Mutex::new(state),
        bell: Condvar::new(),
    });
    (Sender(channel.clone()), Receiver(channel))
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, value: T) -> std::result::Result<(), T> {
        let mut state = self.0.state.lock();
        if state.receivers == 0 {
            return Err(value);
        }
        state.queue.push_back(value);
        self.0.bell.notify_one();
        Ok(())
    }
}

impl<T> Sender<T> {
    pub(crate) fn same_channel(&self, other: &Sender<T>) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Receiver<T> {
    pub(crate) fn try_recv(&self) -> std::result::Result<T, TryRecvError> {
        let mut state = self.0.state.lock();
        match state.queue.pop_front() {
            Some(value) => Ok(value),
            None if state.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    /// Time does not pass: it ends when something comes, or nobody is there any more who could send it.
    pub(crate) fn recv_timeout(&self, _limit: Duration) -> std::result::Result<T, TryRecvError> {
        self.recv()
    }

    pub(crate) fn recv(&self) -> std::result::Result<T, TryRecvError> {
        let mut state = self.0.state.lock();
        loop {
            match state.queue.pop_front() {
                Some(value) => return Ok(value),
                None if state.senders == 0 => return Err(TryRecvError::Disconnected),
                None => self.0.bell.wait(&mut state),
            }
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.0.state.lock().senders += 1;
        Sender(self.0.clone())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        self.0.state.lock().receivers += 1;
        Receiver(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state.lock().senders -= 1;
        self.0.bell.notify_all();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.state.lock().receivers -= 1;
    }
}

thread_local! {
    /// All threads of a run are one for the system.
    static PASSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Time that threads have paused for.
pub(crate) fn passed() -> Duration {
    PASSED.with(Cell::get)
}

/// A thread, and whether it has ended.
#[derive(Debug)]
pub(crate) struct JoinHandle<T> {
    thread: shuttle::thread::JoinHandle<T>,
    is_finished: Arc<PlainBool>,
}

impl<T> JoinHandle<T> {
    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished.load(Ordering::SeqCst)
    }

    pub(crate) fn join(self) -> std::thread::Result<T> {
        self.thread.join()
    }

    pub(crate) fn thread(&self) -> &shuttle::thread::Thread {
        self.thread.thread()
    }
}

pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let is_finished = Arc::new(PlainBool::new(false));
    let ended = is_finished.clone();
    let thread = shuttle::thread::Builder::new().name(name.to_owned());
    let thread = thread.spawn(move || {
        run();
        ended.store(true, Ordering::SeqCst);
    });
    Ok(JoinHandle {
        thread: thread.expect("shuttle has threads"),
        is_finished,
    })
}

pub(crate) fn current_thread() -> ThreadId {
    shuttle::thread::current().id()
}

pub(crate) fn is_panicking() -> bool {
    std::thread::panicking()
}

pub(crate) fn yield_now() {
    shuttle::thread::yield_now();
}

pub(crate) fn pause(duration: Duration) {
    PASSED.with(|passed| passed.set(passed.get() + duration));
    shuttle::thread::yield_now();
}

pub(crate) fn processors() -> usize {
    2
}
