//! The only forward pass: a [`ModelSpec`] becomes a Program, of a decoder as of an encoder.

use crate::arch::{Norms, QkNorm};
use crate::encdec::Stack;
use crate::hybrid::Mixer;
use crate::spec::ModelSpec;
use quarrel_ir::{
    AttendSpec, KvLayer, Lookup, NormKind, NormSpec, Op, Program, RopeId, RopeStyle, RopeTable, Rows, View,
    WeightId, WeightPart, fuse,
};

/// How to build the tape.
#[derive(Debug, Clone)]
pub struct Options {
    /// Apply the fusion rewrites.
    pub fuse: bool,
    /// Keep the hidden states of all tokens, for embeddings ([`Program::hidden`]); an encoder always does.
    pub hidden: bool,
    /// Most tokens of a sequence, where rotations depend on it; otherwise what the file says.
    pub context: Option<u32>,
    /// Numbers of layers after which a decoder has logits too, by its last norm and its head: see [`exit_logits`]. 0 is what goes
    /// into the first layer.
    pub exits: Vec<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Options { fuse: true, hidden: false, context: None, exits: Vec::new() }
    }
}

/// Builds the Program of a model. Pure: no I/O, no clock, the same spec gives the same tape.
pub fn decoder(spec: &ModelSpec, options: &Options) -> Program {
    let mut b = Builder { p: Program::new(), s: spec, stack: spec.stack() };
    let own = spec.layers.iter().enumerate().filter(|(i, _)| spec.keeps(*i)).filter_map(|(i, l)| {
        let attention =
            KvLayer { kv_heads: spec.kv_heads, head_dim: spec.head_dim, v_dim: spec.v_dim, window: l.window };
        spec.mixer(i).cache(spec.dim, attention)
    });
    b.p.kv = own.collect();
    let context = options.context.unwrap_or(spec.context);
    let ropes: Vec<RopeId> = spec.ropes.iter().map(|r| b.p.rope(r.table(context))).collect();
    let table = b.p.weight("token_embd.weight", spec.vocab, spec.dim);
    if let Some(source) = &spec.source {
        b.read_source(source, table);
    }
    let x = b.embedding(table);
    let (mut x, flow) = b.part(x);
    let exits = if spec.arch.causal { &options.exits[..] } else { &[] };
    let mut picked = vec![None; exits.len()];
    for (l, layer) in spec.layers.iter().enumerate() {
        b.p.set_layer(Some(l as u32));
        b.leave(x, l as u32, exits, &mut picked);
        let rope = layer.rope.and_then(|r| ropes.get(r).copied());
        x = match &flow {
            Some(flow) => b.stream_block(x, l as u32, layer.window, rope, flow),
            None => b.block(x, l as u32, layer.window, rope),
        };
    }
    b.p.set_layer(None);
    b.leave(x, spec.layers.len() as u32, exits, &mut picked);
    if spec.arch.causal {
        let picked: Vec<View> = picked.into_iter().flatten().collect();
        assert_eq!(picked.len(), exits.len(), "an exit is behind the last layer");
        // What a model with a source knows of a text is in its encoder.
        b.head(x, table, options.hidden && spec.source.is_none(), &picked);
    } else {
        b.p.hidden = Some(if b.stack == Stack::Only { x } else { b.last_norm("hidden", x) });
    }
    if options.fuse { fuse::fuse(&b.p) } else { b.p }
}

/// The logits of each of a Program's exits, as many as it was built with. Those of the whole model and these are columns of
/// one value.
pub fn exit_logits(program: &Program, exits: usize) -> Vec<View> {
    let view = |l: View| move |e: usize| View { col: l.col + l.cols * (e as u32 + 1), ..l };
    program.logits.map_or_else(Vec::new, |l| (0..exits).map(view(l)).collect())
}

pub(crate) struct Builder<'a> {
    pub(crate) p: Program,
    pub(crate) s: &'a ModelSpec,
    /// The stack whose layers are built.
    pub(crate) stack: Stack,
}

impl Builder<'_> {
    pub(crate) fn weight(&mut self, layer: u32, name: &str, rows: u32, cols: u32) -> WeightId {
        self.p.weight(format!("{}blk.{layer}.{name}.weight", self.stack.prefix()), rows, cols)
    }

    pub(crate) fn bias(&mut self, when: bool, layer: u32, name: &str, cols: u32) -> Option<WeightId> {
        when.then(|| self.p.weight(format!("{}blk.{layer}.{name}.bias", self.stack.prefix()), 1, cols))
    }

    pub(crate) fn norm_spec(&mut self, weight: String, group: u32) -> NormSpec {
        let kind = self.s.arch.norm;
        if self.s.arch.bare_norms {
            return NormSpec { kind, eps: self.s.eps, group, weight: None, bias: None };
        }
        let bias = self.s.norm_bias.then(|| weight.replace(".weight", ".bias"));
        let bias = bias.map(|name| self.p.weight(name, 1, group));
        let weight = Some(self.p.weight(weight, 1, group));
        NormSpec { kind, eps: self.s.eps, group, weight, bias }
    }

    /// Rows of the table of tokens, with what else says where and what a token is, in the order in which BERT adds it.
    fn embedding(&mut self, table: WeightId) -> View {
        let s = self.s;
        let mut x = self.p.embed("embed", table, s.embed_scale);
        let tables = [
            ("token_types.weight", s.token_types, Lookup::Row(0)),
            ("position_embd.weight", s.positions, Lookup::Position),
        ];
        for (name, rows, by) in tables.into_iter().filter(|t| t.1 > 0) {
            let table = self.p.weight(name, rows, s.dim);
            let out = self.p.value("embed", Rows::Tokens, s.dim);
            self.p.push(Op::Embed { out, table, scale: 1.0, by, add: Some(x) });
            x = out;
        }
        if s.arch.embed_norm {
            let norm = self.norm_spec("token_embd_norm.weight".into(), s.dim);
            x = self.p.norm("token_embd_norm", x, norm);
        }
        x
    }

    /// The norm before attention or feed-forward, where the family has one.
    fn before(&mut self, layer: u32, name: &'static str, x: View) -> View {
        match self.s.arch.norms {
            Norms::After | Norms::Outputs => x,
            Norms::Before | Norms::Around => self.layer_norm(layer, name, x, x.cols),
        }
    }

    pub(crate) fn layer_norm(&mut self, layer: u32, name: &'static str, x: View, group: u32) -> View {
        let norm = self.norm_spec(format!("{}blk.{layer}.{name}.weight", self.stack.prefix()), group);
        self.p.norm(name, x, norm)
    }

    /// A norm over each head with a gain of its own, and no bias.
    fn head_norm(&mut self, layer: u32, name: &'static str, x: View) -> View {
        let (kind, eps, group) = (self.s.arch.norm, self.s.eps, self.s.head_dim);
        let part = |h: u32| WeightPart { name: format!("blk.{layer}.{name}.{h}.weight"), rows: 1 };
        let weight = self.p.stacked((0..x.cols / group).map(part).collect(), group);
        self.p.norm(name, x, NormSpec { kind, eps, group, weight: Some(weight), bias: None })
    }

    pub(crate) fn linear(&mut self, layer: u32, name: &'static str, x: View, rows: u32, bias: bool) -> View {
        let w = self.weight(layer, name, rows, x.cols);
        let bias = self.bias(bias, layer, name, rows);
        self.p.matmul(name, x, w, bias)
    }

    /// The residual sum, with the norm of its own that the family has: of what is added, or of the sum.
    fn residual(&mut self, layer: u32, [post_norm, sum_norm]: [&'static str; 2], x: View, y: View) -> View {
        match self.s.arch.norms {
            Norms::Before => return self.p.add("residual", x, y),
            Norms::After => {
                let sum = self.p.add("residual", x, y);
                return self.layer_norm(layer, sum_norm, sum, sum.cols);
            }
            Norms::Around | Norms::Outputs => {}
        }
        let norm = self.norm_spec(format!("blk.{layer}.{post_norm}.weight"), y.cols);
        let out = self.p.value("residual", Rows::Tokens, y.cols);
        self.p.push(Op::Norm { out, x: y, norm, add: Some(x) });
        out
    }

    /// Attention and feed-forward, one after the other or side by side.
    pub(crate) fn block(&mut self, x: View, l: u32, window: Option<u32>, rope: Option<RopeId>) -> View {
        let s = self.s;
        let h = self.before(l, "attn_norm", x);
        let a = match (s.mixer(l as usize), s.latent) {
            (Mixer::ShortConv { taps, bias }, _) => self.short_conv(h, l, taps, bias),
            (Mixer::Mamba2(m), _) => self.mamba2(h, l, &m),
            (Mixer::Attention, Some(latent)) => self.latent_attention(h, l, rope, &latent),
            (Mixer::Attention, None) => self.attention(h, l, window, rope),
        };
        if self.s.parallel {
            let h = if self.s.ff_norm { self.before(l, "ffn_norm", x) } else { h };
            let f = self.feed_forward(h, l);
            let x = self.p.add("residual", x, a);
            return self.p.add("residual", x, f);
        }
        let mut x = self.residual(l, ["post_attention_norm", "attn_output_norm"], x, a);
        if self.stack == Stack::Decoder {
            x = self.cross_attention(x, l);
        }
        let h = self.before(l, "ffn_norm", x);
        let f = self.feed_forward(h, l);
        self.residual(l, ["post_ffw_norm", "layer_output_norm"], x, f)
    }

    /// What a block adds, with the factor that the family has.
    pub(crate) fn scaled(&mut self, y: View) -> View {
        if self.s.residual_scale != 1.0 {
            self.p.push(Op::Scale { x: y, by: self.s.residual_scale });
        }
        y
    }

    pub(crate) fn attention(&mut self, h: View, l: u32, window: Option<u32>, rope: Option<RopeId>) -> View {
        let s = self.s;
        let mut q = self.linear(l, "attn_q", h, s.heads * s.head_dim, s.qkv_bias);
        if !s.keeps(l as usize) {
            return self.shared_attention(q, l, window, rope);
        }
        let mut k = self.linear(l, "attn_k", h, s.kv_heads * s.head_dim, s.qkv_bias);
        let mut v = self.linear(l, "attn_v", h, s.kv_heads * s.v_dim, s.qkv_bias);
        if let Some(by) = s.clip {
            [q, k, v].into_iter().for_each(|x| self.p.push(Op::Clip { x, by }));
        }
        let groups = match s.qk_norm {
            QkNorm::None => None,
            QkNorm::EachHead => {
                (q, k) = (self.head_norm(l, "attn_q_norm", q), self.head_norm(l, "attn_k_norm", k));
                None
            }
            QkNorm::PerHead => Some((s.head_dim, s.head_dim)),
            QkNorm::Whole => Some((q.cols, k.cols)),
        };
        if let Some((of_q, of_k)) = groups {
            q = self.layer_norm(l, "attn_q_norm", q, of_q);
            k = self.layer_norm(l, "attn_k_norm", k, of_k);
        }
        [q, k] = self.bare([q, k], rope.is_some());
        if s.arch.value_norm {
            let norm = NormSpec { kind: NormKind::Rms, eps: s.eps, group: s.v_dim, weight: None, bias: None };
            v = self.p.norm("attn_v_norm", v, norm);
        }
        if let Some(table) = rope {
            for x in [q, k] {
                self.p.push(Op::Rope { x, head_dim: s.head_dim, table });
            }
        }
        let kv_layer = self.kv_layer(l);
        self.p.push(Op::StoreKv { k, v, kv_layer });
        self.attended(q, l, window)
    }

    /// Attention of a layer without keys and values to those of another.
    fn shared_attention(&mut self, mut q: View, l: u32, window: Option<u32>, rope: Option<RopeId>) -> View {
        let head_dim = self.s.head_dim;
        if self.s.qk_norm == QkNorm::PerHead {
            q = self.layer_norm(l, "attn_q_norm", q, head_dim);
        }
        if let Some(table) = rope {
            self.p.push(Op::Rope { x: q, head_dim, table });
        }
        self.attended(q, l, window)
    }

    fn attended(&mut self, q: View, l: u32, window: Option<u32>) -> View {
        let spec = self.attend_spec(l, window);
        let a = self.p.attend(q, spec);
        let y = self.linear(l, "attn_output", a, self.s.dim, self.s.out_bias);
        self.scaled(y)
    }

    /// Where a layer's keys and values, or inputs, are: layers with a state alone have no such place.
    pub(crate) fn kv_layer(&self, l: u32) -> u32 {
        let stateful = |i: &u32| matches!(self.s.mixer(*i as usize), Mixer::Mamba2(_));
        let l = self.s.cache_of(l as usize).expect("`check` has found the layer that each reads") as u32;
        self.first_kv() + l - (0..l).filter(stateful).count() as u32
    }

    pub(crate) fn attend_spec(&mut self, l: u32, window: Option<u32>) -> AttendSpec {
        let s = self.s;
        let sinks = s.sinks.then(|| self.p.weight(format!("blk.{l}.attn_sinks.weight"), 1, s.heads));
        AttendSpec {
            kv_layer: self.kv_layer(l),
            heads: s.heads,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            v_dim: s.v_dim,
            scale: s.attn_scale,
            causal: s.arch.causal && self.stack != Stack::Encoder,
            window,
            chunked: s.chunked && window.is_some(),
            blocks: s.blocks.filter(|(_, every)| !(l + 1).is_multiple_of(*every)).map(|(blocks, _)| blocks),
            softcap: s.attn_softcap,
            alibi: s.alibi,
            buckets: self.buckets(l),
            of_source: false,
            sinks,
        }
    }

    /// What Llama 4 does to queries and keys: a norm without gain where they are rotated, which a rotation leaves as it is, and
    /// queries that grow with their position where they are not.
    fn bare(&mut self, [mut q, mut k]: [View; 2], rotated: bool) -> [View; 2] {
        let s = self.s;
        if s.bare_norm && rotated {
            let norm =
                NormSpec { kind: NormKind::Rms, eps: s.eps, group: s.head_dim, weight: None, bias: None };
            (q, k) = (self.p.norm("attn_q_norm", q, norm), self.p.norm("attn_k_norm", k, norm));
        }
        if let Some(growth) = s.growth.filter(|_| !rotated || s.arch.growing) {
            // A rotation by nothing, with a factor.
            let dims = s.head_dim / 2 * 2;
            let still = RopeTable {
                inv_freq: vec![0.0; dims as usize / 2],
                growth: Some(growth),
                ..RopeTable::new(RopeStyle::Neox, dims, 1.0, None)
            };
            let table = self.p.rope(still);
            self.p.push(Op::Rope { x: q, head_dim: s.head_dim, table });
        }
        [q, k]
    }

    pub(crate) fn feed_forward(&mut self, h: View, l: u32) -> View {
        let s = self.s;
        if let Some(experts) = s.experts.filter(|_| s.sparse.get(l as usize) == Some(&true)) {
            let y = self.mixture(h, l, &experts);
            return self.scaled(y);
        }
        let a = if let Some(gate) = s.arch.gate {
            // One expert, which every row has.
            let both = |kind: &str| ["ffn_gate", "ffn_up"].map(|n| format!("blk.{l}.{n}.{kind}"));
            let parts = |kind: &str| both(kind).map(|name| WeightPart { name, rows: s.ff }).into();
            let weight = self.p.stacked(parts("weight"), h.cols);
            let bias = s.ff_bias.then(|| self.p.stacked(parts("bias"), 1));
            self.p.matmul_experts("ffn_up", (h, None), 1, (weight, bias), Some(gate))
        } else if s.act.1 {
            let gate = self.linear(l, "ffn_gate", h, s.ff, s.ff_bias);
            let up = self.linear(l, "ffn_up", h, s.ff, s.ff_bias);
            if let Some(by) = s.cutoffs.get(l as usize).copied().flatten() {
                self.p.push(Op::Cutoff { x: gate, by });
            }
            self.p.glu(gate, up, s.act.0)
        } else {
            let up = self.linear(l, "ffn_up", h, s.ff, s.ff_bias);
            let out = self.p.value("ffn_act", Rows::Tokens, s.ff);
            self.p.push(Op::Activate { out, x: up, act: s.act.0 });
            out
        };
        let y = self.linear(l, "ffn_down", a, s.dim, s.ff_bias);
        self.scaled(y)
    }

    /// Keeps the rows of `x`, which `layers` have made, for the exits that are there.
    fn leave(&mut self, x: View, layers: u32, exits: &[u32], picked: &mut [Option<View>]) {
        for (_, kept) in exits.iter().zip(picked).filter(|(e, _)| **e == layers) {
            *kept = Some(self.pick("exit", x));
        }
    }

    fn pick(&mut self, name: &'static str, x: View) -> View {
        let out = self.p.value(name, Rows::Outputs, x.cols);
        self.p.push(Op::PickRows { out, x });
        out
    }

    fn head(&mut self, x: View, table: WeightId, hidden: bool, exits: &[View]) {
        let s = self.s;
        let picked = self.pick("picked", x);
        let norm = self.output_norm();
        if hidden {
            // Of all tokens, whether their logits are wanted or not; what the head multiplies is a copy of its own.
            let x = self.merged(x);
            self.p.hidden = Some(self.p.norm("hidden", x, norm));
        }
        let weight = if s.tied { table } else { self.p.weight("output.weight", s.vocab, s.dim) };
        let bias = s.head_bias.then(|| self.p.weight("output.bias", 1, s.vocab));
        let all = self.p.value("logits", Rows::Outputs, s.vocab * (1 + exits.len() as u32));
        // The whole model's first, then one exit's after the other's.
        for (i, x) in [picked].iter().chain(exits).enumerate() {
            let x = self.merged(*x);
            let (out, x) = (all.slice(s.vocab * i as u32, s.vocab), self.p.norm("output_norm", x, norm));
            self.p.push(Op::MatMul { out, x, norm: None, weight, bias, add: None, glu: None });
            if s.logit_scale != 1.0 {
                self.p.push(Op::Scale { x: out, by: s.logit_scale });
            }
            if let Some(cap) = s.logit_softcap {
                self.p.push(Op::Softcap { x: out, cap });
            }
        }
        self.p.logits = Some(all.slice(0, s.vocab));
    }
}
