//! How long a step takes, learnt from the steps that ran: a plane over the rows and over what they attend to, followed as it
//! moves with load.
//!
//! A Kalman filter over (seconds of a step without rows, seconds of a row, seconds of a position that a row sees): where the
//! steps say nothing of one of them, as when all have equally many rows, that one keeps its last value and grows uncertain,
//! instead of taking any.

use std::time::Duration;

/// Of a step's time when nobody asked for another: as much again, nearly, may go to prompts while others wait for their
/// next token. Pauses then stay below twice what they are without the prompt, and the prompt takes half of the device.
const SHARE: f64 = 1.8;

/// What a step computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Its rows.
    pub(crate) rows: usize,
    /// The positions that they attend to, added up.
    pub(crate) seen: usize,
}

impl Work {
    /// `rows` rows of a sequence from position `start` on.
    pub(crate) fn rows_from(start: usize, rows: usize) -> Work {
        Work { rows, seen: rows * start + rows * (rows + 1) / 2 }
    }

    /// Both.
    pub(crate) fn and(self, other: Work) -> Work {
        Work { rows: self.rows + other.rows, seen: self.seen + other.seen }
    }

    /// With another number of rows that see as far.
    pub(crate) fn of_rows(self, rows: usize) -> Work {
        Work { rows, seen: (self.seen as u128 * rows as u128 / self.rows.max(1) as u128) as usize }
    }
}

/// What is known of a step's time.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Seconds of a step, of each of its rows, and of each position that one of them sees.
    seconds: [f64; 3],
    /// Their covariance, which is symmetric.
    p: [[f64; 3]; 3],
    steps: u64,
    /// Of steps of few rows, by their number: the time over the plane's. A second row costs more than the plane says, as
    /// kernels change with it.
    few: [Option<f64>; FEW],
}

/// Steps of fewer rows are known by themselves.
const FEW: usize = 17;

/// Before anything is known: a position costs this much of a row, and may cost so much more.
const SEEN: f64 = 1e-4;
const SEEN_DOUBT: f64 = 1e-3;

impl Default for Pace {
    fn default() -> Self {
        // Before anything is known: anything from a small model to a large one.
        let p = [[1e-2, 0.0, 0.0], [0.0, 1e-4, 0.0], [0.0, 0.0, 1e-12]];
        Pace { seconds: [5e-3, 5e-4, 5e-8], p, steps: 0, few: [None; FEW] }
    }
}

impl Pace {
    /// Learns from a step.
    pub(crate) fn observe(&mut self, work: Work, elapsed: Duration) {
        if work.rows == 0 {
            return;
        }
        let x = [1.0, work.rows as f64, work.seen as f64];
        let t = elapsed.as_secs_f64();
        if self.steps == 0 {
            // One step cannot tell its parts from each other: half each is a start.
            let row = 0.5 * t / x[1];
            self.seconds = [0.5 * t, row, SEEN * row];
            let doubt = [0.5 * t, row, SEEN_DOUBT * row];
            self.p = [0, 1, 2].map(|i| [0, 1, 2].map(|j| if i == j { doubt[i] * doubt[i] } else { 0.0 }));
        }
        self.steps += 1;
        // A step that another program held up says little: it counts as twice what was expected at most.
        let expected = self.plane(work);
        let error = (t - expected).min(expected);
        let noise = (0.1 * expected).powi(2);
        // Covariance with the measurement, and its own variance.
        let g = self.p.map(|row| row.iter().zip(&x).map(|(p, x)| p * x).sum::<f64>());
        let variance = g.iter().zip(&x).map(|(g, x)| g * x).sum::<f64>() + noise;
        let gain = g.map(|g| g / variance);
        for (s, k) in self.seconds.iter_mut().zip(gain) {
            *s += k * error;
        }
        // No part takes less than nothing.
        let least = [1e-7, 1e-9, 0.0];
        for (s, least) in self.seconds.iter_mut().zip(least) {
            *s = s.max(least);
        }
        if let Some(factor) = self.few.get_mut(work.rows) {
            let ratio = ((expected + error) / expected).clamp(0.2, 5.0);
            *factor = Some(factor.map_or(ratio, |f| f + 0.1 * (ratio - f)));
        }
        // All drift by some percent a step; what is nearly nothing may still become something.
        let size = [self.seconds[0], self.seconds[1], self.seconds[2].max(0.1 * SEEN * self.seconds[1])];
        for i in 0..3 {
            for j in 0..3 {
                self.p[i][j] -= gain[i] * g[j];
            }
            self.p[i][i] += (0.03 * size[i]).powi(2);
        }
    }

    fn plane(&self, work: Work) -> f64 {
        let [base, row, seen] = self.seconds;
        base + row * work.rows as f64 + seen * work.seen as f64
    }

    /// Expected time of a step.
    pub(crate) fn predict(&self, work: Work) -> Duration {
        let factor = self.few.get(work.rows).copied().flatten().unwrap_or(1.0);
        Duration::from_secs_f64((self.plane(work) * factor).min(1e6))
    }

    /// Expected time of one row more that sees little.
    pub(crate) fn per_row(&self) -> Duration {
        Duration::from_secs_f64(self.seconds[1].min(1e6))
    }

    /// Seconds that a step has for prompts beside `decodes`, the rows of sequences that wait for their next token: until it
    /// takes `target`, or [`SHARE`] times what it takes without.
    pub(crate) fn spare(&self, decodes: Work, target: Option<Duration>) -> f64 {
        if decodes.rows == 0 {
            return f64::INFINITY;
        }
        let alone = self.plane(decodes);
        target.map_or(SHARE * alone, |t| t.as_secs_f64()) - alone
    }

    /// What `work` adds to a step, in seconds.
    pub(crate) fn adds(&self, work: Work) -> f64 {
        self.plane(work) - self.seconds[0]
    }

    /// How many rows from position `start` on add no more than `seconds` to a step.
    pub(crate) fn rows_in(&self, start: usize, seconds: f64) -> usize {
        // row n + seen (n start + n^2 / 2) = seconds, solved for n in the form that does not cancel.
        let [_, row, seen] = self.seconds;
        let linear = row + seen * start as f64;
        let root = (linear * linear + 2.0 * seen * seconds.max(0.0)).sqrt();
        let rows = 2.0 * seconds.max(0.0) / (linear + root);
        if rows.is_finite() { rows as usize } else { usize::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that see nothing to speak of.
    fn near(rows: usize) -> Work {
        Work { rows, seen: 0 }
    }

    /// Steps of a device that takes `base + row * rows`, with a deterministic noise of a fifth and an outlier now and then.
    fn feed(p: &mut Pace, base: f64, row: f64, rows: impl Iterator<Item = usize>) {
        for (i, n) in rows.enumerate() {
            let noise = 1.0 + 0.2 * (i as f64 * 1.7).sin() + if i % 31 == 30 { 4.0 } else { 0.0 };
            p.observe(near(n), Duration::from_secs_f64((base + row * n as f64) * noise));
        }
    }

    fn close(p: &Pace, rows: usize, want: f64) {
        let got = p.predict(near(rows)).as_secs_f64();
        assert!((got / want - 1.0).abs() < 0.25, "{rows} rows: {got} instead of {want}");
    }

    #[test]
    fn a_line_is_learnt_and_followed() {
        let mut p = Pace::default();
        feed(&mut p, 0.003, 0.0006, (0..200).map(|i| [1, 9, 64, 2][i % 4]));
        close(&p, 1, 0.0036);
        close(&p, 64, 0.0414);
        // Ten times slower from now on.
        feed(&mut p, 0.03, 0.006, (0..100).map(|i| [1, 9, 64, 2][i % 4]));
        close(&p, 1, 0.036);
        close(&p, 64, 0.414);
    }

    #[test]
    fn steps_of_one_size_say_what_that_size_takes() {
        let mut p = Pace::default();
        feed(&mut p, 0.04, 0.007, std::iter::repeat_n(1, 50));
        close(&p, 1, 0.047);
        feed(&mut p, 0.04, 0.007, std::iter::repeat_n(8, 50));
        close(&p, 8, 0.096);
        close(&p, 1, 0.047);
    }

    #[test]
    fn a_step_of_two_rows_may_cost_more_than_the_line_says() {
        let mut p = Pace::default();
        let time = |n: usize| 1e-3 * if n == 1 { 2.5 } else { 3.2 + 0.1 * n as f64 };
        for i in 0..400 {
            let n = [1, 1, 2, 1, 8, 1, 4, 1][i % 8];
            p.observe(near(n), Duration::from_secs_f64(time(n)));
        }
        for n in [1, 2, 4, 8] {
            let got = p.predict(near(n)).as_secs_f64();
            assert!((got / time(n) - 1.0).abs() < 0.05, "{n} rows: {got} instead of {}", time(n));
        }
    }

    #[test]
    fn prompts_get_what_the_target_leaves() {
        let mut p = Pace::default();
        feed(&mut p, 0.004, 0.0005, (0..200).map(|i| [4, 20, 1][i % 3]));
        assert_eq!(p.spare(Work::default(), None), f64::INFINITY, "nobody waits for a token");
        assert_eq!(p.rows_in(0, f64::INFINITY), usize::MAX);
        let auto = p.rows_in(0, p.spare(near(4), None));
        assert!((7..13).contains(&auto), "{auto} rows of 0.5 ms beside a step of 6 ms");
        let target = p.rows_in(0, p.spare(near(4), Some(Duration::from_millis(50))));
        assert!((60..105).contains(&target), "{target}");
        assert_eq!(p.rows_in(0, p.spare(near(4), Some(Duration::from_millis(1)))), 0);
    }

    #[test]
    fn rows_that_see_far_cost_more_and_fewer_of_them_fit() {
        let (base, row, seen) = (0.008, 0.002, 0.7e-6);
        let time = |w: Work| base + row * w.rows as f64 + seen * w.seen as f64;
        let mut p = Pace::default();
        // A prompt of 16k tokens beside 8 sequences of 300, in chunks that follow what is learnt.
        let decodes = Work { rows: 8, seen: 8 * 300 };
        for _ in 0..50 {
            p.observe(decodes, Duration::from_secs_f64(time(decodes)));
        }
        let (mut start, mut worst) = (0, 0f64);
        while start < 16_384 {
            let rows = p.rows_in(start, p.spare(decodes, None)).max(2);
            let step = decodes.and(Work::rows_from(start, rows));
            let noise = 1.0 + 0.1 * (start as f64 * 0.7).sin();
            p.observe(step, Duration::from_secs_f64(time(step) * noise));
            if start > 512 {
                worst = worst.max(time(step) / time(decodes));
            }
            start += rows;
        }
        assert!(worst < 2.2, "a step took {worst} times what it takes without the prompt");
        assert!((p.seconds[2] / seen - 1.0).abs() < 0.3, "{} instead of {seen}", p.seconds[2]);
    }

    #[test]
    fn work_adds_up() {
        let w = Work::rows_from(10, 3);
        assert_eq!(w, Work { rows: 3, seen: 11 + 12 + 13 });
        assert_eq!(w.and(Work { rows: 1, seen: 4 }), Work { rows: 4, seen: 40 });
        assert_eq!(w.of_rows(1), Work { rows: 1, seen: 12 });
        assert_eq!(Work::default().of_rows(5), Work { rows: 5, seen: 0 });
    }
}
