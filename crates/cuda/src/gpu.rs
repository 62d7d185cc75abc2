//! The driver behind a safe face: one GPU with one stream, memory that frees itself, kernels by name, graphs, events.
//!
//! The driver's library is opened when the first GPU is asked for, so a machine without one gets a sentence and not a crash.

use crate::args::{Args, Ptr};
use crate::kernels;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use quarrel_ir::{Error, Result};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

/// What a GPU can do, for the choice of kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// The card's own name.
    pub name: String,
    /// Compute capability, 90 for 9.0.
    pub sm: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block may ask for.
    pub shared_max: u32,
    /// Bytes of second-level cache.
    pub l2: u32,
    /// Bytes of memory.
    pub memory: usize,
}

/// One GPU. Work is queued on one stream, so it runs in the order it was queued.
pub(crate) struct Gpu {
    ordinal: usize,
    context: sys::CUcontext,
    stream: sys::CUstream,
    pub(crate) caps: Caps,
    kernels: Arc<Mutex<Kernels>>,
}

/// What was loaded of one GPU; devices on it share its context, and so its kernels.
#[derive(Default)]
struct Kernels {
    modules: Vec<(&'static str, sys::CUmodule)>,
    functions: HashMap<&'static str, Function>,
}

// SAFETY: driver handles are addresses of objects that any thread may use; the context they belong to is never released.
unsafe impl Send for Kernels {}

/// The kernels of each GPU, by ordinal.
static LOADED: Mutex<Vec<(usize, Arc<Mutex<Kernels>>)>> = Mutex::new(Vec::new());

fn loaded(ordinal: usize) -> Arc<Mutex<Kernels>> {
    let mut all = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, kernels)) = all.iter().find(|k| k.0 == ordinal) {
        return kernels.clone();
    }
    let kernels = Arc::default();
    all.push((ordinal, Arc::clone(&kernels)));
    kernels
}

/// A kernel and the dynamic shared memory it may use so far.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared: u32,
    /// Whether it waits by itself for the kernels before it.
    dependent: bool,
}

// SAFETY: driver handles are addresses of objects that any thread may use; the driver locks what must be.
unsafe impl Send for Gpu {}
// SAFETY: as above; what changes on our side is behind a mutex.
unsafe impl Sync for Gpu {}

/// How many GPUs the driver sees.
pub(crate) fn count() -> std::result::Result<usize, String> {
    // SAFETY: opening a library by the driver's own name runs its initialisation, which is what we ask for.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver (libcuda) was found on this machine".into());
    }
    let said = |e: DriverError| format!("the NVIDIA driver does not start: {}", explain(e));
    result::init().map_err(said)?;
    result::device::get_count().map(|n| n.max(0) as usize).map_err(said)
}

/// The driver's words for an error.
fn explain(e: DriverError) -> String {
    let text = |s: std::result::Result<&std::ffi::CStr, DriverError>| {
        s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_else(|_| "unknown error".into())
    };
    format!("{} ({})", text(e.error_string()), text(e.error_name()))
}

impl Gpu {
    /// Opens GPU `ordinal`.
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Gpu>> {
        let fail = |why: String| Error::Device { device: format!("cuda:{ordinal}"), why };
        let count = count().map_err(fail)?;
        if ordinal >= count {
            return Err(fail(match count {
                0 => "the NVIDIA driver finds no GPU".into(),
                n => format!("there is no such GPU; the driver finds {n}, numbered from 0"),
            }));
        }
        let open = || -> std::result::Result<Gpu, DriverError> {
            let device = result::device::get(ordinal as i32)?;
            let attribute = |a: sys::CUdevice_attribute| {
                // SAFETY: `device` came from the driver.
                unsafe { result::device::get_attribute(device, a) }.map(|v| v.max(0) as u32)
            };
            use sys::CUdevice_attribute as A;
            let sm = 10 * attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
                + attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let caps = Caps {
                name: result::device::get_name(device)?,
                sm,
                multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                shared_max: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
                l2: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
                // SAFETY: `device` came from the driver.
                memory: unsafe { result::device::total_mem(device)? },
            };
            // SAFETY: `device` came from the driver; the context is never released, so it stays until the process ends.
            let context = unsafe { result::primary_ctx::retain(device)? };
            // SAFETY: just retained.
            unsafe { result::ctx::set_current(context)? };
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            Ok(Gpu { ordinal, context, stream, caps, kernels: loaded(ordinal) })
        };
        let gpu = open().map_err(|e| fail(explain(e)))?;
        if gpu.caps.sm < 80 {
            let (name, sm) = (&gpu.caps.name, gpu.caps.sm);
            let why = format!(
                "{name} has compute capability {}.{}; 8.0 (Ampere) or later is needed",
                sm / 10,
                sm % 10
            );
            return Err(fail(why));
        }
        Ok(Arc::new(gpu))
    }

    /// `cuda:0`.
    pub(crate) fn name(&self) -> String {
        format!("cuda:{}", self.ordinal)
    }

    /// An error of this device.
    pub(crate) fn error(&self, why: String) -> Error {
        Error::Device { device: self.name(), why }
    }

    fn check<T>(&self, what: &str, r: std::result::Result<T, DriverError>) -> Result<T> {
        r.map_err(|e| self.error(format!("{what}: {}", explain(e))))
    }

    /// Makes this GPU the calling thread's; every entry from outside begins with it.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as the process.
        self.check("cannot use the GPU", unsafe { result::ctx::set_current(self.context) })
    }

    /// Free and total bytes.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        self.check("cannot ask for free memory", result::mem_get_info())
    }

    /// Memory of the GPU; contents undefined.
    pub(crate) fn alloc(self: &Arc<Gpu>, bytes: usize, what: &str) -> Result<Buffer> {
        // SAFETY: the context is current; a fresh allocation.
        let got = unsafe { result::malloc_sync(bytes.max(256)) };
        let ptr = got.map_err(|e| {
            let (free, total) = self.memory().unwrap_or((0, self.caps.memory));
            let mb = |b: usize| b as f64 / 1e6;
            self.error(format!(
                "{what} needs {:.0} MB, and {:.0} of {:.0} MB are free: {}; choose a shorter context, fewer sequences or a smaller model",
                mb(bytes), mb(free), mb(total), explain(e)
            ))
        })?;
        Ok(Buffer { gpu: self.clone(), ptr, bytes })
    }

    /// The same, zeroed.
    pub(crate) fn zeroed(self: &Arc<Gpu>, bytes: usize, what: &str) -> Result<Buffer> {
        let buffer = self.alloc(bytes, what)?;
        self.fill(buffer.ptr, 0, bytes.max(256))?;
        Ok(buffer)
    }

    /// Host memory that the GPU reads and writes directly.
    pub(crate) fn pinned(self: &Arc<Gpu>, bytes: usize) -> Result<Pinned> {
        // SAFETY: a fresh allocation.
        let got = unsafe { result::malloc_host(bytes.max(64), 0) };
        let ptr = self.check("cannot lock host memory", got)?;
        Ok(Pinned { gpu: self.clone(), ptr: ptr.cast(), bytes })
    }

    /// Queues the filling of `bytes` bytes with `value`.
    pub(crate) fn fill(&self, at: Ptr, value: u8, bytes: usize) -> Result<()> {
        // SAFETY: callers pass ranges of their own buffers.
        self.check("memset", unsafe { result::memset_d8_async(at, value, bytes, self.stream) })
    }

    /// Queues a copy to the GPU. `from` must stay as it is until the stream has passed the copy, unless it is ordinary memory
    /// (then the driver has taken the bytes when this returns).
    pub(crate) fn upload(&self, to: Ptr, from: &[u8]) -> Result<()> {
        // SAFETY: callers pass ranges of their own buffers; see above for `from`.
        self.check("copy to the GPU", unsafe { result::memcpy_htod_async(to, from, self.stream) })
    }

    /// Queues a copy from the GPU into pinned memory; read it after [`Gpu::wait`].
    pub(crate) fn download(&self, to: &mut Pinned, from: Ptr, bytes: usize) -> Result<()> {
        assert!(bytes <= to.bytes, "a download of {bytes} bytes into {}", to.bytes);
        // SAFETY: `to` holds so many bytes, and `&mut` keeps others off until the copy was queued; readers wait.
        let to = unsafe { std::slice::from_raw_parts_mut(to.ptr, bytes) };
        // SAFETY: callers pass ranges of their own buffers.
        self.check("copy from the GPU", unsafe { result::memcpy_dtoh_async(to, from, self.stream) })
    }

    /// Copies from the GPU and waits.
    pub(crate) fn read(&self, to: &mut [u8], from: Ptr) -> Result<()> {
        // SAFETY: `from` is a range of the caller's buffer; the wait ends the borrow of `to`.
        self.check("copy from the GPU", unsafe { result::memcpy_dtoh_async(to, from, self.stream) })?;
        self.wait()
    }

    /// Waits until all that was queued is done.
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: our stream.
        self.check("a kernel failed", unsafe { result::stream::synchronize(self.stream) })
    }

    /// Queues a kernel.
    pub(crate) fn launch<A: Args>(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: &A,
    ) -> Result<()> {
        self.launch_cluster(kernel, grid, block, shared, 1, args)
    }

    /// Queues a kernel of which so many neighbouring blocks work together.
    pub(crate) fn launch_cluster<A: Args>(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        cluster: u32,
        args: &A,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let Function { handle, dependent, .. } = self.function(kernel, shared)?;
        use sys::CUlaunchAttributeID as Id;
        use sys::CUlaunchAttributeValue as Value;
        let attribute = |id, value| sys::CUlaunchAttribute_st { id, pad: [0; 4], value };
        // SAFETY: plain numbers, for which zeros are a value.
        let mut dim = unsafe { std::mem::zeroed::<Value>() };
        dim.clusterDim.x = cluster;
        dim.clusterDim.y = 1;
        dim.clusterDim.z = 1;
        let mut attributes = [attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, dim); 2];
        let mut n = usize::from(cluster > 1);
        // Only the machine code for Hopper waits.
        if dependent && self.caps.sm == 90 {
            let early = Value { programmaticStreamSerializationAllowed: 1 };
            attributes[n] = attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, early);
            n += 1;
        }
        let config = sys::CUlaunchConfig_st {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: n as u32,
        };
        let mut params = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one struct by value with this layout (args.rs mirrors the sources); the driver copies it
        // before it returns. The addresses in it are of buffers that the caller keeps until the stream has passed.
        let done = unsafe {
            sys::cuLaunchKernelEx(&config, handle, params.as_mut_ptr(), std::ptr::null_mut()).result()
        };
        self.check(kernel, done)
    }

    /// The kernel of this name, allowed `shared` bytes of dynamic shared memory.
    fn function(&self, name: &'static str, shared: u32) -> Result<Function> {
        let mut all = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.functions.contains_key(name) {
            let (handle, file) = self.find(&mut all, name)?;
            let dependent = kernels::DEPENDENT.contains(&file);
            // Up to 48 KB need no permission, but a kernel's static shared memory counts too.
            all.functions.insert(name, Function { handle, shared: 8 << 10, dependent });
        }
        let function = all.functions.get_mut(name).expect("just inserted");
        if shared > function.shared {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
            // SAFETY: a function of a loaded module.
            let set =
                unsafe { result::function::set_function_attribute(function.handle, MOST, shared as i32) };
            self.check(name, set)?;
            function.shared = shared;
        }
        Ok(*function)
    }

    fn find(&self, all: &mut Kernels, name: &'static str) -> Result<(sys::CUfunction, &'static str)> {
        let symbol = CString::new(name).expect("names of kernels have no NUL");
        for (file, image) in kernels::IMAGES {
            let module = match all.modules.iter().find(|m| m.0 == *file) {
                Some(m) => m.1,
                None => {
                    // SAFETY: a fat binary made by nvcc, aligned and whole.
                    let loaded = unsafe { result::module::load_data(image.as_ptr().cast()) };
                    let module = self.check(&format!("cannot load the kernels of {file}"), loaded)?;
                    all.modules.push((file, module));
                    module
                }
            };
            // SAFETY: a loaded module.
            if let Ok(function) = unsafe { result::module::get_function(module, symbol.clone()) } {
                return Ok((function, file));
            }
        }
        Err(self.error(format!("there is no kernel {name}; this is a bug, please report it")))
    }

    /// Records what `queue` queues, without running it.
    pub(crate) fn capture(self: &Arc<Gpu>, queue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: our stream, on this thread.
        self.check("cannot record a graph", unsafe { result::stream::begin_capture(self.stream, mode) })?;
        let queued = queue();
        // SAFETY: capture began above.
        let graph = self.check("cannot record a graph", unsafe { result::stream::end_capture(self.stream) });
        queued?;
        let graph = graph?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: a graph just recorded; the driver writes the handle.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result() };
        // SAFETY: the executable form does not need the graph any more.
        let _ = unsafe { result::graph::destroy(graph) };
        self.check("cannot build a graph", made)?;
        Ok(Graph { gpu: self.clone(), exec })
    }

    /// Queues a recorded graph.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: an executable graph of this GPU; its buffers are kept by whoever keeps the graph.
        self.check("cannot run a graph", unsafe { result::graph::launch(graph.exec, self.stream) })
    }

    /// A mark in the stream; with `timed` the time between two can be read.
    pub(crate) fn event(self: &Arc<Gpu>, timed: bool) -> Result<Event> {
        use sys::CUevent_flags_enum as F;
        let flags = if timed { F::CU_EVENT_DEFAULT } else { F::CU_EVENT_DISABLE_TIMING };
        let event = self.check("cannot make an event", result::event::create(flags))?;
        Ok(Event { gpu: self.clone(), event })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed once; what uses it holds the GPU.
        let _ =
            self.bind().and_then(|()| self.wait()).map(|()| unsafe { result::stream::destroy(self.stream) });
    }
}

/// Memory of a GPU.
pub(crate) struct Buffer {
    gpu: Arc<Gpu>,
    pub(crate) ptr: Ptr,
    pub(crate) bytes: usize,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `alloc`, freed once; freeing waits for the work that uses it.
        let _ = self.gpu.bind().map(|()| unsafe { result::free_sync(self.ptr) });
    }
}

/// Locked host memory.
pub(crate) struct Pinned {
    gpu: Arc<Gpu>,
    ptr: *mut u8,
    bytes: usize,
}

// SAFETY: owned memory; the address may be used from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Its bytes; whoever queued copies must have waited for them.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this length. Zeroed or written before it is read by its users.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }

    /// Its bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `pinned`, freed once.
        let _ = self.gpu.bind().map(|()| unsafe { result::free_host(self.ptr.cast()) });
    }
}

/// A recorded sequence of launches.
pub(crate) struct Graph {
    gpu: Arc<Gpu>,
    exec: sys::CUgraphExec,
}

// SAFETY: a driver handle, used under `&mut` of the device.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, destroyed once.
        let _ = self.gpu.bind().map(|()| unsafe { result::graph::exec_destroy(self.exec) });
    }
}

/// A mark in the stream.
pub(crate) struct Event {
    gpu: Arc<Gpu>,
    event: sys::CUevent,
}

// SAFETY: a driver handle, used under `&mut` of the device.
unsafe impl Send for Event {}

impl Event {
    /// Puts it behind all that was queued.
    pub(crate) fn record(&self) -> Result<()> {
        // SAFETY: our event and stream.
        self.gpu
            .check("cannot record an event", unsafe { result::event::record(self.event, self.gpu.stream) })
    }

    /// Waits until the stream has passed it.
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: our event.
        self.gpu.check("a kernel failed", unsafe { result::event::synchronize(self.event) })
    }

    /// Milliseconds from this one to a later one, both passed.
    pub(crate) fn until(&self, later: &Event) -> Result<f32> {
        // SAFETY: both are recorded and timed.
        self.gpu.check("cannot read a time", unsafe { result::event::elapsed(self.event, later.event) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `event`, destroyed once.
        let _ = self.gpu.bind().map(|()| unsafe { result::event::destroy(self.event) });
    }
}
