//! How long a step takes, learnt from the steps that ran: a line over the rows, followed as it moves with depth and load.
//!
//! A Kalman filter over (seconds of a step without rows, seconds of a row): where the steps say nothing of one of the two, as
//! when all have equally many rows, that one keeps its last value and grows uncertain, instead of taking any.

use std::time::Duration;

/// Of a step's time when nobody asked for another: as much again, nearly, may go to prompts while others wait for their
/// next token. Pauses then stay below twice what they are without the prompt, and the prompt takes half of the device.
const SHARE: f64 = 1.8;

/// What is known of a step's time.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Seconds of a step, and of each of its rows.
    base: f64,
    row: f64,
    /// Covariance of the two: `[base, both, row]`.
    p: [f64; 3],
    steps: u64,
    /// Of steps of few rows, by their number: the time over the line's. A second row costs more than the line says, as
    /// kernels change with it.
    few: [Option<f64>; FEW],
}

/// Steps of fewer rows are known by themselves.
const FEW: usize = 17;

impl Default for Pace {
    fn default() -> Self {
        // Before anything is known: anything from a small model to a large one.
        Pace { base: 5e-3, row: 5e-4, p: [1e-2, 0.0, 1e-4], steps: 0, few: [None; FEW] }
    }
}

impl Pace {
    /// Learns from a step of `rows` rows.
    pub(crate) fn observe(&mut self, rows: usize, elapsed: Duration) {
        if rows == 0 {
            return;
        }
        let (x, t) = (rows as f64, elapsed.as_secs_f64());
        if self.steps == 0 {
            // One step cannot tell its base from its rows: half each is a start.
            (self.base, self.row) = (0.5 * t, 0.5 * t / x);
            self.p = [0.25 * t * t, 0.0, 0.25 * t * t / (x * x)];
        }
        self.steps += 1;
        // A step that another program held up says little: it counts as twice what was expected at most.
        let expected = self.base + self.row * x;
        let error = (t - expected).min(expected);
        let noise = (0.1 * expected).powi(2);
        let [pb, c, pr] = self.p;
        // Covariance with the measurement, and its own variance.
        let (gb, gr) = (pb + c * x, c + pr * x);
        let s = gb + gr * x + noise;
        let (kb, kr) = (gb / s, gr / s);
        self.base = (self.base + kb * error).max(1e-7);
        self.row = (self.row + kr * error).max(1e-9);
        if let Some(factor) = self.few.get_mut(rows) {
            let now = expected + error;
            let ratio = (now / expected).clamp(0.2, 5.0);
            *factor = Some(factor.map_or(ratio, |f| f + 0.1 * (ratio - f)));
        }
        // Both drift by some percent a step.
        let drift = |v: f64| (0.03 * v).powi(2);
        self.p = [pb - kb * gb + drift(self.base), c - kb * gr, pr - kr * gr + drift(self.row)];
    }

    /// Expected time of a step of `rows` rows.
    pub(crate) fn predict(&self, rows: usize) -> Duration {
        let line = self.base + self.row * rows as f64;
        let factor = self.few.get(rows).copied().flatten().unwrap_or(1.0);
        Duration::from_secs_f64((line * factor).min(1e6))
    }

    /// Expected time of one row more.
    pub(crate) fn per_row(&self) -> Duration {
        Duration::from_secs_f64(self.row.min(1e6))
    }

    /// How many rows of prompts a step may have beside `decodes` rows of sequences that wait for their next token: so many
    /// that the step takes `target`, or [`SHARE`] times what it takes without; at least `least`.
    pub(crate) fn prompt_rows(&self, decodes: usize, target: Option<Duration>, least: usize) -> usize {
        if decodes == 0 {
            return usize::MAX;
        }
        let alone = self.base + self.row * decodes as f64;
        let target = target.map_or(SHARE * alone, |t| t.as_secs_f64());
        (((target - alone) / self.row) as usize).max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a device that takes `base + row * rows`, with a deterministic noise of a fifth and an outlier now and then.
    fn feed(p: &mut Pace, base: f64, row: f64, rows: impl Iterator<Item = usize>) {
        for (i, n) in rows.enumerate() {
            let noise = 1.0 + 0.2 * (i as f64 * 1.7).sin() + if i % 31 == 30 { 4.0 } else { 0.0 };
            p.observe(n, Duration::from_secs_f64((base + row * n as f64) * noise));
        }
    }

    fn close(p: &Pace, rows: usize, want: f64) {
        let got = p.predict(rows).as_secs_f64();
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
            p.observe(n, Duration::from_secs_f64(time(n)));
        }
        for n in [1, 2, 4, 8] {
            let got = p.predict(n).as_secs_f64();
            assert!((got / time(n) - 1.0).abs() < 0.05, "{n} rows: {got} instead of {}", time(n));
        }
    }

    #[test]
    fn prompts_get_what_the_target_leaves() {
        let mut p = Pace::default();
        feed(&mut p, 0.004, 0.0005, (0..200).map(|i| [4, 20, 1][i % 3]));
        assert_eq!(p.prompt_rows(0, None, 2), usize::MAX, "nobody waits for a token");
        let auto = p.prompt_rows(4, None, 2);
        assert!((7..13).contains(&auto), "{auto} rows of 0.5 ms beside a step of 6 ms");
        let target = p.prompt_rows(4, Some(Duration::from_millis(50)), 2);
        assert!((75..105).contains(&target), "{target}");
        assert_eq!(p.prompt_rows(4, Some(Duration::from_millis(1)), 2), 2, "a prompt never stands still");
    }
}
