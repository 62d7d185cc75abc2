//! Mixtures of experts: what a family's row says of them, what a file adds, and their part of the tape.
//!
//! Sizes of experts and which layers have them are read from the tensors, which no two sources name differently in other than
//! their names; how they are chosen and weighted is the family's, or the file's where it says so.

use crate::decoder::Builder;
use crate::spec::field_error;
use crate::{Error, Result};
use quarrel_formats::Tensor;
use quarrel_ir::{ExpertGroups, Gate, RouteSpec, Scoring, View, WeightId, WeightPart};

/// How a family chooses and uses experts.
#[derive(Debug, Clone, Copy)]
pub struct Experts {
    /// From logits to scores, where the file does not say.
    pub scoring: Scoring,
    /// Whether weights are divided by their sum, where the file does not say.
    pub normalize: bool,
    /// How gate and up become one.
    pub gate: Gate,
    /// Weights multiply what an expert is given, not what it gives.
    pub weigh_input: bool,
    /// Key of `config.json` for the number of experts.
    pub hf_count: &'static str,
    /// How a checkpoint that has all experts in one tensor stores them.
    pub hf_stack: Stack,
}

/// The matrices of all experts in one tensor of a checkpoint, `[experts, ..]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// As products read them, `[out, in]`; of gate and up in one tensor the gate comes first.
    Rows,
    /// Turned, `[in, out]`, else the same.
    Turned,
    /// As products read them, but gate and up row by row.
    Interleaved,
}

/// The experts of a model's sparse layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertSpec {
    /// How many.
    pub count: u32,
    /// How they are chosen and weighted.
    pub route: RouteSpec,
    /// A bias is added to the logits.
    pub logit_bias: bool,
    /// A bias is added to the scores when experts are chosen.
    pub choice_bias: bool,
    /// Width of one.
    pub ff: u32,
    /// Biases in their products.
    pub bias: bool,
    /// How gate and up become one.
    pub gate: Gate,
    /// Weights multiply what an expert is given.
    pub weigh_input: bool,
    /// Width of the expert that every token has besides; 0 where there is none.
    pub shared_ff: u32,
    /// That expert's output is weighted by a sigmoid of its own.
    pub shared_gate: bool,
}

/// What a file says of its experts beside their tensors.
pub(crate) struct Said {
    pub count: u32,
    pub used: u32,
    pub scoring: Option<Scoring>,
    pub normalize: Option<bool>,
    pub groups: Option<(u32, u32)>,
    pub scale: f32,
    pub gate: Gate,
}

impl Experts {
    /// Completes the family's rules with what a file says and has: `tensor` finds by canonical name. Which layers are sparse is told by
    /// their routers.
    pub(crate) fn read<'a>(
        &self,
        said: Said,
        layers: u32,
        tensor: impl Fn(&str) -> Option<&'a Tensor>,
    ) -> Result<(Option<ExpertSpec>, Vec<bool>)> {
        let router = |l: u32| tensor(&format!("blk.{l}.ffn_gate_inp.weight")).is_some();
        let sparse: Vec<bool> = (0..layers.min(1 << 16)).map(router).collect();
        let first = (0..).zip(&sparse).find(|(_, sparse)| **sparse).map(|(l, _)| l);
        let spec = first.map(|l| self.spec(said, l, tensor)).transpose()?;
        Ok((spec, sparse))
    }

    fn spec<'a>(
        &self,
        said: Said,
        sparse: u32,
        tensor: impl Fn(&str) -> Option<&'a Tensor>,
    ) -> Result<ExpertSpec> {
        let at = |name: &str| format!("blk.{sparse}.{name}");
        let scoring = said.scoring.unwrap_or(self.scoring);
        // DeepSeek-V2 judges a group by its best expert; V3, whose scores are sigmoids, by the best two.
        let best = if scoring == Scoring::Sigmoid { 2 } else { 1 };
        let groups = said.groups.filter(|g| g.0 > 1).map(|(count, used)| ExpertGroups { count, used, best });
        let route = RouteSpec {
            used: said.used,
            scoring,
            groups,
            normalize: said.normalize.unwrap_or(self.normalize),
            scale: said.scale,
        };
        // One expert's matrix of the product that comes last, under an old name too, or all experts' in one tensor.
        let down = ["ffn_down_exps.0.weight", "ffn_down.0.weight", "ffn_down_exps.weight"];
        let down = down.iter().find_map(|n| tensor(&at(n)));
        let missing = || Error::MissingTensor { name: at("ffn_down_exps.weight"), file: "the model".into() };
        let shape = &down.ok_or_else(missing)?.shape[..];
        let ff = match (shape, self.hf_stack) {
            // Blocks of numbers of four bits, two a byte.
            ([_, _, blocks, bytes], _) => blocks * bytes * 2,
            ([_, rows, _], Stack::Turned) if tensor(&at("ffn_gate_up_exps.weight")).is_some() => *rows,
            ([.., cols], _) => *cols,
            ([], _) => return Err(missing()),
        };
        let ff = u32::try_from(ff).map_err(|_| missing())?;
        let has = |name: &str| tensor(&at(name)).is_some();
        let spec = ExpertSpec {
            count: said.count,
            route,
            logit_bias: has("ffn_gate_inp.bias"),
            choice_bias: has("exp_probs_b.bias"),
            ff,
            bias: ["ffn_down_exps.bias", "ffn_down_exps.0.bias"].into_iter().any(has),
            gate: said.gate,
            weigh_input: self.weigh_input,
            shared_ff: tensor(&at("ffn_down_shexp.weight"))
                .and_then(|t| t.shape.last())
                .map_or(0, |n| u32::try_from(*n).unwrap_or(u32::MAX)),
            shared_gate: has("ffn_gate_inp_shexp.weight"),
        };
        spec.check()
    }
}

impl ExpertSpec {
    /// Checks sizes that would make later arithmetic meaningless.
    fn check(self) -> Result<ExpertSpec> {
        let groups = self.route.groups.map_or((1, 1), |g| (g.count, g.used));
        let fits = (1..=1 << 12).contains(&self.count)
            && (1..=self.count).contains(&self.route.used)
            && groups.0 > 0
            && self.count.is_multiple_of(groups.0)
            && (1..=groups.0).contains(&groups.1)
            && self.route.used <= self.count / groups.0 * groups.1;
        if !fits || groups.0 > 128 {
            let why = format!(
                "{} of {} experts, from {} of {} groups",
                self.route.used, self.count, groups.1, groups.0
            );
            return Err(field_error("expert_used_count", why));
        }
        if self.weigh_input && self.route.used != 1 {
            let why =
                format!("is {}; experts whose input is weighted are known one at a time", self.route.used);
            return Err(field_error("expert_used_count", why));
        }
        if !self.route.scale.is_finite() {
            return Err(field_error("expert_weights_scale", format!("is {}", self.route.scale)));
        }
        if self.ff > 1 << 22 || self.shared_ff > 1 << 22 {
            return Err(field_error(
                "expert_feed_forward_length",
                format!("is {} or {}", self.ff, self.shared_ff),
            ));
        }
        Ok(self)
    }

    /// Parameters of a sparse layer's feed-forward block for a model of width `dim`.
    pub(crate) fn parameters(&self, dim: u64) -> u64 {
        let router = u64::from(self.count) + u64::from(self.shared_gate);
        dim * (router + 3 * (u64::from(self.count) * u64::from(self.ff) + u64::from(self.shared_ff)))
    }
}

impl Builder<'_> {
    /// A stack of matrices, one for each expert, and their biases: parts `blk.L.NAME.E.weight` of `rows` rows.
    fn experts(
        &mut self,
        l: u32,
        names: &[&str],
        rows: u32,
        cols: u32,
        e: &ExpertSpec,
    ) -> (WeightId, Option<WeightId>) {
        let parts = |kind: &str| {
            let of = |name: &&str| -> Vec<WeightPart> {
                (0..e.count)
                    .map(|i| WeightPart { name: format!("blk.{l}.{name}.{i}.{kind}"), rows })
                    .collect()
            };
            names.iter().flat_map(of).collect::<Vec<_>>()
        };
        let weight = self.p.stacked(parts("weight"), cols);
        (weight, e.bias.then(|| self.p.stacked(parts("bias"), 1)))
    }

    /// What a sparse layer makes of the normalised rows.
    pub(crate) fn mixture(&mut self, h: View, l: u32, e: &ExpertSpec) -> View {
        let logits = self.linear(l, "ffn_gate_inp", h, e.count, e.logit_bias);
        let choice = e.choice_bias.then(|| self.p.weight(format!("blk.{l}.exp_probs_b.bias"), 1, e.count));
        let route = self.p.route(logits, choice, e.route);
        let weights = route.slice(e.route.used, e.route.used);
        let x = if e.weigh_input { self.p.combine("ffn_weighed", h, weights, None) } else { h };
        let up = self.experts(l, &["ffn_gate_exps", "ffn_up_exps"], e.ff, h.cols, e);
        let a = self.p.matmul_experts("ffn_exps", (x, Some(route)), e.count, up, Some(e.gate));
        let down = self.experts(l, &["ffn_down_exps"], h.cols, e.ff, e);
        let y = self.p.matmul_experts("ffn_down_exps", (a, Some(route)), e.count, down, None);
        let shared = (e.shared_ff > 0).then(|| self.shared_expert(h, l, e));
        match shared {
            Some(shared) if e.weigh_input => self.p.add("ffn_out", y, shared),
            None if e.weigh_input => y,
            shared => self.p.combine("ffn_out", y, weights, shared),
        }
    }

    fn shared_expert(&mut self, h: View, l: u32, e: &ExpertSpec) -> View {
        let gate = self.linear(l, "ffn_gate_shexp", h, e.shared_ff, false);
        let up = self.linear(l, "ffn_up_shexp", h, e.shared_ff, false);
        let a = self.p.glu(gate, up, self.s.arch.act);
        let y = self.linear(l, "ffn_down_shexp", a, h.cols, false);
        if !e.shared_gate {
            return y;
        }
        // A choice of one among one, whose weight is what is wanted.
        let logit = self.linear(l, "ffn_gate_inp_shexp", h, 1, false);
        let sigmoid =
            RouteSpec { used: 1, scoring: Scoring::Sigmoid, groups: None, normalize: false, scale: 1.0 };
        let weight = self.p.route(logit, None, sigmoid).slice(1, 1);
        self.p.combine("ffn_shared", y, weight, None)
    }
}

/// A canonical name of one expert's tensor, or of one head's: of all of them, and which it is.
pub(crate) fn of_stack(canonical: &str) -> Option<(String, usize)> {
    let (stem, kind) = canonical.rsplit_once('.')?;
    let (stem, index) = stem.rsplit_once('.')?;
    ["_exps", "attn_k_b", "attn_v_b", "attn_q_norm", "attn_k_norm", "altup_proj", "altup_unembd_proj"]
        .iter()
        .any(|s| stem.ends_with(s))
        .then_some(())?;
    Some((format!("{stem}.{kind}"), index.parse().ok()?))
}
