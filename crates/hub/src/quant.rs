//! Names of precisions as they stand in file names, and sizes for people.

/// The names that published files use, longest first where one begins another.
const NAMES: [&str; 52] = [
    "Q2_K_S", "Q2_K_L", "Q2_K_XL", "Q2_K", "Q3_K_XL", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q3_K", "Q4_K_XL",
    "Q4_K_L", "Q4_K_M", "Q4_K_S", "Q4_K", "Q5_K_XL", "Q5_K_L", "Q5_K_M", "Q5_K_S", "Q5_K", "Q6_K_XL",
    "Q6_K_L", "Q6_K", "Q8_K_XL", "Q8_K", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
    "Q8_0", "Q8_1", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S",
    "IQ3_M", "IQ4_XS", "IQ4_NL", "TQ1_0", "TQ2_0", "MXFP4", "BF16", "F16", "FP16", "F32",
];

/// The precision that a file's name states, as GGUF spells it.
pub(crate) fn in_name(file: &str) -> Option<String> {
    let name = NAMES.iter().find(|q| names(file, q))?;
    Some(if *name == "FP16" { "F16".into() } else { name.to_string() })
}

/// Whether `file`'s name has `quant` as a whole word, in any case: `x-Q4_K_M.gguf`, `x.q4_k_m.gguf`, `Q4_K_M/x.gguf`.
pub(crate) fn names(file: &str, quant: &str) -> bool {
    let (file, quant) = (file.to_ascii_lowercase(), quant.to_ascii_lowercase());
    let edge = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
    file.match_indices(&quant)
        .any(|(at, _)| edge(file[..at].chars().next_back()) && edge(file[at + quant.len()..].chars().next()))
}

/// `98.4 MB`: decimal units, as downloads are usually given.
pub fn human_bytes(bytes: u64) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_from_names() {
        for (file, want) in [
            ("SmolLM2-135M-Instruct.Q4_1.gguf", Some("Q4_1")),
            ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", Some("Q4_K_M")),
            ("qwen2.5-0.5b-instruct-q4_k_m.gguf", Some("Q4_K_M")),
            ("Q8_0/model-00001-of-00002.gguf", Some("Q8_0")),
            ("smollm2-fp16.gguf", Some("F16")),
            ("model-bf16.gguf", Some("BF16")),
            ("x-IQ4_XS.gguf", Some("IQ4_XS")),
            ("model.safetensors", None),
            ("myQ4_0x.gguf", None),
        ] {
            assert_eq!(in_name(file).as_deref(), want, "{file}");
        }
        assert!(!names("x-Q4_K_M.gguf", "Q4_K"));
    }

    #[test]
    fn sizes() {
        for (n, want) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (98_362_432, "98.4 MB"),
            (999_960_000, "1.0 GB"),
            (u64::MAX, "18446744.1 TB"),
        ] {
            assert_eq!(human_bytes(n), want);
        }
    }
}
