//! Open files.
#[derive(Debug)]
pub(crate) struct OpenFile {}
