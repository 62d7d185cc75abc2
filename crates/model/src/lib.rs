//! Architectures as data, and the one forward pass that builds a Program from them.
