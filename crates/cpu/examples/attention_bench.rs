//! The speed of attention alone, at any depth: the bytes of keys and values that it reads and the multiplications it does.
//!
//! `attention_bench [--heads 9] [--kv-heads 3] [--dim 64] [--layers 30] [--depth 2048] [--rows 1] [--threads 1] [--n 20]
//! [--window 0] [--local 0] [--stride 0]`; `--rows 512` is a part of a prompt, and `--local 16 --stride 8` is attention by blocks of 64
//! positions, of which a token sees the last 16 and every eighth. Prints the median and the best of `n` steps; `--isa avx2` and the
//! like choose kernels, `--kv q8_0` and the like the cache.

use quarrel_cpu::{Cpu, CpuOptions, Isa, KvType};
use quarrel_formats::{Bytes, DType, Tensor};
use quarrel_ir::{
    AttendSpec, BLOCK_TOKENS, Blocks, Device, HostWeight, KvLayer, Limits, Op, Program, SeqStep, StepInputs,
};
use std::error::Error;
use std::time::Instant;

const VOCAB: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: usize| -> Result<usize, Box<dyn Error>> {
        match args.iter().position(|a| a == name) {
            Some(i) => Ok(args.get(i + 1).ok_or(format!("{name} needs a value"))?.parse()?),
            None => Ok(default),
        }
    };
    let (heads, kv_heads) = (number("--heads", 9)? as u32, number("--kv-heads", 3)? as u32);
    let (dim, layers) = (number("--dim", 64)? as u32, number("--layers", 30)? as u32);
    let (depth, rows) = (number("--depth", 2048)?, number("--rows", 1)?);
    let window = Some(number("--window", 0)?).filter(|w| *w > 0);
    let (local, stride) = (number("--local", 0)? as u32, number("--stride", 0)? as u32);
    let pattern = Some(Blocks { tokens: 64, local, global: 0, stride, shift: 1 }).filter(|b| b.local > 0);
    let (threads, n) = (number("--threads", 1)?, number("--n", 20)?);
    let wanted = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let isa = Isa::available().into_iter().find(|i| wanted("--isa").is_none_or(|w| *w == i.name()));
    let kv =
        KvType::ALL.into_iter().find(|k| wanted("--kv").is_some_and(|w| *w == k.name())).unwrap_or_default();

    let mut p = Program::new();
    let (q_cols, kv_cols) = (heads * dim, kv_heads * dim);
    let table = p.weight("input", VOCAB as u32, q_cols + 2 * kv_cols);
    let x = p.embed("input", table, 1.0);
    p.kv = vec![
        KvLayer { kv_heads, head_dim: dim, v_dim: dim, window: window.map(|w| w as u32) };
        layers as usize
    ];
    let (k, v) = (x.slice(q_cols, kv_cols), x.slice(q_cols + kv_cols, kv_cols));
    for kv_layer in 0..layers {
        p.push(Op::StoreKv { k, v, kv_layer });
        let scale = (dim as f32).powf(-0.5);
        let spec = AttendSpec {
            kv_layer,
            heads,
            kv_heads,
            head_dim: dim,
            v_dim: dim,
            scale,
            causal: true,
            window: window.map(|w| w as u32),
            softcap: None,
            alibi: None,
            buckets: None,
            of_source: false,
            chunked: false,
            sinks: None,
            blocks: pattern,
        };
        p.logits = Some(p.attend(x.slice(0, q_cols), spec));
    }
    let mut cpu = Cpu::new(CpuOptions { threads: Some(threads), isa, kv, ..CpuOptions::default() })?;
    let cols = p.weights[0].cols as usize;
    let values = (0..VOCAB * cols).map(|i| ((i * 2_654_435_761) >> 7) % 1000);
    let bytes: Vec<u8> = values.flat_map(|v| (v as f32 / 500.0 - 1.0).to_le_bytes()).collect();
    let input = Tensor {
        name: "input".into(),
        dtype: DType::F32,
        shape: vec![VOCAB, cols],
        data: Bytes::from(bytes),
    };
    let weight = cpu.load(&p.weights[0], HostWeight { parts: vec![input] })?;
    let blocks: Vec<u32> = (0..(depth + rows).div_ceil(BLOCK_TOKENS) as u32).collect();
    let limits = Limits { rows: rows.max(BLOCK_TOKENS), outputs: 1, kv_blocks: blocks.len() };
    let prepared = cpu.prepare(p.clone(), &[weight], limits)?;
    let mut feed = |start: usize, rows: usize| {
        let tokens: Vec<u32> = (0..rows as u32).map(|i| i * 7 % VOCAB as u32).collect();
        let clock = Instant::now();
        let seqs = [SeqStep::new(rows, start, &blocks)];
        cpu.run(prepared, &StepInputs::new(&tokens, &seqs, &[]))?;
        if start == 0 {
            let copies: Vec<(u32, u32)> = blocks[1..].iter().map(|b| (0, *b)).collect();
            cpu.copy_blocks(prepared, &copies)?;
        }
        Ok::<f64, quarrel_ir::Error>(clock.elapsed().as_secs_f64())
    };
    feed(0, BLOCK_TOKENS)?;
    feed(depth.max(1), rows)?;
    let mut times = (0..n).map(|_| feed(depth.max(1), rows)).collect::<Result<Vec<f64>, _>>()?;
    times.sort_by(f64::total_cmp);
    let sees = |p: usize| match pattern {
        // Averaged over the heads.
        Some(b) => {
            (0..heads).flat_map(|h| (0..=p).filter(move |k| b.sees(h as usize, p, *k))).count()
                / heads as usize
        }
        None => window.map_or(p + 1, |w| w.min(p + 1)),
    };
    let seen = (depth..depth + rows).map(sees).sum::<usize>() as f64;
    let read = kv.bits() / 8.0 * f64::from(2 * kv_cols * layers) * (sees(depth) + rows - 1) as f64;
    let products = seen * f64::from(2 * q_cols * layers);
    for (name, t) in [("median", times[n / 2]), ("best", times[0])] {
        println!(
            "{name:6} {:9.3} ms, {:5.1} GB/s of keys and values, {:6.1} G products/s",
            t * 1e3,
            read / t / 1e9,
            products / t / 1e9
        );
    }
    Ok(())
}
