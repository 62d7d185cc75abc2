//! A mutation fuzzer that needs no nightly compiler: `cargo run --release -p quarrel-formats --example fuzz -- SECONDS [SEED]`.
//!
//! It takes files of `fuzz/corpus`, changes them in ways that parsers dislike (boundary numbers, repeats, splices, cuts) and
//! feeds them to the targets. A panic ends it with the input saved.
//! `fuzz/fuzz_targets` has the same targets for cargo-fuzz, which is guided by coverage and so digs deeper.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

#[path = "../../../fuzz/targets.rs"]
mod targets;

/// xorshift64*, so that a seed reproduces a run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Numbers at which sizes, counts and offsets break.
const EDGES: [u64; 16] =
    [0, 1, 2, 3, 4, 7, 31, 32, 255, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, u64::MAX];

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len());
    let end = (at + random.below(64)).min(bytes.len());
    match random.below(9) {
        0 if !bytes.is_empty() => bytes[at] = random.next() as u8,
        1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        2 | 3 => {
            let edge = EDGES[random.below(EDGES.len())].wrapping_add(random.below(3) as u64).to_le_bytes();
            let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&edge[..width]);
        }
        4 => drop(bytes.drain(at..end)),
        5 => {
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
        6 => bytes.truncate(at),
        7 if !other.is_empty() => {
            let from = random.below(other.len());
            let part = &other[from..(from + random.below(64)).min(other.len())];
            bytes.splice(at..end, part.iter().copied());
        }
        _ => {
            // A decimal number in a text header.
            if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                let number = EDGES[random.below(EDGES.len())].to_string();
                bytes.splice(at + digit..at + digit + 1, number.bytes());
            }
        }
    }
}

fn corpus(dir: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    paths.sort();
    paths.iter().map(std::fs::read).collect()
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let (Some(Ok(seconds)), seed) = (args.next().or(Some(Ok(10))), args.next()) else {
        eprintln!("usage: fuzz [SECONDS] [SEED]");
        return ExitCode::from(2);
    };
    let mut random = Random(seed.and_then(Result::ok).unwrap_or(1).max(1));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let start = Instant::now();
    for (i, (name, target)) in targets::ALL.iter().enumerate() {
        let seeds = match corpus(&root.join(name)) {
            Ok(seeds) if !seeds.is_empty() => seeds,
            _ => {
                eprintln!("{}: no corpus", root.join(name).display());
                return ExitCode::from(2);
            }
        };
        let until = Duration::from_secs(seconds) * (i as u32 + 1) / targets::ALL.len() as u32;
        let mut runs = 0u64;
        while start.elapsed() < until {
            let mut bytes = seeds[random.below(seeds.len())].clone();
            let other = &seeds[random.below(seeds.len())];
            for _ in 0..=random.below(6) {
                mutate(&mut bytes, other, &mut random);
            }
            if std::panic::catch_unwind(|| target(&bytes)).is_err() {
                let path = format!("crash-{name}.bin");
                let saved = std::fs::write(&path, &bytes).is_ok();
                eprintln!(
                    "{name}: a panic after {runs} inputs{}",
                    if saved { format!("; see {path}") } else { String::new() }
                );
                return ExitCode::FAILURE;
            }
            runs += 1;
        }
        println!("{name}: {runs} inputs, no panic");
    }
    ExitCode::SUCCESS
}
