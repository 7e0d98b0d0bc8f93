//! The proxy: its configuration and workers as the handles of the boundary, and its sandbox.

pub mod sandbox;
pub mod service;
