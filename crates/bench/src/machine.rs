//! The machine's fingerprint and its measured peaks, kept in a file of the user's cache.

use crate::{Result, kept};
use quarrel_cpu::{Isa, Peaks, processor_name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The file's name in the cache directory.
const FILE: &str = "machines.json";
/// The buffer for the bandwidth: so many last-level caches, within these bytes and a quarter of the free memory.
const CACHES: u64 = 4;
const BUFFER_MIN: u64 = 256 << 20;
const BUFFER_MAX: u64 = 1 << 30;

/// A machine as far as speed goes. All but `isa_scores`, `peaks` and `measured` is the fingerprint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// What the processor calls itself.
    pub cpu: String,
    /// Processors that the process may use.
    pub cores: usize,
    /// Threads that the figures are for.
    pub threads: usize,
    /// Instructions of the kernels.
    pub isa: String,
    /// What the instructions were chosen by, see [`Chosen`](crate::Chosen); nothing if they were not chosen.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub isa_scores: BTreeMap<String, f64>,
    /// All memory.
    pub memory_bytes: u64,
    /// The last-level cache; 0 where the system does not say.
    pub cache_bytes: u64,
    /// The operating system and its version.
    pub kernel: String,
    /// What it can do at best.
    pub peaks: Rates,
    /// When the peaks were measured: seconds since 1970.
    pub measured: u64,
}

/// Peak rates: of reading memory, and of multiplications and additions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Reading memory, in 1e9 bytes per second.
    pub read_gb_per_s: f64,
    /// 8-bit integers, in 1e9 per second.
    pub int8_gop_per_s: f64,
    /// 32-bit floats, in 1e9 per second.
    pub f32_gflop_per_s: f64,
}

impl Machine {
    /// The machine with `threads` threads and these instructions, its peaks from the cache directory if they were measured on exactly this
    /// fingerprint, else (or with `fresh`) measured now and saved. `measuring` is called before a measurement.
    ///
    /// # Errors
    /// When the peaks cannot be measured. A cache that cannot be read or written is only slower.
    pub fn new(
        cache: Option<&Path>,
        threads: usize,
        isa: Isa,
        fresh: bool,
        measuring: impl FnOnce(),
    ) -> Result<Machine> {
        let mut machine = Machine::fingerprint(threads, isa);
        let path = cache.map(|c| c.join(FILE));
        let mut known: Vec<Machine> = path.as_deref().map(kept::read).unwrap_or_default();
        if let Some(same) = known.iter().find(|k| !fresh && k.difference(&machine).is_none()) {
            return Ok(same.clone());
        }
        measuring();
        let free = available_bytes().unwrap_or(machine.memory_bytes);
        let buffer = (CACHES * machine.cache_bytes).clamp(BUFFER_MIN, BUFFER_MAX).min(free / 4);
        let peaks = Peaks::measure(isa, threads, buffer as usize)?;
        machine.peaks = Rates {
            read_gb_per_s: peaks.read_bytes_per_s / 1e9,
            int8_gop_per_s: peaks.int8_ops_per_s / 1e9,
            f32_gflop_per_s: peaks.f32_flops_per_s / 1e9,
        };
        machine.measured = kept::now();
        known.retain(|k| k.difference(&machine).is_some());
        known.push(machine.clone());
        if let Some(path) = path {
            // Not being able to save costs the next run a second, so it is no error.
            let _ = kept::save(&path, &known);
        }
        Ok(machine)
    }

    /// The first field of the fingerprint that differs: its name, ours and theirs.
    pub fn difference(&self, other: &Machine) -> Option<(&'static str, String, String)> {
        let fields = |m: &Machine| {
            [
                ("processor", m.cpu.clone()),
                ("cores", m.cores.to_string()),
                ("threads", m.threads.to_string()),
                ("instructions", m.isa.clone()),
                ("memory", m.memory_bytes.to_string()),
                ("cache", m.cache_bytes.to_string()),
                ("kernel", m.kernel.clone()),
            ]
        };
        fields(self).into_iter().zip(fields(other)).find(|(a, b)| a.1 != b.1).map(|(a, b)| (a.0, a.1, b.1))
    }

    /// A machine that computes on a GPU: `name` is what it calls itself and `kernels` what its kernels are made for.
    pub fn gpu(
        name: &str,
        kernels: &str,
        cores: usize,
        memory_bytes: u64,
        cache_bytes: u64,
        peaks: Rates,
    ) -> Machine {
        Machine {
            cpu: name.into(),
            cores,
            memory_bytes,
            cache_bytes,
            isa: kernels.into(),
            peaks,
            measured: kept::now(),
            ..Machine::fingerprint(1, Isa::PORTABLE)
        }
    }

    /// The machine without its peaks, which are 0.
    pub fn fingerprint(threads: usize, isa: Isa) -> Machine {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kernel = format!("{} {}", std::env::consts::OS, release.trim());
        Machine {
            cpu: cpu_name(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            isa: isa.to_string(),
            isa_scores: BTreeMap::new(),
            memory_bytes: meminfo("MemTotal:").unwrap_or(0),
            cache_bytes: last_level_cache().unwrap_or(0),
            kernel: kernel.trim().into(),
            peaks: Rates { read_gb_per_s: 0.0, int8_gop_per_s: 0.0, f32_gflop_per_s: 0.0 },
            measured: 0,
        }
    }
}

/// What the processor calls itself; its family where the system does not tell.
pub(crate) fn cpu_name() -> String {
    processor_name().unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// Memory that processes can have now, where the system says.
pub(crate) fn available_bytes() -> Option<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(key: &str) -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The largest cache that the first processor names.
fn last_level_cache() -> Option<u64> {
    let size = |i: u32| {
        let text = fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    (0..8).filter_map(size).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_kept_for_the_same_fingerprint_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut here = Machine::fingerprint(2, Isa::PORTABLE);
        here.peaks.read_gb_per_s = 12.5;
        let other = Machine { kernel: "other".into(), ..here.clone() };
        kept::save(&dir.path().join(FILE), &[other.clone(), here.clone()]).unwrap();
        let never = || panic!("must not measure");
        let found = Machine::new(Some(dir.path()), 2, Isa::PORTABLE, false, never).unwrap();
        assert_eq!(found, here);
        assert_eq!(here.difference(&other).unwrap().0, "kernel");
        assert_eq!(here.difference(&Machine { threads: 3, ..here.clone() }).unwrap().1, "2");
    }
}
