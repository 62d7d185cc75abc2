//! Rotations as files describe them: frequencies, how they are changed for contexts beyond the first training, and which
//! table a context has.

use quarrel_ir::{RopeStyle, RopeTable};
use std::f64::consts::PI;

/// How frequencies are changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// Each is divided by a factor of its own, as a tensor of the file says (Llama 3.1 in GGUF).
    Factors(Vec<f32>),
    /// All are divided (Chen et al. 2023).
    Linear(f64),
    /// Llama 3.1's: long wavelengths are divided by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// Divides the long wavelengths.
        factor: f64,
        /// Wavelengths beyond `context / low` are long.
        low: f64,
        /// Wavelengths below `context / high` are short.
        high: f64,
        /// Context of the first training.
        context: f64,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Divides frequencies that turn slowly.
        factor: f64,
        /// Context of the first training.
        context: f64,
        /// Frequencies that turn more often than this in `context` are kept.
        beta_fast: f64,
        /// Those that turn less often are divided by `factor`.
        beta_slow: f64,
        /// Factor on cosine and sine.
        attention: f64,
        /// The borders between are at whole pairs.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024): divisors for contexts up to `context` tokens, and others beyond.
    Long {
        /// For contexts up to `context`.
        short: Vec<f32>,
        /// For those beyond.
        long: Vec<f32>,
        /// Context of the first training.
        context: u32,
        /// Factor on cosine and sine.
        attention: f64,
    },
    /// NTK-aware, by the context that is served: the base grows with what lies beyond `context`.
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// Context of the first training.
        context: u32,
    },
}

/// One kind of rotation of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Pairing of columns.
    pub style: RopeStyle,
    /// Columns of a head that are rotated.
    pub dims: u32,
    /// Base of the frequencies.
    pub base: f64,
    /// What is done to them.
    pub scaling: Scaling,
}

/// YaRN's factor on cosine and sine for a factor on the context.
pub fn yarn_attention(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl Rotary {
    /// A rotation without scaling.
    pub fn plain(style: RopeStyle, dims: u32, base: f64) -> Rotary {
        Rotary { style, dims, base, scaling: Scaling::None }
    }

    /// The table for sequences of up to `context` tokens. All tokens of all sequences have the same one, because keys stay
    /// in the cache as they were rotated.
    pub fn table(&self, context: u32) -> RopeTable {
        let plain = |factors| RopeTable::new(self.style, self.dims, self.base, factors);
        match &self.scaling {
            Scaling::None => plain(None),
            Scaling::Factors(factors) => plain(Some(factors)),
            Scaling::Linear(factor) => self.map(1.0, |_, f| f / factor),
            Scaling::Llama3 { factor, low, high, context } => self.map(1.0, |_, f| {
                let wavelength = 2.0 * PI / f;
                let smooth = ((context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - smooth) * f / factor + smooth * f
            }),
            Scaling::Yarn { factor, context, beta_fast, beta_slow, attention, truncate } => {
                // The pair that turns so often in the context.
                let dims = f64::from(self.dims);
                let pair = |turns: f64| dims * (context / (turns * 2.0 * PI)).ln() / (2.0 * self.base.ln());
                let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
                if low == high {
                    high += 0.001;
                }
                self.map(*attention, |i, f| {
                    let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * divided + f * (1.0 - divided)
                })
            }
            Scaling::Long { short, long, context: trained, attention } => {
                let mut table = plain(Some(if context > *trained { long } else { short }));
                table.mscale = *attention as f32;
                table
            }
            Scaling::Dynamic { factor, context: trained } => {
                let (served, trained) = (f64::from(context.max(*trained)), f64::from(*trained));
                let dims = f64::from(self.dims);
                let grown = (factor * served / trained - (factor - 1.0)).powf(dims / (dims - 2.0));
                RopeTable::new(self.style, self.dims, self.base * grown, None)
            }
        }
    }

    fn map(&self, mscale: f64, change: impl Fn(usize, f64) -> f64) -> RopeTable {
        let mut table = RopeTable::new(self.style, self.dims, self.base, None);
        table.inv_freq.iter_mut().enumerate().for_each(|(i, f)| *f = change(i, *f));
        table.mscale = mscale as f32;
        table
    }
}
