//! `Range: bytes=…`: one range, or the last bytes.
//!
//! Source: RFC 9110, section 14. A header that is not understood, or asks for several ranges, is passed over, as the RFC allows.

use std::ops::Range;

/// What a request wants of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Nothing that there is.
    Unsatisfiable,
}

/// Reads the header for a content of `size` bytes.
pub(super) fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let Some(spec) = header.and_then(|value| value.trim().strip_prefix("bytes=")) else {
        return Wanted::Whole;
    };
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // More digits than a number holds is more than any content has.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let range = match (number(first), number(last)) {
        (None, Some(last)) if first.is_empty() => size.saturating_sub(last)..size,
        (Some(first), None) if last.is_empty() => first..size,
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
        _ => return Wanted::Whole,
    };
    if range.start < range.end && range.start < size { Wanted::Part(range) } else { Wanted::Unsatisfiable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_a_suffix_and_nonsense() {
        let of = |header| wanted(Some(header), 100);
        assert_eq!(of("bytes=0-9"), Wanted::Part(0..10));
        assert_eq!(of("bytes=10-"), Wanted::Part(10..100));
        assert_eq!(of("bytes=-10"), Wanted::Part(90..100));
        assert_eq!(of("bytes=-1000"), Wanted::Part(0..100));
        assert_eq!(of("bytes=99-1000"), Wanted::Part(99..100));
        assert_eq!(of("bytes=0-99999999999999999999999"), Wanted::Part(0..100));
        for none in ["bytes=100-", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(of(none), Wanted::Unsatisfiable, "{none}");
        }
        for nonsense in
            ["bytes=9-0", "bytes=0-1,3-4", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "items=0-1", ""]
        {
            assert_eq!(of(nonsense), Wanted::Whole, "{nonsense}");
        }
        assert_eq!(wanted(None, 100), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-0"), 0), Wanted::Unsatisfiable);
    }
}
