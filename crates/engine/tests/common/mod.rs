//! A tiny random decoder made in memory, on the reference device, and a wrapper that makes the device misbehave.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use quarrel_engine::{
    Engine, EngineConfig, Event, Evicted, FinishReason, Handle, Request, RequestStats, Stream,
};
use quarrel_formats::{Bytes, DType, Tensor};
use quarrel_ir::reference::Reference;
use quarrel_ir::{
    Adapter, AdapterPart, Device, DeviceInfo, HostWeight, Keep, Limits, Mass, Prepared, Program, Readout,
    Result, RopeStyle, StepInputs, Weight, WeightDecl,
};
use quarrel_model::hybrid::{Mamba2, Mixer};
use quarrel_model::rope::Rotary;
use quarrel_model::{LayerSpec, ModelSpec, arch, decoder};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

pub const VOCAB: u32 = 61;

pub fn spec() -> ModelSpec {
    ModelSpec {
        vocab: VOCAB,
        dim: 12,
        heads: 2,
        kv_heads: 1,
        head_dim: 6,
        v_dim: 6,
        ff: 20,
        context: 256,
        eps: 1e-5,
        attn_scale: 6f32.powf(-0.5),
        ropes: vec![Rotary::plain(RopeStyle::Neox, 6, 10_000.0)],
        // The second layer has a window that ends inside a block.
        layers: vec![
            LayerSpec { window: None, rope: Some(0) },
            LayerSpec { window: Some(21), rope: Some(0) },
        ],
        ..ModelSpec::new(&arch::LLAMA)
    }
}

pub fn program() -> Program {
    decoder::decoder(&spec(), &decoder::Options::default())
}

/// A model of which two layers in three have states.
pub fn hybrid() -> Program {
    let mamba = Mamba2 { heads: 3, head_dim: 4, state_dim: 5, taps: 4, conv_bias: true, bias: false };
    let layer = LayerSpec { window: None, rope: Some(0) };
    let spec = ModelSpec {
        layers: vec![layer; 3],
        mixers: vec![Mixer::Mamba2(mamba), Mixer::Attention, Mixer::Mamba2(mamba)],
        ..spec()
    };
    decoder::decoder(&spec, &decoder::Options::default())
}

/// Uniform in -1..1 from the name and the index, by an integer hash.
pub fn element(name: &str, i: usize) -> f32 {
    let mut h =
        name.bytes().fold(i as u64 + 1, |h, b| (h ^ u64::from(b)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    h = (h ^ (h >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((h >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

/// Loads the random weights; with `nan`, one element of the output head is not a number.
pub fn load(device: &mut dyn Device, program: &Program, nan: bool) -> Vec<Weight> {
    load_with(device, program, nan, "")
}

/// Loads the random weights of another model; those of salt 0 are the usual ones.
pub fn load_salted(device: &mut dyn Device, program: &Program, salt: u32) -> Vec<Weight> {
    load_with(device, program, false, &if salt == 0 { String::new() } else { salt.to_string() })
}

fn load_with(device: &mut dyn Device, program: &Program, nan: bool, salt: &str) -> Vec<Weight> {
    let load = |decl: &WeightDecl| {
        let parts = decl
            .parts
            .iter()
            .map(|part| {
                let n = (part.rows * decl.cols) as usize;
                let mut values: Vec<f32> =
                    (0..n).map(|i| 1.3 * element(&format!("{}{salt}", part.name), i)).collect();
                // States fade.
                if part.name.contains("ssm_a") {
                    values.iter_mut().for_each(|v| *v = -v.abs());
                }
                if nan && part.name == "output.weight" {
                    values[17] = f32::NAN;
                }
                Tensor {
                    name: part.name.clone(),
                    dtype: DType::F32,
                    shape: vec![part.rows as usize, decl.cols as usize],
                    data: Bytes::from(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
                }
            })
            .collect();
        device.load(decl, HostWeight { parts }).unwrap()
    };
    program.weights.iter().map(load).collect()
}

pub fn start(config: EngineConfig) -> Handle {
    start_on(Reference::default(), config)
}

pub fn start_on(device: impl Device + 'static, config: EngineConfig) -> Handle {
    start_program(device, program(), config)
}

pub fn start_program(mut device: impl Device + 'static, program: Program, config: EngineConfig) -> Handle {
    let weights = load(&mut device, &program, false);
    Engine::start(Box::new(device), program, &weights, config).unwrap()
}

/// A prompt that depends on `salt`.
pub fn prompt(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i + 7 * i + salt * 13 + i * salt) % VOCAB).collect()
}

/// The tokens, the end and the figures of an answer.
#[derive(Debug)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub evictions: Vec<Evicted>,
    pub reason: FinishReason,
    pub stats: RequestStats,
}

pub fn collect(stream: Stream) -> std::result::Result<Answer, quarrel_engine::Error> {
    let (mut tokens, mut logprobs, mut evictions) = (Vec::new(), Vec::new(), Vec::new());
    for event in stream {
        match event {
            Event::Prefill { done, total } => assert!(done <= total),
            Event::Token { id, logprob, .. } => {
                tokens.push(id);
                logprobs.extend(logprob);
            }
            Event::Done { reason, stats } => {
                assert_eq!(stats.completion_tokens, tokens.len());
                return Ok(Answer { tokens, logprobs, evictions, reason, stats });
            }
            Event::Finished { .. } => {}
            Event::Evicted { evicted, .. } => evictions.push(evicted),
            Event::Failed(error) => return Err(error),
        }
    }
    panic!("the stream ended without Done or Failed")
}

pub fn run(handle: &Handle, request: Request) -> Answer {
    collect(handle.submit(request).unwrap()).unwrap()
}

type During = Box<dyn FnMut(&StepInputs) -> Result<()> + Send>;

/// The reference device, with a function called before each step, and one that sees it.
pub struct Hooked<F> {
    inner: Reference,
    step: u64,
    before: F,
    during: Option<During>,
}

impl<F: FnMut(u64) -> Result<()> + Send> Hooked<F> {
    pub fn new(before: F) -> Hooked<F> {
        Hooked { inner: Reference::default(), step: 0, before, during: None }
    }

    pub fn stopping(self, during: impl FnMut(&StepInputs) -> Result<()> + Send + 'static) -> Hooked<F> {
        Hooked { during: Some(Box::new(during)), ..self }
    }
}

impl<F: FnMut(u64) -> Result<()> + Send> Device for Hooked<F> {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn load(&mut self, decl: &WeightDecl, weight: HostWeight) -> Result<Weight> {
        self.inner.load(decl, weight)
    }

    fn prepare(&mut self, program: Program, weights: &[Weight], limits: Limits) -> Result<Prepared> {
        self.inner.prepare(program, weights, limits)
    }

    fn run(&mut self, prepared: Prepared, step: &StepInputs) -> Result<()> {
        self.step += 1;
        (self.before)(self.step)?;
        if let Some(during) = &mut self.during {
            during(step)?;
        }
        self.inner.run(prepared, step)
    }

    fn read(&mut self, prepared: Prepared, what: Readout, out: &mut [f32]) -> Result<()> {
        self.inner.read(prepared, what, out)
    }

    fn copy_blocks(&mut self, prepared: Prepared, pairs: &[(u32, u32)]) -> Result<()> {
        self.inner.copy_blocks(prepared, pairs)
    }

    fn copy_state(&mut self, prepared: Prepared, from: u32, to: u32) -> Result<()> {
        self.inner.copy_state(prepared, from, to)
    }

    fn state_bytes(&self, prepared: Prepared) -> usize {
        self.inner.state_bytes(prepared)
    }

    fn drop_state(&mut self, prepared: Prepared, state: u32) -> Result<()> {
        self.inner.drop_state(prepared, state)
    }

    fn compact(
        &mut self,
        prepared: Prepared,
        from: &[u32],
        tokens: usize,
        to: &[u32],
        keep: &Keep,
    ) -> Result<()> {
        self.inner.compact(prepared, from, tokens, to, keep)
    }

    fn take_mass(&mut self, prepared: Prepared, slot: u32) -> Result<Mass> {
        self.inner.take_mass(prepared, slot)
    }

    fn load_adapter(&mut self, prepared: Prepared, parts: &[AdapterPart]) -> Result<Adapter> {
        self.inner.load_adapter(prepared, parts)
    }

    fn unload_adapter(&mut self, prepared: Prepared, adapter: Adapter) -> Result<()> {
        self.inner.unload_adapter(prepared, adapter)
    }

    fn block_bytes(&self, prepared: Prepared) -> usize {
        self.inner.block_bytes(prepared)
    }

    fn save_block(&mut self, prepared: Prepared, block: u32, out: &mut [u8]) -> Result<()> {
        self.inner.save_block(prepared, block, out)
    }

    fn load_block(&mut self, prepared: Prepared, block: u32, data: &[u8]) -> Result<()> {
        self.inner.load_block(prepared, block, data)
    }

    fn memory(&self) -> usize {
        self.inner.memory()
    }
}

/// Lets a device make only the steps that a test allows, so that what must meet does meet on any machine.
/// Dropped, it is open.
pub struct Gate(Arc<(Mutex<Allowed>, Condvar)>);

#[derive(Default)]
struct Allowed {
    steps: u64,
    open: bool,
    /// The device waits for more.
    waits: bool,
}

impl Gate {
    /// A closed gate, and what stands before it until the next step is allowed.
    pub fn new() -> (Gate, impl FnMut() + Send + 'static) {
        let gate = Arc::new((Mutex::new(Allowed::default()), Condvar::new()));
        let inner = gate.clone();
        let pass = move || {
            let mut allowed = inner.0.lock().unwrap();
            while !allowed.open && allowed.steps == 0 {
                allowed.waits = true;
                inner.1.notify_all();
                allowed = inner.1.wait(allowed).unwrap();
            }
            allowed.waits = false;
            allowed.steps = allowed.steps.saturating_sub(1);
        };
        (Gate(gate), pass)
    }

    /// Allows this many steps more.
    pub fn allow(&self, steps: u64) {
        self.0.0.lock().unwrap().steps += steps;
        self.0.1.notify_all();
    }

    /// Allows any number of steps.
    pub fn open(&self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).open = true;
        self.0.1.notify_all();
    }

    /// Holds the next step back.
    pub fn close(&self) {
        *self.0.0.lock().unwrap() = Allowed::default();
    }

    /// Waits until the device has made all that it may and stands before another step.
    pub fn wait(&self) {
        let allowed = self.0.0.lock().unwrap();
        let limit = Duration::from_secs(60);
        let (allowed, _) = self.0.1.wait_timeout_while(allowed, limit, |a| a.steps > 0 || !a.waits).unwrap();
        assert!(allowed.waits, "the engine makes no step");
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

/// An engine whose steps are counted out by a gate.
pub fn gated(config: EngineConfig) -> (Handle, Gate) {
    gated_program(program(), config)
}

/// The same of any program.
pub fn gated_program(program: Program, config: EngineConfig) -> (Handle, Gate) {
    let (gate, mut pass) = Gate::new();
    let device = Hooked::new(move |_| {
        pass();
        Ok(())
    });
    (start_program(device, program, config), gate)
}
