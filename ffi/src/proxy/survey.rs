//! Lists all connections and flows, and closes selected ones: each worker answers for its own in its next turn, and
//! only the caller waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Proxy;
use crate::abi::errors::{Error, Result};
use crate::abi::layout::{ConnectionRecord, Endpoint, SelectionRecord, SurveyRecord};
use crate::net::subnet::Subnet;
use crate::system::sync::lock;
use crate::trust::subnets::Subnets;

/// Longer than any turn takes; a worker that is not served has no turn at all.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Which connections and flows are meant.
pub struct Selection {
    /// A listener's number; 0 for all.
    listener: u32,
    /// Where their clients are; without it, anywhere.
    clients: Option<Subnets>,
    /// Close them.
    pub closes: bool,
}

/// The one survey under way, if any.
#[derive(Default)]
pub struct Surveys {
    current: Mutex<Option<Arc<Survey>>>,
    /// Held by whoever asks.
    asking: Mutex<()>,
}

/// A survey, and what the workers have answered so far.
pub struct Survey {
    pub selection: Selection,
    /// By worker: it has taken its part.
    taken: Box<[AtomicBool]>,
    /// Records that each worker lists at most.
    room: usize,
    sum: Mutex<Sum>,
    answered: Condvar,
}

#[derive(Default)]
struct Sum {
    records: Vec<ConnectionRecord>,
    found: usize,
    parts: usize,
}

/// One worker's part.
#[derive(Default)]
pub struct Part {
    records: Vec<ConnectionRecord>,
    found: usize,
}

impl Selection {
    /// # Errors
    /// `INVALID` for a prefix longer than an address.
    pub fn new(record: &SelectionRecord) -> Result<Selection> {
        let subnet = Subnet { address: record.address, prefix: record.prefix };
        let clients = Subnets::new(&[subnet])
            .ok_or_else(|| Error::invalid("a subnet's prefix is longer than its address"))?;
        Ok(Selection {
            listener: record.listener,
            clients: (record.prefix > 0).then_some(clients),
            closes: record.closes != 0,
        })
    }

    /// Whether a connection or flow of a listener is meant. `client` is empty if no header has named
    /// one: then the peer is taken for it.
    pub fn matches(&self, listener: u32, client: &Endpoint, peer: &Endpoint) -> bool {
        if self.listener != 0 && self.listener != listener {
            return false;
        }
        let Some(clients) = &self.clients else { return true };
        let address = client.socket_addr().or_else(|| peer.socket_addr());
        address.is_some_and(|address| clients.contain(address.ip()))
    }
}

impl Survey {
    /// Notes a connection or flow that is meant.
    pub fn list(&self, part: &mut Part, record: ConnectionRecord) {
        part.found += 1;
        if part.records.len() < self.room {
            part.records.push(record);
        }
    }

    /// A worker's answer.
    pub fn answer(&self, part: Part) {
        let mut sum = lock(&self.sum);
        sum.found += part.found;
        sum.records.extend(part.records);
        sum.parts += 1;
        self.answered.notify_one();
    }
}

impl Surveys {
    /// The survey under way, once for each worker.
    pub fn part_of(&self, worker: u32) -> Option<Arc<Survey>> {
        let survey = lock(&self.current).clone()?;
        let taken = survey.taken[worker as usize].swap(true, Ordering::Relaxed);
        (!taken).then_some(survey)
    }
}

impl Proxy {
    /// Asks every worker for the connections and flows of a selection, or has it close them, and lists as
    /// many as there is room for. What they came to.
    pub fn survey(
        &self,
        selection: Selection,
        into: &mut [ConnectionRecord],
        timeout: Duration,
    ) -> SurveyRecord {
        let _asking = lock(&self.surveys.asking);
        let workers = self.open_workers();
        let survey = Arc::new(Survey {
            selection,
            taken: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            room: into.len(),
            sum: Mutex::default(),
            answered: Condvar::new(),
        });
        *lock(&self.surveys.current) = Some(survey.clone());
        self.wake();
        let deadline = Instant::now() + timeout;
        let mut sum = lock(&survey.sum);
        while sum.parts < workers {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = survey.answered.wait_timeout(sum, left);
            sum = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *lock(&self.surveys.current) = None;
        let listed = sum.records.len().min(into.len());
        into[..listed].copy_from_slice(&sum.records[..listed]);
        SurveyRecord {
            found: sum.found as u32,
            listed: listed as u32,
            silent: (workers - sum.parts) as u32,
        }
    }

    /// As `survey`, from and to records.
    ///
    /// # Errors
    /// `INVALID` for a selection that there cannot be.
    pub fn survey_records(
        &self,
        selection: &SelectionRecord,
        into: &mut [ConnectionRecord],
    ) -> Result<SurveyRecord> {
        Ok(self.survey(Selection::new(selection)?, into, TIMEOUT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn selection(listener: u32, subnet: Option<(&str, u32)>) -> Selection {
        let (address, prefix) = match subnet {
            Some((address, prefix)) => {
                let std::net::IpAddr::V4(v4) = address.parse().unwrap() else { panic!() };
                (v4.to_ipv6_mapped().octets(), prefix + 96)
            }
            None => ([0; 16], 0),
        };
        Selection::new(&SelectionRecord { address, prefix, listener, closes: 0 }).unwrap()
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn a_selection_is_by_listener_and_client_and_by_the_peer_where_there_is_no_client() {
        let (client, peer, none) =
            (endpoint("192.0.2.9:1"), endpoint("198.51.100.1:2"), Endpoint::default());
        assert!(selection(0, None).matches(7, &none, &none));
        assert!(selection(7, None).matches(7, &client, &peer));
        assert!(!selection(8, None).matches(7, &client, &peer));
        let clients = Some(("192.0.2.0", 24));
        assert!(selection(0, clients).matches(7, &client, &peer));
        assert!(!selection(8, clients).matches(7, &client, &peer));
        assert!(!selection(0, Some(("198.51.100.0", 24))).matches(7, &client, &peer));
        assert!(selection(0, Some(("198.51.100.0", 24))).matches(7, &none, &peer));
        assert!(!selection(0, clients).matches(7, &none, &peer));
        assert!(!selection(0, clients).matches(7, &none, &none));
    }
}
