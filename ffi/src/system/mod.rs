//! The operating system apart from the network: files, host names, the service manager, signals, locks.

pub mod fdstore;
pub mod files;
pub mod journal;
pub mod memory;
pub mod notify;
pub mod presence;
pub mod probe;
pub mod resolve;
pub mod spawner;
pub mod sync;
pub mod usage;
pub mod usr1;
pub mod watch;
