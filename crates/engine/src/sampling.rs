//! How tokens are drawn: the settings of every stage of the chain, their ranges, which go together, and the order.

use crate::{Error, Result};
use std::sync::Arc;

/// Temperature that follows the entropy of the distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicTemperature {
    /// At entropy 0.
    pub min: f32,
    /// At the uniform distribution.
    pub max: f32,
    /// Bends the curve between them; 1 is a line.
    pub exponent: f32,
}

/// A bias that ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BriefBias {
    /// Whose logit it is added to.
    pub id: u32,
    /// What is added; `-inf` forbids the token.
    pub bias: f32,
    /// For so many tokens from the answer's first.
    pub tokens: u32,
}

/// A stage of the chain that can be moved. The mask of a grammar has a fixed place: before the first stage that compares
/// tokens with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// [`Sampling::logit_bias`] and [`Sampling::brief_bias`].
    LogitBias,
    /// Repetition, presence and frequency penalties.
    Penalties,
    /// [`Sampling::dry_multiplier`].
    Dry,
    /// [`Sampling::top_n_sigma`].
    TopNSigma,
    /// [`Sampling::temperature`], or what takes its place.
    Temperature,
    /// [`Sampling::top_k`].
    TopK,
    /// [`Sampling::typical_p`].
    TypicalP,
    /// [`Sampling::top_p`].
    TopP,
    /// [`Sampling::min_p`].
    MinP,
    /// [`Sampling::xtc_probability`].
    Xtc,
    /// [`Sampling::mirostat`].
    Mirostat,
}

impl Stage {
    /// The order if a request names none.
    pub const ORDER: [Stage; 11] = [
        Stage::LogitBias,
        Stage::Penalties,
        Stage::Dry,
        Stage::TopNSigma,
        Stage::Temperature,
        Stage::TopK,
        Stage::TypicalP,
        Stage::TopP,
        Stage::MinP,
        Stage::Xtc,
        Stage::Mirostat,
    ];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Stage::LogitBias => "logit_bias",
            Stage::Penalties => "penalties",
            Stage::Dry => "dry",
            Stage::TopNSigma => "top_n_sigma",
            Stage::Temperature => "temperature",
            Stage::TopK => "top_k",
            Stage::TypicalP => "typical_p",
            Stage::TopP => "top_p",
            Stage::MinP => "min_p",
            Stage::Xtc => "xtc",
            Stage::Mirostat => "mirostat",
        }
    }

    /// The stages of a list of names, which llama.cpp's are understood among.
    ///
    /// # Errors
    /// A name is not known.
    pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Stage>> {
        let stage = |name: &str| {
            let plain = match name.trim() {
                "typ_p" | "typical" => "typical_p",
                "top_nsigma" => "top_n_sigma",
                "temp" => "temperature",
                other => other,
            };
            Stage::ORDER.into_iter().find(|s| s.name() == plain).ok_or_else(|| Error::Field {
                field: "samplers",
                value: format!("{:?}", name.chars().take(40).collect::<String>()),
                range: "made of logit_bias, penalties, dry, top_n_sigma, temperature, top_k, typical_p, top_p, min_p, \
                        xtc and mirostat",
            })
        };
        names.into_iter().map(stage).collect()
    }

    /// Whether it changes scores one by one, and so comes before those that compare them.
    pub(crate) fn is_edit(self) -> bool {
        matches!(self, Stage::LogitBias | Stage::Penalties | Stage::Dry)
    }
}

/// How tokens are drawn. The default samples the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy: the best token after biases and penalties, whatever else is set.
    pub temperature: f32,
    /// Keep this many best tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of best tokens with this mass; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least this share of the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Keep the smallest set with this mass of the tokens whose surprise is nearest to the expected one; 1 keeps all.
    pub typical_p: f32,
    /// Keep tokens whose logit is at most this many standard deviations below the best; 0 keeps all.
    pub top_n_sigma: f32,
    /// How often XTC acts; 0 is never.
    pub xtc_probability: f32,
    /// XTC drops all tokens of at least this probability but the least likely of them.
    pub xtc_threshold: f32,
    /// CTRL's penalty on tokens of prompt and answer; 1 is off.
    pub repetition_penalty: f32,
    /// OpenAI's penalty on tokens that the answer has; 0 is off.
    pub presence_penalty: f32,
    /// OpenAI's penalty per time that the answer has a token; 0 is off.
    pub frequency_penalty: f32,
    /// Penalties look at this many last tokens; `None` looks at all.
    pub penalty_window: Option<u32>,
    /// The three penalties on a token are halved with each so many tokens since it was there; `None` is never.
    pub penalty_half_life: Option<u32>,
    /// DRY's penalty on a token that would make a repeat of the least length longer; 0 is off.
    pub dry_multiplier: f32,
    /// The penalty grows by this factor with each token of the repeat.
    pub dry_base: f32,
    /// Repeats up to this length cost nothing: the penalty of one of this length is `dry_multiplier`.
    pub dry_allowed_length: u32,
    /// DRY looks at this many last tokens of prompt and answer; `None` looks at all.
    pub dry_window: Option<u32>,
    /// No repeat goes over one of these tokens, in ascending order.
    pub dry_breakers: Arc<[u32]>,
    /// Added to the logits of these tokens; `-inf` forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same, for the first tokens of the answer only.
    pub brief_bias: Vec<BriefBias>,
    /// The same seed gives the same tokens; `None` draws one, which [`crate::RequestStats::seed`] reports.
    pub seed: Option<u64>,
    /// Takes the place of `temperature` where that is not 0.
    pub dynamic_temperature: Option<DynamicTemperature>,
    /// EDT's theta: `temperature` is lowered the more, the surer the model is; 0 is off.
    pub edt_theta: f32,
    /// How much repeats and doubt in the answer so far may change temperature and penalties; 0 is off.
    pub adaptive: f32,
    /// 1 or 2: Mirostat holds the surprise of tokens near `mirostat_tau`, and takes the place of truncations; 0 is off.
    pub mirostat: u8,
    /// The surprise that Mirostat aims at, in bits.
    pub mirostat_tau: f32,
    /// How fast Mirostat learns.
    pub mirostat_eta: f32,
    /// The order of the stages; a stage that is not named is off. `None` is [`Stage::ORDER`].
    pub samplers: Option<Vec<Stage>>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: None,
            penalty_half_life: None,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_window: None,
            dry_breakers: Arc::default(),
            logit_bias: Vec::new(),
            brief_bias: Vec::new(),
            seed: None,
            dynamic_temperature: None,
            edt_theta: 0.0,
            adaptive: 0.0,
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            samplers: None,
        }
    }
}

impl Sampling {
    /// Always the best token.
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// The quality preset: what is at least a tenth as likely as the best token, and no text twice (DRY). Of the ways compared
    /// with `quarrel eval quality` on two models it has the fewest repeats of those whose text a second model finds likely
    /// (docs/quality.md).
    pub fn quality() -> Sampling {
        Sampling { min_p: 0.1, dry_multiplier: 0.8, ..Sampling::default() }
    }

    /// Whether a stage changes anything, with its setting's name.
    fn active(&self, stage: Stage) -> Option<&'static str> {
        let first = |fields: &[(&'static str, bool)]| fields.iter().find(|f| f.1).map(|f| f.0);
        match stage {
            Stage::LogitBias => {
                first(&[("logit_bias", !self.logit_bias.is_empty() || !self.brief_bias.is_empty())])
            }
            Stage::Penalties => first(&[
                ("repetition_penalty", self.repetition_penalty != 1.0),
                ("presence_penalty", self.presence_penalty != 0.0),
                ("frequency_penalty", self.frequency_penalty != 0.0),
                ("adaptive", self.adaptive != 0.0),
            ]),
            Stage::Dry => first(&[("dry_multiplier", self.dry_multiplier != 0.0)]),
            Stage::TopNSigma => first(&[("top_n_sigma", self.top_n_sigma != 0.0)]),
            Stage::Temperature => first(&[
                ("temperature", self.temperature != 1.0),
                ("dynamic_temperature", self.dynamic_temperature.is_some()),
                ("edt_theta", self.edt_theta != 0.0),
                ("adaptive", self.adaptive != 0.0),
            ]),
            Stage::TopK => first(&[("top_k", self.top_k != 0)]),
            Stage::TypicalP => first(&[("typical_p", self.typical_p != 1.0)]),
            Stage::TopP => first(&[("top_p", self.top_p != 1.0)]),
            Stage::MinP => first(&[("min_p", self.min_p != 0.0)]),
            Stage::Xtc => first(&[("xtc_probability", self.xtc_probability != 0.0)]),
            Stage::Mirostat => first(&[("mirostat", self.mirostat != 0)]),
        }
    }

    /// Turns a stage off.
    pub fn turn_off(&mut self, stage: Stage) {
        let d = Sampling::default();
        match stage {
            Stage::LogitBias => {
                self.logit_bias.clear();
                self.brief_bias.clear();
            }
            Stage::Penalties => {
                self.repetition_penalty = d.repetition_penalty;
                self.presence_penalty = d.presence_penalty;
                self.frequency_penalty = d.frequency_penalty;
            }
            Stage::Dry => self.dry_multiplier = d.dry_multiplier,
            Stage::TopNSigma => self.top_n_sigma = d.top_n_sigma,
            Stage::Temperature => {
                self.temperature = d.temperature;
                self.dynamic_temperature = None;
                self.edt_theta = d.edt_theta;
            }
            Stage::TopK => self.top_k = d.top_k,
            Stage::TypicalP => self.typical_p = d.typical_p,
            Stage::TopP => self.top_p = d.top_p,
            Stage::MinP => self.min_p = d.min_p,
            Stage::Xtc => self.xtc_probability = d.xtc_probability,
            Stage::Mirostat => self.mirostat = d.mirostat,
        }
    }

    /// Turns the defaults of stages off that cannot be where a request names an order or Mirostat: what it has asked for
    /// itself is set afterwards, and refused by [`Sampling::check`] if it does not fit.
    pub fn make_room(&mut self, samplers: Option<&[Stage]>, mirostat: bool) {
        for stage in Stage::ORDER {
            let unnamed = samplers.is_some_and(|s| !s.contains(&stage));
            if unnamed || mirostat && TRUNCATIONS.contains(&stage) {
                self.turn_off(stage);
            }
        }
    }

    /// The stages that change something, in order. The settings have passed [`Sampling::check`].
    pub(crate) fn stages(&self) -> Vec<Stage> {
        let order = self.samplers.as_deref().unwrap_or(&Stage::ORDER);
        order.iter().copied().filter(|s| self.active(*s).is_some()).collect()
    }

    /// The ids that are biased.
    pub(crate) fn biased(&self) -> impl Iterator<Item = u32> {
        self.logit_bias.iter().map(|b| b.0).chain(self.brief_bias.iter().map(|b| b.id))
    }

    /// A setting that only a draw uses, beyond those that every request has by default.
    pub(crate) fn drawing(&self) -> Option<&'static str> {
        let only = [Stage::TopNSigma, Stage::TypicalP, Stage::Xtc, Stage::Mirostat];
        let first = only.into_iter().find_map(|s| self.active(s));
        first
            .or((self.edt_theta != 0.0).then_some("edt_theta"))
            .or((self.adaptive != 0.0).then_some("adaptive"))
    }

    /// Checks every field against its range, which fields go together, and the order; an error names them.
    pub fn check(&self) -> Result<()> {
        let field = |field, value: &dyn std::fmt::Display, range, ok: bool| {
            if ok { Ok(()) } else { Err(Error::Field { field, value: value.to_string(), range }) }
        };
        let share = |v: f32| (0.0..=1.0).contains(&v);
        let t = self.temperature;
        field("temperature", &t, "0 (greedy) to 100", (0.0..=100.0).contains(&t))?;
        field("top_p", &self.top_p, "above 0, at most 1 (off)", self.top_p > 0.0 && self.top_p <= 1.0)?;
        field("min_p", &self.min_p, "0 (off) to 1", share(self.min_p))?;
        let p = self.typical_p;
        field("typical_p", &p, "above 0, at most 1 (off)", p > 0.0 && p <= 1.0)?;
        let n = self.top_n_sigma;
        field("top_n_sigma", &n, "0 (off) to 100", (0.0..=100.0).contains(&n))?;
        field("xtc_probability", &self.xtc_probability, "0 (off) to 1", share(self.xtc_probability))?;
        field(
            "xtc_threshold",
            &self.xtc_threshold,
            "0 to 1; above 0.5 nothing is dropped",
            share(self.xtc_threshold),
        )?;
        let r = self.repetition_penalty;
        field("repetition_penalty", &r, "above 0, at most 100; 1 is off", r > 0.0 && r <= 100.0)?;
        for (name, v) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            field(name, &v, "-2 to 2; 0 is off", (-2.0..=2.0).contains(&v))?;
        }
        for (name, v) in [
            ("penalty_window", self.penalty_window),
            ("dry_window", self.dry_window),
            ("penalty_half_life", self.penalty_half_life),
        ] {
            let v = v.unwrap_or(1);
            let range = if name == "penalty_half_life" {
                "1 or more tokens, or none for no decay"
            } else {
                "1 or more tokens, or none for all"
            };
            field(name, &v, range, v > 0)?;
        }
        let d = self.dry_multiplier;
        field("dry_multiplier", &d, "0 (off) to 100", (0.0..=100.0).contains(&d))?;
        field("dry_base", &self.dry_base, "1 to 100", (1.0..=100.0).contains(&self.dry_base))?;
        field("dry_allowed_length", &self.dry_allowed_length, "1 or more", self.dry_allowed_length > 0)?;
        field("edt_theta", &self.edt_theta, "0 (off) to 10", (0.0..=10.0).contains(&self.edt_theta))?;
        field("adaptive", &self.adaptive, "0 (off) to 1", share(self.adaptive))?;
        field("mirostat", &self.mirostat, "0 (off), 1 or 2", self.mirostat <= 2)?;
        let (tau, eta) = (self.mirostat_tau, self.mirostat_eta);
        field("mirostat_tau", &tau, "above 0, at most 32 bits", tau > 0.0 && tau <= 32.0)?;
        field("mirostat_eta", &eta, "above 0, at most 1", eta > 0.0 && eta <= 1.0)?;
        for b in self.logit_bias.iter().map(|b| b.1).chain(self.brief_bias.iter().map(|b| b.bias)) {
            field("logit_bias", &b, "-inf (never) or a finite number", b < f32::INFINITY)?;
        }
        for b in &self.brief_bias {
            field("logit_bias", &b.tokens, "for 1 token or more", b.tokens > 0)?;
        }
        if let Some(d) = self.dynamic_temperature {
            field("dynamic_temperature.min", &d.min, "0 to 100", (0.0..=100.0).contains(&d.min))?;
            field("dynamic_temperature.max", &d.max, "min to 100", d.max >= d.min && d.max <= 100.0)?;
            field(
                "dynamic_temperature.exponent",
                &d.exponent,
                "above 0, at most 10",
                d.exponent > 0.0 && d.exponent <= 10.0,
            )?;
        }
        self.check_together()
    }

    fn check_together(&self) -> Result<()> {
        if self.dynamic_temperature.is_some() && self.edt_theta != 0.0 {
            let why = "both choose the temperature from the entropy";
            return Err(Error::Together { a: "edt_theta", b: "dynamic_temperature", why });
        }
        if self.mirostat != 0 {
            if let Some(b) = TRUNCATIONS.into_iter().find_map(|s| self.active(s)) {
                let why = "Mirostat takes the place of every other truncation";
                return Err(Error::Together { a: "mirostat", b, why });
            }
            if self.adaptive != 0.0 {
                let why = "both steer by the answer so far";
                return Err(Error::Together { a: "mirostat", b: "adaptive", why });
            }
        }
        let Some(order) = &self.samplers else { return Ok(()) };
        for (i, stage) in order.iter().enumerate() {
            let earlier = &order[..i];
            if earlier.contains(stage) {
                let range = "a list with each stage once";
                return Err(Error::Field { field: "samplers", value: stage.name().into(), range });
            }
            if let Some(b) = earlier.iter().find(|s| stage.is_edit() && !s.is_edit()) {
                let why = "logit_bias, penalties and dry change scores, so they come before stages that compare them";
                return Err(Error::Order { first: b.name(), then: stage.name(), why });
            }
            if *stage != Stage::Mirostat && earlier.contains(&Stage::Mirostat) && self.mirostat != 0 {
                let why = "Mirostat learns from the distribution that is drawn from, so it comes last";
                return Err(Error::Order { first: Stage::Mirostat.name(), then: stage.name(), why });
            }
        }
        match Stage::ORDER.into_iter().filter(|s| !order.contains(s)).find_map(|s| self.active(s)) {
            Some(a) => {
                let why = "it is set, and the list of samplers leaves its stage out";
                Err(Error::Together { a, b: "samplers", why })
            }
            None => Ok(()),
        }
    }
}

/// What Mirostat takes the place of.
const TRUNCATIONS: [Stage; 6] =
    [Stage::TopNSigma, Stage::TopK, Stage::TypicalP, Stage::TopP, Stage::MinP, Stage::Xtc];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_field_and_its_range() {
        let d = Sampling::default;
        let dynamic = |min, max, exponent| Sampling {
            dynamic_temperature: Some(DynamicTemperature { min, max, exponent }),
            ..d()
        };
        let brief = |bias, tokens| Sampling { brief_bias: vec![BriefBias { id: 1, bias, tokens }], ..d() };
        let cases = [
            ("temperature", Sampling { temperature: -0.1, ..d() }),
            ("temperature", Sampling { temperature: f32::NAN, ..d() }),
            ("top_p", Sampling { top_p: 0.0, ..d() }),
            ("top_p", Sampling { top_p: 1.1, ..d() }),
            ("min_p", Sampling { min_p: 2.0, ..d() }),
            ("typical_p", Sampling { typical_p: 0.0, ..d() }),
            ("top_n_sigma", Sampling { top_n_sigma: -1.0, ..d() }),
            ("xtc_probability", Sampling { xtc_probability: 1.5, ..d() }),
            ("xtc_threshold", Sampling { xtc_threshold: f32::NAN, ..d() }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..d() }),
            ("presence_penalty", Sampling { presence_penalty: 3.0, ..d() }),
            ("frequency_penalty", Sampling { frequency_penalty: f32::NAN, ..d() }),
            ("penalty_window", Sampling { penalty_window: Some(0), ..d() }),
            ("penalty_half_life", Sampling { penalty_half_life: Some(0), ..d() }),
            ("dry_multiplier", Sampling { dry_multiplier: f32::INFINITY, ..d() }),
            ("dry_base", Sampling { dry_base: 0.5, ..d() }),
            ("dry_allowed_length", Sampling { dry_allowed_length: 0, ..d() }),
            ("dry_window", Sampling { dry_window: Some(0), ..d() }),
            ("edt_theta", Sampling { edt_theta: -1.0, ..d() }),
            ("adaptive", Sampling { adaptive: 1.1, ..d() }),
            ("mirostat", Sampling { mirostat: 3, ..d() }),
            ("mirostat_tau", Sampling { mirostat_tau: 0.0, ..d() }),
            ("mirostat_eta", Sampling { mirostat_eta: 2.0, ..d() }),
            ("logit_bias", Sampling { logit_bias: vec![(1, f32::NAN)], ..d() }),
            ("logit_bias", Sampling { logit_bias: vec![(1, f32::INFINITY)], ..d() }),
            ("logit_bias", brief(f32::NAN, 1)),
            ("logit_bias", brief(1.0, 0)),
            ("dynamic_temperature.min", dynamic(-1.0, 1.0, 1.0)),
            ("dynamic_temperature.max", dynamic(1.0, 0.5, 1.0)),
            ("dynamic_temperature.exponent", dynamic(0.5, 1.0, 0.0)),
        ];
        for (field, s) in cases {
            let e = s.check().unwrap_err().to_string();
            assert!(e.starts_with(field), "{field}: {e}");
        }
        for s in [d(), Sampling::greedy(), Sampling::quality()] {
            s.check().unwrap();
        }
    }

    #[test]
    fn what_cannot_go_together_is_named() {
        const RANGE: Option<DynamicTemperature> =
            Some(DynamicTemperature { min: 0.2, max: 1.5, exponent: 1.0 });
        let d = Sampling::default;
        let order = |names: &str| Some(Stage::list(names.split(',')).unwrap());
        let cases = [
            ("mirostat and top_k", Sampling { mirostat: 2, top_k: 4, ..d() }),
            ("mirostat and xtc_probability", Sampling { mirostat: 1, xtc_probability: 0.5, ..d() }),
            ("mirostat and adaptive", Sampling { mirostat: 1, adaptive: 0.5, ..d() }),
            (
                "edt_theta and dynamic_temperature",
                Sampling { edt_theta: 1.0, dynamic_temperature: RANGE, ..d() },
            ),
            ("min_p and samplers", Sampling { min_p: 0.1, samplers: order("top_p,temperature"), ..d() }),
            ("temperature and samplers", Sampling { temperature: 0.5, samplers: order("top_p"), ..d() }),
            ("samplers is top_k", Sampling { samplers: order("top_k,top_p,top_k"), ..d() }),
            ("dry after top_k", Sampling { samplers: order("top_k,dry"), ..d() }),
            ("temp", Sampling { mirostat: 2, samplers: order("mirostat,temp"), ..d() }),
        ];
        for (what, s) in cases {
            let e = s.check().unwrap_err().to_string();
            assert!(e.starts_with(what), "{what}: {e}");
        }
        let llama = order("penalties,dry,top_n_sigma,top_k,typ_p,top_p,min_p,xtc,temperature");
        let s = Sampling { temperature: 0.5, top_k: 3, xtc_probability: 0.1, samplers: llama, ..d() };
        s.check().unwrap();
        assert_eq!(s.stages(), [Stage::TopK, Stage::Xtc, Stage::Temperature]);
        assert!(Stage::list(["tfs_z"]).unwrap_err().to_string().contains("\"tfs_z\""));
    }

    #[test]
    fn defaults_make_room() {
        let base =
            || Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Sampling::default() };
        let mut s = base();
        s.make_room(None, true);
        assert_eq!(s, Sampling { temperature: 0.8, ..Sampling::default() });
        let mut s = base();
        let order = vec![Stage::TopP, Stage::Temperature];
        s.make_room(Some(&order), false);
        s.samplers = Some(order);
        s.check().unwrap();
        assert_eq!((s.top_k, s.top_p, s.min_p, s.temperature), (0, 0.95, 0.0, 0.8));
        let mut s = base();
        s.make_room(None, false);
        assert_eq!(s, base());
    }
}
