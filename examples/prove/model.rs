//! The modules of the model test, and the counters that it shares with the other proofs.

pub(crate) use crate::counters;

#[path = "../../tests/model/answers.rs"]
mod answers;
#[path = "../../tests/model/compare.rs"]
mod compare;
#[path = "../../tests/model/drive.rs"]
mod drive;
#[path = "../../tests/model/ends.rs"]
mod ends;
#[path = "../../tests/model/kinds.rs"]
mod kinds;
#[allow(clippy::module_inception, reason = "the plain model of the model test")]
#[path = "../../tests/model/model.rs"]
mod model;
#[path = "../../tests/model/outbox.rs"]
mod outbox;
#[path = "../../tests/model/run.rs"]
pub(crate) mod run;
#[path = "../../tests/model/shrink.rs"]
mod shrink;
#[path = "../../tests/model/stage.rs"]
mod stage;
#[path = "../../tests/model/step.rs"]
mod step;
#[path = "../../tests/model/view.rs"]
mod view;
