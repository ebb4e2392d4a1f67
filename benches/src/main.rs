//! Measures Velo.
fn main() {}
