//! How a token was drawn, with the texts of tokens: as JSON for programs.

use quarrel_engine::{CandidateTrace, EditTrace, StageTrace, Trace};
use quarrel_text::Tokenizer;
use serde_json::{Value, json};

/// A token's text, whatever its bytes.
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}

/// Nine digits are more than the numbers have.
fn round(v: f64) -> Value {
    if v.is_finite() { json!((v * 1e9).round() / 1e9) } else { Value::Null }
}

/// One object: `step`, `token`, `entropy`, `temperature`, `edits`, `stages`, `candidates`. Numbers that are infinite, such as the
/// logit of a token that is forbidden, are null.
pub fn trace_json(tokenizer: &Tokenizer, trace: &Trace) -> Value {
    let token = |id: u32| json!({ "id": id, "text": token_text(tokenizer, id) });
    let edit = |e: &EditTrace| {
        let largest = e.largest.iter().map(|c| {
            let mut change = token(c.id);
            change["from"] = round(c.from.into());
            change["to"] = round(c.to.into());
            change
        });
        json!({ "stage": e.stage.name(), "changed": e.changed, "largest": largest.collect::<Vec<_>>() })
    };
    let stage = |s: &StageTrace| {
        let mut stage = json!({ "stage": s.name, "tokens": s.tokens, "mass": round(s.mass), "entropy": round(s.entropy) });
        match (s.name, s.value) {
            ("xtc", Some(v)) => stage["acted"] = (v != 0.0).into(),
            ("mirostat", Some(v)) => stage["mu"] = round(v),
            (_, Some(v)) => stage["temperature"] = round(v),
            (_, None) => {}
        }
        stage
    };
    let candidate = |c: &CandidateTrace| {
        let mut candidate = token(c.id);
        candidate["p"] = round(c.p);
        candidate["logprob"] = round(c.logprob.into());
        candidate
    };
    let mut drawn = token(trace.draw.id);
    drawn["p"] = round(trace.draw.p);
    drawn["logprob"] = round(trace.draw.logprob.into());
    drawn["rank"] = trace.draw.rank.into();
    drawn["uniform"] = trace.draw.uniform.map_or(Value::Null, |u| json!(u));
    json!({
        "step": trace.step,
        "token": drawn,
        "entropy": round(trace.entropy),
        "temperature": round(trace.temperature.into()),
        "edits": trace.edits.iter().map(edit).collect::<Vec<_>>(),
        "stages": trace.stages.iter().map(stage).collect::<Vec<_>>(),
        "candidates": trace.candidates.iter().map(candidate).collect::<Vec<_>>(),
    })
}
