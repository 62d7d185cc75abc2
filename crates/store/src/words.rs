//! Words of a text: what search and ranking compare. Letters and digits of any script, lower-cased; in scripts that put
//! no spaces between words, pairs of neighbouring characters.

/// Chinese, Japanese, Thai, Lao, Khmer, Burmese: no spaces between words. (Korean has them.)
pub(crate) fn unspaced(c: char) -> bool {
    matches!(u32::from(c),
        0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3040..=0x30FF | 0x31F0..=0x31FF
        | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF)
}

/// The words in order, with repetitions.
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let mut previous: Option<char> = None; // the last unspaced character
    let mut paired = false; // whether it is in a pair already
    for c in text.chars().chain([' ']) {
        if unspaced(c) {
            flush(&mut out, &mut word);
            if let Some(p) = previous {
                out.push([p, c].iter().collect());
            }
            paired = previous.is_some();
            previous = Some(c);
            continue;
        }
        if let Some(p) = previous.take().filter(|_| !paired) {
            out.push(p.into());
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        } else {
            flush(&mut out, &mut word);
        }
    }
    out
}

fn flush(out: &mut Vec<String>, word: &mut String) {
    if !word.is_empty() {
        out.push(std::mem::take(word));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_scripts() {
        for (text, expected) in [
            ("", vec![]),
            (" ,.; ", vec![]),
            ("The cat's 2nd ÉCLAIR", vec!["the", "cat", "s", "2nd", "éclair"]),
            ("Straße ΣΊΣΥΦΟΣ", vec!["straße", "σίσυφοσ"]),
            ("東京", vec!["東京"]),
            ("東京都 x", vec!["東京", "京都", "x"]),
            ("猫", vec!["猫"]),
            ("猫 a犬b", vec!["猫", "a", "犬", "b"]),
            ("한국어 말", vec!["한국어", "말"]),
        ] {
            assert_eq!(words(text), expected, "{text:?}");
        }
    }
}
