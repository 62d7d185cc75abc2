//! The Grafana dashboard of `deploy/` asks only for metrics that the server has, with the labels that they have.

use std::collections::BTreeSet;
use std::path::Path;

use quarrel_server::metrics::{ENGINE, Kind, SERVER};
use serde_json::Value;

/// All strings under a key, anywhere.
fn under<'a>(value: &'a Value, key: &str, out: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (k, v) in map {
                match v {
                    Value::String(s) if k == key => out.push(s),
                    _ => under(v, key, out),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| under(v, key, out)),
        _ => {}
    }
}

/// The names of metrics in a query.
fn names(query: &str) -> impl Iterator<Item = &str> {
    query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("quarrel_"))
}

#[test]
fn the_dashboard_asks_only_for_what_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/grafana/quarrel.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let of_engine = ENGINE.iter().map(|m| (m.name, m.kind));
    let kinds: Vec<(&str, Kind)> = of_engine.chain(SERVER.iter().map(|s| (s.0, s.1))).collect();
    let mut served = BTreeSet::new();
    for (name, kind) in &kinds {
        if *kind == Kind::Histogram {
            served.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        } else {
            served.insert((*name).to_owned());
        }
    }
    let mut queries = Vec::new();
    under(&dashboard, "expr", &mut queries);
    under(&dashboard, "definition", &mut queries);
    assert!(queries.len() > 30, "{} queries", queries.len());
    for query in &queries {
        for name in names(query) {
            assert!(served.contains(name), "{name} is not served; {query}");
            let counter = kinds.iter().any(|(n, k)| *n == name && *k == Kind::Counter);
            assert!(!counter || query.contains("rate("), "a counter only grows, show its rate: {query}");
        }
    }
    // The other way round: each metric has its place, so that a new one is not forgotten.
    let shown: BTreeSet<&str> = queries.iter().flat_map(|q| names(q)).collect();
    for (name, kind) in kinds {
        let name = if kind == Kind::Histogram { format!("{name}_bucket") } else { name.to_owned() };
        assert!(shown.contains(name.as_str()), "the dashboard does not show {name}");
    }
}
