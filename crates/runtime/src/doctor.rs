//! What of a model looks wrong: its metadata, tokenizer, template, ends of turns and rotations, and a few tokens of its own.
//! Nothing here changes how a model runs; a finding says what to look at.

use anyhow::Result;
use quarrel_engine::{Event, Handle, Request, Sampling};
use quarrel_formats::Source;
use quarrel_hub::LocalModel;
use quarrel_model::ModelSpec;
use quarrel_model::rope::Scaling;
use quarrel_text::{ChatTemplate, Ends, RenderInput, Special, Tokenizer};
use serde_json::json;

use crate::open::family_template;
use crate::{Opened, prompt, template_of, tokenizer_of};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Good,
    /// Unusual; the model may be meant so.
    Note,
    /// The model will probably not answer as it was trained to.
    Wrong,
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How bad it is.
    pub grade: Grade,
    /// What was found, and what to do.
    pub said: String,
}

fn finding(what: &'static str, grade: Grade, said: impl Into<String>) -> Finding {
    Finding { what, grade, said: said.into() }
}

/// Looks at everything that needs no weights. What keeps the model from running at all is a finding too.
pub fn examine(local: &LocalModel, source: &Source) -> Vec<Finding> {
    let mut out = Vec::new();
    let spec = match quarrel_model::spec(source) {
        Ok(spec) => {
            let size = format!(
                "{}: {} layers of width {}, {} heads over {}, {} tokens of context",
                spec.arch.title,
                spec.layers.len(),
                spec.dim,
                spec.heads,
                spec.kv_heads,
                spec.context
            );
            out.push(finding("architecture", Grade::Good, size));
            Some(spec)
        }
        Err(e) => {
            out.push(finding("architecture", Grade::Wrong, e.to_string()));
            None
        }
    };
    out.extend(spec.as_ref().map(rotations));
    let tokenizer = match tokenizer_of(source) {
        Ok(tokenizer) => tokenizer,
        Err(e) => {
            out.push(finding("tokenizer", Grade::Wrong, format!("{e:#}")));
            return out;
        }
    };
    out.push(round_trip(&tokenizer));
    out.extend(spec.as_ref().map(|s| vocabulary(s, &tokenizer)));
    out.extend(special_tokens(source, &tokenizer));
    if spec.as_ref().is_none_or(|s| s.arch.causal) {
        out.extend(match template_of(source) {
            Ok(Some(own)) => template(&own, &tokenizer),
            Ok(None) => match family_template(local, source, &tokenizer) {
                Some(family) => {
                    let said = format!("none in the file; that of {} is taken, by its tokens", family.name);
                    let own = family.template().map_or_else(|_| Vec::new(), |t| template(&t, &tokenizer));
                    std::iter::once(finding("template", Grade::Note, said)).chain(own).collect()
                }
                None => {
                    let said = "none: the model goes on with text, and does not converse";
                    vec![finding("template", Grade::Note, said)]
                }
            },
            Err(e) => vec![finding("template", Grade::Wrong, format!("{e:#}"))],
        });
    }
    out
}

fn vocabulary(spec: &ModelSpec, tokenizer: &Tokenizer) -> Finding {
    let (rows, tokens) = (spec.vocab as usize, tokenizer.vocab_size());
    let (grade, said) = match rows.cmp(&tokens) {
        std::cmp::Ordering::Equal => {
            (Grade::Good, format!("{tokens} tokens, as many as the embedding has rows"))
        }
        std::cmp::Ordering::Greater => {
            (Grade::Good, format!("{tokens} tokens; the embedding has {} rows more", rows - tokens))
        }
        std::cmp::Ordering::Less => (
            Grade::Wrong,
            format!(
                "{tokens} tokens but {rows} rows of embedding: the last tokens cannot be used; is it another model's tokenizer?"
            ),
        ),
    };
    finding("vocabulary", grade, said)
}

fn rotations(spec: &ModelSpec) -> Finding {
    let Some(rope) = spec.ropes.first() else {
        let how = match spec.alibi {
            _ if spec.distances.is_some() => "a bias by distance",
            Some(_) => "ALiBi",
            None if spec.positions == 0 => "the order in which recurrent layers see tokens",
            None => "a table",
        };
        return finding("rope", Grade::Good, format!("positions are known by {how}"));
    };
    let part = if rope.dims == spec.head_dim { String::new() } else { format!(" of {}", spec.head_dim) };
    let base = format!("base {}, {} columns{part}", rope.base, rope.dims);
    let (scaling, reach) = match &rope.scaling {
        Scaling::None => (String::new(), None),
        Scaling::Factors(_) => (", with factors of the file".into(), None),
        Scaling::Linear(f) => (format!(", all frequencies divided by {f}"), None),
        Scaling::Llama3 { factor, context, .. } => {
            (format!(", llama3 by {factor} from {context}"), Some(factor * context))
        }
        Scaling::Yarn { factor, context, .. } => {
            (format!(", yarn by {factor} from {context}"), Some(factor * context))
        }
        Scaling::Long { context, .. } => (format!(", longrope from {context}"), None),
        Scaling::Dynamic { factor, context } => (format!(", dynamic by {factor} from {context}"), None),
    };
    if rope.base < 1000.0 || rope.base > 1e9 {
        return finding(
            "rope",
            Grade::Wrong,
            format!("{base}{scaling}: published models have bases from 10,000 to 50 million"),
        );
    }
    let context = f64::from(spec.context);
    // Llama 3.1 says 131072 for 8 times 8192, Qwen 32768 for 4 times as much; both are right.
    match reach.filter(|r| context > 2.0 * r) {
        Some(r) => {
            let said = format!(
                "{base}{scaling}: reaches {r:.0} tokens, but the file says {context}; use --ctx {r:.0}"
            );
            finding("rope", Grade::Note, said)
        }
        None => finding("rope", Grade::Good, format!("{base}{scaling}")),
    }
}

/// Letters, digits, spaces, lines and what is not ASCII.
const SAMPLE: &str = "The 3 ducks didn't see 1,024 geese.\n\n  Grüße — 你好!";

fn round_trip(tokenizer: &Tokenizer) -> Finding {
    let ids = match tokenizer.encode(SAMPLE, Special::Plain, Ends::None) {
        Ok(ids) => ids,
        Err(e) => return finding("tokenizer", Grade::Note, format!("not for every text: {e}")),
    };
    match tokenizer.decode(&ids) {
        Ok(text) if text.trim_start() == SAMPLE => finding(
            "tokenizer",
            Grade::Good,
            format!("a text of {} characters is {} tokens and back", SAMPLE.chars().count(), ids.len()),
        ),
        // A vocabulary without bytes, or one that folds case, gives another text.
        Ok(text) => finding("tokenizer", Grade::Note, format!("{SAMPLE:?} comes back as {text:?}")),
        Err(e) => finding("tokenizer", Grade::Wrong, e.to_string()),
    }
}

fn special_tokens(source: &Source, tokenizer: &Tokenizer) -> Vec<Finding> {
    let name = |id: Option<u32>| prompt::token_text(tokenizer, id).unwrap_or_else(|| "none".into());
    let mut out = Vec::new();
    let plain = [("BOS", tokenizer.bos()), ("EOS", tokenizer.eos())];
    let plain = plain.into_iter().filter(|(_, id)| id.is_some_and(|id| !tokenizer.is_special(id)));
    let plain: Vec<_> = plain.map(|(role, id)| format!("{role} {}", name(id))).collect();
    let said = format!("BOS {}, EOS {}", name(tokenizer.bos()), name(tokenizer.eos()));
    out.push(if plain.is_empty() {
        finding("special tokens", Grade::Good, said)
    } else {
        let said = format!("{said}; {} is an ordinary token, which a text may contain", plain.join(" and "));
        finding("special tokens", Grade::Note, said)
    });
    if tokenizer.adds_bos() && tokenizer.bos().is_none() {
        out.push(finding(
            "special tokens",
            Grade::Wrong,
            "the file wants a BOS token before a text and names none",
        ));
    }
    let family = source.metadata().and_then(|m| m.str("general.architecture")).unwrap_or_default();
    if family.starts_with("gemma") && !tokenizer.adds_bos() {
        let said = "no BOS before a text: Gemma writes nonsense without (tokenizer.ggml.add_bos_token)";
        out.push(finding("special tokens", Grade::Wrong, said));
    }
    let ends: Vec<String> = tokenizer.end_of_generation().iter().map(|id| name(Some(*id))).collect();
    out.push(match ends.is_empty() {
        true => finding("ends", Grade::Wrong, "no token ends an answer; give one with --stop"),
        false => finding("ends", Grade::Good, ends.join(" ")),
    });
    out
}

/// What the question and the answer of the conversation that is rendered are.
const QUESTION: &str = "Quarrel-question";
const ANSWER: &str = "Quarrel-answer";

fn template(template: &ChatTemplate, tokenizer: &Tokenizer) -> Vec<Finding> {
    let bad = |said: String| vec![finding("template", Grade::Wrong, said)];
    let (bos, eos) =
        (prompt::token_text(tokenizer, tokenizer.bos()), prompt::token_text(tokenizer, tokenizer.eos()));
    let render = |messages: &serde_json::Value, begin: bool| {
        template.render(&RenderInput {
            messages: Some(messages),
            add_generation_prompt: begin,
            bos: bos.as_deref(),
            eos: eos.as_deref(),
            now: prompt::now().ok(),
            ..RenderInput::default()
        })
    };
    let asked = json!([{"role": "user", "content": QUESTION}]);
    let answered = json!([
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "more"},
    ]);
    let (begun, open, whole) = match (render(&asked, true), render(&asked, false), render(&answered, true)) {
        (Ok(a), Ok(b), Ok(c)) => (a, b, c),
        (Err(e), ..) | (_, Err(e), _) | (.., Err(e)) => return bad(format!("cannot be rendered: {e}")),
    };
    if !begun.contains(QUESTION) {
        return bad("leaves the question out".into());
    }
    let mut out = Vec::new();
    out.push(finding("template", Grade::Good, "renders a conversation"));
    if begun == open && !begun.ends_with("[/INST]") && !begun.ends_with("[/INST] ") {
        out.push(finding(
            "template",
            Grade::Note,
            "does not begin the answer's turn (add_generation_prompt changes nothing)",
        ));
    }
    let twice = bos.as_deref().is_some_and(|b| begun.starts_with(&format!("{b}{b}")));
    if twice {
        out.push(finding("template", Grade::Wrong, "begins with two BOS tokens"));
    }
    out.push(
        match whole
            .split_once(ANSWER)
            .map(|(_, rest)| tokenizer.encode(rest.trim_start(), Special::Parse, Ends::None))
        {
            None => finding("turns", Grade::Note, "an earlier answer is not shown to the model"),
            Some(Err(e)) => finding("turns", Grade::Wrong, e.to_string()),
            Some(Ok(ids)) => turn_end(tokenizer, &ids),
        },
    );
    out
}

/// What stands behind an answer must end one, or the model speaks on for the user.
fn turn_end(tokenizer: &Tokenizer, behind: &[u32]) -> Finding {
    let special = behind.iter().copied().find(|id| tokenizer.is_special(*id));
    let name = |id: u32| prompt::token_text(tokenizer, Some(id)).unwrap_or_default();
    match special {
        Some(id) if tokenizer.is_end_of_generation(id) => {
            finding("turns", Grade::Good, format!("{} ends a turn and an answer", name(id)))
        }
        Some(id) => {
            let said = format!(
                "{} stands behind an answer but does not end one: the model will speak on; give --stop {0:?}",
                name(id)
            );
            finding("turns", Grade::Wrong, said)
        }
        None => finding("turns", Grade::Note, "no special token stands behind an answer"),
    }
}

/// A sentence that every language model has met the like of.
const PROSE: &str = "The sun rises in the east and sets in the west. Water is made of hydrogen and oxygen.";
/// Tokens that are generated.
const TOKENS: usize = 16;
/// Mean surprise, as a share of that of a guess, from which on a model does not know the language of [`PROSE`].
const LOST: f64 = 0.75;

/// Scores a sentence and goes on with it for a few tokens, always with the likeliest.
///
/// # Errors
/// The tokenizer's; what the engine says is a finding.
pub fn smoke(opened: &Opened, handle: &Handle) -> Result<Vec<Finding>> {
    let mut ids = prompt::encode_prompt(&opened.tokenizer, PROSE)?;
    if ids.len() < 4 {
        return Ok(vec![finding("prose", Grade::Wrong, format!("a sentence is {} tokens", ids.len()))]);
    }
    if handle.info().source.is_some() {
        return answered(opened, handle, ids);
    }
    let mut out = Vec::new();
    let from = 1.max(ids.len() / 4);
    match handle.score(ids.clone(), from) {
        Err(e) => return Ok(vec![finding("prose", Grade::Wrong, e.to_string())]),
        Ok(scores) => {
            let nll = -scores.iter().sum::<f64>() / scores.len().max(1) as f64;
            let guess = f64::from(handle.info().vocab as u32).ln();
            let said = format!("perplexity {:.1} of a plain sentence", nll.exp());
            out.push(if nll < LOST * guess {
                finding("prose", Grade::Good, said)
            } else {
                let said = format!(
                    "{said}: little better than a guess; weights, tokenizer or rope do not belong together"
                );
                finding("prose", Grade::Wrong, said)
            });
        }
    }
    let start = ids.len();
    for _ in 0..TOKENS {
        let logits = match handle.logits(ids.clone()) {
            Ok(logits) => logits,
            Err(e) => {
                out.push(finding("generation", Grade::Wrong, e.to_string()));
                return Ok(out);
            }
        };
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
        ids.push(best as u32);
    }
    out.push(goes_on(opened, &ids[start..])?);
    Ok(out)
}

/// What a model whose encoder reads the sentence answers it with.
fn answered(opened: &Opened, handle: &Handle, prompt: Vec<u32>) -> Result<Vec<Finding>> {
    let request = Request {
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens: Some(TOKENS as u32),
        stop_ids: opened.tokenizer.end_of_generation().to_vec(),
        ..Request::new(prompt)
    };
    let mut ids = Vec::new();
    let events = match handle.submit(request) {
        Ok(events) => events,
        Err(e) => return Ok(vec![finding("answer", Grade::Wrong, e.to_string())]),
    };
    for event in events {
        match event {
            Event::Token { id, .. } => ids.push(id),
            Event::Failed(e) => return Ok(vec![finding("answer", Grade::Wrong, e.to_string())]),
            _ => {}
        }
    }
    Ok(vec![goes_on(opened, &ids)?])
}

fn goes_on(opened: &Opened, new: &[u32]) -> Result<Finding> {
    let text = opened.tokenizer.decode(new)?;
    let distinct = new.iter().collect::<std::collections::HashSet<_>>().len();
    let same =
        distinct <= 2 && new.len() > 2 && !new.iter().any(|id| opened.tokenizer.is_end_of_generation(*id));
    Ok(match same {
        true => {
            finding("generation", Grade::Note, format!("goes on with {text:?}: the same again and again"))
        }
        false => finding("generation", Grade::Good, format!("goes on with {text:?}")),
    })
}
