//! The scheduler on small cases; [`super::simulation`] puts all of it under load.

use super::*;
use crate::request::Class;
use crate::sequence::{Goal, Standing};

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
        states: None,
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
    // A step takes 1 ms and 1 ms for each row; until it takes 25, 22 more fit.
    for i in 0..5 {
        s.push(1, 5);
        s.push(2, 5);
        let rows: Vec<usize> = step(&mut s).iter().map(|c| c.rows.len()).collect();
        assert!(rows[..2] == [1, 1] && (20..=24).contains(&rows[2]), "{rows:?} in step {i}");
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
