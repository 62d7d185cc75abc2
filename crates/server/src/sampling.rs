//! How a request draws: its fields over its preset's, over what came with the model, over the house's defaults.

use std::sync::Arc;

use quarrel_engine::{BestBy, BriefBias, DynamicTemperature, LogprobsOf, Sampling, Stage};
use quarrel_store::presets::{Preset, Presets};
use quarrel_text::Tokenizer;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::{Fields, OneOrMany};
use crate::models::Live;

/// Most entries of `logit_bias`.
const BIAS_MAX: usize = 1024;
/// Most texts of `dry_sequence_breakers`.
const BREAKERS_MAX: usize = 64;

/// Temperature that follows the entropy of each step.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DynamicTemp {
    /// Where the model is sure.
    min: f32,
    /// Where it is as unsure as can be.
    max: f32,
    /// Bends the curve between them; 1 is a line.
    #[serde(default = "one")]
    exponent: f32,
}

fn one() -> f32 {
    1.0
}

/// What is added to a logit: a number, or one for the first tokens of the answer.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Bias {
    Always(f32),
    Brief(Brief),
}

/// A bias that ends.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Brief {
    /// What is added.
    bias: f32,
    /// For so many tokens from the first.
    tokens: u32,
}

/// What the best of several answers is chosen by.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Best {
    /// The mean log-probability of its tokens.
    Likelihood,
    /// How far from not knowing at all the model was at each token.
    SelfCertainty,
}

impl From<Best> for BestBy {
    fn from(best: Best) -> BestBy {
        match best {
            Best::Likelihood => BestBy::Likelihood,
            Best::SelfCertainty => BestBy::SelfCertainty,
        }
    }
}

/// Whose log-probabilities are given.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogprobsChoice {
    /// The model's: before the sampling chain.
    Raw,
    /// Those of what was drawn from: after the chain.
    Sampled,
}

impl From<LogprobsChoice> for LogprobsOf {
    fn from(of: LogprobsChoice) -> LogprobsOf {
        match of {
            LogprobsChoice::Raw => LogprobsOf::Raw,
            LogprobsChoice::Sampled => LogprobsOf::Sampled,
        }
    }
}

/// The sampling that a request changes: what came with the model over the house's defaults.
pub(crate) fn base(live: &Live) -> Sampling {
    let mut s = quarrel_runtime::usual();
    live.opened.params.apply(&mut s);
    s
}

impl Fields {
    /// Fills what is not set from the named settings; gives these.
    pub(crate) fn take_preset(&mut self, presets: &Presets) -> Result<Option<Preset>, ApiError> {
        let Some(name) = self.preset.as_deref().or(presets.default_name()) else { return Ok(None) };
        let p = presets.find(name).map_err(|e| ApiError::field("preset", e.to_string()))?.clone();
        // A way to choose the temperature of the request's own is not overruled by another.
        let ranged = self.dynamic_temperature.is_some() || self.dynatemp_range.is_some();
        if self.temperature.is_none() && !ranged && self.edt_theta.is_none() {
            self.dynamic_temperature =
                p.dynamic_temperature.map(|d| DynamicTemp { min: d.min, max: d.max, exponent: d.exponent });
        }
        if !ranged {
            self.edt_theta = self.edt_theta.or(p.edt_theta);
        }
        macro_rules! fill {
            ($($field:ident)*) => { $(self.$field = self.$field.take().or(p.$field);)* };
        }
        fill! {
            temperature top_p top_k min_p typical_p top_n_sigma xtc_probability xtc_threshold mirostat mirostat_tau
            mirostat_eta adaptive repetition_penalty presence_penalty frequency_penalty penalty_window
            penalty_half_life dry_multiplier dry_base dry_allowed_length max_tokens
        }
        self.samplers = self.samplers.take().or_else(|| p.samplers.clone().map(OneOrMany::Many));
        self.dry_sequence_breakers =
            self.dry_sequence_breakers.take().or_else(|| p.dry_sequence_breakers.clone());
        self.seed = self.seed.or(p.seed.map(|s| s as i64));
        Ok(Some(p))
    }

    /// The stages of `samplers`: a list, or a text with `;` or `,` between them.
    fn order(&self) -> Result<Option<Vec<Stage>>, ApiError> {
        let names = match &self.samplers {
            None => return Ok(None),
            Some(OneOrMany::One(text)) => text.split([';', ',']).filter(|n| !n.trim().is_empty()).collect(),
            Some(OneOrMany::Many(list)) => list.iter().map(String::as_str).collect::<Vec<_>>(),
        };
        Ok(Some(Stage::list(names)?))
    }

    fn set_biases(&self, s: &mut Sampling) -> Result<(), ApiError> {
        let given = self.logit_bias.iter().flatten();
        if given.clone().count() > BIAS_MAX {
            let message = format!("logit_bias: {} entries; at most {BIAS_MAX} are allowed", given.count());
            return Err(ApiError::field("logit_bias", message));
        }
        for (id, bias) in given {
            let id = id.parse().map_err(|_| {
                ApiError::field("logit_bias", "logit_bias: keys are token ids, such as \"50256\"")
            })?;
            match *bias {
                Bias::Always(bias) => s.logit_bias.push((id, bias)),
                Bias::Brief(Brief { bias, tokens }) => s.brief_bias.push(BriefBias { id, bias, tokens }),
            }
        }
        Ok(())
    }

    fn dynamic(&self, temperature: f32) -> Result<Option<DynamicTemperature>, ApiError> {
        let range = self.dynatemp_range.filter(|r| *r != 0.0);
        match (self.dynamic_temperature, range) {
            (Some(_), Some(_)) => {
                let message = "dynatemp_range: dynamic_temperature says it already; give one of them";
                Err(ApiError::field("dynatemp_range", message))
            }
            (_, Some(range)) => Ok(Some(DynamicTemperature {
                min: (temperature - range).max(0.0),
                max: temperature + range,
                exponent: self.dynatemp_exponent.unwrap_or(1.0),
            })),
            (given, None) => {
                Ok(given.map(|d| DynamicTemperature { min: d.min, max: d.max, exponent: d.exponent }))
            }
        }
    }

    /// How to draw, over the defaults of the model.
    pub(crate) fn sampling(&self, base: &Sampling) -> Result<Sampling, ApiError> {
        let order = self.order()?;
        let mut s = base.clone();
        s.make_room(order.as_deref(), self.mirostat.unwrap_or(base.mirostat) != 0);
        macro_rules! set {
            ($($field:ident)*) => { $(s.$field = self.$field.unwrap_or(s.$field);)* };
        }
        set! {
            temperature top_p top_k min_p typical_p top_n_sigma xtc_probability xtc_threshold mirostat mirostat_tau
            mirostat_eta edt_theta adaptive repetition_penalty presence_penalty frequency_penalty dry_multiplier
            dry_base dry_allowed_length
        }
        self.set_biases(&mut s)?;
        s.samplers = order;
        s.seed = self.seed.map(|s| s as u64);
        s.dynamic_temperature = self.dynamic(s.temperature)?;
        s.penalty_half_life = self.penalty_half_life.or(s.penalty_half_life);
        s.penalty_window = self.penalty_window.or(s.penalty_window);
        if s.penalty_window == Some(0) {
            s.turn_off(Stage::Penalties); // over no tokens there are none
            s.penalty_window = None;
        }
        s.dry_window = match self.dry_window {
            None | Some(-1) => s.dry_window,
            Some(n) => Some(u32::try_from(n).map_err(|_| {
                ApiError::field(
                    "dry_window",
                    format!("dry_window is {n}; it must be -1 (all), 0 (off) or a number of tokens"),
                )
            })?),
        };
        if s.dry_window == Some(0) {
            s.turn_off(Stage::Dry);
            s.dry_window = None;
        }
        Ok(s)
    }

    /// The tokens that repeats do not go over, where DRY is on.
    pub(crate) fn resolve_breakers(&self, tokenizer: &Tokenizer, s: &mut Sampling) -> Result<(), ApiError> {
        if s.dry_multiplier == 0.0 {
            return Ok(());
        }
        let field = |message: String| ApiError::field("dry_sequence_breakers", message);
        let texts = self.dry_sequence_breakers.as_deref();
        if let Some(n) = texts.map(<[_]>::len).filter(|n| *n > BREAKERS_MAX) {
            return Err(field(format!(
                "dry_sequence_breakers: {n} texts; at most {BREAKERS_MAX} are allowed"
            )));
        }
        let ids: Arc<[u32]> = quarrel_runtime::breakers(tokenizer, texts)
            .map_err(|e| field(format!("dry_sequence_breakers: {e:#}")))?;
        s.dry_breakers = ids;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sampling(fields: serde_json::Value) -> Result<Sampling, ApiError> {
        let fields: Fields = crate::body::at("", fields)?;
        let base = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Sampling::default() };
        let s = fields.sampling(&base)?;
        s.check()?;
        Ok(s)
    }

    #[test]
    fn names_of_llama_cpp_and_ours_reach_the_chain() {
        let s = sampling(json!({
            "samplers": "dry;top_k;typ_p;xtc;temperature", "typical_p": 0.9, "xtc_probability": 0.5, "xtc_threshold": 0.2,
            "dry_multiplier": 0.8, "dry_window": -1, "dynatemp_range": 0.5, "logit_bias": { "5": -1, "6": { "bias": 2, "tokens": 3 } }
        }));
        assert!(s.unwrap_err().message.contains("logit_bias"), "its stage is not in the list");
        let s = sampling(json!({
            "samplers": ["logit_bias", "dry", "top_k", "temperature"], "dry_multiplier": 0.8, "dry_allowed_length": 4,
            "dynatemp_range": 0.5, "logit_bias": { "5": -1, "6": { "bias": 2, "tokens": 3 } }
        }))
        .unwrap();
        assert_eq!((s.top_k, s.top_p, s.min_p, s.dry_allowed_length), (40, 1.0, 0.0, 4));
        assert_eq!(s.logit_bias, [(5, -1.0)]);
        assert_eq!(s.brief_bias, [BriefBias { id: 6, bias: 2.0, tokens: 3 }]);
        let d = s.dynamic_temperature.unwrap();
        assert!((d.min - 0.3).abs() < 1e-6 && (d.max - 1.3).abs() < 1e-6 && d.exponent == 1.0);
        let s = sampling(json!({ "mirostat": 2, "mirostat_tau": 4 })).unwrap();
        assert_eq!((s.mirostat, s.mirostat_tau, s.top_k, s.top_p), (2, 4.0, 0, 1.0));
        let s = sampling(
            json!({ "penalty_window": 0, "presence_penalty": 1, "dry_window": 0, "dry_multiplier": 1 }),
        );
        let s = s.unwrap();
        assert_eq!((s.presence_penalty, s.dry_multiplier), (0.0, 0.0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (fields, param) in [
            (json!({ "samplers": ["tfs_z"] }), "samplers"),
            (json!({ "samplers": ["top_k", "dry"] }), "samplers"),
            (json!({ "samplers": ["top_k"], "temperature": 0.5 }), "temperature"),
            (json!({ "mirostat": 2, "top_k": 40 }), "mirostat"),
            (json!({ "mirostat": 3 }), "mirostat"),
            (json!({ "typical_p": 0 }), "typical_p"),
            (json!({ "dry_window": -2 }), "dry_window"),
            (
                json!({ "dynatemp_range": 0.5, "dynamic_temperature": { "min": 0, "max": 1 } }),
                "dynatemp_range",
            ),
            (json!({ "logit_bias": { "a": 1 } }), "logit_bias"),
            (json!({ "logit_bias": { "1": { "bias": 1, "tokens": 0 } } }), "logit_bias"),
            (json!({ "tfs_z": 1 }), "tfs_z"),
            (json!({ "best_of_by": "luck" }), "best_of_by"),
        ] {
            let error = sampling(fields.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{fields} {}", error.message);
        }
    }

    #[test]
    fn a_preset_fills_what_a_request_leaves_open() {
        let text = "[wild]\nxtc_probability = 0.5\nsamplers = ['xtc', 'temperature']\nedt_theta = 0.5\nadaptive = 0.2\n";
        let presets = Presets::with_toml(text).unwrap();
        let mut fields: Fields =
            crate::body::at("", json!({ "preset": "wild", "xtc_probability": 0.1 })).unwrap();
        fields.take_preset(&presets).unwrap();
        assert_eq!((fields.xtc_probability, fields.adaptive), (Some(0.1), Some(0.2)));
        assert_eq!(fields.order().unwrap().unwrap(), [Stage::Xtc, Stage::Temperature]);
    }
}
