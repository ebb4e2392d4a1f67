//! The packet protocol in the simulated network: whatever the network does, a transfer ends with the right bytes or a typed error.
//!
//! Every run follows from its seed. `VELO_SEED=N` with `VELO_LOSS=0.01` runs one of [`rows`] alone and prints what came of it;
//! `VELO_FULL=1` runs a thousand for each share of loss instead of a few, `VELO_SEEDS=N` runs N.

mod changes;
mod curve;
mod operations;
mod rows;
mod sharing;
mod shelves;
