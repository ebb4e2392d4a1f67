//! What differs between processors.

#[cfg(target_arch = "x86_64")]
pub(crate) mod crc32c;
#[cfg(target_arch = "x86_64")]
mod x86_64;
