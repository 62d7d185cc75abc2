//! What the engine did and does: one struct, made after each step, for whoever shows or exports it.

use crate::request::Class;
use std::time::Duration;

/// Upper bounds of [`Histogram`]'s buckets in seconds: three a decade, from 0.1 ms to 100 s.
const BOUNDS: [f64; 19] = [
    1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0,
    100.0,
];

/// Durations, counted by buckets as Prometheus does.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    /// Counts a duration.
    pub fn observe(&mut self, d: Duration) {
        let s = d.as_secs_f64();
        self.counts[BOUNDS.partition_point(|b| *b < s)] += 1;
        self.sum += s;
    }

    /// Upper bounds of the buckets in seconds, without the last, which has none.
    pub fn bounds() -> &'static [f64] {
        &BOUNDS
    }

    /// Durations in each bucket; the last is of those beyond all bounds.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Seconds in all.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// How many durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The bound below which a share of the durations lies, `q` of 0 to 1; none without durations, infinite beyond all bounds.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let wanted = (q * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.counts.iter().position(|c| {
            seen += c;
            seen >= wanted
        })?;
        Some(BOUNDS.get(at).copied().unwrap_or(f64::INFINITY))
    }
}

/// Figures of the engine as of its last step. Counters only grow; the others say how things stand.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EngineStats {
    /// Steps run to their end, and left because nobody wanted them any more.
    pub steps: u64,
    /// See [`Self::steps`].
    pub steps_stopped: u64,
    /// Rows computed, and those of them that were not a sequence's next token but its prompt or what a preemption gave up.
    pub rows: u64,
    /// See [`Self::rows`].
    pub prompt_rows: u64,
    /// Texts that were embedded, and their tokens.
    pub embedded_texts: u64,
    /// See [`Self::embedded_texts`].
    pub embedded_tokens: u64,
    /// Rows of the last step, and how many it could have had.
    pub last_rows: usize,
    /// See [`Self::last_rows`].
    pub last_budget: usize,
    /// What the last step took.
    pub last_step: Duration,
    /// Tokens of admitted sequences, which were looked up in the prefix cache.
    pub looked_up_tokens: u64,
    /// Those of them that the device had, so that they were not computed.
    pub cached_tokens: u64,
    /// Those that were fetched from memory or disk below the device.
    pub cached_below_tokens: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Tokens guessed ahead and computed, and those of them that came true, by all requests.
    pub drafted_tokens: u64,
    /// See [`Self::drafted_tokens`].
    pub accepted_tokens: u64,
    /// Steps of the draft model, and times that its device failed, which ends its use.
    pub draft_steps: u64,
    /// See [`Self::draft_steps`].
    pub draft_errors: u64,
    /// Sequences sent back to the queue for want of a block or for a more urgent one.
    pub preemptions: u64,
    /// Tokens whose keys and values they gave up.
    pub preempted_tokens: u64,
    /// Times that guidance took tokens of an answer back, and those tokens; see [`crate::Guide`].
    pub rewinds: u64,
    /// See [`Self::rewinds`].
    pub withdrawn_tokens: u64,
    /// Rows that guidance computed beside those of answers.
    pub guide_rows: u64,
    /// Requests with an answer that was ended because it repeated itself.
    pub repetitions: u64,
    /// Times that a sequence that outgrew its budget was shortened in the cache.
    pub evictions: u64,
    /// Tokens that were dropped by that.
    pub evicted_tokens: u64,
    /// Blocks copied because two sequences shared them and one went on.
    pub copied_blocks: u64,
    /// Blocks kept below the device.
    pub saved_blocks: u64,
    /// Blocks fetched from below.
    pub loaded_blocks: u64,
    /// Blocks in memory below the device, and their bytes.
    pub host_blocks: usize,
    /// See [`Self::host_blocks`].
    pub host_bytes: usize,
    /// Blocks on disk, and the bytes of their files.
    pub disk_blocks: usize,
    /// See [`Self::disk_blocks`].
    pub disk_bytes: u64,
    /// Files that were damaged and deleted.
    pub disk_damaged: u64,
    /// Blocks that were not written because the disk was too slow or failed.
    pub disk_dropped: u64,
    /// Copies of states that blocks own, where sequences have states, and their bytes.
    pub snapshots: usize,
    /// See [`Self::snapshots`].
    pub snapshot_bytes: usize,
    /// Copies of states that were made, and those that made room for others.
    pub snapshots_made: u64,
    /// See [`Self::snapshots_made`].
    pub snapshots_evicted: u64,
    /// Requests that came, by [`Class`].
    pub requests: [u64; Class::ALL.len()],
    /// Requests that ended by themselves.
    pub finished: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests whose deadline passed.
    pub expired: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Times that the device failed in a step.
    pub device_errors: u64,
    /// Sequences that have blocks, by [`Class`].
    pub running_by_class: [usize; Class::ALL.len()],
    /// Sequences that wait, by [`Class`].
    pub waiting_by_class: [usize; Class::ALL.len()],
    /// Sequences that have blocks.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Keys that have something to do.
    pub keys: usize,
    /// Blocks in use.
    pub blocks_used: usize,
    /// Blocks that hold a prefix that can be found again.
    pub blocks_cached: usize,
    /// All blocks.
    pub blocks_total: usize,
    /// Adapters that are loaded, or leave with their last request.
    pub adapters: usize,
    /// Their bytes.
    pub adapter_bytes: usize,
    /// Expected time of a step of one row, and of each row more.
    pub step_time: Duration,
    /// See [`Self::step_time`].
    pub row_time: Duration,
    /// From submission to admission.
    pub queue_time: Histogram,
    /// From submission to the first token.
    pub first_token: Histogram,
    /// Between the tokens of a sequence.
    pub between_tokens: Histogram,
    /// Steps.
    pub step: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let mut h = Histogram::default();
        assert_eq!((h.quantile(0.5), h.count()), (None, 0));
        for ms in [1, 1, 3, 4, 150, 200_000] {
            h.observe(Duration::from_millis(ms));
        }
        assert_eq!((h.count(), h.counts().len()), (6, Histogram::bounds().len() + 1));
        assert!((h.sum() - 200.159).abs() < 1e-9);
        assert_eq!((h.quantile(0.3), h.quantile(0.5), h.quantile(0.8)), (Some(1e-3), Some(5e-3), Some(0.2)));
        assert_eq!(h.quantile(1.0), Some(f64::INFINITY));
        assert!(Histogram::bounds().is_sorted());
    }
}
