//! The scheduler on small cases, and a simulation of it: random workloads on a device that computes from its simulated blocks, so
//! that whatever spoils a block shows as a wrong token.

use super::*;
use crate::request::{Class, Retention};
use crate::sequence::{Goal, Standing};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

const ROOT: Digest = [3; 32];

fn limits() -> Limits {
    Limits {
        rows: 8,
        outputs: 3,
        running: 3,
        waiting: 4,
        blocks: 32,
        prefix_cache: true,
        target: None,
        whole: false,
    }
}

fn sequence(id: u64, n: usize) -> Sequence {
    // No two share a prefix.
    Sequence::new(id, ROOT, (0..n as u32).map(|i| i + 1000 * id as u32).collect(), Goal::Next)
}

fn chunk(running: usize, rows: Range<usize>, outputs: Range<usize>) -> Chunk {
    Chunk { running, rows, outputs }
}

/// A step of a device that takes 1 ms and 1 ms for each row, so that prompts get nearly as many rows as others decode.
fn step_at(s: &mut Scheduler, now: Duration) -> Vec<Chunk> {
    s.schedule(now, &Nothing);
    s.take_ops();
    let rows: usize = s.plan().iter().map(|c| c.rows.len()).sum();
    s.commit(Duration::from_millis(1 + rows as u64), &Nothing)
}

fn step(s: &mut Scheduler) -> Vec<Chunk> {
    step_at(s, Duration::ZERO)
}

fn ids(s: &[Sequence]) -> Vec<u64> {
    s.iter().map(|s| s.id).collect()
}

#[test]
fn prompts_come_in_by_parts_and_decodes_come_first() {
    let mut s = Scheduler::new(Limits { target: Some(Duration::from_secs(1)), ..limits() });
    s.add(sequence(1, 20)).unwrap();
    assert_eq!(step(&mut s), [chunk(0, 0..8, 8..8)]);
    s.add(sequence(2, 3)).unwrap();
    // The senior has a quarter at least; the short one is done first.
    assert_eq!(step(&mut s), [chunk(0, 8..13, 13..13), chunk(1, 0..3, 2..3)]);
    s.push(2, 8);
    assert_eq!(step(&mut s), [chunk(1, 3..4, 3..4), chunk(0, 13..20, 19..20)]);
    s.push(1, 7);
    s.push(2, 8);
    s.add(sequence(3, 30)).unwrap();
    assert_eq!(step(&mut s), [chunk(0, 20..21, 20..21), chunk(1, 4..5, 4..5), chunk(2, 0..6, 6..6)]);
}

#[test]
fn whole_sequences_have_one_step_each_the_senior_one_first() {
    let mut s = Scheduler::new(Limits { rows: 8, running: 3, prefix_cache: false, whole: true, ..limits() });
    let embed = |id, n| Sequence { goal: Goal::Embed { from: 0 }, ..sequence(id, n) };
    for (id, n) in [(1, 5), (2, 6), (3, 3), (4, 1)] {
        s.add(embed(id, n)).unwrap();
    }
    // The second does not fit beside the first, and is not cut.
    assert_eq!(step(&mut s), [chunk(0, 0..5, 5..5), chunk(2, 0..3, 3..3)]);
    drop((s.remove(1), s.remove(3)));
    assert_eq!(step(&mut s), [chunk(0, 0..6, 6..6), chunk(1, 0..1, 1..1)]);
    drop((s.remove(2), s.remove(4)));
    assert!(s.is_idle());
    s.check_integrity().unwrap();
}

#[test]
fn a_prompt_takes_no_more_time_than_the_streams_allow() {
    let mut s = Scheduler::new(Limits { rows: 64, ..limits() });
    for id in 1..3 {
        s.add(sequence(id, 2)).unwrap();
    }
    step(&mut s);
    for _ in 0..40 {
        s.push(1, 5);
        s.push(2, 5);
        step(&mut s);
    }
    s.add(sequence(9, 200)).unwrap();
    // Steps of two rows take 3 ms; 1.8 times that is 5.4 ms, two rows more.
    for i in 0..60 {
        s.push(1, 5);
        s.push(2, 5);
        let rows: Vec<usize> = step(&mut s).iter().map(|c| c.rows.len()).collect();
        assert!(rows[..2] == [1, 1] && (2..=3).contains(&rows[2]), "{rows:?} in step {i}");
    }
    // Nobody waits any more.
    s.remove(1).unwrap();
    s.remove(2).unwrap();
    assert_eq!(step(&mut s)[0].rows.len(), 64);
}

#[test]
fn scores_take_no_more_outputs_than_there_are() {
    let mut s = Scheduler::new(Limits { rows: 32, ..limits() });
    s.add(Sequence::new(1, ROOT, (0..12).collect(), Goal::Score { from: 5 })).unwrap();
    assert_eq!(step(&mut s), [chunk(0, 0..7, 4..7)]);
    assert_eq!(step(&mut s), [chunk(0, 7..10, 7..10)]);
    assert_eq!(step(&mut s), [chunk(0, 10..11, 10..11)]);
}

#[test]
fn the_queue_is_bounded_and_says_when_to_come_back() {
    let mut s = Scheduler::new(limits());
    (0..4).for_each(|id| s.add(sequence(id, 20)).unwrap());
    step(&mut s);
    s.add(sequence(9, 2)).unwrap();
    (10..13).for_each(|id| s.add(sequence(id, 2)).unwrap_or_default());
    let Err(Error::QueueFull { limit: 4, retry_after }) = s.add(sequence(99, 2)) else { panic!() };
    assert!(retry_after > Duration::from_millis(20) && retry_after < Duration::from_secs(2));
}

#[test]
fn who_came_last_is_preempted_and_comes_back_first() {
    let mut s = Scheduler::new(Limits { rows: 64, blocks: 5, ..limits() });
    s.add(sequence(1, 32)).unwrap();
    s.add(sequence(2, 16)).unwrap();
    s.add(sequence(3, 16)).unwrap();
    // The third would fit alone, but not beside a spare block for each that runs.
    assert_eq!(step(&mut s).len(), 2);
    s.push(1, 1);
    s.push(2, 1);
    step(&mut s);
    assert_eq!((s.blocks().0, s.counts().preemptions), (5, 0));
    for i in 0..16 {
        s.push(1, i);
        s.push(2, i);
        step(&mut s);
        s.check_integrity().unwrap();
        if s.counts().preemptions > 0 {
            break;
        }
    }
    assert_eq!(ids(s.running()), [1]);
    assert_eq!((s.counts().preemptions, ids(s.waiting())), (1, vec![3, 2]));
    s.remove(1).unwrap();
    step(&mut s);
    assert_eq!(s.running()[0].id, 2);
}

#[test]
fn the_cheapest_of_the_juniors_gives_its_blocks_up() {
    let mut s = Scheduler::new(Limits {
        rows: 200,
        outputs: 4,
        running: 4,
        blocks: 13,
        prefix_cache: false,
        ..limits()
    });
    for (id, n) in [(1, 31), (2, 64), (3, 24), (4, 40)] {
        s.add(sequence(id, n)).unwrap();
    }
    assert_eq!(step(&mut s).len(), 3, "the fourth does not fit beside spare blocks");
    // The first and the second go on; the third stands still at 24 tokens.
    for i in 0..100 {
        if s.counts().preemptions > 0 {
            break;
        }
        s.push(1, i);
        s.push(2, i);
        step(&mut s);
    }
    assert_eq!(ids(s.running()), [1, 2], "bringing 24 tokens back costs less than bringing 64 back");
}

#[test]
fn the_urgent_push_the_others_back_and_those_age() {
    let standing = |class, arrived: u64| Standing {
        class,
        arrived: Duration::from_secs(arrived),
        ..Standing::default()
    };
    let mut s = Scheduler::new(Limits { running: 1, ..limits() });
    s.add(Sequence { standing: standing(Class::Background, 0), ..sequence(1, 40) }).unwrap();
    step_at(&mut s, Duration::from_secs(1));
    s.add(Sequence { standing: standing(Class::Interactive, 1), ..sequence(2, 40) }).unwrap();
    step_at(&mut s, Duration::from_secs(2));
    assert_eq!((ids(s.running()), s.counts().preemptions), (vec![2], 1));
    s.remove(2).unwrap();
    step_at(&mut s, Duration::from_secs(25));
    s.add(Sequence { standing: standing(Class::Interactive, 25), ..sequence(3, 40) }).unwrap();
    step_at(&mut s, Duration::from_secs(26));
    assert_eq!(ids(s.running()), [1], "who has waited so long stays");
}

#[test]
fn keys_share_the_device() {
    let of = |id: u64, key: &str| {
        let standing = Standing { key: key.into(), ..Standing::default() };
        Sequence { standing, ..sequence(id, 8) }
    };
    let mut s = Scheduler::new(Limits { running: 1, waiting: 20, ..limits() });
    (0..9).for_each(|id| s.add(of(id, "many")).unwrap());
    (20..23).for_each(|id| s.add(of(id, "few")).unwrap());
    let mut order = Vec::new();
    while !s.is_idle() {
        step(&mut s);
        order.push(s.running()[0].id);
        s.remove(*order.last().unwrap()).unwrap();
    }
    assert_eq!(order[..6], [0, 20, 1, 21, 2, 22], "in turn while both have something to do");
    assert_eq!(s.keys(), 0);
}

#[test]
fn forks_share_blocks_until_they_write() {
    let mut s = Scheduler::new(limits());
    s.add(sequence(1, 7)).unwrap();
    step(&mut s);
    s.fork(1, 2);
    s.push(1, 5);
    s.push(2, 6);
    assert_eq!((s.blocks().0, s.running().len()), (1, 2));
    s.schedule(Duration::ZERO, &Nothing);
    let ops = s.take_ops();
    let (a, b) = (s.running()[0].blocks[0], s.running()[1].blocks[0]);
    assert_eq!(ops, [BlockOp::Copy { from: b, to: a }]);
    s.commit(Duration::from_millis(1), &Nothing);
    s.check_integrity().unwrap();
    // Without a place the fork waits, and computes again what nobody has.
    s.fork(1, 3);
    s.fork(1, 4);
    assert_eq!((s.running().len(), s.waiting().len()), (3, 1));
    (1..5).for_each(|id| drop(s.remove(id).unwrap()));
    assert!(s.is_idle());
    s.check_integrity().unwrap();
}

/// A store below that keeps everything it is given, for as long as it has room.
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

/// What a block of the simulated cache holds: for each slot, the hash of all tokens up to it.
type Content = [u64; BLOCK_TOKENS];

fn hash(before: u64, token: u32) -> u64 {
    (before ^ u64::from(token).wrapping_add(0x9e37_79b9)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

/// The token that the simulated model gives after what it sees.
fn model(seen: u64, id_salt: u64) -> u32 {
    (seen.wrapping_add(id_salt) >> 40) as u32 % 50
}

/// A simulated device: it computes a row only from what its cache holds, so whatever a wrong copy, load, share or order
/// spoils shows in the tokens.
struct Model {
    blocks: HashMap<u32, Content>,
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
            }
        }
    }

    /// Computes rows of a sequence and gives the hash of the last.
    fn run(&mut self, s: &Sequence, rows: Range<usize>) -> std::result::Result<u64, String> {
        let at = |p: usize| (s.blocks[p / BLOCK_TOKENS], p % BLOCK_TOKENS);
        // It reads all that is before.
        let mut seen = 0;
        for p in 0..rows.start {
            seen = hash(seen, s.tokens[p]);
            let (b, i) = at(p);
            if self.blocks.get(&b).is_none_or(|c| c[i] != seen) {
                return Err(format!("sequence {} finds something else at {p}", s.id));
            }
        }
        for p in rows {
            seen = hash(seen, s.tokens[p]);
            let (b, i) = at(p);
            self.blocks.entry(b).or_insert([0; BLOCK_TOKENS])[i] = seen;
        }
        Ok(seen)
    }
}

/// A request of the simulation.
#[derive(Debug, Clone)]
struct Load {
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
}

fn load() -> impl Strategy<Value = Vec<Load>> {
    let one = (
        (1usize..60, 0u32..3, 1usize..30, prop::option::weighted(0.2, 0usize..12), 0usize..6),
        (0usize..3, 0usize..3, prop_oneof![4 => Just(0u64), 1 => 1u64..4], 0usize..3),
        prop::option::weighted(0.1, 1u64..200),
    );
    let make = |((prompt, salt, more, abort, wait), (class, key, forks, retention), deadline)| Load {
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
    };
    prop::collection::vec(one.prop_map(make), 1..20)
}

/// What the simulation keeps of a sequence.
#[derive(Debug, Clone)]
struct Want {
    request: usize,
    left: usize,
    salt: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// Random workloads of all classes with forks, aborts, deadlines, faults, full memory and a store below: limits hold in
    /// every step, rows come in order without a gap, what a sequence reads is what it wrote, integrity holds always,
    /// everyone finishes, and no block is left.
    #[test]
    fn workloads_finish_within_the_limits(
        load in load(), rows in 5usize..20, blocks in 6usize..14, prefix_cache: bool, below in 0usize..3,
        faults in prop::collection::vec(0usize..400, 0..3), stops in prop::collection::vec(0usize..200, 0..6),
    ) {
        let limits =
            Limits { rows, outputs: 4, running: 4, waiting: 64, blocks, prefix_cache, target: None, whole: false };
        let mut s = Scheduler::new(limits);
        let mut cellar = Cellar { wanted: below > 0, persists: below > 1, ..Cellar::default() };
        let mut device = Model { blocks: HashMap::new(), now: Duration::ZERO };
        let mut arrivals = load.iter().enumerate();
        let (mut wait, mut exhausted) = (0, false);
        let mut wants: HashMap<u64, Want> = HashMap::new();
        let mut aborts: Vec<(usize, Option<usize>)> = Vec::new();
        let (mut next_id, mut failed) = (0u64, HashSet::new());
        // Answers by request and fork, to be compared with the model alone.
        let mut answers: Vec<(usize, u64, Vec<u32>)> = Vec::new();
        for steps in 0.. {
            prop_assert!(steps < 20_000, "no end");
            while wait == 0 && !exhausted {
                let Some((r, l)) = arrivals.next() else {
                    exhausted = true;
                    break;
                };
                let goal = if r % 4 == 3 && l.prompt > 1 { Goal::Score { from: 1 + l.prompt / 2 } } else { Goal::Next };
                next_id += 1;
                let standing = Standing {
                    class: Class::ALL[l.class],
                    key: ["a", "b", "c"][l.key].into(),
                    arrived: device.now,
                    deadline: l.deadline.map(|d| device.now + Duration::from_millis(d)),
                };
                let retention = [Retention::Discard, Retention::Usual, Retention::Keep][l.retention];
                let mut q = Sequence::new(next_id, ROOT, prompt(r, l), goal);
                (q.standing, q.retention, q.request) = (standing, retention, r as u64);
                s.add(q).unwrap();
                wants.insert(next_id, Want { request: r, left: l.more, salt: 0 });
                aborts.push((r, l.abort));
                wait = l.wait;
            }
            wait = wait.saturating_sub(1);
            if exhausted && s.is_idle() {
                break;
            }
            let before: Vec<(u64, usize)> = s.running().iter().map(|s| (s.id, s.computed)).collect();
            let senior = s.running().iter().map(|s| (s.level, s.order, s.id, s.computed)).min();
            s.schedule(device.now, &cellar);
            let plan = s.plan().to_vec();
            prop_assert_eq!(plan.is_empty(), s.is_idle());
            let outranked = s.running().iter().any(|q| !before.iter().any(|b| b.0 == q.id));
            let n: usize = plan.iter().map(|c| c.rows.len()).sum();
            prop_assert!(n <= limits.rows && plan.iter().map(|c| c.outputs.len()).sum::<usize>() <= limits.outputs);
            prop_assert!(s.running().len() <= limits.running);
            for c in &plan {
                let q = &s.running()[c.running];
                let planned_twice = plan.iter().filter(|d| d.running == c.running).count() > 1;
                prop_assert!(!planned_twice && !c.rows.is_empty() && c.rows.start == q.computed);
                prop_assert!(q.blocks.len() * BLOCK_TOKENS >= c.rows.end);
                let wanted = q.output_rows();
                prop_assert_eq!(
                    c.outputs.clone().collect::<Vec<_>>(),
                    c.rows.clone().filter(|r| wanted.contains(r)).collect::<Vec<_>>()
                );
            }
            for (i, q) in s.running().iter().enumerate() {
                let had = before.contains(&(q.id, q.computed));
                prop_assert!(!(q.left() == 1 && had) || plan.iter().any(|c| c.running == i), "{} starves", q.id);
            }
            let ops = s.take_ops();
            if faults.contains(&steps) {
                // The device fails: everything is lost, and the engine goes on.
                s.clear();
                failed.extend(wants.drain().map(|(_, w)| w.request));
                device.blocks.clear();
                s.check_integrity().unwrap();
                continue;
            }
            device.apply(&ops, &mut cellar);
            device.now += Duration::from_micros(1000 + 300 * n as u64);
            if stops.contains(&steps) {
                s.abandon();
                continue;
            }
            let mut seen = HashMap::new();
            for c in &plan {
                let q = &s.running()[c.running];
                let last = device.run(q, c.rows.clone());
                prop_assert!(last.is_ok(), "{:?}", last);
                seen.insert(q.id, last.unwrap());
            }
            let (mut over, mut pushes, mut forks) = (Vec::new(), Vec::new(), Vec::new());
            for c in s.commit(Duration::from_micros(1000 + 300 * n as u64), &cellar) {
                let q = &s.running()[c.running];
                let Some(want) = wants.get_mut(&q.id).filter(|_| c.rows.end == q.rows()) else { continue };
                let l = &load[want.request];
                if q.goal != Goal::Next {
                    over.push(q.id);
                    continue;
                }
                if want.left == l.more && want.salt == 0 && q.tokens.len() == l.prompt {
                    for f in 1..=l.forks {
                        next_id += 1;
                        forks.push((q.id, next_id, Want { salt: f, ..want.clone() }, seen[&q.id]));
                    }
                }
                pushes.push((q.id, model(seen[&q.id], want.salt)));
            }
            for (from, id, want, seen) in forks {
                s.fork(from, id);
                pushes.push((id, model(seen, want.salt)));
                wants.insert(id, want);
            }
            for (id, token) in pushes {
                s.push(id, token);
                let want = wants.get_mut(&id).unwrap();
                want.left -= 1;
                if want.left == 0 {
                    over.push(id);
                }
            }
            for id in over {
                let (q, want) = (s.remove(id).unwrap(), wants.remove(&id).unwrap());
                answers.push((want.request, want.salt, q.tokens));
            }
            let mut gone: Vec<u64> = s.expired(device.now);
            for (r, abort) in &mut aborts {
                match abort {
                    Some(0) => gone.extend(wants.iter().filter(|(_, w)| w.request == *r).map(|(id, _)| *id)),
                    Some(n) => *n -= 1,
                    None => {}
                }
            }
            for id in gone {
                if let Some(want) = wants.remove(&id) {
                    s.remove(id).unwrap();
                    failed.insert(want.request);
                }
            }
            // The most senior of those that ran gets on, or is gone.
            if let Some((_, _, id, computed)) = senior {
                let now = s.running().iter().find(|q| q.id == id).map(|q| q.computed);
                let waits = s.waiting().iter().any(|q| q.id == id);
                prop_assert!(!waits || outranked, "the senior sequence {id} was sent back");
                prop_assert!(now.is_none_or(|n| n > computed || outranked || stops.contains(&steps)), "no progress");
            }
            if let Err(e) = s.check_integrity() {
                prop_assert!(false, "{}", e);
            }
        }
        prop_assert_eq!(s.blocks().0, 0);
        for (r, l) in load.iter().enumerate() {
            let mut of: Vec<_> = answers.iter().filter(|a| a.0 == r).collect();
            of.sort();
            let score = r % 4 == 3 && l.prompt > 1;
            let want = if score { 1 } else { 1 + l.forks as usize };
            prop_assert!(failed.contains(&r) || of.len() == want, "request {} is lost", r);
            for (_, salt, tokens) in of {
                if !score {
                    prop_assert_eq!(tokens, &alone(prompt(r, l), l.more, *salt));
                }
            }
        }
    }
}

fn prompt(r: usize, l: &Load) -> Vec<u32> {
    (0..l.prompt as u32).map(|i| if i == 20 { r as u32 } else { i / 16 + l.salt }).collect()
}

/// What the model says without a cache.
fn alone(mut tokens: Vec<u32>, more: usize, salt: u64) -> Vec<u32> {
    for _ in 0..more {
        let seen = tokens.iter().fold(0, |h, t| hash(h, *t));
        tokens.push(model(seen, salt));
    }
    tokens
}

#[test]
fn what_is_forgotten_comes_back_from_below() {
    let mut s = Scheduler::new(Limits { rows: 64, blocks: 4, ..limits() });
    let mut cellar = Cellar { wanted: true, ..Cellar::default() };
    let mut device = Model { blocks: HashMap::new(), now: Duration::ZERO };
    let run = |s: &mut Scheduler, device: &mut Model, cellar: &mut Cellar, id: u64| {
        s.add(sequence(id % 10, 60)).unwrap();
        s.schedule(Duration::ZERO, cellar);
        let ops = s.take_ops();
        device.apply(&ops, cellar);
        let rows = s.plan()[0].rows.clone();
        device.run(&s.running()[0], rows.clone()).unwrap();
        s.commit(Duration::from_millis(1), cellar);
        s.remove(id % 10).unwrap();
        rows
    };
    assert_eq!(run(&mut s, &mut device, &mut cellar, 1), 0..60);
    assert_eq!(run(&mut s, &mut device, &mut cellar, 2), 0..60);
    assert_eq!(run(&mut s, &mut device, &mut cellar, 11), 48..60);
    let counts = s.counts();
    assert_eq!((counts.loads, counts.hits, counts.hits_below), (3, 0, 48));
    assert!(counts.saves >= 3);
}
