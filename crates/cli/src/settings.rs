//! How answers are sampled: defaults, then what came with the model, then what the person says.

use anyhow::{Result, bail};
use quarrel_engine::{DynamicTemperature, Sampling};
use quarrel_runtime::ModelParams;
use serde_json::{Map, Value, json};

use crate::args::SampleArgs;
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
    quality: bool,
    pub(crate) seed: Option<u64>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) stop: Vec<String>,
}

/// The names that `set` takes, as the flags have them.
pub(crate) const NAMES: [&str; 11] = [
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
];

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
            quality: false,
            seed: None,
            max_tokens: None,
            stop: Vec::new(),
        }
    }
}

impl Settings {
    /// What `run` begins with: one question gets the same answer each time, unless a flag asks for sampling. The best token
    /// alone makes small models repeat themselves without end; a light penalty prevents most of that.
    pub(crate) fn one_shot(args: &SampleArgs) -> Settings {
        let SampleArgs { temp, top_k, top_p, min_p, seed, quality, .. } = args;
        if *quality
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
        s.take_flags(args);
        s.sampling().check().map_err(|e| Usage(e.to_string()))?;
        Ok(s)
    }

    fn take_flags(&mut self, args: &SampleArgs) {
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
        } = args;
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
    }

    /// The preset, with its own nucleus; --temp scales its range of temperatures.
    fn set_quality(&mut self, on: bool) {
        let base = if on { Sampling::quality() } else { Settings::default().sampling() };
        (self.temp, self.top_k, self.top_p, self.min_p) =
            (base.temperature, base.top_k, base.top_p, base.min_p);
        self.quality = on;
    }

    /// What came with the model; what is not understood is said.
    fn take_model(&mut self, params: &ModelParams) {
        let mut s = self.sampling();
        params.apply(&mut s);
        (self.temp, self.top_k, self.top_p, self.min_p) = (s.temperature, s.top_k, s.top_p, s.min_p);
        (self.repeat_penalty, self.penalty_window) = (s.repetition_penalty, s.penalty_window);
        (self.presence_penalty, self.frequency_penalty) = (s.presence_penalty, s.frequency_penalty);
        (self.seed, self.max_tokens) = (s.seed, params.max_tokens.or(self.max_tokens));
        self.stop.extend(params.stop.iter().cloned());
        if !params.unused.is_empty() {
            render::note(format!("parameters of the model that are not used: {}", params.unused.join(", ")));
        }
    }

    /// What the engine is told.
    pub(crate) fn sampling(&self) -> Sampling {
        let scaled = |d: DynamicTemperature| DynamicTemperature {
            min: d.min * self.temp,
            max: d.max * self.temp,
            exponent: d.exponent,
        };
        let blind = self.penalty_window == Some(0); // penalties over no tokens are none
        Sampling {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: if blind { 1.0 } else { self.repeat_penalty },
            presence_penalty: if blind { 0.0 } else { self.presence_penalty },
            frequency_penalty: if blind { 0.0 } else { self.frequency_penalty },
            penalty_window: self.penalty_window.filter(|_| !blind),
            seed: self.seed,
            dynamic_temperature: Sampling::quality().dynamic_temperature.filter(|_| self.quality).map(scaled),
            ..Sampling::default()
        }
    }

    /// Changes one by the name of its flag; on an error nothing is changed.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        fn parse<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
            value.parse().map_err(|_| anyhow::anyhow!("{name}: {value:?} is not a number that it can be"))
        }
        let mut new = self.clone();
        let unset = matches!(value, "" | "none" | "default");
        match name.trim_start_matches('-') {
            "temp" | "temperature" => new.temp = parse(name, value)?,
            "top-k" | "topk" | "top_k" => new.top_k = parse(name, value)?,
            "top-p" | "topp" | "top_p" => new.top_p = parse(name, value)?,
            "min-p" | "minp" | "min_p" => new.min_p = parse(name, value)?,
            "repeat-penalty" | "repeat_penalty" => new.repeat_penalty = parse(name, value)?,
            "presence-penalty" | "presence_penalty" => new.presence_penalty = parse(name, value)?,
            "frequency-penalty" | "frequency_penalty" => new.frequency_penalty = parse(name, value)?,
            "seed" => new.seed = if unset || value == "random" { None } else { Some(parse(name, value)?) },
            "max-tokens" | "max_tokens" | "n" => {
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
        new.sampling().check()?;
        *self = new;
        Ok(())
    }

    /// Names and values, in the order of [`NAMES`].
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
        NAMES.iter().map(|n| n.to_string()).zip(values).collect()
    }

    /// The settings that [`Settings::values`] gave.
    pub(crate) fn take_values(&mut self, values: &Map<String, Value>) -> Result<()> {
        let mut new = Settings::default();
        if values.get("quality") == Some(&Value::Bool(true)) {
            new.set_quality(true); // first, for it sets others
        }
        for (name, value) in values.iter().filter(|(n, _)| *n != "quality") {
            match value {
                Value::Null => new.set(name, "none")?,
                Value::Array(list) => {
                    new.stop = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                }
                Value::String(s) => new.set(name, s)?,
                other => new.set(name, &other.to_string())?,
            }
        }
        new.penalty_window = self.penalty_window;
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
        }));
        assert_eq!((s.temp, s.top_k, s.top_p), (0.0, 7, 0.95));
        assert_eq!(s.stop, ["a", "b", "c"]);
        assert_eq!(s.penalty_window, None);
    }

    #[test]
    fn the_preset_follows_entropy_and_temp_scales_it() {
        let mut s = Settings::default();
        assert_eq!(s.sampling().dynamic_temperature, None);
        s.set("quality", "on").unwrap();
        assert_eq!(s.sampling(), Sampling::quality());
        s.set("temp", "0.5").unwrap();
        let (half, whole) =
            (s.sampling().dynamic_temperature.unwrap(), Sampling::quality().dynamic_temperature.unwrap());
        assert_eq!((half.min, half.max), (whole.min / 2.0, whole.max / 2.0));
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
        assert_eq!(s.values().keys().collect::<Vec<_>>(), NAMES);
    }
}
