//! A Program as text: what `quarrel inspect --program` prints and what snapshot tests pin.

use crate::candidates;
use crate::op::{Blocks, Lookup, NormKind, NormSpec, Op, View};
use crate::program::{Program, Rows, WeightId};
use std::fmt;

impl Program {
    fn view(&self, v: View) -> String {
        let value = &self.values[v.value.0 as usize];
        let name = format!("%{}.{}", v.value.0, value.name);
        if v.col == 0 && v.cols == value.cols {
            name
        } else {
            format!("{name}[{}..{}]", v.col, v.col + v.cols)
        }
    }

    fn weight_text(&self, w: WeightId) -> String {
        let w = &self.weights[w.0 as usize];
        let names: Vec<&str> = w.parts.iter().map(|p| p.name.as_str()).collect();
        // Experts are many, and all alike.
        let names = match names[..] {
            [first, .., last] if names.len() > 8 => format!("{first}|({} tensors)|{last}", names.len()),
            _ => names.join("|"),
        };
        format!("{names}[{}x{}]", w.rows(), w.cols)
    }

    fn norm_text(&self, n: &NormSpec) -> String {
        let kind = match n.kind {
            NormKind::Rms => "rms",
            NormKind::Layer => "layer",
            NormKind::Plain => "gain",
        };
        let weight = n.weight.map(|w| format!(" {}", self.weight_text(w))).unwrap_or_default();
        let bias = n.bias.map(|w| format!(" bias {}", self.weight_text(w))).unwrap_or_default();
        format!("{kind}(eps {:e}, group {}{weight}{bias})", n.eps, n.group)
    }

    fn op_text(&self, op: &Op) -> String {
        let v = |x: &View| self.view(*x);
        match op {
            Op::Embed { out, table, scale, by, add } => {
                let add = add.map(|a| format!("{} + ", self.view(a))).unwrap_or_default();
                let by = match by {
                    Lookup::Token => String::new(),
                    Lookup::TokenOr(r) => format!(" or row {r}"),
                    Lookup::Position => " by position".into(),
                    Lookup::Row(r) => format!(" row {r}"),
                };
                format!("{} = {add}embed {}{by} * {scale}", v(out), self.weight_text(*table))
            }
            Op::Norm { out, x, norm, add } => {
                let add = add.map(|a| format!("{} + ", self.view(a))).unwrap_or_default();
                format!("{} = {add}norm {} {}", v(out), v(x), self.norm_text(norm))
            }
            Op::MatMul { out, x, norm, weight, bias, add, glu } => {
                let norm = norm.as_ref().map(|n| format!(" <- {}", self.norm_text(n))).unwrap_or_default();
                let bias = bias.map(|b| format!(" bias {}", self.weight_text(b))).unwrap_or_default();
                let add = add.map(|a| format!("{} + ", self.view(a))).unwrap_or_default();
                let glu = glu.map(|g| format!(" glu {g:?}")).unwrap_or_default();
                format!("{} = {add}matmul {}{norm} {}{bias}{glu}", v(out), v(x), self.weight_text(*weight))
            }
            Op::Rope { x, head_dim, table } => {
                let t = &self.ropes[table.0 as usize];
                format!(
                    "rope {} head {head_dim} table {} ({:?}, {} dims)",
                    v(x),
                    table.0,
                    t.style,
                    t.rot_dims
                )
            }
            Op::StoreKv { k, v: value, kv_layer } => format!("store_kv {kv_layer} {} {}", v(k), v(value)),
            Op::Attend { out, q, spec: s } => {
                let kind = if s.chunked { "chunk" } else { "window" };
                let window = s.window.map(|w| format!(" {kind} {w}")).unwrap_or_default();
                let blocks = s.blocks.map(|b| {
                    let Blocks { tokens, local, global, stride, shift } = b;
                    format!(" blocks of {tokens}: {local} near, first {global}, each {stride}th less {shift} by head")
                });
                let blocks = blocks.unwrap_or_default();
                let cap = s.softcap.map(|c| format!(" softcap {c}")).unwrap_or_default();
                let bias = s.alibi.map(|m| format!(" alibi {m}")).unwrap_or_default();
                let buckets = s.buckets.map(|b| {
                    let ways = if b.both_ways { " both ways" } else { "" };
                    format!(" by distance up to {}{ways} {}", b.most, self.weight_text(b.table))
                });
                let bias = buckets.unwrap_or(bias);
                let sinks = s.sinks.map(|s| format!(" sinks {}", self.weight_text(s))).unwrap_or_default();
                let sees = match (s.of_source, s.causal) {
                    (true, _) => " source",
                    (false, true) => "",
                    (false, false) => " all",
                };
                format!(
                    "{} = attend{sees} {} kv {} heads {}/{} dim {}/{} scale {}{window}{blocks}{cap}{bias}{sinks}",
                    v(out),
                    v(q),
                    s.kv_layer,
                    s.heads,
                    s.kv_heads,
                    s.head_dim,
                    s.v_dim,
                    s.scale
                )
            }
            Op::ShortConv { out, x, before, after, weight, bias, kv_layer } => {
                let bias = bias.map(|b| format!(" bias {}", self.weight_text(b))).unwrap_or_default();
                let (x, before, after) = (v(x), v(before), v(after));
                let weight = self.weight_text(*weight);
                format!("{} = {after} * short_conv kv {kv_layer} {before} * {x} {weight}{bias}", v(out))
            }
            Op::Conv { out, x, weight, bias, state } => {
                let bias = bias.map(|b| format!(" bias {}", self.weight_text(b))).unwrap_or_default();
                format!("{} = conv state {state} {} {}{bias}", v(out), v(x), self.weight_text(*weight))
            }
            Op::Scan { out, x, b, c, dt, spec: s, state } => format!(
                "{} = scan state {state} {} by {} {} {} heads {} dim {}/{}",
                v(out),
                v(x),
                v(b),
                v(c),
                v(dt),
                s.heads,
                s.head_dim,
                s.state_dim
            ),
            Op::Glu { out, gate, up, act } => format!("{} = glu {act:?} {} {}", v(out), v(gate), v(up)),
            Op::Activate { out, x, act } => format!("{} = {act:?} {}", v(out), v(x)),
            Op::Route { out, logits, bias, spec: s } => {
                let groups = s.groups.map(|g| format!(" of {}/{} groups by {}", g.used, g.count, g.best));
                format!(
                    "{} = route {} {:?} best {}{}{}{} * {}",
                    v(out),
                    v(logits),
                    s.scoring,
                    s.used,
                    groups.unwrap_or_default(),
                    bias.map(|b| format!(" bias {}", self.weight_text(b))).unwrap_or_default(),
                    if s.normalize { " normalized" } else { "" },
                    s.scale
                )
            }
            Op::MatMulExperts { out, x, route, weight, bias, glu, .. } => {
                let by = route.map_or("each block".into(), |r| self.view(r));
                let bias = bias.map(|b| format!(" bias {}", self.weight_text(b))).unwrap_or_default();
                let glu = glu.map(|g| format!(" glu {g:?}")).unwrap_or_default();
                format!(
                    "{} = matmul_experts {} by {by} {}{bias}{glu}",
                    v(out),
                    v(x),
                    self.weight_text(*weight)
                )
            }
            Op::Combine { out, x, weights, sums, add } => {
                let add = add.map(|a| format!("{} + ", self.view(a))).unwrap_or_default();
                let sums = if *sums == 1 { String::new() } else { format!(" to {sums}") };
                format!("{} = {add}combine {}{sums} by {}", v(out), v(x), v(weights))
            }
            Op::Add { out, a, b, by: [1.0, 1.0] } => format!("{} = {} + {}", v(out), v(a), v(b)),
            Op::Add { out, a, b, by } => format!("{} = {} {} + {} {}", v(out), by[0], v(a), by[1], v(b)),
            Op::Rescale { out, x, like, floor } => {
                format!("{} = rescale {} like {} floor {floor:e}", v(out), v(x), v(like))
            }
            Op::Cutoff { x, by } => format!("cutoff {} at {by} deviations", v(x)),
            Op::Scale { x, by } => format!("scale {} * {by}", v(x)),
            Op::Clip { x, by } => format!("clip {} at {by}", v(x)),
            Op::Softcap { x, cap } => format!("softcap {} at {cap}", v(x)),
            Op::PickRows { out, x } => format!("{} = pick_rows {}", v(out), v(x)),
            Op::TopK { out, x } => format!("{} = top {} of {}", v(out), candidates::count(out.cols), v(x)),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outputs = self.values.iter().filter(|v| v.rows == Rows::Outputs).count();
        writeln!(
            f,
            "program: {} ops, {} values ({outputs} of output rows), {} weights, {} kv layers",
            self.ops.len(),
            self.values.len(),
            self.weights.len(),
            self.kv.len()
        )?;
        let mut layer = None;
        for node in &self.ops {
            if node.layer != layer {
                layer = node.layer;
                match layer {
                    Some(l) => writeln!(f, "layer {l}:")?,
                    None => writeln!(f, "end:")?,
                }
            }
            writeln!(f, "  {}", self.op_text(&node.op))?;
        }
        Ok(())
    }
}
