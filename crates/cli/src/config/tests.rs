//! The layers, without the environment of whoever runs the tests: variables are tried on the binary itself.

use super::*;
use clap::FromArgMatches as _;
use std::path::Path;

use crate::args;

fn file(text: &str) -> Result<File> {
    File::parse(Path::new("c.toml"), text, &commands(&built()))
}

/// What `below` adds for a command line.
fn added(argv: &[&str], text: &str) -> (Vec<String>, Vec<String>) {
    let built = built();
    let matches = definitions().ignore_errors(true).try_get_matches_from(argv).unwrap();
    let (name, given) = matches.subcommand().unwrap();
    let file = file(text).unwrap();
    let (added, notes) = below(built.find_subcommand(name).unwrap(), given, Some(&file)).unwrap();
    let flags = added.iter().flat_map(|(s, g, _)| flags(s, g)).map(|f| f.into_string().unwrap()).collect();
    (flags, notes)
}

#[test]
fn a_flag_wins_over_the_file_and_a_table_over_what_is_for_all() {
    let text =
        "ctx = 100\nport = 1\n[serve]\nctx = 200\nmodels = ['a', 'b=c']\n[run]\nctx = 300\nstop = [\"x\"]";
    let cases: [(&[&str], &[&str]); 4] = [
        (&["quarrel", "serve"], &["a", "b=c", "--ctx=200", "--port=1"]),
        (&["quarrel", "serve", "--port", "2", "m"], &["--ctx=200"]),
        (&["quarrel", "run", "hi"], &["--ctx=300", "--stop=x"]),
        (&["quarrel", "chat", "-c", "5"], &[]),
    ];
    for (argv, wanted) in cases {
        let (mut flags, notes) = added(argv, text);
        let mut wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        flags.sort();
        wanted.sort();
        assert_eq!((flags, notes.len()), (wanted, 0), "{argv:?}");
    }
}

#[test]
fn what_excludes_a_flag_is_left_out_and_said() {
    let (flags, notes) = added(&["quarrel", "serve", "--no-store"], "data = '/x'\noffline = true");
    assert_eq!(flags, ["--offline"]);
    assert_eq!(notes, ["data is left out (c.toml line 1), because no-store is given"]);
    let (flags, notes) = added(&["quarrel", "serve", "--data", "/y"], "no-store = true");
    assert_eq!((flags.len(), notes.len()), (0, 1));
}

#[test]
fn errors_name_the_line_and_what_was_meant() {
    for (text, wanted) in [
        ("prot = 1", "c.toml line 1: no key is called \"prot\"; port is near it"),
        ("\n\nkv_pool = 1", "c.toml line 3: no key is called \"kv_pool\"; kv-pool is near it"),
        ("xyzzy = 1", "c.toml line 1: no key is called \"xyzzy\"; `quarrel config init -` prints all keys"),
        ("prompt = 'x'", "c.toml line 1: no key is called \"prompt\""),
        ("config = 'x'", "c.toml line 1: no key is called \"config\""),
        ("[serve]\ntemp = 1", "c.toml line 2: [serve] has no key \"temp\""),
        ("[bench]\n", "c.toml line 1: no table is called [bench]; there are: serve, run, chat, keys"),
        ("serve = 1", "c.toml line 1: \"serve\" is a table: [serve]"),
        ("port = [1]", "c.toml line 1: port takes one value, not a list"),
        ("port = true", "c.toml line 1: port needs a value, not true or false"),
        ("offline = 1", "c.toml line 1: offline is on or off: true or false is needed"),
        ("port = 2020-01-01", "c.toml line 1: port needs a text or a number"),
        ("port = 1\nport = 2", "c.toml line 2: duplicate key"),
        ("port = ", "c.toml line 1: "),
    ] {
        let said = format!("{:#}", file(text).unwrap_err());
        assert!(said.starts_with(wanted), "{text:?}: {said}");
    }
}

#[test]
fn each_variable_has_the_name_of_its_flag() {
    let all = built();
    for name in COMMANDS {
        let command = all.find_subcommand(name).unwrap();
        for arg in command.get_arguments() {
            let Some(setting) = setting(arg) else { continue };
            let env = arg.get_env().map(|e| e.to_string_lossy().into_owned());
            assert_eq!(env, setting.variable, "{name} {}", setting.key);
        }
    }
    let secret =
        |key: &str| settings(all.find_subcommand("serve").unwrap()).iter().any(|s| s.key == key && s.secret);
    assert!(secret("api-key") && secret("otlp-header") && !secret("tls-key") && !secret("port"));
}

#[test]
fn the_file_can_give_what_a_flag_needs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "disk-cache = '/x'\nmax-body = 4096\n[keys]\ndata = '/d'\n").unwrap();
    let config = format!("--config={}", path.display());
    let parse = |argv: &[&str]| {
        let argv = argv.iter().map(OsString::from).collect();
        layered(&definitions(), argv).map(|l| Cli::from_arg_matches(&l.matches).unwrap().command)
    };
    let Ok(args::Command::Serve(serve)) = parse(&["quarrel", "serve", &config, "--disk-cache-bytes", "1GiB"])
    else {
        panic!("not parsed")
    };
    assert_eq!((serve.disk_cache.as_deref(), serve.max_body), (Some(Path::new("/x")), 4096));
    let Ok(args::Command::Keys(keys)) = parse(&["quarrel", "keys", "list", &config]) else {
        panic!("not parsed")
    };
    assert_eq!(keys.data.as_deref(), Some(Path::new("/d")));
    std::fs::write(&path, "port = 99999").unwrap();
    let Err(Fault::Usage(e, Some(place))) = parse(&["quarrel", "serve", &config]) else { panic!("no error") };
    assert!(e.to_string().contains("--port") && place.ends_with("c.toml line 1"), "{e} {place}");
    let missing = format!("--config={}", dir.path().join("none").display());
    assert!(matches!(parse(&["quarrel", "chat", &missing]), Err(Fault::Layer(_))));
}
