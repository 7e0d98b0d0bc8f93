//! The operating system beside the network: files, the service manager, signals.

pub mod files;
pub mod notify;
pub mod probe;
pub mod usr1;
