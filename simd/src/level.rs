//! Which instructions are used: detected once, and forced by `VELO_SIMD` for tests and comparisons.
//! Model for the idea: BLAKE3's `platform.rs`.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// A set of instructions that a kernel is compiled for. Each needs what those below it need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust: runs everywhere, and is what the others are checked against.
    Scalar,
    /// 16-byte vectors: SSE4.1 (and SSSE3).
    Sse,
    /// 32-byte vectors: AVX2.
    Avx2,
    /// 64-byte vectors: AVX-512 F, BW and VL.
    Avx512,
}

/// Why a level cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LevelError {
    /// No level is called so.
    #[error("VELO_SIMD={0} is no level: use scalar, sse, avx2 or avx512, or leave it unset")]
    Unknown(String),
    /// The processor lacks it.
    #[error(
        "VELO_SIMD={asked} cannot be used: this processor has {best} at most; use that or leave it unset"
    )]
    Lacking {
        /// The level asked for.
        asked: Level,
        /// The highest that the processor has.
        best: Level,
    },
}

impl Level {
    /// All levels, lowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Sse, Self::Avx2, Self::Avx512];

    /// The highest level that this processor has.
    pub fn best() -> Self {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            let sse = is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3");
            let avx2 = sse && is_x86_feature_detected!("avx2");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            match (sse, avx2, avx512) {
                (_, _, true) => Self::Avx512,
                (_, true, _) => Self::Avx2,
                (true, _, _) => Self::Sse,
                _ => Self::Scalar,
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        {
            Self::Scalar
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        self <= Self::best()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Sse => "sse",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

impl FromStr for Level {
    type Err = LevelError;
    fn from_str(text: &str) -> Result<Self, LevelError> {
        let same = |level: &Self| level.to_string().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(same).ok_or_else(|| LevelError::Unknown(text.to_owned()))
    }
}

/// The level that a value of `VELO_SIMD` asks for on a processor that has `best` at most.
fn chosen(variable: Option<&str>, best: Level) -> Result<Level, LevelError> {
    match variable.filter(|text| !text.is_empty()) {
        None => Ok(best),
        Some(text) => {
            let asked: Level = text.parse()?;
            if asked > best { Err(LevelError::Lacking { asked, best }) } else { Ok(asked) }
        }
    }
}

/// The level that this process uses, chosen at the first call: the highest that the processor has, or the one that the
/// environment variable `VELO_SIMD` names. Programs call this at their start, so that a wrong value is an error there.
///
/// # Errors
/// [`LevelError`] where `VELO_SIMD` names no level, or one that the processor lacks.
pub fn level() -> Result<Level, LevelError> {
    static LEVEL: OnceLock<Result<Level, LevelError>> = OnceLock::new();
    LEVEL
        .get_or_init(|| {
            let variable = std::env::var_os("VELO_SIMD");
            let text = variable.as_ref().map(|text| text.to_string_lossy());
            chosen(text.as_deref(), Level::best())
        })
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_can_be_forced_down_but_not_up() {
        assert_eq!(chosen(None, Level::Avx2), Ok(Level::Avx2));
        assert_eq!(chosen(Some(""), Level::Avx2), Ok(Level::Avx2));
        assert_eq!(chosen(Some("SSE"), Level::Avx2), Ok(Level::Sse));
        assert_eq!(chosen(Some("scalar"), Level::Scalar), Ok(Level::Scalar));
        let lacking = chosen(Some("avx512"), Level::Avx2).expect_err("it is not there");
        assert_eq!(
            lacking.to_string(),
            "VELO_SIMD=avx512 cannot be used: this processor has avx2 at most; use that or leave it unset"
        );
        let unknown = chosen(Some("mmx"), Level::Avx2).expect_err("no such level");
        assert!(unknown.to_string().contains("scalar, sse, avx2 or avx512"), "{unknown}");
    }

    #[test]
    fn names_round_trip() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!(Level::best().is_available() && Level::Scalar.is_available());
    }
}
