//! How a long transfer tells its caller where it is. The library draws nothing itself.

/// Receives the steps of a transfer. Calls come from the thread that called into the hub.
pub trait Progress {
    /// A transfer of `what` begins (or begins again from zero). `total` is its size in bytes when known.
    fn start(&mut self, total: Option<u64>, what: &str);
    /// `bytes` more are done; bytes found from an interrupted transfer are counted too, right after `start`.
    fn advance(&mut self, bytes: u64);
    /// The transfer begun last has ended, well or not.
    fn finish(&mut self);
    /// Something worth one line to a person: a source that failed, a wait for another process.
    fn note(&mut self, line: &str) {
        let _ = line;
    }
}

/// Says nothing.
impl Progress for () {
    fn start(&mut self, _total: Option<u64>, _what: &str) {}
    fn advance(&mut self, _bytes: u64) {}
    fn finish(&mut self) {}
}
