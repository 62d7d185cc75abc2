//! The Program tape: a model as straight-line operations over matrices, with its reference interpreter.
