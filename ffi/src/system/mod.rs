//! The operating system beside the network: files, the service manager, signals, locks.

pub mod files;
pub mod notify;
pub mod probe;
pub mod sync;
pub mod usr1;
