//! What several processes share: the store, the lock that says who runs its jobs, and the bell that a client rings. Test code.
//!
//! In a file's queue the lock is the kernel's and the bell a socket, which no scheduler sees. Here both are made of `crate::sync`, in
//! the protocol of `owner`: the lock is asked for before the store is opened, a few times, and let go when the store is closed.

use std::sync::Arc;
use std::time::Duration;

use crate::client;
use crate::config::Limits;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::phase::TypeDef;
use crate::requests::Requests;
use crate::store::memory::MemoryStore;
use crate::store::ops::Op;
use crate::store::{Done, Failure, Reader, Rows, Store};
use crate::sync::{AtomicBool, JoinHandle, Mutex, Ordering, Receiver, Sender, pause, spawn};
use crate::time::FakeClock;

/// How often, and after which pause, the lock is asked for.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(4);

pub(super) struct Place {
    /// The client's writer.
    store: Mutex<MemoryStore>,
    pub(super) reader: Arc<dyn Reader>,
    clock: FakeClock,
    limits: Limits,
    is_owned: Arc<AtomicBool>,
    /// None when nobody rings any more.
    bell: Mutex<Option<Sender<()>>>,
}

impl Place {
    pub(super) fn new(clock: &FakeClock) -> Place {
        let store = MemoryStore::new();
        Place {
            reader: store.reader(),
            store: Mutex::new(store),
            clock: clock.clone(),
            limits: Limits::default(),
            is_owned: Arc::default(),
            bell: Mutex::default(),
        }
    }

    /// The store, for the one who has the lock; nothing while another has it.
    pub(super) fn acquire(&self) -> Option<Box<dyn Store>> {
        for _ in 0..TRIES {
            if !self.is_owned.swap(true, Ordering::SeqCst) {
                return Some(Box::new(Owned {
                    store: self.store.lock().beside(),
                    is_owned: self.is_owned.clone(),
                    is_closed: false,
                }));
            }
            pause(PAUSE);
        }
        None
    }

    /// The thread of a queue that hears the bell.
    pub(super) fn listen(
        &self,
        engine: &Arc<Engine>,
        (bell, rung): (Sender<()>, Receiver<()>),
    ) -> JoinHandle<()> {
        *self.bell.lock() = Some(bell);
        let engine = engine.clone();
        let listen = move || {
            while rung.recv().is_ok() {
                engine.follow_bell();
            }
        };
        spawn("wake", listen).expect("a thread")
    }

    /// Nobody rings any more.
    pub(super) fn fall_silent(&self) {
        self.bell.lock().take();
    }
}

/// The place as a client has it: its operation is committed, then it rings.
impl Requests for Place {
    fn request(&self, op: Op) -> Result<Done> {
        let done = client::transact(&mut *self.store.lock(), op, self.clock.now());
        let answer = done.unwrap_or_else(|failure| match failure {
            Failure::NothingDone(error) | Failure::Unknown(error) => Err(error),
        });
        let bell = self.bell.lock().clone();
        if let Some(bell) = bell {
            bell.send(()).ok();
        }
        answer
    }

    fn job_type(&self, _name: &str) -> Option<&Arc<TypeDef>> {
        None
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn is_https_only(&self) -> bool {
        false
    }
}

/// A store with the lock: both go together, and whoever comes too late is told so.
struct Owned {
    store: MemoryStore,
    is_owned: Arc<AtomicBool>,
    is_closed: bool,
}

impl Store for Owned {
    fn transact(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Rows) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        if self.is_closed {
            return Err(Failure::NothingDone(Error::closed()));
        }
        self.store.transact(work)
    }

    fn reopen(&mut self) -> Result<()> {
        self.store.reopen()
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.store.checkpoint()
    }

    fn close(&mut self) {
        self.store.close();
        if !std::mem::replace(&mut self.is_closed, true) {
            self.is_owned.store(false, Ordering::SeqCst);
        }
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.store.reader()
    }
}
