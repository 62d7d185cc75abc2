//! An engine under load: streams side by side, arrivals at random, a long prompt among streams, and many short requests.
//! The clients are threads of this process, and ask as a server's handlers would.

use crate::session::made_up;
use crate::stats::percentile;
use crate::text::table;
use crate::{Error, Progress, Result};
use quarrel_engine::{EngineStats, Event, Handle, Request, Sampling};
use serde::Serialize;
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What to load an engine with.
#[derive(Debug, Clone)]
pub struct LoadWork {
    /// Tokens of a prompt, and of an answer.
    pub prompt: usize,
    /// See [`Self::prompt`].
    pub answer: usize,
    /// Numbers of streams that each send a request when the last one is answered.
    pub streams: Vec<usize>,
    /// Requests of each stream.
    pub rounds: usize,
    /// Requests per second that arrive at random; empty chooses shares of what the streams reached.
    pub rates: Vec<f64>,
    /// Seconds of arrivals at each rate; 0 leaves them out.
    pub seconds: f64,
    /// A request is good if its first token comes by then and its tokens come so fast on average.
    pub slo: Slo,
    /// Tokens of a prompt that comes while four streams run; 0 leaves it out.
    pub long_prompt: usize,
    /// Short requests one after the other on eight streams; 0 leaves them out.
    pub soak: usize,
    /// Of the arrivals.
    pub seed: u64,
    /// Size of the vocabulary.
    pub vocab: usize,
}

/// What a user would call good service.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Slo {
    /// Time to the first token in milliseconds.
    pub ttft_ms: f64,
    /// Mean time between tokens in milliseconds.
    pub itl_ms: f64,
}

/// Streams at which the gain by batching is quoted.
const MANY: usize = 8;
/// Streams that run while a long prompt comes.
const BESIDE: usize = 4;
/// Shares of the streams' request rate at which requests arrive, where no rates are given.
const SHARES: [f64; 3] = [0.5, 0.75, 0.9];

impl LoadWork {
    /// Sequences that run at once at most, where the caller does not limit them.
    pub fn most_streams(&self) -> usize {
        self.streams.iter().copied().max().unwrap_or(1).max(MANY)
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        (self.prompt + self.answer).max(self.long_prompt + 2).max(if self.long_prompt > 0 {
            self.beside()
        } else {
            0
        }) + 1
    }

    /// Tokens that the streams beside a long prompt have at most: one for each row of it would be too many.
    fn beside(&self) -> usize {
        self.prompt + 4096.max(self.long_prompt / 2)
    }

    /// Tokens in the cache when all is in it that may be.
    pub fn cache_tokens(&self) -> usize {
        let streams = self.most_streams() * (self.prompt + self.answer + 32);
        let long = if self.long_prompt > 0 { self.longest() + BESIDE * self.beside() } else { 0 };
        streams.max(long)
    }

    /// Requests in all, for a progress bar.
    pub fn parts(&self) -> usize {
        let rates = if self.rates.is_empty() { SHARES.len() } else { self.rates.len() };
        self.streams.len()
            + if self.seconds > 0.0 { rates } else { 0 }
            + usize::from(self.long_prompt > 0)
            + usize::from(self.soak > 0)
    }
}

/// The report, as `--json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// The model, as the user knows it.
    pub model: String,
    /// Where it ran: threads and the processor's instructions, or the GPU.
    pub device: String,
    /// Tokens of each prompt and answer.
    pub prompt: usize,
    /// See [`Self::prompt`].
    pub answer: usize,
    /// By number of streams.
    pub streams: Vec<Level>,
    /// Aggregate speed of eight streams over that of one.
    pub gain_at_8: Option<f64>,
    /// By arrival rate.
    pub arrivals: Vec<Arrivals>,
    /// What counted as good.
    pub slo: Slo,
    /// A long prompt among streams.
    pub long_prompt: Option<LongPrompt>,
    /// Many short requests.
    pub soak: Option<Soak>,
    /// Most memory that the process held.
    pub peak_rss_bytes: Option<u64>,
}

/// Waits of the requests of one measurement, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Waits {
    /// First token: median.
    pub ttft_p50_ms: f64,
    /// And 99th percentile.
    pub ttft_p99_ms: f64,
    /// Between tokens: median.
    pub itl_p50_ms: f64,
    /// And 99th percentile.
    pub itl_p99_ms: f64,
}

/// Streams that each send a request when the last is answered.
#[derive(Debug, Clone, Serialize)]
pub struct Level {
    /// How many.
    pub streams: usize,
    /// Requests answered.
    pub requests: usize,
    /// New tokens a second, all streams together.
    pub tokens_per_s: f64,
    /// Requests a second.
    pub requests_per_s: f64,
    /// What they waited.
    #[serde(flatten)]
    pub waits: Waits,
}

/// Requests that arrive at random (a Poisson process), whether the last are answered or not.
#[derive(Debug, Clone, Serialize)]
pub struct Arrivals {
    /// Requests a second that were sent.
    pub rate: f64,
    /// Requests sent.
    pub requests: usize,
    /// Of those, refused with a time to come back.
    pub refused: usize,
    /// Answered within the objective, a second.
    pub goodput: f64,
    /// And as a share of those sent.
    pub good_share: f64,
    /// What the answered ones waited.
    #[serde(flatten)]
    pub waits: Waits,
}

/// A long prompt among four streams.
#[derive(Debug, Clone, Serialize)]
pub struct LongPrompt {
    /// Its tokens.
    pub tokens: usize,
    /// Until its first token.
    pub ttft_s: f64,
    /// Between the streams' tokens before it came.
    pub before_p50_ms: f64,
    /// While it came.
    pub during_p50_ms: f64,
    /// The same, 99th percentile.
    pub during_p99_ms: f64,
    /// The longest.
    pub during_max_ms: f64,
}

/// Many short requests.
#[derive(Debug, Clone, Serialize)]
pub struct Soak {
    /// How many.
    pub requests: usize,
    /// Requests a second.
    pub requests_per_s: f64,
    /// Resident memory after a tenth of them and after all.
    pub rss_after_tenth: Option<u64>,
    /// See [`Self::rss_after_tenth`].
    pub rss_at_end: Option<u64>,
    /// Blocks in use when all were answered.
    pub blocks_left: usize,
}

/// One request as its client saw it.
#[derive(Debug, Clone, Default)]
struct Seen {
    ttft: f64,
    /// Seconds between tokens.
    pauses: Vec<f64>,
    tokens: usize,
    refused: bool,
}

impl Seen {
    fn is_good(&self, slo: &Slo) -> bool {
        let mean = self.pauses.iter().sum::<f64>() / self.pauses.len().max(1) as f64;
        !self.refused && 1e3 * self.ttft <= slo.ttft_ms && 1e3 * mean <= slo.itl_ms
    }
}

/// Sends a request and reads its answer to the end. Every prompt is another one, so that none is cached.
fn client(handle: &Handle, prompt: Vec<u32>, answer: usize) -> Result<Seen> {
    let began = Instant::now();
    let request = Request {
        sampling: Sampling::greedy(),
        max_tokens: u32::try_from(answer).ok(),
        ignore_eos: true,
        ..Request::new(prompt)
    };
    let stream = match handle.submit(request) {
        Ok(stream) => stream,
        Err(quarrel_engine::Error::QueueFull { .. }) => return Ok(Seen { refused: true, ..Seen::default() }),
        Err(e) => return Err(e.into()),
    };
    let (mut seen, mut last) = (Seen::default(), began);
    for event in stream {
        match event {
            Event::Token { .. } => {
                let now = Instant::now();
                let pause = (now - last).as_secs_f64();
                if seen.tokens == 0 {
                    seen.ttft = pause
                } else {
                    seen.pauses.push(pause)
                }
                (last, seen.tokens) = (now, seen.tokens + 1);
            }
            Event::Failed(e) => return Err(e.into()),
            _ => {}
        }
    }
    Ok(seen)
}

/// A prompt that no other has.
struct Prompts {
    next: AtomicU64,
    vocab: usize,
}

impl Prompts {
    fn next(&self, n: usize) -> Vec<u32> {
        let salt = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        let mut prompt = made_up(n, self.vocab);
        prompt.iter_mut().for_each(|t| *t = ((*t as usize + 131 * salt) % self.vocab.max(1)) as u32);
        prompt
    }
}

fn waits(seen: &[Seen]) -> Waits {
    let answered = || seen.iter().filter(|s| !s.refused);
    let ttft: Vec<f64> = answered().map(|s| 1e3 * s.ttft).collect();
    let pauses: Vec<f64> = answered().flat_map(|s| &s.pauses).map(|p| 1e3 * p).collect();
    let of = |values: &[f64], p| percentile(values, p).unwrap_or(0.0);
    Waits {
        ttft_p50_ms: of(&ttft, 50.0),
        ttft_p99_ms: of(&ttft, 99.0),
        itl_p50_ms: of(&pauses, 50.0),
        itl_p99_ms: of(&pauses, 99.0),
    }
}

/// `n` clients that each send `each(i)` requests one after the other.
fn streams(
    n: usize,
    rounds: usize,
    ask: &(impl Fn(usize) -> Result<Seen> + Sync),
    stop: fn() -> bool,
) -> Result<Vec<Seen>> {
    let one = |s: usize| (0..rounds).take_while(|_| !stop()).map(|_| ask(s)).collect::<Result<Vec<Seen>>>();
    let all: Result<Vec<Vec<Seen>>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..n).map(|s| scope.spawn(move || one(s))).collect();
        clients.into_iter().map(|c| c.join().map_err(|_| Error::Work("a client panicked".into()))?).collect()
    });
    Ok(all?.into_iter().flatten().collect())
}

/// Loads the engine in all the ways that `work` wants. `rss` tells the memory of this process.
///
/// # Errors
/// What the engine refuses for other reasons than its load, and [`Error::Stopped`].
pub fn load(
    handle: &Handle,
    work: &LoadWork,
    (model, device): (&str, &str),
    rss: fn() -> Option<u64>,
    stop: fn() -> bool,
    progress: Progress,
) -> Result<LoadReport> {
    let prompts = Prompts { next: AtomicU64::new(1), vocab: work.vocab };
    let mut report = LoadReport {
        model: model.into(),
        device: device.into(),
        prompt: work.prompt,
        answer: work.answer,
        streams: Vec::new(),
        gain_at_8: None,
        arrivals: Vec::new(),
        slo: work.slo,
        long_prompt: None,
        soak: None,
        peak_rss_bytes: None,
    };
    let check = || if stop() { Err(Error::Stopped) } else { Ok(()) };
    // What a fresh cache costs is not measured here.
    client(handle, prompts.next(work.prompt), work.answer.min(8))?;
    for &n in &work.streams {
        progress(&format!("{n} streams"));
        let began = Instant::now();
        let seen =
            streams(n, work.rounds, &|_| client(handle, prompts.next(work.prompt), work.answer), stop)?;
        check()?;
        let seconds = began.elapsed().as_secs_f64();
        let tokens: usize = seen.iter().map(|s| s.tokens).sum();
        report.streams.push(Level {
            streams: n,
            requests: seen.len(),
            tokens_per_s: tokens as f64 / seconds,
            requests_per_s: seen.len() as f64 / seconds,
            waits: waits(&seen),
        });
    }
    let speed = |n| report.streams.iter().find(|l| l.streams == n).map(|l| l.tokens_per_s);
    report.gain_at_8 = speed(MANY).zip(speed(1)).map(|(many, one)| many / one);
    for rate in rates(work, &report.streams) {
        progress(&format!("{rate:.2} requests/s"));
        report.arrivals.push(arrivals(handle, work, rate, &prompts, stop)?);
        check()?;
    }
    if work.long_prompt > 0 {
        progress("a long prompt");
        report.long_prompt = Some(long_prompt(handle, work, &prompts)?);
        check()?;
    }
    if work.soak > 0 {
        progress("short requests");
        report.soak = Some(soak(handle, work, &prompts, rss, stop)?);
        check()?;
    }
    Ok(report)
}

fn rates(work: &LoadWork, levels: &[Level]) -> Vec<f64> {
    if work.seconds <= 0.0 {
        return Vec::new();
    }
    let reached = levels.iter().map(|l| l.requests_per_s).fold(0.0, f64::max);
    match work.rates.is_empty() {
        true => SHARES.iter().map(|s| s * reached).filter(|r| *r > 0.0).collect(),
        false => work.rates.clone(),
    }
}

/// Uniform numbers above 0 and up to 1 (splitmix64).
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::EPSILON
    }
}

/// Clients at once; more than this would be threads that wait.
const CLIENTS_MAX: usize = 512;

fn arrivals(
    handle: &Handle,
    work: &LoadWork,
    rate: f64,
    prompts: &Prompts,
    stop: fn() -> bool,
) -> Result<Arrivals> {
    let mut random = Uniform(work.seed);
    let (began, mut at) = (Instant::now(), 0.0);
    let all = thread::scope(|scope| {
        let mut clients = Vec::new();
        loop {
            // The time to the next arrival of a Poisson process is exponential.
            at -= random.next().ln() / rate;
            if at > work.seconds || clients.len() >= CLIENTS_MAX || stop() {
                break;
            }
            thread::sleep(Duration::from_secs_f64((at - began.elapsed().as_secs_f64()).max(0.0)));
            let prompt = prompts.next(work.prompt);
            clients.push(scope.spawn(move || client(handle, prompt, work.answer)));
        }
        clients
            .into_iter()
            .map(|c| c.join().map_err(|_| Error::Work("a client panicked".into()))?)
            .collect::<Result<Vec<Seen>>>()
    })?;
    let good = all.iter().filter(|s| s.is_good(&work.slo)).count();
    Ok(Arrivals {
        rate,
        requests: all.len(),
        refused: all.iter().filter(|s| s.refused).count(),
        goodput: good as f64 / began.elapsed().as_secs_f64().max(work.seconds),
        good_share: good as f64 / all.len().max(1) as f64,
        waits: waits(&all),
    })
}

/// A stream's request goes on until the long prompt's first token has come.
fn long_prompt(handle: &Handle, work: &LoadWork, prompts: &Prompts) -> Result<LongPrompt> {
    /// Tokens of each stream before the long prompt comes.
    const SETTLE: usize = 48;
    let (settled, failed) = (AtomicUsize::new(0), Mutex::new(None));
    // Times at which the streams' tokens came.
    let times: Mutex<Vec<Vec<Instant>>> = Mutex::new(Vec::new());
    let over = AtomicUsize::new(0);
    let stream = || {
        let request = Request {
            sampling: Sampling::greedy(),
            max_tokens: u32::try_from(work.beside() - work.prompt).ok(),
            ignore_eos: true,
            ..Request::new(prompts.next(work.prompt))
        };
        let mut own = Vec::new();
        for event in handle.submit(request)? {
            match event {
                Event::Token { .. } => {
                    own.push(Instant::now());
                    if own.len() == SETTLE {
                        settled.fetch_add(1, Ordering::AcqRel);
                    }
                }
                Event::Failed(e) => return Err(e.into()),
                _ => {}
            }
            if over.load(Ordering::Acquire) > 0 {
                break;
            }
        }
        times.lock().unwrap_or_else(PoisonError::into_inner).push(own);
        Ok::<_, Error>(())
    };
    let (came, ttft) = thread::scope(|scope| {
        for _ in 0..BESIDE {
            scope.spawn(|| {
                if let Err(e) = stream() {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                    settled.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        while settled.load(Ordering::Acquire) < BESIDE {
            thread::sleep(Duration::from_millis(1));
        }
        let came = Instant::now();
        let seen = client(handle, prompts.next(work.long_prompt), 1);
        over.store(1, Ordering::Release);
        seen.map(|s| (came, s.ttft))
    })?;
    if let Some(e) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(e);
    }
    let (mut before, mut during) = (Vec::new(), Vec::new());
    let end = came + Duration::from_secs_f64(ttft);
    for own in times.into_inner().unwrap_or_else(PoisonError::into_inner) {
        // The first pauses are beside the other streams' prompts.
        for pair in own[SETTLE / 2..].windows(2) {
            let pause = 1e3 * (pair[1] - pair[0]).as_secs_f64();
            if pair[1] <= came {
                before.push(pause);
            } else if pair[1] <= end {
                during.push(pause);
            }
        }
    }
    let of = |values: &[f64], p| percentile(values, p).unwrap_or(0.0);
    Ok(LongPrompt {
        tokens: work.long_prompt,
        ttft_s: ttft,
        before_p50_ms: of(&before, 50.0),
        during_p50_ms: of(&during, 50.0),
        during_p99_ms: of(&during, 99.0),
        during_max_ms: of(&during, 100.0),
    })
}

/// Short requests of many lengths; some are cancelled.
fn soak(
    handle: &Handle,
    work: &LoadWork,
    prompts: &Prompts,
    rss: fn() -> Option<u64>,
    stop: fn() -> bool,
) -> Result<Soak> {
    let done = AtomicUsize::new(0);
    let early = Mutex::new(None);
    let tenth = (work.soak / 10).max(1);
    let began = Instant::now();
    let each = work.soak.div_ceil(MANY);
    let ask = |_| {
        let i = done.fetch_add(1, Ordering::AcqRel);
        if i == tenth {
            *early.lock().unwrap_or_else(PoisonError::into_inner) = rss();
        }
        let prompt = prompts.next(1 + i % 23);
        if i % 37 == 36 {
            // Somebody who leaves.
            drop(handle.submit(Request::new(prompt))?);
            return Ok(Seen::default());
        }
        client(handle, prompt, 1 + i % 3)
    };
    let seen = streams(MANY, each, &ask, stop)?;
    let seconds = began.elapsed().as_secs_f64();
    // One that was left is over soon.
    let mut stats: EngineStats = handle.stats();
    for _ in 0..1000 {
        if stats.blocks_used == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(5));
        stats = handle.stats();
    }
    Ok(Soak {
        requests: seen.len(),
        requests_per_s: seen.len() as f64 / seconds,
        rss_after_tenth: early.into_inner().unwrap_or_else(PoisonError::into_inner),
        rss_at_end: rss(),
        blocks_left: stats.blocks_used,
    })
}

/// The report as people read it.
pub fn text(r: &LoadReport) -> String {
    let mut out =
        format!("{} on {}: prompts of {} tokens, answers of {}\n\n", r.model, r.device, r.prompt, r.answer);
    let ms = |x: f64| format!("{x:.1}");
    let wait = |w: &Waits| [ms(w.ttft_p50_ms), ms(w.ttft_p99_ms), ms(w.itl_p50_ms), ms(w.itl_p99_ms)];
    let head = |first: &str, second: &str, third: &str| {
        [first, second, third, "TTFT P50 MS", "P99", "ITL P50 MS", "P99"].map(String::from).to_vec()
    };
    let mut rows = vec![head("STREAMS", "TOKENS/S", "REQUESTS/S")];
    for l in &r.streams {
        let first =
            [l.streams.to_string(), format!("{:.1}", l.tokens_per_s), format!("{:.2}", l.requests_per_s)];
        rows.push(first.into_iter().chain(wait(&l.waits)).collect());
    }
    out += &table(&rows, &[0, 1, 2, 3, 4, 5, 6]);
    if let Some(gain) = r.gain_at_8 {
        out += &format!("8 streams together make {gain:.2} times the tokens of one\n");
    }
    if !r.arrivals.is_empty() {
        out += &format!(
            "\nRandom arrivals; good is a first token within {:.0} ms and {:.0} ms a token after it\n",
            r.slo.ttft_ms, r.slo.itl_ms
        );
        let mut rows = vec![head("REQUESTS/S", "GOOD/S", "GOOD")];
        for a in &r.arrivals {
            let first = [
                format!("{:.2}", a.rate),
                format!("{:.2}", a.goodput),
                format!("{:.0}% of {}", 100.0 * a.good_share, a.requests),
            ];
            rows.push(first.into_iter().chain(wait(&a.waits)).collect());
        }
        out += &table(&rows, &[0, 1, 2, 3, 4, 5, 6]);
        let refused: usize = r.arrivals.iter().map(|a| a.refused).sum();
        if refused > 0 {
            out += &format!("{refused} were refused because the queue was full\n");
        }
    }
    if let Some(l) = &r.long_prompt {
        out += &format!(
            "\nA prompt of {} tokens among {BESIDE} streams: first token after {:.1} s; between the streams' tokens\n\
             {:.1} ms before (median), {:.1} ms while it came in (median), {:.1} ms (p99), {:.1} ms at most\n",
            l.tokens, l.ttft_s, l.before_p50_ms, l.during_p50_ms, l.during_p99_ms, l.during_max_ms
        );
    }
    if let Some(s) = &r.soak {
        let mb = |b: Option<u64>| b.map_or("?".into(), |b| format!("{:.1} MB", b as f64 / 1e6));
        out += &format!(
            "\n{} short requests, {:.0} a second: {} resident after a tenth of them, {} at the end, {} blocks left in use\n",
            s.requests,
            s.requests_per_s,
            mb(s.rss_after_tenth),
            mb(s.rss_at_end),
            s.blocks_left
        );
    }
    if let Some(bytes) = r.peak_rss_bytes {
        out += &format!("\nPeak memory {:.1} MB\n", bytes as f64 / 1e6);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_a_poisson_process() {
        let mut random = Uniform(7);
        let gaps: Vec<f64> = (0..20_000).map(|_| -random.next().ln() / 5.0).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.2).abs() < 0.005 && (variance.sqrt() - 0.2).abs() < 0.01, "{mean} {variance}");
    }

    #[test]
    fn prompts_differ_from_their_first_block_on_and_good_is_good() {
        let prompts = Prompts { next: AtomicU64::new(0), vocab: 1000 };
        let (a, b) = (prompts.next(20), prompts.next(20));
        assert!(a != b && a[0] != b[0] && a.iter().chain(&b).all(|t| *t < 1000));
        let slo = Slo { ttft_ms: 100.0, itl_ms: 10.0 };
        let seen = |ttft, pauses: &[f64]| Seen { ttft, pauses: pauses.to_vec(), tokens: 3, refused: false };
        assert!(seen(0.1, &[0.001, 0.015]).is_good(&slo));
        assert!(!seen(0.11, &[0.001]).is_good(&slo) && !seen(0.01, &[0.02]).is_good(&slo));
        assert!(!Seen { refused: true, ..seen(0.01, &[]) }.is_good(&slo));
    }
}
