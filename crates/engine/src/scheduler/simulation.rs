//! A simulation of the whole scheduler: random workloads on a device that computes from its simulated blocks, so that whatever
//! spoils a block shows as a wrong token. Requests of all classes come with forks, guesses, evictions, aborts and deadlines;
//! the device fails, and stops in the middle of steps; memory is full. All of it follows from proptest's seed.

use super::*;
use crate::evict::{Eviction, Evictor};
use crate::request::{Class, Retention};
use crate::sequence::{Goal, Standing};
use crate::speculate::tree::{ROOT, Tree};
use crate::speculate::{rates, verify};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use std::collections::{HashMap, HashSet};

type Checked<T> = std::result::Result<T, TestCaseError>;

/// What a block of the simulated cache holds: for each slot, the hash of what its row saw.
type Content = [u64; BLOCK_TOKENS];

fn mix(before: u64, with: u64) -> u64 {
    (before ^ with.wrapping_add(0x9e37_79b9)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

/// What a row gives: it sees its token and all slots before its own.
fn row(before: &[u64], token: u32) -> u64 {
    mix(before.iter().fold(5, |h, c| mix(h, *c)), u64::from(token))
}

/// The token that the simulated model gives after a row.
fn next(row: u64, salt: u64) -> u32 {
    (row.wrapping_add(salt.wrapping_mul(0x1234_5678_9abc_def1)) >> 40) as u32 % 50
}

/// The attention that the slots of a sequence have received: as good as any.
fn mass(held: &[u64]) -> Mass {
    Mass { rows: 1, tokens: held.len(), sums: held.iter().map(|c| (c >> 56) as f32).collect() }
}

/// A store below that keeps everything it is given.
#[derive(Default)]
struct Cellar {
    held: HashMap<Digest, Content>,
    wanted: bool,
    persists: bool,
}

impl Below for Cellar {
    fn has(&self, digest: &Digest) -> bool {
        self.held.contains_key(digest)
    }
    fn wants(&self, digest: &Digest) -> bool {
        self.wanted && !self.held.contains_key(digest)
    }
    fn persists(&self) -> bool {
        self.persists
    }
}

/// A simulated device: it computes a row only from what its cache holds.
#[derive(Default)]
struct Model {
    blocks: HashMap<u32, Content>,
    /// How many tokens each sequence's state has seen, and their hash; where sequences have states.
    states: HashMap<u32, (usize, u64)>,
    /// Sequences that began with a copy of a state.
    resumed: usize,
    /// Virtual time.
    now: Duration,
}

impl Model {
    fn apply(&mut self, ops: &[BlockOp], below: &mut Cellar) {
        for op in ops {
            match *op {
                BlockOp::Copy { from, to } => drop(self.blocks.insert(to, self.blocks[&from])),
                BlockOp::Save { block, digest } => drop(below.held.insert(digest, self.blocks[&block])),
                BlockOp::Load { block, digest } => drop(self.blocks.insert(block, below.held[&digest])),
                BlockOp::Forget { .. } => {}
                BlockOp::Leave { state } => drop(self.states.remove(&state)),
                BlockOp::Branch { from, to } => {
                    self.resumed += usize::from(from & SNAPSHOT != 0);
                    let state = self.states.get(&from).copied();
                    state.map(|s| self.states.insert(to, s));
                }
            }
        }
    }

    /// The first `n` slots of a block table.
    fn slots(&self, blocks: &[u32], n: usize) -> Vec<u64> {
        let slot = |i: usize| self.blocks.get(&blocks[i / BLOCK_TOKENS]).map_or(0, |c| c[i % BLOCK_TOKENS]);
        (0..n).map(slot).collect()
    }

    fn write(&mut self, blocks: &[u32], at: usize, content: u64) {
        let block = self.blocks.entry(blocks[at / BLOCK_TOKENS]).or_insert([0; BLOCK_TOKENS]);
        block[at % BLOCK_TOKENS] = content;
    }

    /// Computes rows of a sequence and gives the last. What it reads must be what was written for it.
    fn run(&mut self, s: &Sequence, rows: Range<usize>) -> Checked<u64> {
        let mut seen = self.slots(&s.blocks, rows.start - s.dropped);
        if s.dropped == 0 {
            let own = s.tokens[..rows.start].iter().fold(Vec::new(), |mut own, token| {
                own.push(row(&own, *token));
                own
            });
            prop_assert!(seen == own, "sequence {} finds something else", s.id);
        }
        for p in rows {
            let content = row(&seen, s.tokens[p]);
            self.write(&s.blocks, p - s.dropped, content);
            seen.push(content);
        }
        Ok(seen[seen.len() - 1])
    }

    /// Changes the state of a sequence by rows; it must be that of the tokens before them.
    fn recur(&mut self, s: &Sequence, rows: Range<usize>, taken: &[Taken]) -> Checked<()> {
        let hash = |n: usize| s.tokens[..n].iter().fold(9, |h, t| mix(h, u64::from(*t)));
        if rows.start > 0 {
            let want = (rows.start, hash(rows.start));
            prop_assert_eq!(self.states.get(&s.state()), Some(&want), "the state of sequence {}", s.id);
        }
        self.states.insert(s.state(), (rows.end, hash(rows.end)));
        for t in taken.iter().filter(|t| t.id == s.id) {
            prop_assert!(t.tokens > rows.start && t.tokens <= rows.end, "a copy outside the step");
            self.states.insert(t.state(), (t.tokens, hash(t.tokens)));
        }
        Ok(())
    }

    /// Computes guesses behind a sequence; gives what each node saw.
    fn run_ahead(&mut self, s: &Sequence, ahead: &Ahead) -> Vec<u64> {
        let nodes = ahead.tree.nodes();
        let mut rows = vec![0; nodes.len()];
        for (b, branch) in ahead.layout.branches.iter().enumerate() {
            let blocks = ahead.blocks(b, s);
            // Rows that an earlier branch computed are stored here too.
            let first = branch.nodes[0];
            let before: Vec<usize> = match first {
                ROOT => Vec::new(),
                _ => std::iter::once(ROOT).chain(ahead.tree.path(nodes[first].parent)).collect(),
            };
            for n in before {
                self.write(&blocks, ahead.root + nodes[n].depth, rows[n]);
            }
            let mut seen = self.slots(&blocks, ahead.root + branch.depth);
            for n in &branch.nodes {
                let content = row(&seen, nodes[*n].token);
                self.write(&blocks, ahead.root + nodes[*n].depth, content);
                rows[*n] = content;
                seen.push(content);
            }
        }
        rows
    }

    /// Moves what stays of a shortened sequence.
    fn compact(&mut self, s: &Shortened) {
        let held = self.slots(&s.from, s.evicted.before);
        for (i, t) in s.keep.head(0).iter().enumerate() {
            self.write(&s.to, i, held[*t as usize]);
        }
    }
}

/// A request of the simulation.
#[derive(Debug, Clone)]
struct Job {
    prompt: usize,
    /// Which prompts it shares a prefix with.
    salt: u32,
    /// Tokens to make.
    more: usize,
    /// Steps until it is cancelled.
    abort: Option<usize>,
    /// Steps until the next one arrives.
    wait: usize,
    class: usize,
    key: usize,
    /// Forks at the end of its prompt.
    forks: u64,
    retention: usize,
    deadline: Option<u64>,
    scored: bool,
    /// Guesses behind each of its tokens.
    guesses: usize,
    /// Most tokens in the cache, and what goes beyond it.
    evicted: Option<(usize, Eviction)>,
}

impl Job {
    fn tokens(&self, r: usize) -> Vec<u32> {
        // Half of them are one text, as far as they go.
        let own = |i: u32| i == 20 && r % 2 == 1;
        (0..self.prompt as u32).map(|i| if own(i) { r as u32 } else { i / 16 + self.salt }).collect()
    }

    fn evictor(&self) -> Option<Evictor> {
        let (budget, policy) = self.evicted?;
        Evictor::new(policy, budget, self.prompt).unwrap()
    }

    /// What the model says without a scheduler.
    fn alone(&self, r: usize, salt: u64) -> Vec<u32> {
        let (mut tokens, mut held, mut evictor) = (self.tokens(r), Vec::new(), self.evictor());
        let mut computed = 0;
        for _ in 0..self.more {
            while computed < tokens.len() {
                if let Some(e) = evictor.as_mut().filter(|e| e.room(held.len()) == 0) {
                    let (keep, _) = e.shorten(&mass(&held), 1);
                    held = keep.head(0).iter().map(|t| held[*t as usize]).collect();
                }
                held.push(row(&held, tokens[computed]));
                computed += 1;
            }
            tokens.push(next(held[held.len() - 1], salt));
        }
        tokens
    }
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let policy = prop_oneof![
        Just(Eviction::SLIDE),
        Just(Eviction::H2O),
        Just(Eviction::SnapKv { window: 5, kernel: 3 })
    ];
    let one = (
        (1usize..60, 0u32..3, 1usize..30, prop::option::weighted(0.2, 0usize..12), 0usize..6),
        (0usize..3, 0usize..3, prop_oneof![4 => Just(0u64), 1 => 1u64..4], 0usize..3),
        (prop::option::weighted(0.1, 1u64..200), prop::bool::weighted(0.2)),
        (prop_oneof![1 => Just(0usize), 1 => 1usize..9], prop::option::weighted(0.2, (16usize..40, policy))),
    );
    let make = |(
        (prompt, salt, more, abort, wait),
        (class, key, forks, retention),
        (deadline, scored),
        (guesses, evicted),
    ): (_, _, (_, bool), (_, Option<_>))| {
        // One answer can be asked for of what may be shortened.
        let (scored, forks) = if evicted.is_some() { (false, 0) } else { (scored && prompt > 1usize, forks) };
        Job {
            prompt,
            salt,
            more,
            abort,
            wait,
            class,
            key,
            forks,
            retention,
            deadline,
            scored,
            guesses,
            evicted,
        }
    };
    prop::collection::vec(one.prop_map(make), 1..20)
}

/// What is kept of a sequence.
#[derive(Debug, Clone)]
struct Want {
    job: usize,
    /// Tokens that it still makes.
    left: usize,
    /// Sets forks apart.
    salt: u64,
}

/// The scheduler with everything around it.
struct Simulation<'a> {
    jobs: &'a [Job],
    limits: Limits,
    s: Scheduler,
    device: Model,
    cellar: Cellar,
    wants: HashMap<u64, Want>,
    /// Steps until jobs that have come are cancelled.
    aborts: Vec<(usize, Option<usize>)>,
    next_id: u64,
    /// Jobs that did not come to their end.
    failed: HashSet<usize>,
    /// By job and fork.
    answers: Vec<(usize, u64, Vec<u32>)>,
    accepted: usize,
}

impl Simulation<'_> {
    fn arrive(&mut self, r: usize) {
        let j = &self.jobs[r];
        let goal = if j.scored { Goal::Score { from: 1 + j.prompt / 2 } } else { Goal::Next };
        self.next_id += 1;
        let standing = Standing {
            class: Class::ALL[j.class],
            key: ["a", "b", "c"][j.key].into(),
            arrived: self.device.now,
            deadline: j.deadline.map(|d| self.device.now + Duration::from_millis(d)),
        };
        let sequence = Sequence {
            standing,
            retention: [Retention::Discard, Retention::Usual, Retention::Keep][j.retention],
            request: r as u64,
            evictor: j.evictor(),
            ..Sequence::new(self.next_id, [3; 32], j.tokens(r), goal)
        };
        self.s.add(sequence).unwrap();
        self.wants.insert(self.next_id, Want { job: r, left: j.more, salt: 0 });
        self.aborts.push((r, j.abort));
    }

    /// Plans a step and puts guesses behind its decodes; limits hold, and nobody starves.
    fn plan(&mut self) -> Checked<()> {
        let before: Vec<(u64, usize)> = self.s.running().iter().map(|s| (s.id, s.computed)).collect();
        self.s.schedule(self.device.now, &self.cellar);
        prop_assert_eq!(self.s.plan().is_empty(), self.s.is_idle());
        let plan = self.s.plan().to_vec();
        for c in &plan {
            let q = &self.s.running()[c.running];
            let planned_twice = plan.iter().filter(|d| d.running == c.running).count() > 1;
            prop_assert!(!planned_twice && !c.rows.is_empty() && c.rows.start == q.computed);
            prop_assert!(q.blocks.len() * BLOCK_TOKENS >= c.rows.end - q.dropped);
            prop_assert!(c.rows.end - q.dropped <= q.evictor.as_ref().map_or(usize::MAX, Evictor::most));
            let wanted = q.output_rows();
            prop_assert_eq!(
                c.outputs.clone().collect::<Vec<_>>(),
                c.rows.clone().filter(|r| wanted.contains(r)).collect::<Vec<_>>()
            );
        }
        for (i, q) in self.s.running().iter().enumerate() {
            let had = before.contains(&(q.id, q.computed));
            prop_assert!(!(q.left() == 1 && had) || plan.iter().any(|c| c.running == i), "{} starves", q.id);
        }
        for c in &plan {
            if !self.s.is_decode(c.running) {
                continue;
            }
            let q = &self.s.running()[c.running];
            let most = self.jobs[q.request as usize].guesses.min(self.s.load().room);
            if q.evictor.is_none() && most > 0 {
                let tree = self.tree(q, most);
                self.s.guess(c.running, tree);
            }
        }
        let rows: usize = plan.iter().map(|c| c.rows.len()).sum();
        let outputs: usize = plan.iter().map(|c| c.outputs.len()).sum();
        let guessed = self.s.guessed();
        prop_assert!(rows + guessed <= self.limits.rows && outputs + guessed <= self.limits.outputs);
        prop_assert!(self.s.running().len() <= self.limits.running);
        Ok(())
    }

    /// Guesses of which some come true.
    fn tree(&self, q: &Sequence, most: usize) -> Tree {
        let salt = self.wants[&q.id].salt;
        let mut tree = Tree::new(q.tokens[q.tokens.len() - 1]);
        let own = self.device.slots(&q.blocks, q.computed);
        let mut chance = q.tokens.iter().fold(q.id, |h, t| mix(h, u64::from(*t)));
        for _ in 0..most {
            chance = mix(chance, 1);
            let parent = (chance >> 20) as usize % tree.nodes().len();
            let mut seen = own.clone();
            for n in std::iter::once(ROOT).chain(tree.path(parent)) {
                seen.push(row(&seen, tree.nodes()[n].token));
            }
            let right = next(seen[seen.len() - 1], salt);
            let token = if (chance >> 40) % 10 < 7 { right } else { (chance >> 50) as u32 % 50 };
            tree.add(parent, token, rates::Class::default());
        }
        tree
    }

    /// Computes the planned step and books it. Every token is the model's, guessed or not.
    fn compute(&mut self) -> Checked<()> {
        let mut rows = HashMap::new();
        for c in self.s.plan().to_vec() {
            let q = &self.s.running()[c.running];
            rows.insert(q.id, self.device.run(q, c.rows.clone())?);
            if self.limits.states.is_some() {
                self.device.recur(q, c.rows.clone(), self.s.taken())?;
            }
        }
        let mut ahead_rows = HashMap::new();
        for a in self.s.ahead() {
            let q = self.s.running().iter().find(|q| q.id == a.id).unwrap();
            ahead_rows.insert(a.id, self.device.run_ahead(q, a));
        }
        let work = self.s.plan().iter().map(|c| c.rows.len()).sum::<usize>() + self.s.guessed();
        let elapsed = Duration::from_micros(1000 + 300 * work as u64);
        let plan: Vec<(u64, bool)> = {
            let chunks = self.s.commit(elapsed, &self.cellar);
            let done = |c: &Chunk| {
                let q = &self.s.running()[c.running];
                (q.id, c.rows.end == q.rows())
            };
            chunks.iter().map(done).collect()
        };
        for id in plan.into_iter().filter_map(|(id, done)| done.then_some(id)) {
            let q = self.s.running().iter().find(|q| q.id == id).unwrap();
            let (job, scored, fresh) = (q.request as usize, q.goal != Goal::Next, q.tokens.len());
            let j = &self.jobs[job];
            if scored {
                self.end(id);
                continue;
            }
            if fresh == j.prompt && self.wants[&id].salt == 0 {
                for salt in 1..=j.forks {
                    self.next_id += 1;
                    self.s.fork(id, self.next_id);
                    self.wants.insert(self.next_id, Want { job, left: j.more, salt });
                    self.push(self.next_id, next(rows[&id], salt));
                }
            }
            let salt = self.wants[&id].salt;
            match self.s.take_ahead(id) {
                Some(ahead) => self.accept(id, ahead, &ahead_rows[&id], salt)?,
                None => self.push(id, next(rows[&id], salt)),
            }
        }
        for id in self.s.full() {
            self.shorten(id);
        }
        Ok(())
    }

    /// Takes what was guessed as far as it came true, as the engine does.
    fn accept(&mut self, id: u64, ahead: Ahead, rows: &[u64], salt: u64) -> Checked<()> {
        let mut last = None;
        let walked = verify::walk(&ahead.tree, |node| {
            let token = next(rows[node], salt);
            // The last token of an answer is never computed.
            if self.wants[&id].left == 1 || ahead.tree.child(node, token).is_none() {
                last = Some(token);
                return Ok::<_, TestCaseError>(None);
            }
            self.push(id, token);
            Ok(Some(token))
        })?;
        self.accepted += walked.accepted;
        self.s.accept(ahead, walked.node, &self.cellar);
        self.push(id, last.unwrap());
        Ok(())
    }

    fn push(&mut self, id: u64, token: u32) {
        self.s.push(id, token);
        let want = self.wants.get_mut(&id).unwrap();
        want.left -= 1;
        if want.left == 0 {
            self.end(id);
        }
    }

    fn end(&mut self, id: u64) {
        let (q, want) = (self.s.remove(id).unwrap(), self.wants.remove(&id).unwrap());
        self.answers.push((want.job, want.salt, q.tokens));
    }

    fn shorten(&mut self, id: u64) {
        let Some(q) = self.s.running().iter().find(|q| q.id == id) else { return };
        let mass = mass(&self.device.slots(&q.blocks, q.held()));
        if let Some(shortened) = self.s.shorten(id, &mass, 1, &self.cellar) {
            let ops = self.s.take_ops();
            self.device.apply(&ops, &mut self.cellar);
            self.device.compact(&shortened);
        }
    }

    /// Cancels what is due.
    fn cancel(&mut self) {
        let mut gone: Vec<u64> = self.s.expired(self.device.now);
        for (job, abort) in &mut self.aborts {
            match abort {
                Some(0) => gone.extend(self.wants.iter().filter(|(_, w)| w.job == *job).map(|(id, _)| *id)),
                Some(n) => *n -= 1,
                None => {}
            }
        }
        for id in gone {
            if let Some(want) = self.wants.remove(&id) {
                self.s.remove(id).unwrap();
                self.failed.insert(want.job);
            }
        }
    }

    /// The device fails: everything is lost, and the engine goes on.
    fn fail(&mut self) {
        self.s.clear();
        self.failed.extend(self.wants.drain().map(|(_, w)| w.job));
        self.device.blocks.clear();
        self.s.check_integrity().unwrap();
    }

    /// Runs all jobs to their end; the device fails in some steps, and leaves others half done.
    fn run(&mut self, faults: &[usize], stops: &[usize]) -> Checked<()> {
        let (mut wait, mut arrivals) = (0, 0..self.jobs.len());
        let mut exhausted = false;
        for step in 0.. {
            prop_assert!(step < 20_000, "no end");
            while wait == 0 && !exhausted {
                match arrivals.next() {
                    Some(r) => {
                        self.arrive(r);
                        wait = self.jobs[r].wait;
                    }
                    None => exhausted = true,
                }
            }
            wait = wait.saturating_sub(1);
            if exhausted && self.s.is_idle() {
                return Ok(());
            }
            let ids: HashSet<u64> = self.s.running().iter().map(|s| s.id).collect();
            let senior = self.s.running().iter().map(|s| (s.level, s.order, s.id, s.computed)).min();
            self.plan()?;
            let outranked = self.s.running().iter().any(|q| !ids.contains(&q.id));
            let rows: usize = self.s.plan().iter().map(|c| c.rows.len()).sum();
            let ops = self.s.take_ops();
            if faults.contains(&step) {
                self.fail();
                continue;
            }
            self.device.apply(&ops, &mut self.cellar);
            self.device.now += Duration::from_micros(1000 + 300 * rows as u64);
            if stops.contains(&step) {
                self.s.abandon();
                continue;
            }
            self.compute()?;
            self.cancel();
            // The most senior of those that ran gets on, or is gone.
            if let Some((_, _, id, computed)) = senior {
                let now = self.s.running().iter().find(|q| q.id == id).map(|q| q.computed);
                let waits = self.s.waiting().iter().any(|q| q.id == id);
                prop_assert!(!waits || outranked, "the senior sequence {id} was sent back");
                prop_assert!(now.is_none_or(|n| n > computed || outranked), "no progress");
            }
            prop_assert_eq!(self.s.check_integrity(), Ok(()));
        }
        Ok(())
    }
}

/// What a simulation has exercised.
struct Seen {
    /// Guesses that came true.
    accepted: usize,
    /// Sequences that were shortened.
    evictions: u64,
    /// Sequences that began with a copy of a state.
    resumed: usize,
}

/// Runs the jobs and checks every answer.
fn simulate(jobs: &[Job], limits: Limits, below: usize, faults: &[usize], stops: &[usize]) -> Checked<Seen> {
    let mut sim = Simulation {
        jobs,
        limits,
        s: Scheduler::new(limits),
        device: Model::default(),
        cellar: Cellar { wanted: below > 0, persists: below > 1, ..Cellar::default() },
        wants: HashMap::new(),
        aborts: Vec::new(),
        next_id: 0,
        failed: HashSet::new(),
        answers: Vec::new(),
        accepted: 0,
    };
    sim.run(faults, stops)?;
    prop_assert_eq!((sim.s.blocks().0, sim.wants.len()), (0, 0));
    let ops = sim.s.take_ops();
    sim.device.apply(&ops, &mut sim.cellar);
    let left = sim.device.states.len();
    prop_assert!(left == sim.s.snapshots() || !faults.is_empty(), "{} states are left", left);
    prop_assert!(left == 0 || left <= limits.states.map_or(0, |s| s.snapshots) || !faults.is_empty());
    for (r, j) in jobs.iter().enumerate() {
        let of: Vec<_> = sim.answers.iter().filter(|a| a.0 == r).collect();
        let want = if j.scored { 1 } else { 1 + j.forks as usize };
        prop_assert!(sim.failed.contains(&r) || of.len() == want, "job {} is lost", r);
        for (_, salt, tokens) in of.into_iter().filter(|_| !j.scored) {
            prop_assert_eq!(tokens, &j.alone(r, *salt), "job {}, fork {}", r, salt);
        }
    }
    Ok(Seen { accepted: sim.accepted, evictions: sim.s.counts().evictions, resumed: sim.device.resumed })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Limits hold in every step, rows come in order without a gap, what a sequence reads is what it wrote, integrity holds
    /// always, everyone finishes with the model's own answer, and no block is left.
    #[test]
    fn workloads_finish_within_the_limits(
        jobs in jobs(), rows in 5usize..20, outputs in 4usize..12, blocks in 6usize..14, prefix_cache: bool,
        below in 0usize..3, faults in prop::collection::vec(0usize..400, 0..3),
        stops in prop::collection::vec(0usize..200, 0..6),
    ) {
        let limits = Limits { rows, outputs, running: 4, waiting: 64, blocks, prefix_cache, target: None, whole: false, states: None };
        simulate(&jobs, limits, below, &faults, &stops)?;
    }

    /// The same where sequences have states, which see every token once and in order, whatever copies of them are kept: nothing is
    /// guessed and nothing dropped.
    #[test]
    fn states_see_each_token_once(
        jobs in jobs(), rows in 5usize..20, outputs in 4usize..12, blocks in 6usize..14,
        faults in prop::collection::vec(0usize..400, 0..3), stops in prop::collection::vec(0usize..200, 0..6),
        prefix_cache in prop::bool::weighted(0.8), snapshots in 0usize..6, every in 1usize..4,
    ) {
        let jobs: Vec<Job> = jobs.into_iter().map(|j| Job { guesses: 0, evicted: None, ..j }).collect();
        let limits =
            Limits { rows, outputs, running: 4, waiting: 64, blocks, prefix_cache, target: None, whole: false,
                states: Some(StateLimits { snapshots, every }) };
        simulate(&jobs, limits, 0, &faults, &stops)?;
    }
}

/// What the random workloads rest on: guesses do come true there, and sequences are shortened.
#[test]
fn guesses_come_true_and_long_sequences_are_shortened() {
    let job = Job {
        prompt: 30,
        salt: 1,
        more: 29,
        abort: None,
        wait: 0,
        class: 0,
        key: 0,
        forks: 0,
        retention: 1,
        deadline: None,
        scored: false,
        guesses: 6,
        evicted: None,
    };
    let short = Job { evicted: Some((24, Eviction::H2O)), ..job.clone() };
    let limits = Limits {
        rows: 16,
        outputs: 12,
        running: 4,
        waiting: 9,
        blocks: 14,
        prefix_cache: true,
        target: None,
        whole: false,
        states: None,
    };
    let seen = simulate(&[job.clone(), short], limits, 0, &[], &[]).unwrap();
    assert!(
        seen.accepted > 5 && seen.evictions > 3,
        "{} guesses, {} evictions",
        seen.accepted,
        seen.evictions
    );
    // With states, those who were preempted go on from a copy.
    let jobs = vec![Job { guesses: 0, prompt: 40, ..job }; 3];
    let states = Some(StateLimits { snapshots: 8, every: 1 });
    let seen = simulate(&jobs, Limits { blocks: 10, states, ..limits }, 0, &[], &[]).unwrap();
    assert!(seen.resumed > 1, "{} went on from a copy", seen.resumed);
}

#[test]
fn what_is_forgotten_comes_back_from_below() {
    let limits = Limits {
        rows: 64,
        outputs: 3,
        running: 3,
        waiting: 4,
        blocks: 4,
        prefix_cache: true,
        target: None,
        whole: false,
        states: None,
    };
    let mut s = Scheduler::new(limits);
    let mut cellar = Cellar { wanted: true, ..Cellar::default() };
    let mut device = Model::default();
    let mut run = |id: u64| {
        let tokens = (0..60).map(|i| i + 1000 * (id % 10) as u32).collect();
        s.add(Sequence::new(id, [3; 32], tokens, Goal::Next)).unwrap();
        s.schedule(Duration::ZERO, &cellar);
        let ops = s.take_ops();
        device.apply(&ops, &mut cellar);
        let rows = s.plan()[0].rows.clone();
        device.run(&s.running()[0], rows.clone()).unwrap();
        s.commit(Duration::from_millis(1), &cellar);
        s.remove(id).unwrap();
        (rows, s.counts())
    };
    assert_eq!(run(1).0, 0..60);
    assert_eq!(run(2).0, 0..60);
    let (rows, counts) = run(11);
    assert_eq!((rows, counts.loads, counts.hits, counts.hits_below), (48..60, 3, 0, 48));
    assert!(counts.saves >= 3);
}
