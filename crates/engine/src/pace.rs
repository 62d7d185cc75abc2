//! How long a step takes, learnt from the steps that ran: a plane over the rows and over what they attend to, followed as it
//! moves with load.
//!
//! A Kalman filter over (seconds of a step without rows, seconds of a row, seconds of a position that a row sees): where the
//! steps say nothing of one of them, as when all have equally many rows, that one keeps its last value and grows uncertain,
//! instead of taking any. A device is no plane: kernels change with the number of rows, and on a GPU the first hundred rows cost
//! little more than one. So sizes of steps have a factor over the plane each, and a step may grow into sizes not yet known.

use std::time::Duration;

/// Of a step's time when nobody asked for another: as much again, nearly, may go to prompts while others wait for their
/// next token. Pauses then stay below twice what they are without the prompt, and the prompt takes half of the device.
const SHARE: f64 = 1.8;

/// Seconds that a step may take for prompts in any case: 40 tokens a second. Shorter steps would only be shorter: nobody reads
/// so fast, and few rows of a prompt cost more each, most of all far behind its beginning.
const SMOOTH: f64 = 0.025;

/// Seconds that a step may always take for the sake of many who wait for their first token: 20 tokens a second are faster than
/// people read.
const PAUSE: f64 = 0.05;

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
    /// By size of a step: its time over the plane's.
    factors: [Option<f64>; SIZES],
}

/// Numbers of rows below this are a size each; above it, two sizes are an octave.
const FEW: usize = 16;
const SIZES: usize = FEW + 2 * 16;

/// The size that a number of rows belongs to.
fn size(rows: usize) -> usize {
    if rows < FEW {
        return rows;
    }
    let octave = rows.ilog2() as usize;
    (FEW + 2 * (octave - 4) + (rows >> (octave - 1) & 1)).min(SIZES - 1)
}

/// How fast a factor follows what is measured.
const FOLLOW: f64 = 0.2;

/// Before anything is known: a position costs this much of a row, and may cost so much more.
const SEEN: f64 = 1e-4;
const SEEN_DOUBT: f64 = 1e-3;

impl Default for Pace {
    fn default() -> Self {
        // Before anything is known: anything from a small model to a large one.
        let p = [[1e-2, 0.0, 0.0], [0.0, 1e-4, 0.0], [0.0, 0.0, 1e-12]];
        Pace { seconds: [5e-3, 5e-4, 5e-8], p, steps: 0, factors: [None; SIZES] }
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
        let ratio = ((expected + error) / expected).clamp(0.2, 5.0);
        let factor = &mut self.factors[size(work.rows)];
        *factor = Some(factor.map_or(ratio, |f| f + FOLLOW * (ratio - f)));
        // All drift by some percent a step; what is nearly nothing may still become something.
        let scale = [self.seconds[0], self.seconds[1], self.seconds[2].max(0.1 * SEEN * self.seconds[1])];
        for i in 0..3 {
            for j in 0..3 {
                self.p[i][j] -= gain[i] * g[j];
            }
            self.p[i][i] += (0.03 * scale[i]).powi(2);
        }
    }

    fn plane(&self, work: Work) -> f64 {
        let [base, row, seen] = self.seconds;
        base + row * work.rows as f64 + seen * work.seen as f64
    }

    /// The factor of a number of rows: that of its size, else of the next smaller one that is known, else of the next larger.
    fn factor(&self, rows: usize) -> f64 {
        let (below, above) = self.factors.split_at(size(rows) + 1);
        below.iter().rev().chain(above).find_map(|f| *f).unwrap_or(1.0)
    }

    fn expected(&self, work: Work) -> f64 {
        self.plane(work) * self.factor(work.rows)
    }

    /// Expected time of a step.
    pub(crate) fn predict(&self, work: Work) -> Duration {
        Duration::from_secs_f64(self.expected(work).min(1e6))
    }

    /// Expected time of one row more that sees little.
    pub(crate) fn per_row(&self) -> Duration {
        Duration::from_secs_f64(self.seconds[1].min(1e6))
    }

    /// Seconds that a step may take: `alone`, what it takes with `decodes` only, the rows of sequences that wait for their next
    /// token, and `whole`, with the prompts beside them, of which so many wait for their first. That is `target`; by default
    /// [`SHARE`] times `alone` and [`SMOOTH`] at least, or while it stays below [`PAUSE`] what makes all wait alike: each second of a
    /// prompt holds up every decoding sequence, each second without holds up every prompt.
    pub(crate) fn allowed(&self, decodes: Work, prompts: usize, target: Option<Duration>) -> Allowed {
        if decodes.rows == 0 {
            return Allowed { alone: 0.0, whole: f64::INFINITY };
        }
        let alone = self.expected(decodes);
        let fair = alone * (1.0 + prompts as f64 / decodes.rows as f64);
        let whole =
            target.map_or_else(|| fair.min(PAUSE).max(SHARE * alone).max(SMOOTH), |t| t.as_secs_f64());
        Allowed { alone, whole }
    }

    /// How many rows from position `start` on fit beside `planned` into a step of so many seconds, of `most` at most.
    pub(crate) fn rows_beside(&self, planned: Work, start: usize, seconds: f64, most: usize) -> usize {
        let fits = |rows| self.expected(planned.and(Work::rows_from(start, rows))) <= seconds;
        if fits(most) {
            return most;
        }
        // Times grow with rows but for a size whose factor is stale, which the next steps mend.
        let (mut fit, mut over) = (0, most);
        while over - fit > 1 {
            let middle = fit + (over - fit) / 2;
            *(if fits(middle) { &mut fit } else { &mut over }) = middle;
        }
        fit
    }
}

/// See [`Pace::allowed`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    pub(crate) alone: f64,
    pub(crate) whole: f64,
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
        let rows = |prompts, target| {
            let allowed = p.allowed(near(4), prompts, target);
            p.rows_beside(near(4), 0, allowed.whole, 4096)
        };
        assert_eq!(p.allowed(Work::default(), 1, None).whole, f64::INFINITY, "nobody waits for a token");
        assert_eq!(p.rows_beside(near(0), 0, f64::INFINITY, 4096), 4096);
        let (auto, many) = (rows(1, None), rows(400, None));
        assert!((30..45).contains(&auto), "{auto} rows of 0.5 ms beside a step of 6 ms, until it takes 25");
        assert!((60..105).contains(&many), "{many} rows for 400 that wait, until it takes 50 ms");
        let mut slow = Pace::default();
        feed(&mut slow, 0.04, 0.005, (0..200).map(|i| [4, 20, 1][i % 3]));
        let more = slow.rows_beside(near(4), 0, slow.allowed(near(4), 1, None).whole, 4096);
        assert!((7..13).contains(&more), "{more} rows of 5 ms beside a step of 60 ms");
        let target = rows(1, Some(Duration::from_millis(50)));
        assert!((60..105).contains(&target), "{target}");
        assert_eq!(rows(400, Some(Duration::from_millis(1))), 0);
    }

    /// A GPU: one row and a hundred take about as long, eight a little more than sixteen, and then it grows with the rows.
    #[test]
    fn steps_grow_to_what_a_gpu_can_take() {
        let time = |rows: usize| {
            1e-3 * match rows {
                0..=1 => 5.7,
                2..=15 => 7.6,
                _ => 7.0 + 0.031 * rows as f64,
            }
        };
        let took = |work: Work| Duration::from_secs_f64(time(work.rows) + 1e-9 * work.seen as f64);
        for decodes in [1, 4, 8, 32] {
            let mut p = Pace::default();
            // A slow first step, as kernels are loaded, and a phase of decoding.
            p.observe(Work::rows_from(0, 256), Duration::from_millis(90));
            for i in 0..100 {
                let n = 1 + i % 8;
                let step = Work { rows: n, seen: n * 300 };
                p.observe(step, took(step));
            }
            let n = Work { rows: decodes, seen: decodes * 300 };
            let mut share = 0.0;
            for i in 0..60 {
                let rows = p.rows_beside(n, 100, p.allowed(n, 4 * decodes, None).whole, 4096).max(2);
                let step = n.and(Work::rows_from(100, rows));
                share = took(step).as_secs_f64() / (5.0 * time(decodes)).min(PAUSE);
                let step = if i % 3 == 2 { n } else { step };
                p.observe(step, took(step));
            }
            assert!((0.75..1.25).contains(&share), "{decodes} decode: a step takes {share} of what it may");
        }
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
            let rows = p.rows_beside(decodes, start, p.allowed(decodes, 1, None).whole, 4096).max(2);
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
