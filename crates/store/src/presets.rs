//! Presets: named settings of a request. Five are built in; others come from a TOML text, a table each, and may take a
//! built-in one's name. A field that a request sets itself wins over the preset's; a field that neither sets is the
//! server's default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const TEXT_BYTES_MAX: usize = 1 << 20;
const PRESETS_MAX: usize = 1000;

/// Temperature that follows the entropy of the distribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicTemperature {
    /// Where the model is sure.
    pub min: f32,
    /// Where it is not at all.
    pub max: f32,
    /// Bends the curve between them; 1 is a line.
    #[serde(default = "one")]
    pub exponent: f32,
}

fn one() -> f32 {
    1.0
}

/// Named settings. Everything but the name may be unset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// What a request names.
    #[serde(skip_deserializing)]
    pub name: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// The model to use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The chat template to use in place of the model's own, by name or path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The system prompt of a conversation that brings none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Divides the logits; 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Takes the place of `temperature` where that is not 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_temperature: Option<DynamicTemperature>,
    /// Keep the smallest set of best tokens with this mass; 1 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep this many best tokens; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Keep tokens of at least this share of the best one's probability; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Keep the smallest set with this mass of the tokens whose surprise is nearest to the expected one; 1 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f32>,
    /// Keep tokens whose logit is at most this many standard deviations below the best; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_n_sigma: Option<f32>,
    /// How often XTC drops the top choices; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xtc_probability: Option<f32>,
    /// Of the tokens of at least this probability XTC leaves the least likely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xtc_threshold: Option<f32>,
    /// 1 or 2: Mirostat; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirostat: Option<u8>,
    /// The surprise that Mirostat aims at, in bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirostat_tau: Option<f32>,
    /// How fast Mirostat learns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirostat_eta: Option<f32>,
    /// EDT: the temperature is lowered the more, the surer the model is; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edt_theta: Option<f32>,
    /// How much repeats and doubt in the answer may change temperature and penalties; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<f32>,
    /// CTRL's penalty on tokens of prompt and answer; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// OpenAI's penalty on tokens that the answer has; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// OpenAI's penalty per time that the answer has a token; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// The penalties look at this many last tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalty_window: Option<u32>,
    /// The penalties on a token are halved with each so many tokens since it was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalty_half_life: Option<u32>,
    /// DRY's penalty on a token that makes a repeat longer; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_multiplier: Option<f32>,
    /// It grows by this factor with each token of the repeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_base: Option<f32>,
    /// ... from repeats of this length on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_allowed_length: Option<u32>,
    /// Texts that repeats do not go over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// The stages of the sampling chain in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samplers: Option<Vec<String>>,
    /// The same seed gives the same tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Tokens of an answer at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

impl Preset {
    /// Checks every field against its range, which is the engine's.
    fn check(&self) -> Result<()> {
        let field = |name: &str, ok: bool, range: &str| {
            if ok { Ok(()) } else { Err(Error::invalid(format!("preset {:?}: {name}", self.name), range)) }
        };
        let within = |v: Option<f32>, least: f32, most: f32| v.is_none_or(|v| (least..=most).contains(&v));
        let above_0 = |v: Option<f32>, most: f32| v.is_none_or(|v| v > 0.0 && v <= most);
        let line = self.description.chars().all(|c| !c.is_control());
        field("description", line, "must be one line")?;
        field("temperature", within(self.temperature, 0.0, 100.0), "must be 0 (greedy) to 100")?;
        field("top_p", above_0(self.top_p, 1.0), "must be above 0, at most 1 (off)")?;
        field("min_p", within(self.min_p, 0.0, 1.0), "must be 0 (off) to 1")?;
        let repetition = above_0(self.repetition_penalty, 100.0);
        field("repetition_penalty", repetition, "must be above 0, at most 100; 1 is off")?;
        field("presence_penalty", within(self.presence_penalty, -2.0, 2.0), "must be -2 to 2; 0 is off")?;
        field("frequency_penalty", within(self.frequency_penalty, -2.0, 2.0), "must be -2 to 2; 0 is off")?;
        field("typical_p", above_0(self.typical_p, 1.0), "must be above 0, at most 1 (off)")?;
        field("top_n_sigma", within(self.top_n_sigma, 0.0, 100.0), "must be 0 (off) to 100")?;
        field("xtc_probability", within(self.xtc_probability, 0.0, 1.0), "must be 0 (off) to 1")?;
        field("xtc_threshold", within(self.xtc_threshold, 0.0, 1.0), "must be 0 to 1")?;
        field("mirostat", self.mirostat.is_none_or(|m| m <= 2), "must be 0 (off), 1 or 2")?;
        field("mirostat_tau", above_0(self.mirostat_tau, 32.0), "must be above 0, at most 32")?;
        field("mirostat_eta", above_0(self.mirostat_eta, 1.0), "must be above 0, at most 1")?;
        field("edt_theta", within(self.edt_theta, 0.0, 10.0), "must be 0 (off) to 10")?;
        field("adaptive", within(self.adaptive, 0.0, 1.0), "must be 0 (off) to 1")?;
        field("penalty_window", self.penalty_window != Some(0), "must be 1 or more")?;
        field("penalty_half_life", self.penalty_half_life != Some(0), "must be 1 or more")?;
        field("dry_multiplier", within(self.dry_multiplier, 0.0, 100.0), "must be 0 (off) to 100")?;
        field("dry_base", within(self.dry_base, 1.0, 100.0), "must be 1 to 100")?;
        field("dry_allowed_length", self.dry_allowed_length != Some(0), "must be 1 or more")?;
        field("max_tokens", self.max_tokens != Some(0), "must be 1 or more")?;
        if let Some(d) = self.dynamic_temperature {
            field("dynamic_temperature.min", within(Some(d.min), 0.0, 100.0), "must be 0 to 100")?;
            field("dynamic_temperature.max", within(Some(d.max), d.min, 100.0), "must be min to 100")?;
            field(
                "dynamic_temperature.exponent",
                above_0(Some(d.exponent), 10.0),
                "must be above 0, at most 10",
            )?;
        }
        Ok(())
    }
}

/// The presets of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Presets {
    by_name: BTreeMap<String, Preset>,
    default: Option<String>,
}

impl Presets {
    /// `precise`, `balanced`, `creative`, `quality` and `code`.
    pub fn built_in() -> Presets {
        let by_name = built_in().map(|p| (p.name.clone(), p)).into();
        Presets { by_name, default: None }
    }

    /// The built-in ones and those of a TOML text, in which each table is one: `[mine]` with the fields of [`Preset`].
    /// A field that is not known, or out of its range, is an error that names it.
    pub fn with_toml(text: &str) -> Result<Presets> {
        let (size, limit) = (text.len() as u64, TEXT_BYTES_MAX as u64);
        if size > limit {
            return Err(Error::TooLarge { what: "bytes of the presets", size, limit });
        }
        let read: BTreeMap<String, Preset> =
            toml::from_str(text).map_err(|e| Error::invalid("presets", e.to_string().trim_end()))?;
        if read.len() > PRESETS_MAX {
            let (size, limit) = (read.len() as u64, PRESETS_MAX as u64);
            return Err(Error::TooLarge { what: "presets", size, limit });
        }
        let mut presets = Presets::built_in();
        for (name, preset) in read {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.len() > 64 || !name.chars().all(known) {
                let why = "must be 1 to 64 letters, digits, '-', '_' or '.'";
                return Err(Error::invalid(format!("the name of preset {name:.64?}"), why));
            }
            let preset = Preset { name: name.clone(), ..preset };
            preset.check()?;
            presets.by_name.insert(name, preset);
        }
        Ok(presets)
    }

    /// A preset by its name; the error lists those that there are.
    pub fn find(&self, name: &str) -> Result<&Preset> {
        self.by_name.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
            Error::invalid("preset", format!("{name:.64?} is none of {}", names.join(", ")))
        })
    }

    /// The one that holds for requests that name none.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn with_default(mut self, name: &str) -> Result<Presets> {
        self.default = Some(self.find(name)?.name.clone());
        Ok(self)
    }

    /// Its name.
    pub fn default_name(&self) -> Option<&str> {
        self.default.as_deref()
    }

    /// All of them, by name.
    pub fn list(&self) -> impl Iterator<Item = &Preset> {
        self.by_name.values()
    }
}

fn built_in() -> [Preset; 5] {
    let preset = |name: &str, description: &str| Preset {
        name: name.into(),
        description: description.into(),
        ..Preset::default()
    };
    [
        Preset {
            temperature: Some(0.0),
            ..preset("precise", "always the most likely token: facts, extraction, tests")
        },
        Preset {
            temperature: Some(0.7),
            top_p: Some(0.9),
            min_p: Some(0.05),
            ..preset("balanced", "some variety without surprises: conversation")
        },
        Preset {
            temperature: Some(1.0),
            min_p: Some(0.05),
            presence_penalty: Some(0.3),
            ..preset("creative", "wide choice, few repetitions: stories, ideas")
        },
        // The engine's own `Sampling::quality`.
        Preset {
            temperature: Some(1.0),
            min_p: Some(0.1),
            dry_multiplier: Some(0.8),
            dry_sequence_breakers: Some(Vec::new()),
            ..preset("quality", "likely tokens only, and no text twice: the measured compromise")
        },
        Preset {
            temperature: Some(0.2),
            top_p: Some(0.95),
            repetition_penalty: Some(1.0),
            ..preset("code", "close to the most likely program; repetition is not punished")
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_ones_are_sound() {
        let presets = Presets::built_in();
        let names: Vec<&str> = presets.list().map(|p| &p.name[..]).collect();
        assert_eq!(names, ["balanced", "code", "creative", "precise", "quality"]);
        for p in presets.list() {
            p.check().unwrap();
            assert!(!p.description.is_empty() && p.description.len() < 80, "{}", p.name);
            assert!(p.temperature.is_some() && p.model.is_none() && p.seed.is_none(), "{}", p.name);
        }
        assert_eq!(presets.find("precise").unwrap().temperature, Some(0.0));
        let quality = presets.find("quality").unwrap();
        assert_eq!((quality.min_p, quality.dry_multiplier), (Some(0.1), Some(0.8)));
        assert_eq!(quality.dry_sequence_breakers.as_deref(), Some(&[][..]));
    }

    #[test]
    fn users_add_and_replace() {
        let text = "[mine]\ndescription = 'for me'\nmodel = 'tiny'\nsystem = \"Be\\nbrief.\"\ntop_k = 7\nseed = 3\n\
                    dynamic_temperature = { min = 0.1, max = 0.9 }\n[precise]\ntemperature = 0.1\n['a.b']\n";
        let presets = Presets::with_toml(text).unwrap();
        let mine = presets.find("mine").unwrap();
        assert_eq!((mine.name.as_str(), mine.top_k, mine.seed, mine.top_p), ("mine", Some(7), Some(3), None));
        assert_eq!(mine.dynamic_temperature.unwrap().exponent, 1.0);
        assert_eq!(presets.find("precise").unwrap().temperature, Some(0.1));
        assert_eq!(presets.list().count(), 7);
        let json = serde_json::to_value(mine).unwrap();
        assert_eq!((&json["name"], json.get("top_p")), (&"mine".into(), None));
        assert_eq!(Presets::with_toml("").unwrap(), Presets::built_in());
        let e = presets.find("mien").unwrap_err().to_string();
        assert_eq!(e, "preset: \"mien\" is none of a.b, balanced, code, creative, mine, precise, quality");
    }

    #[test]
    fn errors_name_the_field() {
        for (text, needle) in [
            ("[a]\nheat = 1", "unknown field `heat`"),
            ("[a]\nname = 'b'", "unknown field `name`"),
            ("[a]\ndynamic_temperature = { min = 0, max = 1, curve = 2 }", "unknown field `curve`"),
            ("[a]\ndynamic_temperature = { min = 0 }", "missing field `max`"),
            ("[a]\ntemperature = 'hot'", "invalid type: string \"hot\""),
            ("temperature = 1", "invalid type"),
            ("[a]\ntop_k = -1", "-1"),
            ("[a]\n[a]", "duplicate key"),
            ("[a", "presets: "),
            ("[a]\ntemperature = nan", "preset \"a\": temperature: must be 0 (greedy) to 100"),
            ("[a]\ntemperature = -0.1", "preset \"a\": temperature"),
            ("[a]\ntop_p = 0.0", "preset \"a\": top_p"),
            ("[a]\nmin_p = 1.5", "preset \"a\": min_p"),
            ("[a]\nrepetition_penalty = inf", "preset \"a\": repetition_penalty"),
            ("[a]\npresence_penalty = 3.0", "preset \"a\": presence_penalty"),
            ("[a]\nfrequency_penalty = -3.0", "preset \"a\": frequency_penalty"),
            ("[a]\nmax_tokens = 0", "preset \"a\": max_tokens"),
            ("[a]\ndescription = \"a\\nb\"", "preset \"a\": description: must be one line"),
            ("[a]\ndynamic_temperature = { min = 2.0, max = 1.0 }", "dynamic_temperature.max"),
            (
                "[a]\ndynamic_temperature = { min = 0.5, max = 1.0, exponent = 0.0 }",
                "dynamic_temperature.exponent",
            ),
            ("['a b']", "the name of preset \"a b\""),
            ("['']", "the name of preset \"\""),
        ] {
            let e = Presets::with_toml(text).expect_err(text).to_string();
            assert!(e.contains(needle), "{text}: {e}");
        }
        let long = format!("[a]\nsystem = '{}'", "x".repeat(TEXT_BYTES_MAX));
        assert!(matches!(Presets::with_toml(&long), Err(Error::TooLarge { .. })));
    }
}
