//! Conformance: every op against the reference, golden models, real models.
