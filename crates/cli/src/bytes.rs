//! Sizes as people write them: `500MB`, `2GiB`.

/// Parses `500MB`, `2GiB`, `1.5g`: units of 1000 or, with an i or as one letter, 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write for example 500MB, 2GiB or 1.5g");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1_048_576.0,
        "g" | "gib" => 1_073_741_824.0,
        "t" | "tib" => 1_099_511_627_776.0,
        _ => return Err(wrong()),
    };
    let bytes = number * unit;
    if !(1.0..1e18).contains(&bytes) {
        return Err(format!("{text} is not a size that memory can have"));
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("500MB", 500_000_000),
            ("2GiB", 2 << 30),
            ("1.5g", 3 << 29),
            ("64 k", 65_536),
            ("123", 123),
            ("1tb", 1_000_000_000_000),
            ("0.5MiB", 1 << 19),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "MB", "-1GB", "2 apples", "1e9", "0", "nan", "inf", "1..5g", "99999999999999999999TB"]
        {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
