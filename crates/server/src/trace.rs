//! The W3C's trace context (<https://www.w3.org/TR/trace-context/>): which larger story a request is a part of.

use std::fmt;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::ids;

/// The header that names the caller's span.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What other systems keep with it.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The longest state that is carried.
const STATE_MAX: usize = 512;

/// A request's place in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) trace: u128,
    /// The request's own span.
    pub(crate) span: u64,
    /// The caller's.
    pub(crate) parent: Option<u64>,
    /// Whether the caller wants it recorded.
    pub(crate) sampled: bool,
    pub(crate) state: Option<String>,
}

impl Context {
    /// The one that a request brings, with a new span in it; one that is malformed counts as none.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Context> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let (Some(one), None) = (all.next(), all.next()) else { return None };
        let (trace, parent, sampled) = parse(one.to_str().ok()?)?;
        let state = headers.get(TRACESTATE).and_then(|v| v.to_str().ok());
        let state = state.filter(|s| !s.is_empty() && s.len() <= STATE_MAX).map(str::to_owned);
        Some(Context { trace, span: new_span(), parent: Some(parent), sampled, state })
    }

    /// One that begins here.
    pub(crate) fn new() -> Context {
        let trace = u128::from(new_span()) << 64 | u128::from(new_span());
        Context { trace, span: new_span(), parent: None, sampled: true, state: None }
    }

    /// The value of the header.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.to_string()).ok()
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// A span's name: never zero, which means none.
pub(crate) fn new_span() -> u64 {
    ids::random().max(1)
}

/// Trace, parent and flag. Versions to come may have more parts behind these.
fn parse(text: &str) -> Option<(u128, u64, bool)> {
    let hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let good = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    if !good || version == "00" && parts.next().is_some() {
        return None;
    }
    let (trace, parent) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(parent, 16).ok()?);
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (trace != 0 && parent != 0).then_some((trace, parent, flags & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_standard_allows_is_a_context() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let good = format!("00-{trace}-{parent}-01");
        assert_eq!(
            parse(&good),
            Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7, true))
        );
        assert_eq!(parse(&format!("00-{trace}-{parent}-00")).map(|p| p.2), Some(false));
        assert!(parse(&format!("cc-{trace}-{parent}-01-more")).is_some());
        let zero = "0".repeat(32);
        for bad in [
            format!("{good}-more"),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{zero}-{parent}-01"),
            format!("00-{trace}-{}-01", &zero[..16]),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{trace}-{parent}"),
            format!("00-{trace}x-{parent}-01"),
            String::new(),
        ] {
            assert_eq!(parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_context_goes_on_with_a_span_of_its_own() {
        let mut headers = HeaderMap::new();
        assert_eq!(Context::of(&headers), None);
        let value = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        headers.insert(TRACEPARENT, HeaderValue::from_static(value));
        headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        let context = Context::of(&headers).unwrap();
        assert_eq!((context.parent, context.state.as_deref()), (Some(0x00f0_67aa_0ba9_02b7), Some("a=b")));
        assert!(!context.sampled && context.to_string() != value);
        assert_eq!(context.to_string()[..36], value[..36]);
        headers.append(TRACEPARENT, HeaderValue::from_static(value));
        assert_eq!(Context::of(&headers), None);
        assert_ne!(Context::new().trace, Context::new().trace);
    }
}
