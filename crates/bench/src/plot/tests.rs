//! The drawing is well-formed and holds every point, whatever the report lacks.

use super::*;
use crate::ops::Group;
use crate::report::{BatchSpeed, Bound, DepthSpeed, ModelInfo, Speed};
use crate::{Machine, Rates};

fn speed(tokens_per_s: f64) -> Speed {
    Speed {
        tokens: 128,
        tokens_per_s,
        min: tokens_per_s * 0.9,
        max: tokens_per_s * 1.1,
        runs: vec![tokens_per_s],
        gb_per_s: 10.0,
        gop_per_s: 20.0,
        ops_per_byte: 2.0,
        share_of_peak: 0.5,
        bound: Bound::Memory,
    }
}

fn report() -> Report {
    let peaks = Rates { read_gb_per_s: 30.0, int8_gop_per_s: 1500.0, f32_gflop_per_s: 350.0 };
    Report {
        machine: Machine {
            cpu: "A <fast> & \"loose\" CPU\u{1b}".into(),
            cores: 2,
            threads: 2,
            isa: "avx2".into(),
            isa_scores: Default::default(),
            memory_bytes: 1 << 34,
            cache_bytes: 1 << 25,
            kernel: "linux 6".into(),
            peaks,
            measured: 0,
        },
        model: ModelInfo {
            name: "/models/a&b.gguf".into(),
            architecture: "llama".into(),
            parameters: 1,
            weight_bytes: 1,
            kv_bytes_per_token: 1,
            types: Default::default(),
        },
        prompt: Some(speed(1000.0)),
        decode: Some(speed(100.0)),
        decode_at: vec![
            DepthSpeed { depth: 0, speed: speed(100.0) },
            DepthSpeed { depth: 4096, speed: speed(60.0) },
        ],
        batch: [1, 8].map(|n| BatchSpeed { sequences: n, depth: 0, speed: speed(90.0 * n as f64) }).to_vec(),
        latency: None,
        startup: None,
        memory: None,
        ops: Vec::new(),
        against: None,
        version: "0".into(),
    }
}

fn phase(name: &str, sequences: Option<usize>) -> Phase {
    let group = |name: &str, ops_per_byte, gop_per_s| Group {
        name: name.into(),
        seconds: 1.0,
        share_of_time: 0.3,
        calls: 1,
        bytes: 1,
        gb_per_s: 1.0,
        gop_per_s,
        ops_per_byte,
        share_of_peak: Some(0.5),
    };
    let norm = Group { share_of_peak: None, ..group("norm", 1.0, 1.0) };
    let groups = vec![group("matmul ffn_down", 3.0, 60.0), group("attend", 2.0, 4.0), norm];
    Phase {
        name: name.into(),
        sequences,
        seconds: 2.0,
        waiting_s: 0.1,
        choosing_s: 0.1,
        outside_s: 0.1,
        groups,
    }
}

/// Every element is closed, in order, and every `&` begins an entity: enough of XML for what is written here.
fn check_xml(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = xml;
    while let Some(at) = rest.find('<') {
        let end = at + rest[at..].find('>').expect("a tag ends");
        let tag = &rest[at + 1..end];
        if let Some(closing) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closing));
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
    for (i, _) in xml.match_indices('&') {
        assert!(
            ["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|e| xml[i..].starts_with(e)),
            "{}",
            &xml[i..i + 9]
        );
    }
    assert!(!xml.contains("NaN") && !xml.contains("inf") && !xml.contains('\u{1b}'));
}

#[test]
fn a_full_report_has_every_point() {
    let phases = [phase("prompt 512", None), phase("decode 16", None), phase("batch 8", Some(8))];
    let drawn = svg(&report(), &phases);
    check_xml(&drawn);
    // Two groups in three phases and two batch sizes; the ring of the depth; four entries of the legends.
    let points = drawn.matches("<title>").count();
    assert_eq!(points, 2 * 3 + 2 + 1 + 3 + 1);
    assert!(drawn.contains("a&amp;b.gguf") && drawn.contains("prefers-color-scheme"));
    assert!(!drawn.contains("norm"), "ops on activations alone have no place under this roof");
}

#[test]
fn an_empty_report_is_drawn_too() {
    let empty = Report { batch: vec![], decode_at: vec![], decode: None, prompt: None, ..report() };
    check_xml(&svg(&empty, &[]));
    let mut lame = report();
    lame.machine.peaks = Rates { read_gb_per_s: 0.0, int8_gop_per_s: 0.0, f32_gflop_per_s: 0.0 };
    check_xml(&svg(&lame, &[phase("decode 1", None)]));
}

#[test]
fn ticks_are_round_and_inside() {
    assert_eq!(ticks((0.9, 60.0)), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
    assert_eq!(ticks((3.0, 5000.0)), [10.0, 100.0, 1000.0]);
}
