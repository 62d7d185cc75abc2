//! Latent attention (DeepSeek-V2, 2.1 in 2405.04434), absorbed: what makes keys of a latent is applied to queries instead, and what
//! makes values of it to what attention gives. So the cache holds one key head, `[latent | rotated part]`, for all query heads,
//! and the latent is the value; see `docs/adr/0006`.

use crate::Result;
use crate::decoder::Builder;
use crate::spec::{ModelSpec, field_error};
use quarrel_ir::{AttendSpec, Op, RopeId, RopeTable, Rows, View, WeightId, WeightPart};

/// The sizes of latent attention; in a [`ModelSpec`] with it, heads are as the cache has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latent {
    /// Columns of the latent of queries; 0 where they have none.
    pub q_rank: u32,
    /// Columns of the latent of keys and values.
    pub rank: u32,
    /// Columns of a query head that are not rotated.
    pub plain: u32,
    /// Columns of a query head that are.
    pub rotated: u32,
    /// Columns of a value head behind attention.
    pub v_dim: u32,
}

impl Latent {
    /// Checks sizes that would make later arithmetic meaningless.
    pub(crate) fn check(self) -> Result<Latent> {
        let bounds = [
            ("kv_lora_rank", self.rank, 1, 1 << 12),
            ("q_lora_rank", self.q_rank, 0, 1 << 16),
            ("qk_nope_head_dim", self.plain, 1, 1 << 12),
            ("qk_rope_head_dim", self.rotated, 2, 1 << 12),
            ("v_head_dim", self.v_dim, 1, 1 << 12),
        ];
        match bounds.into_iter().find(|b| !(b.2..=b.3).contains(&b.1)) {
            Some((field, n, least, most)) => {
                Err(field_error(field, format!("is {n}, must be {least}..={most}")))
            }
            None => Ok(self),
        }
    }

    /// Columns of a query head as a file has it.
    pub(crate) fn head(&self) -> u32 {
        self.plain + self.rotated
    }

    /// Parameters of a layer's attention.
    pub(crate) fn parameters(&self, s: &ModelSpec) -> u64 {
        let [d, heads, rank] = [s.dim, s.heads, self.rank].map(u64::from);
        let q = heads * u64::from(self.head());
        let queries = match u64::from(self.q_rank) {
            0 => d * q,
            r => (d + q) * r,
        };
        let per_head = rank * u64::from(self.plain + self.v_dim) + d * u64::from(self.v_dim);
        queries + d * (rank + u64::from(self.rotated)) + heads * per_head
    }
}

impl Builder<'_> {
    /// A matrix for each head, parts `blk.L.NAME.H.weight`.
    fn by_head(&mut self, l: u32, name: &str, rows: u32, cols: u32) -> WeightId {
        let part = |h| WeightPart { name: format!("blk.{l}.{name}.{h}.weight"), rows };
        self.p.stacked((0..self.s.heads).map(part).collect(), cols)
    }

    /// `table`, but of columns from `first` on.
    fn rope_from(&mut self, table: RopeId, first: u32) -> RopeId {
        let table = RopeTable { first, ..self.p.ropes[table.0 as usize].clone() };
        self.p.rope(table)
    }

    /// What attention of layer `l` gives for its normalised rows.
    pub(crate) fn latent_attention(&mut self, h: View, l: u32, rope: Option<RopeId>, m: &Latent) -> View {
        let s = self.s;
        let q = match m.q_rank {
            0 => self.linear(l, "attn_q", h, s.heads * m.head(), false),
            rank => {
                let a = self.linear(l, "attn_q_a", h, rank, false);
                let a = self.layer_norm(l, "attn_q_a_norm", a, rank);
                self.linear(l, "attn_q_b", a, s.heads * m.head(), false)
            }
        };
        let latent = self.linear(l, "attn_kv_a_latent", h, m.rank, false);
        let norm = self.norm_spec(format!("blk.{l}.attn_kv_a_norm.weight"), m.rank);
        let k = self.p.value("attn_k", Rows::Tokens, s.head_dim);
        self.p.push(Op::Norm { out: k.slice(0, m.rank), x: latent, norm, add: None });
        let weight = self.p.weight(format!("blk.{l}.attn_kv_a_rope.weight"), m.rotated, h.cols);
        let out = k.slice(m.rank, m.rotated);
        self.p.push(Op::MatMul { out, x: h, norm: None, weight, bias: None, add: None, glu: None });
        if let Some(rope) = rope {
            let (of_q, of_k) = (self.rope_from(rope, m.plain), self.rope_from(rope, m.rank));
            self.p.push(Op::Rope { x: q, head_dim: m.head(), table: of_q });
            self.p.push(Op::Rope { x: k, head_dim: s.head_dim, table: of_k });
        }
        let absorbed = self.by_head(l, "attn_k_b", m.rank, m.plain);
        let q = self.p.matmul_experts("attn_q", (q, None), s.heads, (absorbed, None), None);
        let kv_layer = self.kv_layer(l);
        self.p.push(Op::StoreKv { k, v: k.slice(0, m.rank), kv_layer });
        let spec: AttendSpec = self.attend_spec(l, None);
        let a = self.p.attend(q, spec);
        let values = self.by_head(l, "attn_v_b", m.v_dim, m.rank);
        let a = self.p.matmul_experts("attn_v", (a, None), s.heads, (values, None), None);
        self.linear(l, "attn_output", a, s.dim, false)
    }
}
