//! When readings that arrive one by one leave together: after [`limits::EVENT_BATCH`] of them, or
//! [`limits::EVENT_DELAY`] after the first. Pure.

use std::time::Duration;

use crate::limits;

/// What has arrived and not left.
#[derive(Debug)]
pub struct Batcher<T> {
    waiting: Vec<T>,
    due: Duration,
}

impl<T> Default for Batcher<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), due: Duration::ZERO }
    }
}

impl<T> Batcher<T> {
    /// Takes one. The batch, when it is full by that.
    pub fn push(&mut self, now: Duration, item: T) -> Option<Vec<T>> {
        if self.waiting.is_empty() {
            self.due = now.saturating_add(limits::EVENT_DELAY);
        }
        self.waiting.push(item);
        (self.waiting.len() >= limits::EVENT_BATCH).then(|| self.take())
    }

    /// When the batch is to leave. None while nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(self.due)
    }

    /// All that waits.
    pub fn take(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_leaves_when_it_is_full_or_a_tenth_of_a_second_after_its_first() {
        let at = Duration::from_millis;
        let mut batcher = Batcher::default();
        assert_eq!(batcher.due(), None, "nothing happens, nobody wakes");
        for n in 0..9 {
            assert_eq!(batcher.push(at(n), n), None);
            assert_eq!(batcher.due(), Some(at(100)), "the first one counts");
        }
        assert_eq!(batcher.push(at(9), 9), Some((0..10).collect()));
        assert_eq!(batcher.due(), None);
        assert_eq!(batcher.push(at(500), 1), None);
        assert_eq!((batcher.due(), batcher.take(), batcher.due()), (Some(at(600)), vec![1], None));
    }
}
