//! How other processes wake the one that runs jobs, without anybody polling. L3.
//!
//! On Unix a datagram socket stands beside the file as `<db>-wake`; a datagram says "look" and nothing else. The kernel keeps a
//! few of them, so a ring is never lost: when its queue is full, the owner will look anyway. Elsewhere the owner looks once a
//! second whether the log has grown.

use std::path::Path;

use crate::error::Result;

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Rung,
    Stopped,
}

#[cfg(unix)]
pub(crate) use unix::{WakeListener, WakeStopper};

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

    use super::{Result, Wake};
    use crate::owner::beside;
    use crate::sync::{AtomicBool, Ordering};

    /// `sun_path` has 104 bytes on BSDs, 108 on Linux, with a zero at the end.
    const PATH_BYTES_MAX: usize = 100;

    pub(crate) struct WakeListener {
        socket: UnixDatagram,
        path: PathBuf,
        is_stopped: Arc<AtomicBool>,
    }

    /// Ends the wait of a listener.
    pub(crate) struct WakeStopper {
        /// Connected to the listener's socket: works also when its name has been removed.
        socket: UnixDatagram,
        is_stopped: Arc<AtomicBool>,
    }

    impl WakeListener {
        /// Binds the socket; the caller holds the owner lock, so what stands there is a dead one's. None where it cannot be
        /// bound: then other processes wake nobody, and their jobs start with the next commit of this one.
        pub(crate) fn bind(db: &Path) -> Result<Option<WakeListener>> {
            let path = beside(db, "-wake");
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("{}: cannot be removed: {error}", path.display());
            }
            let bound = with_short_path(&path, |short| UnixDatagram::bind(short));
            match bound {
                Ok(socket) => {
                    let only_us = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                    if let Err(error) = std::fs::set_permissions(&path, only_us) {
                        log::warn!("{}: its mode cannot be set: {error}", path.display());
                    }
                    Ok(Some(WakeListener {
                        socket,
                        path,
                        is_stopped: Arc::default(),
                    }))
                }
                Err(error) => {
                    log::warn!(
                        "{}: other processes cannot wake this one: {error}",
                        path.display()
                    );
                    Ok(None)
                }
            }
        }

        /// Blocks until somebody rings, and takes in what has queued up meanwhile.
        pub(crate) fn wait(&self) -> Wake {
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

        pub(crate) fn stopper(&self) -> std::io::Result<WakeStopper> {
            let socket = UnixDatagram::unbound()?;
            with_short_path(&self.path, |short| socket.connect(short))?;
            Ok(WakeStopper {
                socket,
                is_stopped: self.is_stopped.clone(),
            })
        }
    }

    impl Drop for WakeListener {
        fn drop(&mut self) {
            // A next owner may have bound its own there, but only after we let the lock go, which is later.
            std::fs::remove_file(&self.path).ok();
        }
    }

    impl WakeStopper {
        pub(crate) fn stop(&self) {
            self.is_stopped.store(true, Ordering::Release);
            // Blocking: when the queue is full, the listener is about to empty it.
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

    /// Sockets have short names. On Linux a long one is reached through its opened directory.
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

#[cfg(not(unix))]
pub(crate) use elsewhere::{WakeListener, WakeStopper};

#[cfg(not(unix))]
mod elsewhere {
    use std::path::Path;
    use std::time::Duration;

    use super::{Result, Wake};
    use crate::sync::{Receiver, Sender, bounded};

    const LOOK: Duration = Duration::from_secs(1);

    pub(crate) struct WakeListener {
        stopped: Receiver<()>,
        stopper: Sender<()>,
    }

    pub(crate) struct WakeStopper(Sender<()>);

    impl WakeListener {
        pub(crate) fn bind(_db: &Path) -> Result<Option<WakeListener>> {
            let (stopper, stopped) = bounded(1);
            Ok(Some(WakeListener { stopped, stopper }))
        }

        pub(crate) fn wait(&self) -> Wake {
            match self.stopped.recv_timeout(LOOK) {
                Ok(()) => Wake::Stopped,
                Err(_) => Wake::Rung,
            }
        }

        pub(crate) fn stopper(&self) -> std::io::Result<WakeStopper> {
            Ok(WakeStopper(self.stopper.clone()))
        }
    }

    impl WakeStopper {
        pub(crate) fn stop(&self) {
            self.0.try_send(()).ok();
        }
    }
}
