//! `cargo run -p quarrel-hub --example resolve -- NAME [--offline] [--yes]`: resolves a name and says what came of it.

use quarrel_hub::{Hub, Options, Progress, Result};

struct Lines {
    done: u64,
}

impl Progress for Lines {
    fn start(&mut self, total: Option<u64>, what: &str) {
        self.done = 0;
        eprintln!("{what} ({})", total.map_or("size unknown".into(), quarrel_hub::human_bytes));
    }
    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
    }
    fn finish(&mut self) {
        eprintln!("  {}", quarrel_hub::human_bytes(self.done));
    }
    fn note(&mut self, line: &str) {
        eprintln!("note: {line}");
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let hub = Hub::from_env()?;
    let name = args.iter().find(|a| !a.starts_with("--")).map_or(hub.default_model(), String::as_str);
    let options =
        Options { offline: flag("--offline"), accept_substitute: flag("--yes"), refresh: flag("--refresh") };
    match hub.resolve(name, options, &mut Lines { done: 0 }) {
        Ok(outcome) => println!("{outcome:#?}"),
        Err(e) => {
            eprintln!("error: {e}");
            std::process::exit(1);
        }
    }
    Ok(())
}
