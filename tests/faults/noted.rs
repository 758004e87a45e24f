//! What the process whose I/O fails says of it in its log.

use std::sync::Arc;

use super::NOTED;
use crate::journal::Journal;

/// Writes down what the committer says of commits in doubt.
pub(super) fn count(journal: &Arc<Journal>) {
    struct Log(Arc<Journal>);
    impl log::Log for Log {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let text = record.args().to_string();
            eprintln!("{} {text}", record.level());
            for (part, what) in NOTED {
                if text.contains(part) {
                    self.0.line(&format!("N {what}"));
                }
            }
        }
        fn flush(&self) {}
    }
    log::set_logger(Box::leak(Box::new(Log(journal.clone())))).expect("no other logger is there");
    log::set_max_level(log::LevelFilter::Debug);
}
