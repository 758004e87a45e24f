//! The newest events, encoded once for all streams. L3, pure.
//!
//! A stream holds no queue: it has a position here, or, when the ring has gone past it, in the log. So a slow reader costs
//! what its own buffer costs, and ten thousand events cost the same for one stream and for five hundred.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::{Event, EventKind, Seq};
use crate::http::frame;
use crate::job::JobId;

/// Some seconds of a busy queue.
const FRAMES_MAX: usize = 8192;
/// An event has about 150 bytes, one with an error message up to 8 KiB and more.
const BYTES_MAX: usize = 4 << 20;

/// An event, ready to be sent.
#[derive(Debug)]
pub(super) struct Frame {
    /// 0 for progress.
    pub(super) seq: Seq,
    kind: EventKind,
    job_id: JobId,
    job_type: Arc<str>,
    pub(super) bytes: Box<[u8]>,
}

impl Frame {
    pub(super) fn new(file_id: &str, event: &Event) -> Frame {
        Frame {
            seq: event.seq,
            kind: event.kind,
            job_id: event.job_id,
            job_type: event.job_type.clone(),
            bytes: frame::event(file_id, event).into(),
        }
    }

    /// Whether it tells of a delivery, which may end long after its job.
    pub(super) fn is_about_delivery(&self) -> bool {
        matches!(
            self.kind,
            EventKind::WebhookDelivered | EventKind::WebhookFailed
        )
    }

    /// Whether a stream of this job ends after it.
    pub(super) fn ends_job(&self) -> bool {
        self.kind.is_terminal() || self.kind == EventKind::Deleted
    }
}

/// What a stream wants to hear.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    /// All of them when it is empty.
    pub(super) kinds: Vec<EventKind>,
    pub(super) job_types: Vec<String>,
    pub(super) job: Option<JobId>,
}

impl Filter {
    pub(super) fn lets(&self, frame: &Frame) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&frame.kind))
            && (self.job_types.is_empty()
                || self.job_types.iter().any(|it| **it == *frame.job_type))
            && self.job.is_none_or(|job| job == frame.job_id)
    }

    /// Whether a stream with this filter is over, whether or not it wants to hear of it.
    pub(super) fn is_over_after(&self, frame: &Frame) -> bool {
        self.job == Some(frame.job_id) && frame.ends_job()
    }
}

/// The frames after event `base`, without a gap.
#[derive(Debug, Default)]
pub(super) struct Ring {
    frames: VecDeque<Arc<Frame>>,
    bytes: usize,
    /// The place of the first frame; places are counted since the beginning.
    first: u64,
    base: Seq,
    head: Seq,
}

impl Ring {
    /// Forgets everything: what comes next is the event after `head`. Every place that was given out is gone, the one after the
    /// last frame too: a stream that waits there would miss what is left out here.
    pub(super) fn restart(&mut self, head: Seq) {
        self.first = self.end() + 1;
        self.frames.clear();
        self.bytes = 0;
        (self.base, self.head) = (head, head);
    }

    pub(super) fn push(&mut self, frame: Frame) {
        self.bytes += frame.bytes.len();
        self.head = self.head.max(frame.seq);
        self.frames.push_back(Arc::new(frame));
        while self.frames.len() > FRAMES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.frames.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes.len();
            self.base = self.base.max(oldest.seq);
            self.first += 1;
        }
    }

    /// The newest event that is in it.
    pub(super) fn head(&self) -> Seq {
        self.head
    }

    /// The place of the first frame.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The place after the last frame.
    pub(super) fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Where a stream goes on that has everything up to `seq`; none when that is only in the log.
    pub(super) fn place_after(&self, seq: Seq) -> Option<u64> {
        if seq < self.base {
            return None;
        }
        let had = |frame: &Arc<Frame>| (1..=seq).contains(&frame.seq);
        let newer = self
            .frames
            .iter()
            .rev()
            .take_while(|frame| !had(frame))
            .count();
        Some(self.end() - newer as u64)
    }

    /// The frame at a place. `Err` when the ring has gone past it.
    pub(super) fn at(&self, place: u64) -> Result<Option<&Arc<Frame>>, Gone> {
        let index = place.checked_sub(self.first).ok_or(Gone)?;
        Ok(usize::try_from(index)
            .ok()
            .and_then(|index| self.frames.get(index)))
    }
}

/// A place that the ring has gone past.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    fn frame(seq: Seq) -> Frame {
        let event = Event {
            seq,
            kind: EventKind::Completed,
            job_id: JobId::from_i64(3),
            job_type: "import".into(),
            at: Timestamp::from_millis(0),
            phase: None,
            attempt: 1,
            data: serde_json::Map::new(),
        };
        Frame::new("ab", &event)
    }

    #[test]
    fn a_ring_that_is_full_forgets_its_oldest_and_says_so() {
        let mut ring = Ring::default();
        ring.restart(10);
        assert_eq!(ring.at(0).err(), Some(Gone));
        assert_eq!((ring.place_after(9), ring.place_after(10)), (None, Some(1)));
        let many = i64::try_from(FRAMES_MAX).expect("small");
        for seq in 11..=10 + many + 5 {
            ring.push(frame(seq));
        }
        assert_eq!(ring.at(5).err(), Some(Gone));
        assert_eq!(ring.at(6).map(|it| it.map(|it| it.seq)), Ok(Some(16)));
        assert_eq!(
            (ring.place_after(14), ring.place_after(16)),
            (None, Some(7))
        );
        assert_eq!(ring.at(ring.end()).map(|it| it.is_none()), Ok(true));
        ring.restart(99_999);
        assert_eq!(ring.at(6).err(), Some(Gone));
        assert_eq!(ring.head(), 99_999);
    }

    #[test]
    fn a_filter_lets_pass_what_fits_all_of_it() {
        let all = Filter::default();
        let other_job = Filter {
            job: Some(JobId::from_i64(4)),
            ..Filter::default()
        };
        let this = Filter {
            kinds: vec![EventKind::Failed],
            job_types: vec!["import".to_owned()],
            job: Some(JobId::from_i64(3)),
        };
        let frame = frame(1);
        assert!(all.lets(&frame) && !all.is_over_after(&frame));
        assert!(!other_job.lets(&frame) && !other_job.is_over_after(&frame));
        assert!(!this.lets(&frame) && this.is_over_after(&frame));
    }
}
