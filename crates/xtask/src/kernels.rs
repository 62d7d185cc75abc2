//! `cargo xtask kernels`: compiles the CUDA kernels with NVIDIA's compiler from the Python registry, and checks what it reports.
//!
//! What is built is committed, because the crate embeds it and must build where there is no compiler for GPUs. Beside it lie the digests
//! of the sources, which a test compares, and the registers, shared memory and spills of every kernel.

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: &str = "crates/cuda/kernels";
const BUILT: &str = "crates/cuda/kernels/built";
const GRIDS: &str = "crates/formats/src/quant/grids";
const DIGESTS: &str = "crates/cuda/kernels/built/sources.sha256";
const RESOURCES: &str = "crates/cuda/kernels/built/resources.tsv";

/// The compiler and its headers, all of one release.
const PACKAGES: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
];

/// Machine code for 8.0, which 8.6 and 8.9 run too, and for Hopper with its own instructions; PTX for what comes later.
const TARGETS: &[&str] = &[
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_80,code=compute_80",
];

/// Kernels that most time goes into: none may keep variables in memory because it has too few registers.
const HOT: &[&str] = &[
    "mv_",
    "mm_",
    "mvx_",
    "mmx_",
    "attn_decode_",
    "attend_f16_8_",
    "attend_bf16_8_",
    "flash_",
    "norm_rows",
    "rope_store_",
];

/// Compiles the files whose sources changed (or `all`), and writes digests and resources.
pub(crate) fn build(python: &Path, all: bool) -> Result<()> {
    let nvcc = compiler(python)?;
    let include = nvcc.ancestors().nth(2).context("nvcc lies in bin/")?.join("include");
    let generated = Path::new("target/kernels/include");
    std::fs::create_dir_all(generated)?;
    std::fs::write(generated.join("grids.cuh"), grids()?)?;
    std::fs::create_dir_all(BUILT)?;
    let built = read_digests();
    let mut resources = read_resources();
    let names = files("cu")?;
    resources.retain(|(file, _), _| names.contains(file));
    for name in &names {
        let image = format!("{BUILT}/{name}.fatbin");
        if !all && built.get(name) == Some(&digest(name)?) && Path::new(&image).exists() {
            continue;
        }
        let output = Command::new(&nvcc)
            .args(["--fatbin", "-std=c++17", "-O3", "--compress-mode=size", "-Xptxas", "-v"])
            .args(TARGETS)
            .arg(format!("-I{}", generated.display()))
            .arg(format!("-I{}", include.display()))
            .arg(format!("-I{}", include.join("cccl").display()))
            .args(["-o", &image, &format!("{SOURCES}/{name}.cu")])
            .output()
            .context("cannot start nvcc")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "nvcc does not compile {name}.cu:\n{said}");
        resources.retain(|(file, _), _| file != name);
        for (kernel, line) in parse_resources(&said) {
            resources.insert((name.clone(), kernel), line);
        }
        println!("{name}: {} bytes", std::fs::metadata(&image)?.len());
    }
    write_digests(&names)?;
    let mut text =
        String::from("file\tkernel and target\tregisters\tshared\tstack\tspill stores\tspill loads\n");
    for ((file, kernel), r) in &resources {
        writeln!(text, "{file}\t{kernel}\t{}\t{}\t{}\t{}\t{}", r[0], r[1], r[2], r[3], r[4])?;
    }
    std::fs::write(RESOURCES, text)?;
    check_resources(&resources)
}

type Resources = BTreeMap<(String, String), [u32; 5]>;

/// Fails where a hot kernel spills.
fn check_resources(resources: &Resources) -> Result<()> {
    let spilled: Vec<_> = resources
        .iter()
        .filter(|((_, kernel), r)| HOT.iter().any(|h| kernel.starts_with(h)) && r[3] + r[4] > 0)
        .map(|((file, kernel), r)| format!("{file}: {kernel} spills {} and {} bytes", r[3], r[4]))
        .collect();
    ensure!(spilled.is_empty(), "hot kernels spill:\n{}", spilled.join("\n"));
    Ok(())
}

/// The compiler, installed into an environment of its own the first time.
fn compiler(python: &Path) -> Result<PathBuf> {
    let venv = Path::new("target/kernels/venv");
    let find = || -> Option<PathBuf> {
        let lib = std::fs::read_dir(venv.join("lib")).ok()?.flatten();
        lib.map(|d| d.path().join("site-packages/nvidia/cu13/bin/nvcc")).find(|p| p.exists())
    };
    if find().is_none() {
        super::run(Command::new(python).args(["-m", "venv"]).arg(venv))?;
        super::run(Command::new(venv.join("bin/pip")).args(["install", "-q"]).args(PACKAGES))?;
    }
    match find() {
        Some(nvcc) => Ok(nvcc),
        None => bail!("the packages {PACKAGES:?} did not bring nvcc"),
    }
}

/// Stems of the files with an extension, in order.
fn files(extension: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(SOURCES)?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .filter_map(|p| Some(p.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

const TABLES: [&str; 6] = ["iq1_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"];

/// The codebooks as C tables: one 16-bit word for each vector, as they are packed.
fn grids() -> Result<String> {
    let mut text = String::from(
        "// The codebooks of the IQ types, packed; made by `cargo xtask kernels`.\n#pragma once\n",
    );
    for name in TABLES {
        let bytes = std::fs::read(format!("{GRIDS}/{name}.bin"))?;
        let words: Vec<String> =
            bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]).to_string()).collect();
        let (upper, n, list) = (name.to_uppercase(), words.len(), words.join(","));
        writeln!(text, "static __device__ const unsigned short GRID_{upper}[{n}] = {{{list}}};")?;
    }
    Ok(text)
}

/// A source and the headers that it includes, directly or not; generated ones are left out.
fn sources(name: &str) -> Result<Vec<String>> {
    let mut all = vec![format!("{name}.cu")];
    let mut next = 0;
    while let Some(file) = all.get(next) {
        let path = format!("{SOURCES}/{file}");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let included =
            text.lines().filter_map(|l| l.strip_prefix("#include \"")?.split('"').next().map(str::to_owned));
        for header in included.collect::<Vec<_>>() {
            if header != "grids.cuh" && !all.contains(&header) {
                all.push(header);
            }
        }
        next += 1;
    }
    Ok(all)
}

/// The digest of all that an image is made of: its source and headers, the codebooks, compiler and flags.
fn digest(name: &str) -> Result<String> {
    let mut sum = Sha256::new();
    let mut add = |path: String| -> Result<()> {
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
        sum.update((bytes.len() as u64).to_le_bytes());
        sum.update(bytes);
        Ok(())
    };
    for file in sources(name)? {
        add(format!("{SOURCES}/{file}"))?;
    }
    for table in TABLES {
        add(format!("{GRIDS}/{table}.bin"))?;
    }
    sum.update(PACKAGES.concat());
    sum.update(TARGETS.concat());
    Ok(sum.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn read_digests() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(DIGESTS).unwrap_or_default();
    text.lines().filter_map(|l| l.split_once("  ")).map(|(d, n)| (n.into(), d.into())).collect()
}

fn write_digests(names: &[String]) -> Result<()> {
    let mut text = String::new();
    for name in names {
        writeln!(text, "{}  {name}", digest(name)?)?;
    }
    Ok(std::fs::write(DIGESTS, text)?)
}

fn read_resources() -> Resources {
    let text = std::fs::read_to_string(RESOURCES).unwrap_or_default();
    let line = |l: &str| {
        let f: Vec<&str> = l.split('\t').collect();
        let numbers: Vec<u32> = f.get(2..7)?.iter().filter_map(|n| n.parse().ok()).collect();
        Some(((f[0].to_string(), f[1].to_string()), numbers.try_into().ok()?))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// `kernel sm_NN`, and its registers, shared memory, stack, spilled stores and loads, from the words of ptxas.
fn parse_resources(said: &str) -> Vec<(String, [u32; 5])> {
    let (mut all, mut kernel, mut memory) = (Vec::new(), String::new(), [0; 3]);
    let before = |line: &str, what: &str| {
        let head = line.split(what).next().filter(|h| h.len() < line.len())?;
        head.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
    };
    for line in said.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut quoted = rest.split('\'');
            let (name, target) = (quoted.next().unwrap_or_default(), quoted.nth(1).unwrap_or_default());
            kernel = format!("{name} {target}");
        } else if let Some(stack) = before(line, " bytes stack frame") {
            let of = |what| before(line, what).unwrap_or(0);
            memory = [stack, of(" bytes spill stores"), of(" bytes spill loads")];
        } else if let Some(registers) = line.split("Used ").nth(1).and_then(|l| before(l, " registers")) {
            let shared = before(line, " bytes smem").unwrap_or(0);
            all.push((std::mem::take(&mut kernel), [registers, shared, memory[0], memory[1], memory[2]]));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_kernels_are_those_of_the_sources() {
        std::env::set_current_dir(super::super::root()).unwrap();
        let built = read_digests();
        for name in files("cu").unwrap() {
            assert_eq!(
                built.get(&name),
                Some(&digest(&name).unwrap()),
                "{name}.cu changed since it was compiled; run `cargo xtask kernels`"
            );
            assert!(Path::new(&format!("{BUILT}/{name}.fatbin")).exists(), "{name} is not built");
        }
        check_resources(&read_resources()).unwrap();
        assert!(read_resources().len() >= 100, "the report of resources is there");
    }

    #[test]
    fn the_report_of_ptxas_is_read() {
        let said = "ptxas info    : Compiling entry function 'mv_q4' for 'sm_90a'\n\
            ptxas info    : Function properties for mv_q4\n    8 bytes stack frame, 4 bytes spill stores, 56 bytes spill loads\n\
            ptxas info    : Used 38 registers, used 1 barriers, 33792 bytes smem\n";
        assert_eq!(parse_resources(said), [("mv_q4 sm_90a".to_string(), [38, 33792, 8, 4, 56])]);
    }
}
