//! Whole-system tests of Velo.
