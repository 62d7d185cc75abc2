# The work of a round for llama.cpp, through llama-cpp-python's low-level interface. Without an argument it says which
# version there is; with a job (JSON) it prints the seconds of each case. A case is [sequences or tokens, depth, steps].
import ctypes, json, os, sys, threading, time

try:
    import llama_cpp as ll
except ImportError as error:
    sys.exit(f"the module llama_cpp is missing there ({error})")


def end_with_parent():
    os.read(0, 1)  # nothing is ever written there
    os._exit(1)


threading.Thread(target=end_with_parent, daemon=True).start()
quiet = ll.llama_log_callback(lambda level, text, data: None)
ll.llama_log_set(quiet, ctypes.c_void_p(0))
ll.llama_backend_init()
if len(sys.argv) < 2:
    info = ll.llama_print_system_info().decode(errors="replace").strip()
    print(json.dumps({"version": ll.__version__, "system": info}), flush=True)
    sys.exit(0)

STEP = 512
job = json.loads(sys.argv[1])
options = ll.llama_model_default_params()
options.n_gpu_layers = 0
model = ll.llama_model_load_from_file(job["model"].encode(), options)
if not model:
    sys.exit(f"llama.cpp cannot load {job['model']}")
vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
batch = ll.llama_batch_init(max([STEP] + [case[0] for case in job["cases"]]), 0, 1)


def token(i):
    return (i * 7919 + 17) % vocabulary


def new_context(sequences, tokens):
    """A context with room for so many sequences of so many tokens each."""
    options = ll.llama_context_default_params()
    options.n_ctx = sequences * max(256, -(-tokens // 256) * 256)
    options.n_batch = options.n_ubatch = STEP
    options.n_seq_max = sequences
    options.n_threads = options.n_threads_batch = job["threads"]
    options.no_perf = True
    context = ll.llama_init_from_model(model, options)
    if not context:
        sys.exit(f"llama.cpp refuses a context of {sequences} sequences of {tokens} tokens")
    return context


def step(context, rows):
    """Decodes rows of (token, position, sequence, whether its logits are wanted)."""
    batch.n_tokens = len(rows)
    for i, (tok, position, sequence, logits) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = tok, position, 1, logits
        batch.seq_id[i][0] = sequence
    if ll.llama_decode(context, batch) != 0:
        sys.exit("llama.cpp cannot decode a batch of this work")
    ll.llama_synchronize(context)


def prompt(context, tokens):
    for at in range(0, tokens, STEP):
        end = min(at + STEP, tokens)
        step(context, [(token(i), i, 0, i == tokens - 1) for i in range(at, end)])


def decode(context, sequences, depth, steps):
    for i in range(steps):
        step(context, [(token(s + i), depth + i, s, True) for s in range(sequences)])


def fill(context, depth):
    """Brings a prompt of this depth into the cache, from the file of an earlier round if there is one."""
    path = os.path.join(job["states"], str(depth)).encode()
    ids, count = (ll.llama_token * 1)(), ctypes.c_size_t(0)
    if os.path.exists(path) and ll.llama_state_seq_load_file(context, path, 0, ids, 0, ctypes.byref(count)) > 0:
        return
    prompt(context, depth)
    ll.llama_state_seq_save_file(context, path, 0, ids, 0)


def run(kind, first, depth, steps):
    """Seconds of one case, after a shorter one that warms the context."""
    if kind == "prompt":
        context = new_context(1, first)
        work = lambda: prompt(context, first)
        work()
    else:
        context = new_context(first, depth + steps)
        work = lambda: decode(context, first, depth, steps)
        decode(context, first, 0, 2)
    ll.llama_memory_clear(ll.llama_get_memory(context), False)
    if depth:
        fill(context, depth)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    ll.llama_free(context)
    return seconds


seconds = [run(kind, *case) for kind, case in zip(job["kinds"], job["cases"])]
print(json.dumps({"turn": {"seconds": seconds}}), flush=True)
