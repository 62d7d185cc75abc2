//! References made of the program itself: the metrics, and the OpenAPI document.

use crate::metrics::{ENGINE, Kind, SERVER};

/// The OpenAPI document, as `docs/openapi.json` is.
pub fn openapi_json() -> String {
    // A document that cannot be written as JSON is caught by the test below.
    serde_json::to_string_pretty(&crate::openapi()).unwrap_or_default() + "\n"
}

/// The table of metrics, as `docs/metrics.md` is.
pub fn metrics_markdown() -> String {
    let mut out = String::from(
        "# Metrics\n\nMade by `cargo xtask docs` from the tables in `crates/server/src/metrics.rs`; do not edit.\n\n\
         `GET /metrics` serves them in Prometheus' text format. Names, kinds and labels are a contract: they change only with\n\
         a line in the changelog. Durations are in seconds. With `--metrics-compat vllm` those of the last column are served\n\
         too, with the label `model_name`.\n\n## Engine\n\nOne set for each model in memory, with the label `model`; those by class also have `class`.\n\n\
         | name | kind | what | vLLM's name |\n|---|---|---|---|\n",
    );
    let word = |k: Kind| k.word();
    for m in ENGINE {
        let vllm = m.vllm.map(|v| format!("`{v}`")).unwrap_or_default();
        out += &format!("| `{}` | {} | {} | {vllm} |\n", m.name, word(m.kind), m.help);
    }
    out += "\n## Server\n\n| name | kind | what | labels |\n|---|---|---|---|\n";
    for (name, kind, help, labels) in SERVER {
        out += &format!("| `{name}` | {} | {help} | {labels} |\n", word(*kind));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(name: &str) -> String {
        let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_references_are_those_of_this_program() {
        assert!(committed("openapi.json") == openapi_json(), "docs/openapi.json is stale: cargo xtask docs");
        assert!(committed("metrics.md") == metrics_markdown(), "docs/metrics.md is stale: cargo xtask docs");
    }

    /// Types with a schema, by file.
    fn schemas(dir: &std::path::Path, out: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                schemas(&path, out);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for part in text.split("ToSchema)]\n").skip(1) {
                let item = part.lines().find(|l| l.contains("struct ") || l.contains("enum ")).unwrap();
                let name = item.split("struct ").last().unwrap().split("enum ").last().unwrap();
                let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
                out.push((name, path.display().to_string()));
            }
        }
    }

    /// Two types of one name would be one schema in the document, and which of them is chance.
    #[test]
    fn types_with_a_schema_have_names_of_their_own() {
        let mut all = Vec::new();
        schemas(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
        all.sort();
        assert!(all.len() > 50, "{all:?}");
        for pair in all.windows(2) {
            assert!(pair[0].0 != pair[1].0, "{pair:?}");
        }
    }

    #[test]
    fn the_document_names_every_route_once_with_its_errors() {
        let document: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        for path in
            ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/conversations", "/tokenize"]
        {
            assert!(paths.contains_key(path), "{path}");
        }
        let posts = paths.values().filter_map(|p| p.get("post"));
        for post in posts.filter(|p| p.get("requestBody").is_some()) {
            let responses = post["responses"].as_object().unwrap();
            assert!(responses.keys().any(|k| k.starts_with('4')), "{post}");
        }
    }
}
