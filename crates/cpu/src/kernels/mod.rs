//! The float kernels, a file per family of ops, written once on 16 lanes.
//!
//! Every result depends on its own row alone, in an order that the shape fixes: not on other rows, threads or chunks.

pub(crate) mod attention;
mod attention_codes;
pub(crate) mod bias;
pub(crate) mod combine;
pub(crate) mod elementwise;
pub(crate) mod embed;
pub(crate) mod norm;
pub(crate) mod observe;
pub(crate) mod recurrent;
pub(crate) mod rope;
pub(crate) mod short_conv;
pub(crate) mod top_k;
