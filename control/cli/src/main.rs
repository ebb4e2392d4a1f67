//! The command line of Velo.
fn main() {}
