//! How a model wants to be sampled: what came with it, over the defaults of the house.

use anyhow::Result;
use quarrel_engine::Sampling;
use quarrel_formats::Source;
use quarrel_hub::LocalModel;
use serde_json::{Map, Value};

use crate::file;

/// The chain that llama.cpp made customary: a little less than the model's own temperature, and no unlikely tokens.
pub fn usual() -> Sampling {
    Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Sampling::default() }
}

/// Parameters that came with a model, by Ollama's names: its params layer, or a checkpoint's `generation_config.json`.
#[derive(Debug, Clone, Default)]
pub struct ModelParams {
    changes: Vec<(Name, f64)>,
    seed: Option<u64>,
    /// Most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// Where answers end.
    pub stop: Vec<String>,
    /// What is not understood, as name and value.
    pub unused: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum Name {
    Temperature,
    TopK,
    TopP,
    MinP,
    TypicalP,
    Mirostat,
    MirostatTau,
    MirostatEta,
    Repetition,
    Presence,
    Frequency,
    Window,
}

impl ModelParams {
    /// Those of a model that is here.
    pub(crate) fn read(local: &LocalModel, source: &Source) -> Result<ModelParams> {
        if let Some(params) = &local.params {
            return Ok(ModelParams::of(params));
        }
        let Source::Hf(hf) = source else { return Ok(ModelParams::default()) };
        let path = hf.dir.join("generation_config.json");
        if !path.exists() {
            return Ok(ModelParams::default());
        }
        let config = file::json(&path)?;
        let names = [
            ("temperature", "temperature"),
            ("top_k", "top_k"),
            ("top_p", "top_p"),
            ("min_p", "min_p"),
            ("repetition_penalty", "repeat_penalty"),
        ];
        let given = |(theirs, ours): (&str, &str)| {
            Some((ours.to_owned(), config.get(theirs).filter(|v| !v.is_null())?.clone()))
        };
        Ok(ModelParams::of(&names.into_iter().filter_map(given).collect()))
    }

    /// Those of an object.
    pub fn of(params: &Map<String, Value>) -> ModelParams {
        let mut out = ModelParams::default();
        for (name, value) in params {
            if !out.take(name, value) {
                out.unused.push(format!("{name} {value}"));
            }
        }
        out
    }

    fn take(&mut self, name: &str, value: &Value) -> bool {
        let number = value.as_f64();
        let count = value.as_u64().and_then(|v| u32::try_from(v).ok()).map(f64::from);
        let (name, value) = match name {
            "temperature" => (Name::Temperature, number),
            "top_k" => (Name::TopK, count),
            "top_p" => (Name::TopP, number),
            "min_p" => (Name::MinP, number),
            "typical_p" => (Name::TypicalP, number),
            "mirostat" => (Name::Mirostat, count.filter(|v| *v <= 2.0)),
            "mirostat_tau" => (Name::MirostatTau, number),
            "mirostat_eta" => (Name::MirostatEta, number),
            "repeat_penalty" => (Name::Repetition, number),
            "presence_penalty" => (Name::Presence, number),
            "frequency_penalty" => (Name::Frequency, number),
            "repeat_last_n" => (Name::Window, value.as_i64().map(|n| n as f64)),
            "seed" => {
                self.seed = value.as_u64();
                return self.seed.is_some();
            }
            "num_predict" => {
                self.max_tokens = value.as_i64().and_then(|n| u32::try_from(n).ok());
                return value.is_i64();
            }
            "stop" => {
                let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                self.stop.extend(
                    list.iter().filter_map(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned),
                );
                return list.iter().all(Value::is_string);
            }
            "num_ctx" => return count.is_some(), // the engine's, read when it is loaded
            _ => return false,
        };
        self.changes.extend(value.map(|v| (name, v)));
        value.is_some()
    }

    /// Puts them over other settings.
    pub fn apply(&self, s: &mut Sampling) {
        for (name, v) in &self.changes {
            match name {
                Name::Temperature => s.temperature = *v as f32,
                Name::TopK => s.top_k = *v as u32,
                Name::TopP => s.top_p = *v as f32,
                Name::MinP => s.min_p = *v as f32,
                Name::TypicalP => s.typical_p = *v as f32,
                Name::Mirostat => s.mirostat = *v as u8,
                Name::MirostatTau => s.mirostat_tau = *v as f32,
                Name::MirostatEta => s.mirostat_eta = *v as f32,
                Name::Repetition => s.repetition_penalty = *v as f32,
                Name::Presence => s.presence_penalty = *v as f32,
                Name::Frequency => s.frequency_penalty = *v as f32,
                Name::Window => s.penalty_window = if *v < 0.0 { None } else { Some(*v as u32) },
            }
        }
        s.make_room(None, s.mirostat != 0);
        s.seed = self.seed.or(s.seed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_came_with_a_model_goes_over_the_defaults() {
        let params = json!({
            "temperature": 0.3, "top_k": 7, "stop": ["a", "b"], "num_ctx": 4096, "repeat_last_n": -1, "seed": 5,
            "num_predict": 9, "mirostat": 3, "top_p": "high",
        });
        let params = ModelParams::of(params.as_object().unwrap());
        let mut s = usual();
        params.apply(&mut s);
        assert_eq!((s.temperature, s.top_k, s.top_p, s.penalty_window), (0.3, 7, 0.95, None));
        assert_eq!((s.seed, params.max_tokens, params.stop.join("")), (Some(5), Some(9), "ab".into()));
        let mirostat = json!({"mirostat": 2, "mirostat_tau": 4.0});
        let mut other = usual();
        ModelParams::of(mirostat.as_object().unwrap()).apply(&mut other);
        assert_eq!(
            (other.mirostat, other.mirostat_tau, other.top_k),
            (2, 4.0, 0),
            "it takes the place of top-k"
        );
        other.check().unwrap();
        assert_eq!(params.unused, ["mirostat 3", "top_p \"high\""]);
    }
}
