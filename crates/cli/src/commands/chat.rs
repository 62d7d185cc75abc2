//! `quarrel chat`: a conversation at the terminal.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use quarrel_text::stream_decoder::Leading;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};
use serde_json::{Value, json};

use quarrel_runtime::{Embedder, prompt as chat_format};

use crate::args::{Chat, EvictArgs, GuideArgs};
use crate::render::{self, Out};
use crate::session::{self, Ask, End, Opened, Running};
use crate::settings::{NAMES, Settings};
use crate::{input, interrupt};

const COMMANDS: &[(&str, &str)] = &[
    ("/help", "this list"),
    ("/set [NAME VALUE]", "change how answers are sampled; alone: show it"),
    ("/system [TEXT]", "change the system prompt; alone: remove it"),
    ("/show", "the model, the settings, and how full the context is"),
    ("/multi", "write several lines, up to one with only \"\"\" (or begin and end with \"\"\")"),
    ("/regenerate", "answer the last message again"),
    ("/clear", "forget the conversation, keep the system prompt"),
    ("/save FILE", "write the conversation as JSON"),
    ("/load FILE", "go on with a conversation written by /save"),
    ("/exit", "leave (Ctrl-D too)"),
];

/// A conversation file of another make is larger than any context.
const HISTORY_LINES_MAX: usize = 5000;

pub(crate) fn run(args: Chat) -> Result<()> {
    interrupt::install()?;
    let opened = session::open(&args.model)?;
    if opened.template.is_none() {
        bail!(
            "{} has no chat template: it is a base model, which continues text; use quarrel run --raw",
            opened.local.name
        );
    }
    let settings = Settings::new(Settings::default(), &args.sample, &opened.params)?;
    let lora = args.adapter.lora.as_ref();
    // What cannot be is said before the model is loaded.
    let embedder = session::asked(&args.guide, &args.model)?;
    session::compared(args.guide.options(None), embedder.as_ref(), &opened, "").guide(&opened.tokenizer)?;
    let width = settings.best_of().0.unwrap_or(1);
    let (guess, guide) = (&args.guess, &args.guide);
    let running = session::load_to_guess(&opened, &args.engine, guess, guide, &args.model, lora, width)?;
    let mut chat = Conversation {
        messages: Vec::new(),
        used: 0,
        answers: 0,
        opened: &opened,
        running: &running,
        settings,
        evict: args.evict,
        guide: args.guide,
        embedder,
        out: Out::new(),
    };
    chat.set_system(args.system.as_ref().or(opened.local.system.as_ref()).map(String::as_str));
    if let Some(file) = &args.load {
        chat.load(file)?;
    }
    if chat.out.is_terminal() {
        render::note(format!("{}; /help lists what can be typed, Ctrl-D leaves", opened.local.name));
    }
    talk(&mut chat)
}

/// Reads lines until there are no more.
fn talk(chat: &mut Conversation<'_>) -> Result<()> {
    let config = Config::builder().auto_add_history(true).max_history_size(HISTORY_LINES_MAX)?.build();
    let mut editor = Editor::<Lines, FileHistory>::with_config(config)?;
    editor.set_helper(Some(Lines));
    let history = history_file();
    if let Some(path) = &history {
        let _ = editor.load_history(path); // the first time there is none
    }
    let outcome = loop {
        match editor.readline(">>> ") {
            Ok(line) => match chat.line(line.trim(), &mut editor) {
                Ok(Next::Go) => {}
                Ok(Next::Leave) => break Ok(()),
                Err(e) if is_closed_pipe(&e) => break Err(e),
                // What went wrong with one message does not end the conversation.
                Err(e) => render::error(&format!("{e:#}")),
            },
            Err(ReadlineError::Interrupted) => render::note("Ctrl-D or /exit leaves"),
            Err(ReadlineError::Eof) => break Ok(()),
            Err(e) => break Err(e.into()),
        }
    };
    if let Some(path) = &history {
        let saved = path.parent().map_or(Ok(()), fs::create_dir_all).map_err(anyhow::Error::from);
        if let Err(e) = saved.and_then(|()| Ok(editor.append_history(path)?)) {
            render::note(format!("the history of lines was not saved to {}: {e}", path.display()));
        }
    }
    outcome
}

fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// `$XDG_STATE_HOME/quarrel/history`, or the same under `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let set = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(std::env::home_dir()?.join(".local/state")))?;
    Some(state.join("quarrel/history"))
}

enum Next {
    Go,
    Leave,
}

struct Conversation<'a> {
    /// The system prompt first, if there is one, then user and assistant in turn.
    messages: Vec<Value>,
    /// Tokens of the conversation at the last answer.
    used: usize,
    /// Answers made, so that a fixed seed does not give the same draw to each.
    answers: u64,
    opened: &'a Opened,
    running: &'a Running,
    settings: Settings,
    evict: EvictArgs,
    guide: GuideArgs,
    /// Who compares sentences.
    embedder: Option<Embedder>,
    out: Out,
}

impl Conversation<'_> {
    fn line(&mut self, line: &str, editor: &mut Editor<Lines, FileHistory>) -> Result<Next> {
        if line.is_empty() {
            return Ok(Next::Go);
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "/help" | "/?" => self.help()?,
            "/exit" | "/quit" | "/bye" => return Ok(Next::Leave),
            "/set" => self.set(rest)?,
            "/system" => {
                self.set_system(Some(rest).filter(|r| !r.is_empty()));
                render::note(if rest.is_empty() { "no system prompt" } else { "system prompt set" });
            }
            "/show" => self.show()?,
            "/clear" => {
                self.messages.retain(|m| m["role"] == "system");
                self.used = 0;
                render::note("forgotten");
            }
            "/save" => self.save(Path::new(file_of(command, rest)?))?,
            "/load" => self.load(Path::new(file_of(command, rest)?))?,
            "/regenerate" => self.regenerate()?,
            "/multi" => {
                let text = several_lines(editor)?;
                self.say(&text)?;
            }
            _ if line.starts_with("//") => self.say(&line[1..])?,
            _ if line.starts_with('/') => {
                bail!(
                    "there is no {command}; /help lists what there is, and // begins a message with a slash"
                )
            }
            _ => self.say(unquoted(line))?,
        }
        Ok(Next::Go)
    }

    fn help(&mut self) -> Result<()> {
        let rows: Vec<Vec<String>> =
            COMMANDS.iter().map(|(c, what)| vec![(*c).into(), (*what).into()]).collect();
        self.out.table(&rows, &[])?;
        Ok(self.out.line("Ctrl-C stops an answer. Anything else is a message.")?)
    }

    fn set(&mut self, rest: &str) -> Result<()> {
        if rest.is_empty() {
            let rows: Vec<_> =
                self.settings.values().into_iter().map(|(n, v)| vec![n, v.to_string()]).collect();
            return Ok(self.out.table(&rows, &[])?);
        }
        let (name, value) = rest.split_once(['=', ' ']).unwrap_or((rest, ""));
        if value.trim().is_empty() && NAMES.contains(&name) && name != "quality" {
            let value = self.settings.values().get(name).map_or("default".into(), |v| v.to_string());
            return Ok(self.out.line(&format!("{name} {value}"))?);
        }
        self.settings.set(name.trim(), value.trim())
    }

    fn set_system(&mut self, text: Option<&str>) {
        self.messages.retain(|m| m["role"] != "system");
        if let Some(text) = text {
            self.messages.insert(0, chat_format::message("system", text));
        }
    }

    fn show(&mut self) -> Result<()> {
        let info = self.running.handle.info();
        let system = self.messages.iter().find(|m| m["role"] == "system").and_then(|m| m["content"].as_str());
        let rows = vec![
            vec!["model".into(), self.opened.local.name.clone()],
            vec!["file".into(), self.opened.local.path.display().to_string()],
            vec!["context".into(), format!("{} of {} tokens", self.used, info.context)],
            vec!["messages".into(), self.messages.len().to_string()],
            vec!["system".into(), system.map_or_else(|| "-".into(), |s| s.replace('\n', "\\n"))],
        ];
        self.out.table(&rows, &[])?;
        self.set("")
    }

    /// Takes a message and answers it; when that fails the message is taken back.
    fn say(&mut self, text: &str) -> Result<()> {
        self.messages.push(chat_format::message("user", text));
        let answered = self.answer();
        if answered.is_err() {
            self.messages.pop();
        }
        answered
    }

    fn regenerate(&mut self) -> Result<()> {
        let old = self.messages.pop_if(|m| m["role"] == "assistant");
        if self.messages.last().is_none_or(|m| m["role"] != "user") {
            self.messages.extend(old);
            bail!("there is no message to answer yet");
        }
        let answered = self.answer();
        if answered.is_err() {
            self.messages.extend(old);
        }
        answered
    }

    fn answer(&mut self) -> Result<()> {
        let template = self.opened.template.as_ref().context("the model has no chat template")?;
        let prompt = chat_format::encode_chat(&self.opened.tokenizer, template, &self.messages)?;
        let mut settings = self.settings.clone();
        settings.seed = settings.seed.map(|s| s.wrapping_add(self.answers));
        let negative = self.guide.negative_prompt.as_ref().map(|text| {
            let mut messages = self.messages.clone();
            messages.pop();
            messages.push(chat_format::message("user", text));
            chat_format::encode_chat(&self.opened.tokenizer, template, &messages)
        });
        let asked = self.messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default();
        let options = self.guide.options(negative.transpose()?);
        let options = session::compared(options, self.embedder.as_ref(), self.opened, asked);
        let guide = options.guide(&self.opened.tokenizer)?;
        let (evict, leading) = (self.evict, Leading::Strip);
        let ask = Ask { evict, guide, leading, ..Ask::new(prompt, &settings) };
        let out = &mut self.out;
        let answer = self
            .running
            .answer(&self.opened.tokenizer, ask, |piece| Ok(out.text(piece.text())?))
            .map_err(|e| match self.messages.len() {
                0..=2 => e,
                _ => anyhow!("{e}; /clear forgets the conversation"),
            })?;
        self.out.end_line()?;
        match answer.end {
            End::Interrupted => render::note("stopped"),
            End::Full => render::note(
                "the context is full; /clear makes room, a longer one is given by --ctx at the start",
            ),
            End::Length => render::note("stopped at max-tokens; /set max-tokens none lifts it"),
            End::Loop => render::note("the answer repeated itself and was ended"),
            End::Stop => {}
        }
        answer.evicted().into_iter().chain(session::guided(&answer.stats.guide)).for_each(render::note);
        render::detail(session::figures(&answer.stats, answer.tokens));
        if answer.end == End::Interrupted && answer.text.is_empty() {
            bail!("the message was given up");
        }
        self.used = answer.stats.prompt_tokens + answer.tokens;
        self.answers += 1;
        self.messages.push(chat_format::message("assistant", &answer.text));
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<()> {
        let text = json!({
            "model": self.opened.local.name,
            "settings": self.settings.values(),
            "messages": self.messages,
        });
        let text = format!("{text:#}\n");
        // Written beside its place and moved there, so that a full disk leaves what was there before.
        let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            std::io::Write::write_all(&mut file, text.as_bytes())?;
            file.persist(path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        render::note(format!("{} messages saved to {}", self.messages.len(), path.display()));
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let value = input::json(path)?;
        let bad = |what: &str| anyhow!("{}: {what}", path.display());
        let list = value.get("messages").unwrap_or(&value).as_array();
        let messages = list.ok_or_else(|| bad("no list of messages; /save writes one"))?.clone();
        for (i, m) in messages.iter().enumerate() {
            if !(m["role"].is_string() && m["content"].is_string()) {
                return Err(bad(&format!("message {i} has no role or no content that is text")));
            }
        }
        if let Some(values) = value.get("settings").and_then(Value::as_object) {
            self.settings.take_values(values).with_context(|| format!("{}: settings", path.display()))?;
        }
        self.messages = messages;
        self.used = 0;
        render::note(format!("{} messages from {}", self.messages.len(), path.display()));
        Ok(())
    }
}

fn file_of<'a>(command: &str, rest: &'a str) -> Result<&'a str> {
    if rest.is_empty() { bail!("{command} needs a file's name") } else { Ok(rest) }
}

/// A message between `"""` and `"""` without these.
fn unquoted(line: &str) -> &str {
    let Some(text) = line.strip_prefix("\"\"\"") else { return line };
    text.strip_suffix("\"\"\"").unwrap_or(text).trim_matches('\n')
}

fn several_lines(editor: &mut Editor<Lines, FileHistory>) -> Result<String> {
    let mut lines = Vec::new();
    loop {
        match editor.readline("... ") {
            Ok(line) if line.trim() == "\"\"\"" => break,
            Ok(line) => lines.push(line),
            Err(ReadlineError::Eof) => break,
            Err(ReadlineError::Interrupted) => bail!("the message was given up"),
            Err(e) => return Err(e.into()),
        }
    }
    if lines.is_empty() { bail!("the message is empty") } else { Ok(lines.join("\n")) }
}

/// Completes commands, and goes on to the next line inside `"""`.
struct Lines;

impl Helper for Lines {}
impl Highlighter for Lines {}

impl Hinter for Lines {
    type Hint = String;
}

impl Validator for Lines {
    fn validate(&self, ctx: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let line = ctx.input().trim();
        let open = line.strip_prefix("\"\"\"").is_some_and(|rest| !rest.ends_with("\"\"\""));
        Ok(if open { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for Lines {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..pos];
        let pair = |word: &str| Pair { display: word.into(), replacement: format!("{word} ") };
        if let Some(name) = typed.strip_prefix("/set ") {
            return Ok((5, NAMES.iter().filter(|n| n.starts_with(name)).map(|n| pair(n)).collect()));
        }
        let words = COMMANDS.iter().filter_map(|(c, _)| c.split(' ').next());
        let known = words.filter(|c| typed.starts_with('/') && c.starts_with(typed)).map(pair).collect();
        Ok((0, known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_around_several_lines_go() {
        assert_eq!(unquoted("\"\"\"\na\nb\n\"\"\""), "a\nb");
        assert_eq!(unquoted("\"\"\"a\"\"\""), "a");
        assert_eq!(unquoted("say \"\"\"a\"\"\""), "say \"\"\"a\"\"\"");
    }
}
