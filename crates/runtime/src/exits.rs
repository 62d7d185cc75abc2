//! Which layers a model is contrasted with (DoLa): by names as in transformers, or by numbers.

use std::str::FromStr;

use quarrel_model::ModelSpec;

/// The layers after which a model has logits too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exits {
    /// Every other one of the first half.
    Low,
    /// Every other one of the second half.
    High,
    /// After so many layers each; 0 is what goes into the first.
    List(Vec<u32>),
}

/// Of a deep model only so many layers from either end count.
const DEEP: u32 = 40;
const SHARE: u32 = 20;

impl Exits {
    /// As numbers of layers for a model.
    pub fn layers(&self, spec: &ModelSpec) -> Vec<u32> {
        let n = spec.layers.len() as u32;
        // What goes into the first layer of a model whose table is its head says the token itself.
        let first = match (spec.tied, n) {
            (false, _) | (true, 0..=1) => 0,
            (true, 2) => 1,
            (true, _) => 2,
        };
        let layers = match self {
            Exits::List(layers) => return layers.clone(),
            Exits::Low => first..if n > DEEP { SHARE } else { (n / 2).max(first + 1) },
            Exits::High => (if n > DEEP { n - SHARE } else { n / 2 })..n,
        };
        layers.step_by(2).collect()
    }
}

impl FromStr for Exits {
    type Err = String;

    fn from_str(text: &str) -> Result<Exits, String> {
        let wrong = || format!("{text:?} is not low, high, or numbers of layers such as 8,10,12");
        match text {
            "low" => Ok(Exits::Low),
            "high" => Ok(Exits::High),
            _ => {
                let mut layers = Vec::new();
                for part in text.split(',') {
                    let layer = part.trim().parse().map_err(|_| wrong())?;
                    if !layers.contains(&layer) {
                        layers.push(layer);
                    }
                }
                Ok(Exits::List(layers))
            }
        }
    }
}

impl std::fmt::Display for Exits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exits::Low => f.write_str("low"),
            Exits::High => f.write_str("high"),
            Exits::List(layers) => {
                let layers: Vec<String> = layers.iter().map(u32::to_string).collect();
                f.write_str(&layers.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for text in ["low", "high", "8,10,12", "0"] {
            assert_eq!(text.parse::<Exits>().unwrap().to_string(), text);
        }
        assert_eq!("4, 2,4".parse(), Ok(Exits::List(vec![4, 2])));
        for wrong in ["", "middle", "1,,2", "-1"] {
            assert!(wrong.parse::<Exits>().is_err(), "{wrong}");
        }
    }
}
