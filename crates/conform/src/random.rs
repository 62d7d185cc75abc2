//! Reproducible random tensors of every type.

use quarrel_formats::{Bytes, DType, Tensor, quant};

/// SplitMix64 (Steele et al. 2014): tiny, seeded, the same on every machine.
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// About normal: the sum of 12 uniform numbers less 6.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// A tensor of normal values times `scale`, in any type. Types without an encoder get random blocks, redrawn until
/// every value is finite and small.
pub fn tensor(name: &str, dtype: DType, shape: &[usize], scale: f32, rng: &mut Rng) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| rng.normal() * scale).collect();
    let mut bytes = Vec::new();
    if quant::quantize(dtype, &values, &mut bytes).is_err() {
        bytes = random_blocks(dtype, n, rng);
    }
    Tensor { name: name.into(), dtype, shape: shape.to_vec(), data: Bytes::from(bytes) }
}

/// An F32 tensor with given values.
pub fn f32_tensor(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor { name: name.into(), dtype: DType::F32, shape: shape.to_vec(), data: Bytes::from(bytes) }
}

fn random_blocks(dtype: DType, n: usize, rng: &mut Rng) -> Vec<u8> {
    let mut values = vec![0.0f32; dtype.block_len()];
    (0..n / dtype.block_len())
        .flat_map(|_| {
            loop {
                let block: Vec<u8> = (0..dtype.block_bytes()).map(|_| rng.bits() as u8).collect();
                quant::dequantize(dtype, &block, &mut values).expect("one whole block");
                let max = values
                    .iter()
                    .fold(0.0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { f32::INFINITY });
                if (1e-3..8.0).contains(&max) {
                    return block;
                }
            }
        })
        .collect()
}
