//! Sequences, KV blocks, scheduling, sampling: token ids in, token ids out.
