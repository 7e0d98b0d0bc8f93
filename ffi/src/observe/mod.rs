//! Observation of a run: counters, events for the log, the access log, and the log's queue.

pub mod access;
pub mod events;
pub mod log_limit;
pub mod log_queue;
pub mod refusal;
pub mod silence;
pub mod stats;
