//! Records of the access log: one connection or flow, written at its end.
//!
//! They exist only if the log level requires them, and then cost one allocation per connection. TypeScript reads the
//! TLVs, so the record contains the header's bytes.

use std::mem::size_of;

use crate::abi::layout::AccessRecord;
use crate::abi::named::named;
use crate::udp::MovedAccount;

named! {
    /// Why a connection or a flow ended.
    Ending: u8 {
        /// Both sides finished, the peer first.
        PeerClosed = 1, "client_closed";
        /// Both sides finished, the upstream first.
        UpstreamClosed = 2, "service_closed";
        /// The peer's side broke: a reset, or `errno` says what.
        PeerBroke = 3, "client_broke";
        /// The upstream's side broke: a reset, or `errno` says what.
        UpstreamBroke = 4, "service_broke";
        /// The upstream was not reached; `errno` says why.
        ConnectFailed = 5, "connect_failed";
        /// The upstream did not answer within the connect timeout.
        ConnectTimeout = 6, "connect_timeout";
        /// A flow carried nothing for `--close-after`, or a connection for `--idle-timeout`.
        Idle = 7, "idle";
        /// A flow made room for a newer one.
        Displaced = 8, "displaced";
        /// The program stopped.
        Stopped = 9, "stopped";
        /// The operator closed it.
        Closed = 10, "closed";
    }
}

/// Bytes of a header that are kept: room for every TLV but a long client certificate.
const MOST_HEADER: usize = 4096;

/// A connection's or a flow's entry, from its header to its end.
pub struct Account {
    pub record: AccessRecord,
    header: Box<[u8]>,
}

impl Account {
    /// Begins an entry with the header that opened it.
    pub fn new(record: AccessRecord, header: &[u8]) -> Box<Account> {
        let header: Box<[u8]> = header[..header.len().min(MOST_HEADER)].into();
        Box::new(Account { record, header })
    }

    /// As sent to another program; it began at the given time.
    pub fn moved(&self, began: u64) -> MovedAccount {
        let AccessRecord { version, peer, destination, .. } = self.record;
        MovedAccount { began, version, peer, destination, header: self.header.to_vec() }
    }

    /// Bytes that `write` needs: a multiple of 8.
    pub fn size(&self) -> usize {
        (size_of::<AccessRecord>() + self.header.len()).next_multiple_of(8)
    }

    /// Writes the record, then the header and zeroes up to a multiple of 8, at the start of `into`,
    /// which is `size` bytes long or longer.
    pub fn write(&self, into: &mut [u8]) {
        let size = self.size();
        let record = AccessRecord {
            length: size as u32,
            header_length: self.header.len() as u32,
            ..self.record
        };
        let (head, rest) = into[..size].split_at_mut(size_of::<AccessRecord>());
        // SAFETY: an `AccessRecord` is plain numbers without padding (layout.rs asserts its size), so
        // every byte of it is initialised.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const record).cast::<u8>(), size_of::<AccessRecord>())
        };
        head.copy_from_slice(bytes);
        rest.fill(0);
        rest[..self.header.len()].copy_from_slice(&self.header);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_written_with_its_header_and_padded() {
        let account =
            Account::new(AccessRecord { errno: 104, ..AccessRecord::default() }, b"PROXY");
        assert_eq!(account.size() % 8, 0);
        let mut bytes = vec![0xff; account.size() + 8];
        account.write(&mut bytes);
        let head = size_of::<AccessRecord>();
        assert_eq!(bytes[..4], (account.size() as u32).to_ne_bytes());
        assert_eq!(bytes[head..head + 5], *b"PROXY");
        assert!(bytes[head + 5..account.size()].iter().all(|byte| *byte == 0));
        assert!(bytes[account.size()..].iter().all(|byte| *byte == 0xff), "nothing behind it");
    }

    #[test]
    fn a_long_header_is_cut() {
        let account = Account::new(AccessRecord::default(), &[7; 60_000]);
        assert_eq!(account.size(), size_of::<AccessRecord>() + MOST_HEADER);
    }

    #[test]
    fn endings_have_their_own_codes() {
        for (position, ending) in Ending::ALL.iter().enumerate() {
            assert_eq!(*ending as usize, position + 1);
        }
    }
}
