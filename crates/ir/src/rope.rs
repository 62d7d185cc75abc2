//! Rotary position embedding (Su et al. 2021): frequency tables and the two layouts in which heads are rotated.

/// Handle of a table in [`crate::Program::ropes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RopeId(pub u32);

/// Which columns form a rotated pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Columns `i` and `i + rot_dims / 2` (GPT-NeoX, Hugging Face Llama).
    Neox,
    /// Columns `2i` and `2i + 1` (GPT-J, Llama as stored in GGUF).
    Interleaved,
}

/// A factor that grows with the position: `1 + by * ln(1 + floor((position + ahead) / tokens))` (Nakanishi 2025; Llama 4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth {
    /// Tokens from one step to the next.
    pub tokens: f32,
    /// How fast it grows.
    pub by: f32,
    /// Added to the position first: 1 counts tokens, 0 those before.
    pub ahead: f32,
}

impl Growth {
    /// The factor at a position.
    pub fn at(self, position: u32) -> f32 {
        let steps = ((f64::from(position) + f64::from(self.ahead)) / f64::from(self.tokens)).floor();
        (steps.ln_1p() * f64::from(self.by) + 1.0) as f32
    }
}

/// The frequencies of one kind of layer. Angle of pair `i` at position `p` is `p * inv_freq[i]`, in radians, kept in
/// f64 because at position 100,000 an f32 angle is off by up to 0.004.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    /// Pairing of columns.
    pub style: RopeStyle,
    /// Columns of a head before those that are rotated.
    pub first: u32,
    /// Columns of a head that are rotated; the rest pass through.
    pub rot_dims: u32,
    /// One frequency per pair: `rot_dims / 2` of them.
    pub inv_freq: Vec<f64>,
    /// Multiplies cosine and sine (YaRN's attention factor); 1 otherwise.
    pub mscale: f32,
    /// Multiplies them too, more the later the token.
    pub growth: Option<Growth>,
}

impl RopeTable {
    /// The plain table: `base^(-2i / rot_dims)`, divided by `factor[i]` where given.
    pub fn new(style: RopeStyle, rot_dims: u32, base: f64, factors: Option<&[f32]>) -> RopeTable {
        let inv_freq = (0..rot_dims / 2)
            .map(|i| {
                let f = base.powf(-2.0 * f64::from(i) / f64::from(rot_dims));
                factors.map_or(f, |d| f / f64::from(d[i as usize]))
            })
            .collect();
        RopeTable { style, first: 0, rot_dims, inv_freq, mscale: 1.0, growth: None }
    }

    /// The columns of pair `i` in a head.
    pub fn columns(&self, i: usize) -> (usize, usize) {
        let first = self.first as usize;
        match self.style {
            RopeStyle::Neox => (first + i, first + i + self.rot_dims as usize / 2),
            RopeStyle::Interleaved => (first + 2 * i, first + 2 * i + 1),
        }
    }

    /// Writes cosine and sine of every pair at `position` into `cos` and `sin`, each of length `rot_dims / 2`.
    pub fn angles(&self, position: u32, cos: &mut [f32], sin: &mut [f32]) {
        let mscale = self.mscale * self.growth.map_or(1.0, |g| g.at(position));
        for (i, f) in self.inv_freq.iter().enumerate() {
            let (s, c) = (f64::from(position) * f).sin_cos();
            cos[i] = c as f32 * mscale;
            sin[i] = s as f32 * mscale;
        }
    }
}
