//! How answers are sampled: defaults, then what came with the model, then what the person says.

use anyhow::{Context, Result, anyhow, bail};
use quarrel_engine::{BestBy, BriefBias, DynamicTemperature, Sampling, Stage};
use quarrel_runtime::ModelParams;
use quarrel_text::Tokenizer;
use serde_json::{Map, Value, json};

use crate::args::{SampleArgs, parse_bias};
use crate::failure::Usage;
use crate::render;

/// All that can be set, by the names of the flags.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    temp: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// How many last tokens the penalties look at; all if not said.
    penalty_window: Option<u32>,
    /// The stages that are off by default, and their order; the fields above are not read in it.
    chain: Sampling,
    /// The range of a dynamic temperature, and its exponent.
    dynatemp: (f32, f32),
    /// The texts that DRY's repeats do not go over, if they were named.
    breakers: Option<Vec<String>>,
    best_of: Option<u32>,
    best_of_by: BestBy,
    quality: bool,
    pub(crate) seed: Option<u64>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) stop: Vec<String>,
}

/// The names that `set` takes, as the flags have them.
pub(crate) const NAMES: [&str; 31] = [
    "temp",
    "top-k",
    "top-p",
    "min-p",
    "repeat-penalty",
    "presence-penalty",
    "frequency-penalty",
    "seed",
    "max-tokens",
    "stop",
    "quality",
    "samplers",
    "typical-p",
    "top-n-sigma",
    "xtc-probability",
    "xtc-threshold",
    "dry-multiplier",
    "dry-base",
    "dry-allowed-length",
    "dry-window",
    "dry-breakers",
    "penalty-window",
    "penalty-half-life",
    "dynatemp-range",
    "dynatemp-exponent",
    "edt-theta",
    "adaptive",
    "mirostat",
    "mirostat-tau",
    "mirostat-eta",
    "best-of",
];

/// A number of the chain by its name.
fn number<'a>(chain: &'a mut Sampling, name: &str) -> Option<&'a mut f32> {
    Some(match name {
        "typical-p" => &mut chain.typical_p,
        "top-n-sigma" => &mut chain.top_n_sigma,
        "xtc-probability" => &mut chain.xtc_probability,
        "xtc-threshold" => &mut chain.xtc_threshold,
        "dry-multiplier" => &mut chain.dry_multiplier,
        "dry-base" => &mut chain.dry_base,
        "edt-theta" => &mut chain.edt_theta,
        "adaptive" => &mut chain.adaptive,
        "mirostat-tau" => &mut chain.mirostat_tau,
        "mirostat-eta" => &mut chain.mirostat_eta,
        _ => return None,
    })
}

impl Default for Settings {
    fn default() -> Self {
        let s = quarrel_runtime::usual();
        Settings {
            temp: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repeat_penalty: s.repetition_penalty,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            penalty_window: None,
            chain: Sampling::default(),
            dynatemp: (0.0, 1.0),
            breakers: None,
            best_of: None,
            best_of_by: BestBy::default(),
            quality: false,
            seed: None,
            max_tokens: None,
            stop: Vec::new(),
        }
    }
}

/// The value of `dry-breakers` that lets repeats go over everything; `none` is the default ones.
const NO_BREAKERS: &str = "nothing";

impl Settings {
    /// What `run` begins with: one question gets the same answer each time, unless a flag asks for sampling. The best token
    /// alone makes small models repeat themselves without end; a light penalty prevents most of that.
    pub(crate) fn one_shot(args: &SampleArgs) -> Settings {
        let SampleArgs { temp, top_k, top_p, min_p, seed, quality, chain, .. } = args;
        if *quality
            || chain.draws()
            || temp.is_some()
            || top_k.is_some()
            || top_p.is_some()
            || min_p.is_some()
            || seed.is_some()
        {
            return Settings::default();
        }
        Settings { temp: 0.0, repeat_penalty: 1.05, ..Settings::default() }
    }

    /// The settings for a model: the model's own over `base`, flags over both.
    pub(crate) fn new(base: Settings, args: &SampleArgs, params: &ModelParams) -> Result<Settings> {
        let mut s = base;
        s.take_model(params);
        if args.quality {
            s.set_quality(true);
        }
        s.take_flags(args).map_err(|e| Usage(format!("{e:#}")))?;
        s.sampling().check().map_err(|e| Usage(e.to_string()))?;
        Ok(s)
    }

    fn take_flags(&mut self, args: &SampleArgs) -> Result<()> {
        let SampleArgs {
            max_tokens,
            temp,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            presence_penalty,
            frequency_penalty,
            seed,
            stop,
            quality: _,
            chain,
        } = args;
        // First, for an order and Mirostat turn defaults off.
        for (name, value) in chain.pairs() {
            self.change(name, &value)?;
        }
        if !chain.dry_breaker.is_empty() {
            self.breakers = Some(chain.dry_breaker.clone());
        }
        self.best_of_by = chain.best_of_by.map_or(self.best_of_by, Into::into);
        self.temp = temp.unwrap_or(self.temp);
        self.top_k = top_k.unwrap_or(self.top_k);
        self.top_p = top_p.unwrap_or(self.top_p);
        self.min_p = min_p.unwrap_or(self.min_p);
        self.repeat_penalty = repeat_penalty.unwrap_or(self.repeat_penalty);
        self.presence_penalty = presence_penalty.unwrap_or(self.presence_penalty);
        self.frequency_penalty = frequency_penalty.unwrap_or(self.frequency_penalty);
        self.seed = seed.or(self.seed);
        self.max_tokens = max_tokens.or(self.max_tokens);
        self.stop.extend(stop.iter().cloned());
        Ok(())
    }

    /// Turns what excludes an order, or Mirostat, off.
    fn make_room(&mut self, samplers: Option<&[Stage]>, mirostat: bool) {
        let mut s = self.sampling();
        s.make_room(samplers, mirostat);
        (self.temp, self.top_k, self.top_p, self.min_p) = (s.temperature, s.top_k, s.top_p, s.min_p);
        (self.repeat_penalty, self.presence_penalty) = (s.repetition_penalty, s.presence_penalty);
        self.frequency_penalty = s.frequency_penalty;
        if s.dynamic_temperature.is_none() {
            self.dynatemp.0 = 0.0;
        }
        let d = Sampling::default();
        self.chain = Sampling {
            temperature: d.temperature,
            top_k: d.top_k,
            top_p: d.top_p,
            min_p: d.min_p,
            repetition_penalty: d.repetition_penalty,
            presence_penalty: d.presence_penalty,
            frequency_penalty: d.frequency_penalty,
            penalty_window: None,
            dynamic_temperature: None,
            seed: None,
            ..s
        };
    }

    /// The preset.
    fn set_quality(&mut self, on: bool) {
        let base = if on { Sampling::quality() } else { Settings::default().sampling() };
        (self.temp, self.top_k, self.top_p, self.min_p) =
            (base.temperature, base.top_k, base.top_p, base.min_p);
        self.chain.dry_multiplier = base.dry_multiplier;
        // As it was measured: repeats that go over line ends are repeats.
        self.breakers = on.then(Vec::new);
        self.quality = on;
    }

    /// What came with the model; what is not understood is said.
    fn take_model(&mut self, params: &ModelParams) {
        let mut s = self.sampling();
        params.apply(&mut s);
        (self.temp, self.top_k, self.top_p, self.min_p) = (s.temperature, s.top_k, s.top_p, s.min_p);
        (self.repeat_penalty, self.penalty_window) = (s.repetition_penalty, s.penalty_window);
        (self.presence_penalty, self.frequency_penalty) = (s.presence_penalty, s.frequency_penalty);
        (self.chain.typical_p, self.chain.mirostat) = (s.typical_p, s.mirostat);
        (self.chain.mirostat_tau, self.chain.mirostat_eta) = (s.mirostat_tau, s.mirostat_eta);
        (self.seed, self.max_tokens) = (s.seed, params.max_tokens.or(self.max_tokens));
        self.stop.extend(params.stop.iter().cloned());
        if !params.unused.is_empty() {
            render::note(format!("parameters of the model that are not used: {}", params.unused.join(", ")));
        }
    }

    /// What the engine is told.
    pub(crate) fn sampling(&self) -> Sampling {
        let (range, exponent) = self.dynatemp;
        let around =
            DynamicTemperature { min: (self.temp - range).max(0.0), max: self.temp + range, exponent };
        let mut s = Sampling {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_window: self.penalty_window,
            seed: self.seed,
            dynamic_temperature: (range > 0.0).then_some(around),
            ..self.chain.clone()
        };
        // Over no tokens there are no penalties.
        if s.penalty_window == Some(0) {
            s.turn_off(Stage::Penalties);
            s.penalty_window = None;
        }
        if s.dry_window == Some(0) {
            s.turn_off(Stage::Dry);
            s.dry_window = None;
        }
        s
    }

    /// The same, with the tokens of this model that repeats do not go over.
    pub(crate) fn sampling_for(&self, tokenizer: &Tokenizer) -> Result<Sampling> {
        let mut s = self.sampling();
        if s.dry_multiplier != 0.0 {
            s.dry_breakers =
                quarrel_runtime::breakers(tokenizer, self.breakers.as_deref()).context("--dry-breaker")?;
        }
        Ok(s)
    }

    /// How many answers to make, and what the best of them is.
    pub(crate) fn best_of(&self) -> (Option<u32>, BestBy) {
        (self.best_of, self.best_of_by)
    }

    /// Changes one by the name of its flag; on an error nothing is changed.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let mut new = self.clone();
        new.change(name, value)?;
        new.sampling().check()?;
        *self = new;
        Ok(())
    }

    /// The same, unchecked: several may fit only together.
    fn change(&mut self, name: &str, value: &str) -> Result<()> {
        fn parse<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
            value.parse().map_err(|_| anyhow::anyhow!("{name}: {value:?} is not a number that it can be"))
        }
        let new = self;
        let unset = matches!(value, "" | "none" | "default");
        let name = name.trim_start_matches('-').replace('_', "-");
        let name = name.as_str();
        if let Some(v) = number(&mut new.chain, name) {
            *v = match unset {
                true => number(&mut Sampling::default(), name).map_or(0.0, |v| *v),
                false => parse(name, value)?,
            };
            return Ok(());
        }
        // -1 is all of the text.
        let window = |value: &str| match parse::<i64>(name, value) {
            _ if unset => Ok(None),
            Ok(-1) => Ok(None),
            Ok(n) => {
                u32::try_from(n).map(Some).map_err(|_| anyhow!("{name} is -1 (all) or a number of tokens"))
            }
            Err(e) => Err(e),
        };
        match name {
            "samplers" => {
                let names = value.split([';', ',']).filter(|n| !n.trim().is_empty());
                let order = if unset { None } else { Some(Stage::list(names)?) };
                new.make_room(order.as_deref(), false);
                new.chain.samplers = order;
            }
            "mirostat" => {
                let version: u8 = if unset { 0 } else { parse(name, value)? };
                new.make_room(None, version != 0);
                new.chain.mirostat = version;
            }
            "dry-allowed-length" => {
                new.chain.dry_allowed_length = if unset { 2 } else { parse(name, value)? }
            }
            "dry-window" => new.chain.dry_window = window(value)?,
            "dry-breakers" => {
                new.breakers = match value {
                    _ if unset => None,
                    NO_BREAKERS => Some(Vec::new()),
                    texts => Some(texts.split(' ').map(str::to_owned).collect()),
                };
            }
            "penalty-window" | "repeat-last-n" => new.penalty_window = window(value)?,
            "penalty-half-life" => {
                new.chain.penalty_half_life = if unset { None } else { Some(parse(name, value)?) };
            }
            "dynatemp-range" => new.dynatemp.0 = if unset { 0.0 } else { parse(name, value)? },
            "dynatemp-exponent" => new.dynatemp.1 = if unset { 1.0 } else { parse(name, value)? },
            "logit-bias" if unset => (new.chain.logit_bias, new.chain.brief_bias) = Default::default(),
            "logit-bias" => match parse_bias(value).map_err(|e| anyhow!(e))? {
                (id, bias, Some(tokens)) => new.chain.brief_bias.push(BriefBias { id, bias, tokens }),
                (id, bias, None) => new.chain.logit_bias.push((id, bias)),
            },
            "best-of" => new.best_of = if unset { None } else { Some(parse(name, value)?) },
            "temp" | "temperature" => new.temp = parse(name, value)?,
            "top-k" | "topk" => new.top_k = parse(name, value)?,
            "top-p" | "topp" => new.top_p = parse(name, value)?,
            "min-p" | "minp" => new.min_p = parse(name, value)?,
            "repeat-penalty" => new.repeat_penalty = parse(name, value)?,
            "presence-penalty" => new.presence_penalty = parse(name, value)?,
            "frequency-penalty" => new.frequency_penalty = parse(name, value)?,
            "seed" => new.seed = if unset || value == "random" { None } else { Some(parse(name, value)?) },
            "max-tokens" | "n" => {
                new.max_tokens =
                    if unset { None } else { Some(parse::<std::num::NonZeroU32>(name, value)?.get()) };
            }
            "stop" => new.stop = if unset { Vec::new() } else { vec![value.into()] },
            "quality" => match value {
                "on" | "true" | "" => new.set_quality(true),
                "off" | "false" => new.set_quality(false),
                _ => bail!("quality is on or off"),
            },
            _ => bail!("nothing is called {name:?}; {} can be set", NAMES.join(", ")),
        }
        Ok(())
    }

    /// Names and values, in the order of [`NAMES`]; of the stages that are off by default only what was changed.
    pub(crate) fn values(&self) -> Map<String, Value> {
        let f = |v: f32| json!((f64::from(v) * 1e6).round() / 1e6); // 0.8, not 0.800000011920929
        let values = [
            f(self.temp),
            json!(self.top_k),
            f(self.top_p),
            f(self.min_p),
            f(self.repeat_penalty),
            f(self.presence_penalty),
            f(self.frequency_penalty),
            json!(self.seed),
            json!(self.max_tokens),
            json!(self.stop),
            json!(self.quality),
        ];
        let mut all: Map<String, Value> = NAMES.iter().map(|n| n.to_string()).zip(values).collect();
        let (mut chain, mut default, usual) = (self.chain.clone(), Sampling::default(), Settings::default());
        for name in NAMES {
            if let (Some(v), Some(d)) = (number(&mut chain, name), number(&mut default, name))
                && v != d
            {
                all.insert(name.into(), f(*v));
            }
        }
        let order = chain.samplers.as_ref().map(|o| o.iter().map(|s| s.name()).collect::<Vec<_>>().join(";"));
        let others = [
            ("samplers", json!(order), Value::Null),
            ("mirostat", json!(chain.mirostat), json!(0)),
            ("dry-allowed-length", json!(chain.dry_allowed_length), json!(default.dry_allowed_length)),
            ("dry-window", json!(chain.dry_window), Value::Null),
            (
                "dry-breakers",
                json!(self.breakers.as_ref().map(|b| match b.is_empty() {
                    true => NO_BREAKERS.to_owned(),
                    false => b.join(" "),
                })),
                Value::Null,
            ),
            ("penalty-window", json!(self.penalty_window), Value::Null),
            ("penalty-half-life", json!(chain.penalty_half_life), Value::Null),
            ("dynatemp-range", f(self.dynatemp.0), f(usual.dynatemp.0)),
            ("dynatemp-exponent", f(self.dynatemp.1), f(usual.dynatemp.1)),
            ("best-of", json!(self.best_of), Value::Null),
        ];
        all.extend(others.into_iter().filter(|(_, v, d)| v != d).map(|(n, v, _)| (n.to_owned(), v)));
        all
    }

    /// The settings that [`Settings::values`] gave.
    pub(crate) fn take_values(&mut self, values: &Map<String, Value>) -> Result<()> {
        let mut new = Settings::default();
        if values.get("quality") == Some(&Value::Bool(true)) {
            new.set_quality(true); // first, for it sets others
        }
        // These turn others off, so they come before them.
        let early = |name: &str| ["samplers", "mirostat"].contains(&name);
        let (first, then): (Vec<_>, Vec<_>) = values.iter().partition(|(n, _)| early(n));
        for (name, value) in first.into_iter().chain(then).filter(|(n, _)| *n != "quality") {
            match value {
                Value::Null => new.change(name, "none")?,
                Value::Array(list) => {
                    new.stop = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                }
                Value::String(s) => new.change(name, s)?,
                other => new.change(name, &other.to_string())?,
            }
        }
        new.sampling().check()?;
        new.penalty_window = new.penalty_window.or(self.penalty_window);
        *self = new;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(f: impl FnOnce(&mut SampleArgs)) -> SampleArgs {
        let mut args = SampleArgs::default();
        f(&mut args);
        args
    }

    #[test]
    fn flags_win_over_the_models_parameters_and_those_over_defaults() {
        let mut s = Settings::default();
        let params =
            json!({"temperature": 0.3, "top_k": 7, "stop": ["a", "b"], "num_ctx": 4096, "repeat_last_n": -1});
        s.take_model(&ModelParams::of(params.as_object().unwrap()));
        s.take_flags(&flags(|a| {
            a.temp = Some(0.0);
            a.stop = vec!["c".into()];
        }))
        .unwrap();
        assert_eq!((s.temp, s.top_k, s.top_p), (0.0, 7, 0.95));
        assert_eq!(s.stop, ["a", "b", "c"]);
        assert_eq!(s.penalty_window, None);
    }

    #[test]
    fn the_preset_is_the_engines_and_others_may_change_it() {
        let mut s = Settings::default();
        assert_ne!(s.sampling(), Sampling::quality());
        s.set("quality", "on").unwrap();
        assert_eq!(s.sampling(), Sampling::quality());
        s.set("temp", "0.5").unwrap();
        assert_eq!(s.sampling(), Sampling { temperature: 0.5, ..Sampling::quality() });
        s.set("quality", "off").unwrap();
        assert_eq!(s, Settings::default());
    }

    #[test]
    fn one_question_is_answered_the_same_way_unless_sampling_is_asked_for() {
        assert_eq!(Settings::one_shot(&SampleArgs::default()).temp, 0.0);
        assert_eq!(Settings::one_shot(&flags(|a| a.max_tokens = Some(9))).temp, 0.0);
        let asking: [fn(&mut SampleArgs); 3] =
            [|a| a.top_p = Some(0.9), |a| a.top_k = Some(5), |a| a.seed = Some(1)];
        for set in asking {
            assert_eq!(Settings::one_shot(&flags(set)), Settings::default());
        }
    }

    #[test]
    fn what_cannot_be_set_changes_nothing() {
        let mut s = Settings::default();
        for (name, value) in
            [("temp", "-1"), ("temp", "hot"), ("top-p", "2"), ("max-tokens", "0"), ("what", "1")]
        {
            assert!(s.set(name, value).is_err(), "{name} {value}");
        }
        assert_eq!(s, Settings::default());
    }

    #[test]
    fn values_come_back() {
        let mut s = Settings::default();
        for (name, value) in
            [("quality", "on"), ("temp", "0.7"), ("seed", "5"), ("stop", "x"), ("max-tokens", "9")]
        {
            s.set(name, value).unwrap();
        }
        let mut back = Settings::default();
        back.take_values(&s.values()).unwrap();
        assert_eq!(back, s);
        let of_preset = ["dry-multiplier", "dry-breakers"];
        assert_eq!(s.values().keys().collect::<Vec<_>>(), [&NAMES[..11], &of_preset].concat());
        for (name, value) in [
            ("samplers", "dry;top_k;xtc;temperature"),
            ("xtc-probability", "0.25"),
            ("top-k", "12"),
            ("dry-multiplier", "0.5"),
            ("dry-breakers", "a ."),
            ("dry-window", "99"),
            ("dynatemp-range", "0.3"),
        ] {
            s.set(name, value).unwrap();
        }
        back.take_values(&s.values()).unwrap();
        assert_eq!(back, s);
    }

    #[test]
    fn an_order_and_mirostat_make_room_and_flags_do_not_give_way() {
        let chain = |list: &[&str]| {
            use clap::Parser as _;
            let words = ["quarrel", "run", "x"].iter().chain(list).copied();
            match crate::args::Cli::try_parse_from(words).unwrap().command {
                crate::args::Command::Run(run) => run.sample,
                _ => unreachable!("run was asked for"),
            }
        };
        let settings = |list: &[&str]| {
            let mut s = Settings::default();
            s.take_flags(&chain(list)).unwrap();
            s.sampling()
        };
        let s = settings(&["--mirostat", "2", "--mirostat-tau", "3"]);
        s.check().unwrap();
        assert_eq!((s.mirostat, s.mirostat_tau, s.top_k, s.top_p, s.temperature), (2, 3.0, 0, 1.0, 0.8));
        let e = settings(&["--mirostat", "2", "--top-k", "9"]).check().unwrap_err().to_string();
        assert!(e.starts_with("mirostat and top_k"), "{e}");
        let s = settings(&["--samplers", "top_k;temperature", "--top-k", "9", "--logit-bias", "1=-inf:4"]);
        assert!(s.check().unwrap_err().to_string().starts_with("logit_bias and samplers"));
        let s = settings(&[
            "--samplers",
            "penalties,top_k,temp",
            "--penalty-half-life",
            "20",
            "--repeat-last-n",
            "-1",
        ]);
        s.check().unwrap();
        assert_eq!(
            (s.top_k, s.top_p, s.min_p, s.penalty_half_life, s.penalty_window),
            (40, 1.0, 0.0, Some(20), None)
        );
        assert!(Settings::default().take_flags(&chain(&["--samplers", "tfs_z"])).is_err());
    }
}
