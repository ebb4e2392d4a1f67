//! The formats from outside: golden files, round trips, and input that somebody has bent.

mod golden;
mod outboard;
mod pack;
mod sample;
mod tree;
