//! The devices that a model can be computed on, by the names that people give them.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use quarrel_cpu::{Cpu, CpuOptions, KvType};
use quarrel_cuda::{Caps, Cuda, CudaOptions};
use quarrel_ir::Device;

/// Where to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// The processor.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
    /// The first GPU if there is one that holds the weights, else the processor.
    Auto,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(s: &str) -> Result<Place, String> {
        let number = |n: &str| n.parse().ok().filter(|n| *n < 64).map(Place::Cuda);
        match s {
            "cpu" => Ok(Place::Cpu),
            "auto" => Ok(Place::Auto),
            "cuda" => Ok(Place::Cuda(0)),
            _ => s
                .strip_prefix("cuda:")
                .and_then(number)
                .ok_or_else(|| format!("there is no device `{s}`; devices are cpu, cuda, cuda:N and auto")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Cpu => f.write_str("cpu"),
            Place::Cuda(0) => f.write_str("cuda"),
            Place::Cuda(n) => write!(f, "cuda:{n}"),
            Place::Auto => f.write_str("auto"),
        }
    }
}

/// A device that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// The processor.
    Cpu,
    /// A GPU.
    Cuda {
        /// Its number.
        ordinal: usize,
        /// What it can do.
        caps: Caps,
        /// Bytes that are free there.
        free: usize,
        /// Whether the bits of a row must not depend on the rows beside it.
        deterministic: bool,
    },
}

impl Chosen {
    /// Chooses for a model of so many bytes. The second value tells why a GPU that is there was not taken.
    ///
    /// # Errors
    /// When the GPU that was asked for cannot be used.
    pub fn new(place: Place, weight_bytes: usize, deterministic: bool) -> Result<(Chosen, Option<String>)> {
        let open = |ordinal| -> Result<Chosen> {
            let gpu = Cuda::new(CudaOptions { ordinal, ..CudaOptions::default() })?;
            Ok(Chosen::Cuda { ordinal, caps: gpu.caps().clone(), free: gpu.free_memory()?.0, deterministic })
        };
        match place {
            Place::Cpu => Ok((Chosen::Cpu, None)),
            Place::Cuda(ordinal) => Ok((open(ordinal)?, None)),
            Place::Auto if !matches!(quarrel_cuda::gpus(), Ok(1..)) => Ok((Chosen::Cpu, None)),
            Place::Auto => Ok(match open(0) {
                Ok(Chosen::Cuda { free, .. }) if weight_bytes > free / 10 * 9 => {
                    let why =
                        format!("{:.1} of its {:.1} free GB", weight_bytes as f64 / 1e9, free as f64 / 1e9);
                    (
                        Chosen::Cpu,
                        Some(format!("computing on the CPU: the weights would take {why} on the GPU")),
                    )
                }
                Ok(chosen) => (chosen, None),
                Err(e) => (Chosen::Cpu, Some(format!("computing on the CPU: {e:#}"))),
            }),
        }
    }

    /// Starts it, with a cache of this type.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn start(&self, cpu: CpuOptions, kv: KvType) -> Result<Box<dyn Device>> {
        Ok(match self {
            Chosen::Cpu => {
                Box::new(Cpu::new(CpuOptions { kv, ..cpu }).context("cannot start the CPU device")?)
            }
            Chosen::Cuda { ordinal, deterministic, .. } => {
                let (ordinal, deterministic) = (*ordinal, *deterministic);
                let options =
                    CudaOptions { ordinal, kv: cuda_kv(kv)?, deterministic, ..CudaOptions::default() };
                Box::new(Cuda::new(options)?)
            }
        })
    }
}

/// The GPU's name for a type of the cache.
pub(crate) fn cuda_kv(kv: KvType) -> Result<quarrel_cuda::KvType> {
    Ok(match kv {
        KvType::F32 => quarrel_cuda::KvType::F32,
        KvType::F16 => quarrel_cuda::KvType::F16,
        KvType::BF16 => quarrel_cuda::KvType::BF16,
        KvType::Q8_0 | KvType::Q4_0 => {
            bail!(
                "the cuda device keeps its cache in f16, bf16 or f32, not in {}; choose one with --kv",
                kv.name()
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_called_by_their_names() {
        for (name, place) in
            [("cpu", Place::Cpu), ("cuda", Place::Cuda(0)), ("cuda:3", Place::Cuda(3)), ("auto", Place::Auto)]
        {
            assert_eq!(name.parse(), Ok(place));
            assert_eq!(place.to_string(), name);
        }
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1000000"] {
            assert!(bad.parse::<Place>().unwrap_err().contains("cuda:N"), "{bad}");
        }
    }

    #[test]
    fn a_machine_without_a_gpu_says_so_in_a_sentence() {
        if matches!(quarrel_cuda::gpus(), Ok(1..)) {
            return; // the machine has one
        }
        let error = format!("{:#}", Chosen::new(Place::Cuda(0), 0, false).unwrap_err());
        assert!(error.contains("driver") && error.contains("cuda:0"), "{error}");
        assert_eq!(Chosen::new(Place::Auto, 0, false).unwrap(), (Chosen::Cpu, None));
    }

    #[test]
    fn a_gpu_refuses_caches_that_it_has_no_kernels_for() {
        assert!(cuda_kv(KvType::Q8_0).unwrap_err().to_string().contains("q8_0"));
        assert_eq!(cuda_kv(KvType::BF16).unwrap(), quarrel_cuda::KvType::BF16);
    }
}
