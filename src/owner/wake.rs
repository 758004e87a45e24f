//! How other processes wake the one that runs jobs, without anybody polling. L3.
//!
//! On Unix a datagram socket stands beside the file as `<db>-wake`; a datagram says "look" and nothing else. The kernel keeps a
//! few of them, so a ring is never lost: when its queue is full, the owner will look anyway. A client that dies behind its commit
//! does not ring: the owner's next commit finds that out, and the owner rings its own bell. Where there is no such socket (elsewhere,
//! and on file systems that have none) the owner looks once a second.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::sync::{Condvar, Mutex};

/// Where nobody can ring. A look costs a few reads.
const LOOK: Duration = Duration::from_secs(1);

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Rung,
    Stopped,
}

/// Hears that another process has written to the file.
pub(crate) enum WakeListener {
    #[cfg(unix)]
    Socket(unix::Listener),
    Looks(Arc<Looks>),
}

/// Wakes a listener of the same process.
pub(crate) enum WakeBell {
    #[cfg(unix)]
    Socket(unix::Bell),
    Looks(Arc<Looks>),
}

impl WakeListener {
    /// The caller holds the owner lock, so what stands at the socket's name is a dead one's.
    pub(crate) fn bind(db: &Path) -> WakeListener {
        #[cfg(unix)]
        match unix::Listener::bind(db) {
            Ok(listener) => return WakeListener::Socket(listener),
            Err(error) => log::warn!(
                "{}: other processes cannot wake this one, which looks once a second instead: {error}",
                db.display()
            ),
        }
        #[cfg(not(unix))]
        let _ = db;
        WakeListener::Looks(Arc::default())
    }

    /// Blocks until somebody rings, and takes in what has queued up meanwhile.
    pub(crate) fn wait(&self) -> Wake {
        match self {
            #[cfg(unix)]
            WakeListener::Socket(listener) => listener.wait(),
            WakeListener::Looks(looks) => looks.wait(),
        }
    }

    pub(crate) fn bell(&self) -> std::io::Result<WakeBell> {
        match self {
            #[cfg(unix)]
            WakeListener::Socket(listener) => listener.bell().map(WakeBell::Socket),
            WakeListener::Looks(looks) => Ok(WakeBell::Looks(looks.clone())),
        }
    }
}

impl WakeBell {
    /// As another process does. Never blocks.
    pub(crate) fn ring(&self) {
        match self {
            #[cfg(unix)]
            WakeBell::Socket(bell) => bell.ring(),
            WakeBell::Looks(looks) => looks.ring(Wake::Rung),
        }
    }

    /// Ends the wait of the listener for good.
    pub(crate) fn stop(&self) {
        match self {
            #[cfg(unix)]
            WakeBell::Socket(bell) => bell.stop(),
            WakeBell::Looks(looks) => looks.ring(Wake::Stopped),
        }
    }
}

/// Wakes up by itself.
#[derive(Default)]
pub(crate) struct Looks {
    rung: Mutex<Option<Wake>>,
    bell: Condvar,
}

impl Looks {
    fn wait(&self) -> Wake {
        let mut rung = self.rung.lock();
        if rung.is_none() {
            self.bell.wait_for(&mut rung, LOOK);
        }
        if *rung == Some(Wake::Stopped) {
            return Wake::Stopped;
        }
        *rung = None;
        Wake::Rung
    }

    fn ring(&self, wake: Wake) {
        let mut rung = self.rung.lock();
        if *rung != Some(Wake::Stopped) {
            *rung = Some(wake);
        }
        self.bell.notify_one();
    }
}

/// Tells the process that runs jobs on this file, if there is one, to look. Best effort, and never blocks.
pub(crate) fn ring(db: &Path) {
    #[cfg(unix)]
    unix::ring(db);
    #[cfg(not(unix))]
    let _ = db;
}

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use super::Wake;
    use crate::owner::beside;
    use crate::sync::{AtomicBool, Ordering};

    /// `sun_path` has 104 bytes on BSDs, 108 on Linux, with a zero at the end.
    const PATH_BYTES_MAX: usize = 100;

    pub(crate) struct Listener {
        socket: UnixDatagram,
        path: PathBuf,
        is_stopped: Arc<AtomicBool>,
    }

    pub(crate) struct Bell {
        /// Connected to the listener's socket: works also when its name has been removed.
        socket: UnixDatagram,
        is_stopped: Arc<AtomicBool>,
    }

    impl Listener {
        pub(super) fn bind(db: &Path) -> std::io::Result<Listener> {
            let path = beside(db, "-wake");
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("{}: cannot be removed: {error}", path.display());
            }
            let socket = with_short_path(&path, |short| UnixDatagram::bind(short))?;
            let only_us = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            if let Err(error) = std::fs::set_permissions(&path, only_us) {
                log::warn!("{}: its mode cannot be set: {error}", path.display());
            }
            Ok(Listener {
                socket,
                path,
                is_stopped: Arc::default(),
            })
        }

        pub(super) fn wait(&self) -> Wake {
            let mut byte = [0; 1];
            let received = uninterrupted(|| self.socket.recv(&mut byte));
            if self.is_stopped.load(Ordering::Acquire) {
                return Wake::Stopped;
            }
            if let Err(error) = received {
                log::error!("other processes cannot wake this one any more: {error}");
                return Wake::Stopped;
            }
            if self.socket.set_nonblocking(true).is_ok() {
                while self.socket.recv(&mut byte).is_ok() {}
                self.socket.set_nonblocking(false).ok();
            }
            if self.is_stopped.load(Ordering::Acquire) {
                Wake::Stopped
            } else {
                Wake::Rung
            }
        }

        pub(super) fn bell(&self) -> std::io::Result<Bell> {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            with_short_path(&self.path, |short| socket.connect(short))?;
            Ok(Bell {
                socket,
                is_stopped: self.is_stopped.clone(),
            })
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            // A next owner may have bound its own there, but only after we let the lock go, which is later.
            std::fs::remove_file(&self.path).ok();
        }
    }

    impl Bell {
        pub(super) fn ring(&self) {
            // When the queue is full, the listener is about to empty it, and looks.
            self.socket.send(&[1]).ok();
        }

        pub(super) fn stop(&self) {
            self.is_stopped.store(true, Ordering::Release);
            // The same: it finds that it is stopped when it does.
            self.socket.send(&[0]).ok();
        }
    }

    pub(super) fn ring(db: &Path) {
        let rung = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            with_short_path(&beside(db, "-wake"), |short| socket.send_to(&[1], short))
        });
        if let Err(error) = rung {
            log::debug!("nobody was woken: {error}");
        }
    }

    /// Again, as often as a signal ends the call whose handler does not ask for calls to go on.
    fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
        loop {
            match call() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    #[test]
    fn a_signal_ends_no_wait() {
        use std::io::{Error, ErrorKind::Interrupted};
        let mut signals = 2;
        let mut call = || {
            signals -= 1;
            (signals == 0).then_some(7).ok_or(Error::from(Interrupted))
        };
        assert_eq!(uninterrupted(&mut call).ok(), Some(7));
    }

    /// Sockets have short names. On Linux a long one is reached through its opened directory.
    fn with_short_path<T>(
        path: &Path,
        act: impl FnOnce(&Path) -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return act(path);
        };
        if path.as_os_str().len() <= PATH_BYTES_MAX || !cfg!(target_os = "linux") {
            return act(path);
        }
        let directory = File::open(directory)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        act(&short)
    }
}
