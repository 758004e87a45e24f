//! What the bus uses of `crate::event`.

use crate::job::JobId;

pub(crate) type Seq = i64;

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) job_id: JobId,
}
