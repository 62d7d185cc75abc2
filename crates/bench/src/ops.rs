//! Time, bytes and speed of each kind of op, so that one sees where a step goes.

use crate::machine::Rates;
use crate::session::{Session, Totals};
use crate::work::Case;
use crate::{Progress, Result};
use quarrel_ir::{Op, Program, WeightDecl};
use serde::{Deserialize, Serialize};

/// New tokens of a profiled case, at most: the ops of a step are alike.
const STEPS: usize = 16;

/// The ops of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// The case.
    pub name: String,
    /// Sequences, if it is a batch.
    pub sequences: Option<usize>,
    /// Seconds of the whole case.
    pub seconds: f64,
    /// Seconds that the first thread waited for others between ops.
    pub waiting_s: f64,
    /// Seconds of reading logits and choosing tokens.
    pub choosing_s: f64,
    /// Seconds outside the tape: beginning a step, and waiting at its end for the other threads.
    pub outside_s: f64,
    /// The ops, most time first.
    pub groups: Vec<Group>,
}

/// Ops of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The op, and for products which weight.
    pub name: String,
    /// Seconds in it.
    pub seconds: f64,
    /// Of the whole case.
    pub share_of_time: f64,
    /// How often one ran.
    pub calls: u64,
    /// Weights and cache read, or what is read and written of activations where an op has neither.
    pub bytes: u64,
    /// 1e9 bytes per second.
    pub gb_per_s: f64,
    /// 1e9 multiplications and additions per second.
    pub gop_per_s: f64,
    /// Operations for each byte.
    pub ops_per_byte: f64,
    /// The time that the machine's peaks allow, as a share of the time taken; ops on activations alone have none.
    pub share_of_peak: Option<f64>,
}

/// Profiles one case, cut to a few steps if it decodes.
///
/// # Errors
/// Where the device cannot tell the time of its ops.
pub fn profile(session: &mut Session, case: Case, peaks: &Rates, progress: Progress<'_>) -> Result<Phase> {
    let short = match case {
        Case::Prompt(n) => Case::Prompt(n),
        Case::Decode { depth, tokens } => Case::Decode { depth, tokens: tokens.min(STEPS) },
        Case::Batch { steps, sequences, depth } => Case::Batch { steps: steps.min(STEPS), sequences, depth },
    };
    progress(&format!("ops of {}", case.name()));
    let (seconds, choosing_s, times) = session.profile(short)?;
    let costs = session.costs(short);
    let mut sums: Vec<(String, Group, Totals)> = Vec::new();
    let (mut busy, mut waiting) = (0.0, 0.0);
    for ((node, time), cost) in session.program.ops.iter().zip(times).zip(costs) {
        let name = group_name(&session.program, &node.op);
        let at = sums.iter().position(|g| g.0 == name).unwrap_or_else(|| {
            sums.push((name.clone(), Group::new(name), Totals::default()));
            sums.len() - 1
        });
        let (_, group, totals) = &mut sums[at];
        group.seconds += time.busy_ns as f64 / 1e9;
        group.calls += time.calls;
        group.bytes += cost.activation_bytes;
        totals.add(&cost, session.quantised(&node.op));
        busy += time.busy_ns as f64 / 1e9;
        waiting += time.wait_ns as f64 / 1e9;
    }
    let finish = |(_, group, totals): (String, Group, Totals)| group.finish(&totals, seconds, peaks);
    let mut groups: Vec<Group> = sums.into_iter().map(finish).collect();
    groups.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let sequences = if let Case::Batch { sequences, .. } = case { Some(sequences) } else { None };
    let outside_s = (seconds - busy - waiting - choosing_s).max(0.0);
    Ok(Phase { name: short.name(), sequences, seconds, waiting_s: waiting, choosing_s, outside_s, groups })
}

impl Group {
    fn new(name: String) -> Group {
        Group {
            name,
            seconds: 0.0,
            share_of_time: 0.0,
            calls: 0,
            bytes: 0,
            gb_per_s: 0.0,
            gop_per_s: 0.0,
            ops_per_byte: 0.0,
            share_of_peak: None,
        }
    }

    fn finish(mut self, totals: &Totals, all: f64, peaks: &Rates) -> Group {
        let memory = totals.bytes > 0.0;
        if memory {
            self.bytes = totals.bytes as u64;
        }
        let ops = totals.int_ops + totals.flops;
        let seconds = self.seconds.max(1e-9);
        let (reading, computing) = peaks.seconds(totals);
        self.share_of_time = self.seconds / all.max(1e-9);
        self.gb_per_s = self.bytes as f64 / seconds / 1e9;
        self.gop_per_s = ops / seconds / 1e9;
        self.ops_per_byte = ops / (self.bytes as f64).max(1.0);
        self.share_of_peak = memory.then(|| reading.max(computing) / seconds);
        self
    }
}

/// `attend`, or `matmul ffn_gate+up`.
fn group_name(program: &Program, op: &Op) -> String {
    match op {
        Op::MatMul { weight, .. } | Op::MatMulExperts { weight, .. } => {
            format!("matmul {}", class(&program.weights[weight.0 as usize]))
        }
        op => op.name().into(),
    }
}

/// The class of a weight: its name without block number and ending, those of stacked tensors together.
fn class(weight: &WeightDecl) -> String {
    let short = |name: &str| {
        let name = name.trim_end_matches(".weight");
        match name.strip_prefix("blk.").and_then(|n| n.split_once('.')) {
            // Of experts the number goes too.
            Some((_, class)) => match class.rsplit_once('.') {
                Some((class, n)) if n.bytes().all(|b| b.is_ascii_digit()) => class.to_string(),
                _ => class.to_string(),
            },
            None => name.to_string(),
        }
    };
    let mut names: Vec<String> = weight.parts.iter().map(|p| short(&p.name)).collect();
    names.dedup();
    let mut names = names.into_iter();
    let Some(mut out) = names.next() else { return String::new() };
    let prefix = out.rfind('_').map(|i| out[..=i].to_string()).unwrap_or_default();
    for name in names {
        out += &format!("+{}", name.strip_prefix(&prefix).unwrap_or(&name));
    }
    if out == "token_embd" { "output (token_embd)".into() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarrel_ir::WeightPart;

    #[test]
    fn weights_are_classed_by_name() {
        for (names, want) in [
            (&["blk.11.attn_q.weight", "blk.11.attn_k.weight", "blk.11.attn_v.weight"][..], "attn_q+k+v"),
            (&["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"], "ffn_gate+up"),
            (&["blk.3.ffn_down.weight"], "ffn_down"),
            (&["output.weight"], "output"),
            (&["token_embd.weight"], "output (token_embd)"),
        ] {
            let parts = names.iter().map(|n| WeightPart { name: (*n).into(), rows: 1 }).collect();
            assert_eq!(class(&WeightDecl { parts, cols: 1 }), want);
        }
    }

    #[test]
    fn shares_are_of_time_and_of_the_nearer_peak() {
        let peaks = Rates { read_gb_per_s: 10.0, int8_gop_per_s: 1000.0, f32_gflop_per_s: 100.0 };
        let group = |bytes, seconds| Group { bytes, seconds, ..Group::new("x".into()) };
        let g = group(5, 0.5).finish(&Totals { bytes: 2e9, int_ops: 4e9, flops: 0.0 }, 2.0, &peaks);
        assert_eq!((g.share_of_time, g.bytes, g.ops_per_byte), (0.25, 2_000_000_000, 2.0));
        assert!((g.share_of_peak.unwrap() - 0.4).abs() < 1e-9 && (g.gb_per_s - 4.0).abs() < 1e-9);
        let g = group(1000, 1.0).finish(&Totals { bytes: 0.0, int_ops: 0.0, flops: 3e9 }, 2.0, &peaks);
        assert_eq!((g.share_of_peak, g.bytes), (None, 1000));
    }
}
