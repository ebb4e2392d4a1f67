//! The data plane: workers that move bytes, verifiers that check them, the engine that decides which, and the local
//! socket through which other programs ask for them.
#![forbid(unsafe_code)]

mod carrier;
pub mod engine;
mod error;
mod fabrics;
pub mod identity;
mod join;
pub mod local;
mod logging;
mod metrics;
mod numbers;
mod ready;
mod run;
mod serve;
pub mod session;
mod target;
mod topology;
mod verify;
mod worker;

pub use error::store_error;
pub use fabrics::FabricChoice;
pub use join::{JoinError, join};
pub use run::run;
