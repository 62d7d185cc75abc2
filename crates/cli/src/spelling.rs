//! Spellings that clap does not know, rewritten before it sees them: long flags with one dash (`-model`), and flags
//! without a command, which mean `run`. Everything is decided by the definitions in `args`; values are never touched.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};

use clap::Command;

/// The closeness (0 to 1) from which a word counts as a misspelt flag.
const MISSPELT: f64 = 0.85;

/// How a command's flags are spelled, and which take a value.
struct Flags {
    long: HashMap<String, bool>,
    short: HashMap<char, bool>,
}

impl Flags {
    fn of(root: &Command, command: &Command) -> Flags {
        let mut flags = Flags { long: HashMap::new(), short: HashMap::new() };
        let globals = root.get_arguments().filter(|a| a.is_global_set());
        for arg in command.get_arguments().chain(globals) {
            let value = arg.get_action().takes_values() && !arg.is_require_equals_set();
            let aliases = arg.get_all_aliases().unwrap_or_default();
            for name in arg.get_long().into_iter().chain(aliases) {
                flags.long.insert(name.into(), value);
            }
            for c in arg.get_short().into_iter().chain(arg.get_all_short_aliases().unwrap_or_default()) {
                flags.short.insert(c, value);
            }
        }
        for (long, short) in [("help", 'h'), ("version", 'V')] {
            flags.long.insert(long.into(), false);
            flags.short.insert(short, false);
        }
        flags
    }

    /// The token as clap wants it, and whether the next one is its value.
    fn read(&self, token: &str) -> (String, bool) {
        let body = token.trim_start_matches('-');
        let name = body.split_once('=').map_or(body, |(name, _)| name);
        let has_value = body.len() > name.len();
        if token.starts_with("--") {
            return (token.into(), !has_value && self.long.get(name) == Some(&true));
        }
        if name.chars().count() > 1 {
            if let Some(value) = self.long.get(name) {
                return (format!("-{token}"), *value && !has_value);
            }
            if self.misspelt(name) {
                return (format!("-{token}"), false); // clap then names the flag that was meant
            }
        }
        // A cluster of short flags: the first that takes a value takes the rest of the token, or the next one.
        let mut rest = body.chars();
        let taker = rest.by_ref().find(|c| self.short.get(c) != Some(&false));
        let wants = taker.is_some_and(|c| self.short.get(&c) == Some(&true)) && rest.next().is_none();
        (token.into(), wants)
    }

    fn misspelt(&self, name: &str) -> bool {
        let words = name.chars().all(|c| c.is_ascii_lowercase() || c == '-' || c == '_');
        let cluster = name.chars().all(|c| self.short.get(&c) == Some(&false));
        words && !cluster && self.long.keys().any(|l| strsim::jaro_winkler(l, name) >= MISSPELT)
    }
}

fn is_flag(token: &OsStr) -> bool {
    let bytes = token.as_encoded_bytes();
    bytes.len() > 1 && bytes[0] == b'-' && !bytes[1].is_ascii_digit() && bytes[1] != b'.'
}

/// Rewrites arguments (the program's name included) for clap.
pub(crate) fn normalise(root: &Command, argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut argv = argv.into_iter();
    let mut out: Vec<OsString> = argv.next().into_iter().collect();
    let rest: Vec<OsString> = argv.collect();
    let run = root.find_subcommand("run").expect("`run` is defined");
    // Flags before the command are read as `run` has them: its flags are those that people write there.
    let at = word(&Flags::of(root, run), &rest);
    let command = at.and_then(|i| root.find_subcommand(&rest[i]));
    let first_is_word = at == Some(0);
    match (command, at) {
        (Some(_), Some(i)) => out.push(rest[i].clone()),
        // One word alone is a misspelt command or help; a sentence can only be a prompt.
        _ if rest.is_empty() || only_help(&rest) => return out.into_iter().chain(rest).collect(),
        _ if first_is_word && (rest[0] == "help" || !rest[0].as_encoded_bytes().contains(&b' ')) => {
            return out.into_iter().chain(rest).collect();
        }
        _ => out.push("run".into()),
    }
    let skip = command.and(at);
    let flags = Flags::of(root, command.unwrap_or(run));
    let mut is_value = false;
    let mut literal = false;
    for (i, token) in rest.into_iter().enumerate() {
        if Some(i) == skip {
            continue;
        }
        literal |= !is_value && token == "--";
        let text = token.to_str().filter(|_| !is_value && !literal && is_flag(&token));
        let (token, wants) = match text.map(|t| flags.read(t)) {
            Some((new, wants)) => (OsString::from(new), wants),
            None => (token, false),
        };
        out.push(token);
        is_value = wants;
    }
    out
}

/// The place of the first token that is neither a flag nor a flag's value.
fn word(flags: &Flags, tokens: &[OsString]) -> Option<usize> {
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i] == "--" {
            return None;
        }
        if !is_flag(&tokens[i]) {
            return Some(i);
        }
        i += 1 + usize::from(tokens[i].to_str().is_some_and(|t| flags.read(t).1));
    }
    None
}

fn only_help(tokens: &[OsString]) -> bool {
    matches!(tokens[0].to_str(), Some("-h" | "--help" | "-V" | "--version" | "-help" | "-version"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::{CommandFactory, Parser};

    /// What is typed, and what clap is given. Words are split at spaces; `_` in a word stands for a space.
    const TABLE: &[(&str, &str)] = &[
        (
            "-model smollm2:135m-instruct-fp16 -prompt Hello_world -temp 0.8 -topp 0.9 -quality -stream",
            "run --model smollm2:135m-instruct-fp16 --prompt Hello_world --temp 0.8 --topp 0.9 --quality --stream",
        ),
        ("-model mistral:latest -prompt hi", "run --model mistral:latest --prompt hi"),
        ("-model=a.gguf -temp=0", "run --model=a.gguf --temp=0"),
        ("run hi -temp 0", "run hi --temp 0"),
        // the command may follow its flags
        ("-model a run hi", "run --model a hi"),
        ("-verbose -model a chat", "chat --verbose --model a"),
        ("-q list", "list -q"),
        // values are values, whatever they look like
        ("-prompt -temp -temp 0", "run --prompt -temp --temp 0"),
        ("--stop -n -n 5", "run --stop -n -n 5"),
        ("-stop run x_y", "run --stop run x_y"),
        ("-presence-penalty -0.5 hi_there", "run --presence-penalty -0.5 hi_there"),
        ("run -5", "run -5"),
        ("run -.5", "run -.5"),
        // short flags, alone, with a value attached, in a cluster
        ("-n 64 -c 4096 hi_there", "run -n 64 -c 4096 hi_there"),
        ("-n64 -c4096 hi_there", "run -n64 -c4096 hi_there"),
        ("-yq -n -5", "run -yq -n -5"),
        ("-yn -temp", "run -yn -temp"),
        ("run -m a -p b", "run -m a -p b"),
        // after -- nothing is a flag
        ("run -- -temp", "run -- -temp"),
        ("-temp 0 -- -model", "run --temp 0 -- -model"),
        // a sentence is a prompt, a word is a command or nothing
        ("What_is_this?", "run What_is_this?"),
        ("-temp 0 hello", "run --temp 0 hello"),
        ("hello", "hello"),
        ("lst -json", "lst -json"),
        ("help run", "help run"),
        ("-help", "-help"),
        ("", ""),
        // each command has its own flags
        ("perplexity -file x -stride 5 -json", "perplexity --file x --stride 5 --json"),
        ("tokenize -no-special x", "tokenize --no-special x"),
        // misspelt: left to clap, which names the flag that was meant
        ("-modle a hi_there", "run --modle a hi_there"),
        ("-tempp 3 hi_there", "run --tempp 3 hi_there"),
    ];

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').filter(|w| !w.is_empty()).map(|w| w.replace('_', " ").into()).collect()
    }

    #[test]
    fn spellings() {
        let root = Cli::command();
        for (typed, wanted) in TABLE {
            let argv = std::iter::once("quarrel".into()).chain(words(typed));
            let got = normalise(&root, argv);
            assert_eq!(got[1..], words(wanted), "{typed}");
        }
    }

    #[test]
    fn what_is_not_utf8_stays_as_it_is() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(vec![b'-', 0xff]);
        let got = normalise(&Cli::command(), ["quarrel".into(), "run".into(), odd.clone()]);
        assert_eq!(got[2], odd);
    }

    #[test]
    fn the_seeds_commands_parse() {
        for typed in [TABLE[0].0, TABLE[1].0] {
            let argv = std::iter::once("quarrel".into()).chain(words(typed));
            Cli::try_parse_from(normalise(&Cli::command(), argv)).unwrap();
        }
    }
}
