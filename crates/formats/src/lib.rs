//! Model file formats: GGUF, safetensors, tensor types and quantised blocks.
