//! Whether nftables has a rule that hands packets to a transparent listener, whoever has made it.

use std::io;

use netlink_packet_core::{Emitable, NLM_F_DUMP};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::message::{Request, Routing};
use crate::abi::errors::{Error, Result};

/// Every rule of nftables (linux/netfilter/nfnetlink.h, nf_tables.h).
const GETRULE: u16 = (libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_GETRULE) as u16;

/// The names that such a rule's expression has: that of nft(8), and the target of iptables-nft(8).
const NAMES: [&[u8]; 2] = [b"tproxy\0", b"TPROXY\0"];

/// Looks at every rule of this network namespace. Needs CAP_NET_ADMIN.
///
/// Where the kernel has no nftables, there is no rule.
pub fn is_there() -> Result<bool> {
    let request = Request::new(GETRULE, NLM_F_DUMP, &EveryFamily);
    let mut found = false;
    let asked = Routing::open_to(NETLINK_NETFILTER).map_err(Into::into).and_then(|rules| {
        rules.exchange(&request, |message| {
            found |= names_it(&message.body);
            Ok(())
        })
    });
    match asked {
        Err(refused) if !is_missing(&refused.error) => {
            Err(Error::system("Cannot list the rules of nftables", &refused.error))
        }
        _ => Ok(found),
    }
}

/// An expression's name is an attribute that ends in a zero.
fn names_it(rule: &[u8]) -> bool {
    NAMES.iter().any(|name| rule.windows(name.len()).any(|bytes| bytes == *name))
}

/// The kernel, or this namespace's part of it, has no nftables.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::ENOENT))
}

/// `struct nfgenmsg` for rules of every family: zeroes.
struct EveryFamily;

impl Emitable for EveryFamily {
    fn buffer_len(&self) -> usize {
        4
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_has_a_complete_name() {
        assert!(names_it(b"\x0b\0\x01\0tproxy\0\0"));
        assert!(names_it(b"\x0b\0\x01\0TPROXY\0\0"));
        assert!(!names_it(b"\x0d\0\x01\0tproxying\0\0\0"));
        assert!(!names_it(b"\x0a\0\x01\0tproxy"));
        assert!(!names_it(b""));
    }
}
