//! Workers that are too many.

use std::sync::Arc;

use loom::thread;

use crate::surplus::Surplus;

/// One is replaced, and two see it at the same time.
#[test]
fn no_more_workers_end_than_were_replaced() {
    loom::model(|| {
        let surplus = Arc::new(Surplus::default());
        surplus.add();
        let other = {
            let surplus = surplus.clone();
            thread::spawn(move || surplus.take())
        };
        let ended = usize::from(surplus.take()) + usize::from(other.join().expect("it ends"));
        assert_eq!(ended, 1, "one was replaced");
        assert!(!surplus.take(), "and nobody else");
    });
}

/// Two workers are replaced while two others look whether they are to go on.
#[test]
fn as_many_workers_end_as_were_replaced() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(|| {
        let surplus = Arc::new(Surplus::default());
        let replacing = {
            let surplus = surplus.clone();
            thread::spawn(move || surplus.add())
        };
        let workers = [(); 2].map(|()| {
            let surplus = surplus.clone();
            thread::spawn(move || surplus.take())
        });
        surplus.add();
        replacing.join().expect("it ends");
        let mut ended = 0;
        for worker in workers {
            ended += usize::from(worker.join().expect("it ends"));
        }
        // Whoever comes next, as long as there is one.
        while surplus.take() {
            ended += 1;
        }
        assert_eq!(ended, 2, "as many as were replaced");
    });
}
