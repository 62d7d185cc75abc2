//! A model on disk, opened: tensors by name over mapped files, with the metadata of a GGUF or the config of a checkpoint.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsStr,
    fs,
    path::{Component, Path, PathBuf},
};

use crate::{Bytes, DType, Error, Gguf, Metadata, dequantize, safetensors::Safetensors};

/// Longest `config.json` or index that is read, in bytes.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// A tensor and its bytes.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The name in the file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Exactly the bytes that type and shape ask for.
    pub data: Bytes,
}

impl Tensor {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// All values decoded, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        dequantize(self.dtype, &self.data, &mut values).expect("an opened tensor has the bytes of its shape");
        values
    }
}

/// A model opened from disk.
#[derive(Debug)]
pub enum Source {
    /// A GGUF file, or all parts of a split one.
    Gguf(GgufSource),
    /// A checkpoint as Hugging Face lays it out: `config.json` with safetensors.
    Hf(HfSource),
}

/// A GGUF file, or all parts of a split one. It may have no tensors: a vocabulary.
#[derive(Debug)]
pub struct GgufSource {
    /// The files, in order.
    pub paths: Vec<PathBuf>,
    /// The metadata (of the first part).
    pub metadata: Metadata,
    tensors: Tensors,
}

/// `config.json` with one or more safetensors files.
#[derive(Debug)]
pub struct HfSource {
    /// The directory, where `tokenizer.json` and its like are too.
    pub dir: PathBuf,
    /// The parsed `config.json`; null when a lone safetensors file was opened that has none beside it.
    pub config: serde_json::Value,
    /// The safetensors files.
    pub paths: Vec<PathBuf>,
    tensors: Tensors,
}

#[derive(Debug, Default)]
struct Tensors {
    list: Vec<Tensor>,
    index: HashMap<String, usize>,
    file_bytes: u64,
}

impl Tensors {
    fn push(&mut self, path: &Path, tensor: Tensor) -> Result<(), Error> {
        if self.index.insert(tensor.name.clone(), self.list.len()).is_some() {
            let field = format!("tensor {:?}", tensor.name);
            return Err(Error::field(field, "another file of this model has it too").in_file(path));
        }
        self.list.push(tensor);
        Ok(())
    }
}

impl Source {
    /// Opens a `.gguf` file (any part of a split one), a `.safetensors` file, or a directory that holds either.
    pub fn open(path: impl AsRef<Path>) -> Result<Source, Error> {
        let path = path.as_ref();
        let info = fs::metadata(path).map_err(Error::io(path, "open"))?;
        if info.is_dir() {
            return open_dir(path);
        }
        if path.file_name().is_some_and(|n| n == "model.safetensors.index.json") {
            return HfSource::open_dir(path.parent().unwrap_or(Path::new("."))).map(Source::Hf);
        }
        let head = map(path)?;
        match sniff(&head) {
            Kind::Gguf => GgufSource::open(path, head).map(Source::Gguf),
            Kind::Safetensors => HfSource::open_file(path, head).map(Source::Hf),
            Kind::Other(what) => Err(Error::NotAModel(format!("{}: {what}", path.display()))),
        }
    }

    /// Opens an adapter: a GGUF file, or a directory (or the safetensors file in it) as PEFT writes it, whose
    /// `adapter_config.json` becomes the config.
    pub fn open_adapter(path: impl AsRef<Path>) -> Result<Source, Error> {
        let path = path.as_ref();
        let info = fs::metadata(path).map_err(Error::io(path, "open"))?;
        let file = if info.is_dir() { path.join("adapter_model.safetensors") } else { path.to_owned() };
        if info.is_dir() && !file.exists() {
            let what = match path.join("adapter_model.bin").exists() {
                true => "only adapter_model.bin, which can run code; save the adapter as safetensors",
                false => "no adapter_model.safetensors; name the directory that PEFT saved, or a GGUF file",
            };
            return Err(Error::NotAModel(format!("{}: {what}", path.display())));
        }
        let head = map(&file)?;
        match sniff(&head) {
            Kind::Gguf => GgufSource::open(&file, head).map(Source::Gguf),
            Kind::Safetensors => {
                let dir = file.parent().unwrap_or(Path::new("")).to_owned();
                let config = read_json(&dir.join("adapter_config.json"))?;
                let mut source = HfSource { dir, config, paths: Vec::new(), tensors: Tensors::default() };
                source.add(&file, head)?;
                Ok(Source::Hf(source))
            }
            Kind::Other(what) => Err(Error::NotAModel(format!("{}: {what}", file.display()))),
        }
    }

    fn all(&self) -> &Tensors {
        match self {
            Source::Gguf(s) => &s.tensors,
            Source::Hf(s) => &s.tensors,
        }
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        let all = self.all();
        all.index.get(name).map(|i| &all.list[*i])
    }

    /// All tensors in the order of the files.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.all().list.iter()
    }

    /// The metadata, if this is a GGUF.
    pub fn metadata(&self) -> Option<&Metadata> {
        match self {
            Source::Gguf(s) => Some(&s.metadata),
            Source::Hf(_) => None,
        }
    }

    /// The `config.json`, if this is a checkpoint.
    pub fn config(&self) -> Option<&serde_json::Value> {
        match self {
            Source::Gguf(_) => None,
            Source::Hf(s) => Some(&s.config),
        }
    }

    /// The files that were opened, in order.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Source::Gguf(s) => &s.paths,
            Source::Hf(s) => &s.paths,
        }
    }

    /// Bytes of all the model's files.
    pub fn total_bytes(&self) -> u64 {
        self.all().file_bytes
    }
}

enum Kind {
    Gguf,
    Safetensors,
    Other(&'static str),
}

fn sniff(head: &[u8]) -> Kind {
    let text = head[..head.len().min(64)].trim_ascii_start().to_ascii_lowercase();
    match head {
        [] => Kind::Other("the file is empty; fetch it again"),
        [b'G', b'G', b'U', b'F', ..] => Kind::Gguf,
        [b'P', b'K', 3, 4, ..] | [0x80, 2, ..] => Kind::Other(
            "a PyTorch pickle or zip archive, which can run code; fetch the safetensors or GGUF file",
        ),
        _ if text.starts_with(b"version https://git-lfs") => {
            Kind::Other("a git-lfs pointer, not the model itself; run `git lfs pull` or download the file")
        }
        _ if text.starts_with(b"<!doctype") || text.starts_with(b"<html") || text.starts_with(b"<?xml") => {
            Kind::Other("a web page, not a model; the download link led to an HTML page")
        }
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => Kind::Safetensors,
        b"ggml" | [b'l' | b't' | b'f', b'm' | b'j', b'g', b'g', ..] => {
            Kind::Other("a GGML file from before GGUF; convert it or fetch the GGUF")
        }
        _ => Kind::Other("neither GGUF nor safetensors; is it a model file, whole and undamaged?"),
    }
}

/// Maps a file; an empty one, which cannot be mapped everywhere, becomes empty bytes.
fn map(path: &Path) -> Result<Bytes, Error> {
    let info = fs::metadata(path).map_err(Error::io(path, "open"))?;
    if !info.is_file() {
        return Err(Error::NotAModel(format!("{}: not a regular file", path.display())));
    }
    if info.len() == 0 { Ok(Bytes::from(Vec::new())) } else { Bytes::map(path) }
}

/// The files in a directory with this extension, sorted.
fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let path = entry.map_err(Error::io(dir, "list"))?.path();
        if path.extension() == Some(OsStr::new(extension)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn name_list(paths: &[PathBuf]) -> String {
    let names: Vec<_> =
        paths.iter().take(10).filter_map(|p| p.file_name()).map(|n| n.to_string_lossy()).collect();
    let more = if paths.len() > 10 { format!(" and {} more", paths.len() - 10) } else { String::new() };
    format!("{}{more}", names.join(", "))
}

fn open_dir(dir: &Path) -> Result<Source, Error> {
    let is_checkpoint = dir.join("config.json").exists();
    let ggufs = files(dir, "gguf")?;
    // Of a split model only the first part counts.
    let first: Vec<_> = ggufs.into_iter().filter(|p| SplitName::of(p).is_none_or(|s| s.no == 1)).collect();
    match first.as_slice() {
        _ if is_checkpoint => HfSource::open_dir(dir).map(Source::Hf),
        [one] => Source::open(one),
        [] => Err(Error::NotAModel(format!(
            "{}: no model here: neither config.json with safetensors nor a .gguf file",
            dir.display()
        ))),
        several => Err(Error::NotAModel(format!(
            "{}: {} models here, name one: {}",
            dir.display(),
            several.len(),
            name_list(several)
        ))),
    }
}

fn read_json(path: &Path) -> Result<serde_json::Value, Error> {
    let info = fs::metadata(path).map_err(Error::io(path, "open"))?;
    if info.len() > JSON_BYTES_MAX {
        let reason = format!("{} bytes are over the limit of {JSON_BYTES_MAX}", info.len());
        return Err(Error::field("size", reason).in_file(path));
    }
    let text = fs::read(path).map_err(Error::io(path, "read"))?;
    serde_json::from_slice(&text).map_err(|e| Error::field("JSON", e.to_string()).in_file(path))
}

/// `PREFIX-00002-of-00003.gguf`.
struct SplitName {
    prefix: String,
    no: u32,
    count: u32,
}

impl SplitName {
    fn of(path: &Path) -> Option<SplitName> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, no) = rest.rsplit_once('-')?;
        let digits =
            |s: &str| (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok())?;
        let (no, count) = (digits(no)?, digits(count)?);
        (1 <= no && no <= count).then(|| SplitName { prefix: prefix.to_owned(), no, count })
    }

    fn part(&self, path: &Path, no: u32) -> PathBuf {
        path.with_file_name(format!("{}-{no:05}-of-{:05}.gguf", self.prefix, self.count))
    }
}

impl GgufSource {
    fn open(path: &Path, bytes: Bytes) -> Result<GgufSource, Error> {
        let name = SplitName::of(path).filter(|s| s.count > 1);
        let gguf = Gguf::parse(&bytes).map_err(|e| e.in_file(path))?;
        let wrong = |path: &Path, field: &str, reason: String| Error::field(field, reason).in_file(path);
        let mut source =
            GgufSource { paths: Vec::new(), metadata: Metadata::new(), tensors: Tensors::default() };
        let Some(name) = name else {
            if let Some(count) = gguf.metadata.u32("split.count").filter(|n| *n > 1) {
                let reason = format!(
                    "one part of {count}, but the name does not end in -00001-of-{count:05}.gguf; restore the names"
                );
                return Err(wrong(path, "split.count", reason));
            }
            source.add(path, &gguf, &bytes)?;
            source.metadata = gguf.metadata;
            return Ok(source);
        };
        let mut given = Some((gguf, bytes));
        let mut tensor_count = None;
        for no in 1..=name.count {
            let part = name.part(path, no);
            let (gguf, bytes) = match given.take_if(|_| no == name.no) {
                Some(given) => given,
                None => {
                    if !part.exists() {
                        let reason = format!("part {no} of {} is missing: {}", name.count, part.display());
                        return Err(wrong(path, "split model", reason));
                    }
                    let bytes = map(&part)?;
                    (Gguf::parse(&bytes).map_err(|e| e.in_file(&part))?, bytes)
                }
            };
            let meta = &gguf.metadata;
            if meta.u32("split.count") != Some(name.count) || meta.u32("split.no") != Some(no - 1) {
                let said = |key| meta.get(key).map_or("nothing".to_owned(), |v| format!("{v:?}"));
                let reason = format!(
                    "the name says part {no} of {} (split.no {}), the file says split.count {} and split.no {}",
                    name.count,
                    no - 1,
                    said("split.count"),
                    said("split.no")
                );
                return Err(wrong(&part, "split.count", reason));
            }
            if no == 1 {
                source.metadata = meta.clone();
                tensor_count = meta.usize("split.tensors.count");
            } else if let (Some(a), Some(b)) =
                (source.metadata.str("general.architecture"), meta.str("general.architecture"))
                && a != b
            {
                return Err(wrong(
                    &part,
                    "general.architecture",
                    format!("{b:?}, but the first part has {a:?}"),
                ));
            }
            source.add(&part, &gguf, &bytes)?;
        }
        let found = source.tensors.list.len();
        if tensor_count.is_some_and(|n| n != found) {
            let reason =
                format!("{} tensors in all, but the parts hold {found}", tensor_count.unwrap_or_default());
            return Err(wrong(&source.paths[0], "split.tensors.count", reason));
        }
        Ok(source)
    }

    fn add(&mut self, path: &Path, gguf: &Gguf, bytes: &Bytes) -> Result<(), Error> {
        for t in &gguf.tensors {
            let shape = t.shape.iter().map(|d| *d as usize).collect(); // each fits: the product of all is within the file
            let data = bytes.slice(gguf.range(t));
            self.tensors.push(path, Tensor { name: t.name.clone(), dtype: t.dtype, shape, data })?;
        }
        self.tensors.file_bytes += bytes.len() as u64;
        self.paths.push(path.to_owned());
        // The header is in structures of our own now.
        bytes.slice(0..(gguf.data_offset as usize).min(bytes.len())).release();
        Ok(())
    }
}

impl HfSource {
    fn open_file(path: &Path, bytes: Bytes) -> Result<HfSource, Error> {
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let config = dir.join("config.json");
        let config = if config.exists() { read_json(&config)? } else { serde_json::Value::Null };
        let mut source = HfSource { dir, config, paths: Vec::new(), tensors: Tensors::default() };
        source.add(path, bytes)?;
        Ok(source)
    }

    fn open_dir(dir: &Path) -> Result<HfSource, Error> {
        let config = read_json(&dir.join("config.json"))?;
        let mut source =
            HfSource { dir: dir.to_owned(), config, paths: Vec::new(), tensors: Tensors::default() };
        let (one, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
        if one.exists() {
            source.add(&one, map(&one)?)?;
        } else if index.exists() {
            source.add_shards(&index)?;
        } else {
            match files(dir, "safetensors")?.as_slice() {
                [one] => source.add(one, map(one)?)?,
                [] => {
                    let reason =
                        "config.json is here but no model.safetensors; fetch the weights as safetensors";
                    return Err(Error::NotAModel(format!("{}: {reason}", dir.display())));
                }
                several => {
                    let reason = format!(
                        "{} safetensors files but no index; name one: {}",
                        several.len(),
                        name_list(several)
                    );
                    return Err(Error::NotAModel(format!("{}: {reason}", dir.display())));
                }
            }
        }
        Ok(source)
    }

    /// Adds every file that the index names and checks that each tensor is where the index has it.
    fn add_shards(&mut self, index: &Path) -> Result<(), Error> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let wrong = |field: String, reason: &str| Error::field(field, reason).in_file(index);
        let parsed: Index = serde_json::from_value(read_json(index)?)
            .map_err(|e| wrong("weight_map".to_owned(), &e.to_string()))?;
        let mut shards = BTreeMap::<&str, Vec<&str>>::new();
        for (name, file) in &parsed.weight_map {
            shards.entry(file).or_default().push(name);
        }
        for (file, names) in shards {
            // A stranger's index may not reach outside its directory.
            let mut parts = Path::new(file).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(wrong(format!("weight_map, file {file:?}"), "is not a plain file name"));
            }
            let path = self.dir.join(file);
            if !path.exists() {
                return Err(wrong(format!("weight_map, file {file:?}"), "is missing; fetch it"));
            }
            let before = self.tensors.list.len();
            self.add(&path, map(&path)?)?;
            let held: HashSet<&str> = self.tensors.list[before..].iter().map(|t| t.name.as_str()).collect();
            if let Some(name) = names.iter().find(|n| !held.contains(**n)) {
                return Err(wrong(format!("weight_map, tensor {name:?}"), &format!("is not in {file:?}")));
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, bytes: Bytes) -> Result<(), Error> {
        match sniff(&bytes) {
            Kind::Safetensors => {}
            Kind::Gguf => {
                return Err(Error::NotAModel(format!("{}: a GGUF file under another name", path.display())));
            }
            Kind::Other(what) => return Err(Error::NotAModel(format!("{}: {what}", path.display()))),
        }
        let parsed = Safetensors::parse(&bytes).map_err(|e| e.in_file(path))?;
        for t in parsed.tensors {
            let data = bytes.slice(t.range);
            self.tensors.push(path, Tensor { name: t.name, dtype: t.dtype, shape: t.shape, data })?;
        }
        self.tensors.file_bytes += bytes.len() as u64;
        self.paths.push(path.to_owned());
        Ok(())
    }
}
