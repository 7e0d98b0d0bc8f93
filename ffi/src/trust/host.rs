//! This host's addresses, kept current by a thread to which the kernel reports each change.
//!
//! Workers compare a version number once per turn, and take the lock only if it differs.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::addresses::{Addresses, Nature};
use crate::net::socket;
use crate::netlink::{local, Changes};
use crate::system::sync::lock;

/// A change is seen at once; those that follow it within this time are read together.
const PAUSE: Duration = Duration::from_millis(50);
/// How long until a kernel that did not answer is asked again.
const RETRY: Duration = Duration::from_secs(30);

/// What is known of this host's addresses.
#[derive(Debug)]
pub enum Known {
    Listed(Addresses),
    /// The kernel does not list them, for this errno (a sandbox without netlink), or they are too many
    /// (E2BIG): it is asked about one address at a time.
    Unlisted(i32),
}

impl Known {
    /// Asks the kernel for its lists.
    pub fn read() -> Known {
        fn addresses() -> io::Result<Addresses> {
            let found = local::read()?;
            let too_many = || io::Error::from_raw_os_error(libc::E2BIG);
            Addresses::new(&found).filter(|_| !found.too_many).ok_or_else(too_many)
        }
        addresses().map_or_else(|error| Known::unlisted(&error), Known::Listed)
    }

    fn unlisted(error: &io::Error) -> Known {
        Known::Unlisted(error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// What an address is to this host. Unlisted ones cost two system calls, and a broadcast address
    /// counts as an own one.
    pub fn nature_of(&self, ip: IpAddr) -> Nature {
        match self {
            Known::Listed(addresses) => addresses.nature_of(ip),
            Known::Unlisted(_) if socket::is_own(ip) => Nature::Own,
            Known::Unlisted(_) => Nature::Foreign,
        }
    }

    fn is_same(&self, other: &Known) -> bool {
        match (self, other) {
            (Known::Listed(one), Known::Listed(other)) => one == other,
            (Known::Unlisted(one), Known::Unlisted(other)) => one == other,
            _ => false,
        }
    }
}

/// This host's addresses, shared by all workers.
pub struct Host {
    known: Mutex<Arc<Known>>,
    /// Grows with each change of `known`, from 1.
    version: AtomicU32,
}

impl Host {
    /// Reads them, and starts the thread that keeps them current while the process lives.
    pub fn watch() -> io::Result<Arc<Host>> {
        // Opened before the lists are read, so that no change falls between.
        let changes = local::changes();
        let known = match &changes {
            Ok(_) => Known::read(),
            Err(error) => Known::unlisted(error),
        };
        let host = Arc::new(Host { known: Mutex::new(Arc::new(known)), version: 1.into() });
        let watched = host.clone();
        thread::Builder::new()
            .name("addresses".into())
            .stack_size(256 << 10)
            .spawn(move || watched.follow(changes.ok()))?;
        Ok(host)
    }

    /// The version of the addresses: a change says to call `known` again. Never 0.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// What is known now.
    pub fn known(&self) -> Arc<Known> {
        lock(&self.known).clone()
    }

    fn publish(&self, known: Known) {
        let mut current = lock(&self.known);
        if !current.is_same(&known) {
            *current = Arc::new(known);
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    fn follow(&self, mut changes: Option<Changes>) {
        loop {
            let failed = match changes.take().map_or_else(local::changes, Ok) {
                Ok(changes) => self.keep_current(&changes),
                Err(error) => Known::unlisted(&error),
            };
            self.publish(failed);
            thread::sleep(RETRY);
        }
    }

    /// Reads the lists again after each change, until that fails.
    fn keep_current(&self, changes: &Changes) -> Known {
        loop {
            match Known::read() {
                failed @ Known::Unlisted(_) => return failed,
                listed => self.publish(listed),
            }
            thread::sleep(PAUSE);
            if let Err(error) = local::wait(changes) {
                return Known::unlisted(&error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_changes_with_the_addresses_and_only_then() {
        let host = Host {
            known: Mutex::new(Arc::new(Known::Listed(Addresses::default()))),
            version: 1.into(),
        };
        host.publish(Known::Listed(Addresses::default()));
        assert_eq!(host.version(), 1);
        host.publish(Known::Listed(super::super::addresses::tests::host()));
        assert_eq!(host.version(), 2);
        host.publish(Known::Unlisted(libc::EAFNOSUPPORT));
        host.publish(Known::Unlisted(libc::EAFNOSUPPORT));
        assert_eq!(host.version(), 3);
    }

    #[test]
    fn listed_or_not_the_kernel_knows_its_own_addresses() {
        let (loopback, elsewhere): (IpAddr, IpAddr) =
            ("127.9.8.7".parse().unwrap(), "203.0.113.77".parse().unwrap());
        for known in [Known::read(), Known::Unlisted(libc::EAFNOSUPPORT)] {
            assert_eq!(known.nature_of(loopback), Nature::Own, "{known:?}");
            assert_eq!(known.nature_of(elsewhere), Nature::Foreign, "{known:?}");
        }
    }
}
