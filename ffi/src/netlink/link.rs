//! Interfaces as messages: `struct ifinfomsg` of linux/rtnetlink.h.

use super::message::{u32_at, Request};
use super::{index_of, open};
use crate::abi::errors::{Error, Result};

/// Bytes of `struct ifinfomsg`, and where its index and its flags are.
const FIXED: usize = 16;
const INDEX: usize = 4;
const FLAGS: usize = 8;

/// Whether an interface is up, as its operator has it (IFF_UP). Needs no capability.
///
/// # Errors
/// There is no such interface.
pub fn is_up(name: &str) -> Result<bool> {
    let mut fixed = [0; FIXED];
    let index = index_of(&super::name_of(name.as_bytes()))?;
    fixed[INDEX..FLAGS].copy_from_slice(&index.to_ne_bytes());
    let mut request = Request::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &fixed);
    let answer = open()?.ask(&mut request).map_err(|refused| {
        Error::system(format!("Cannot look at the device {name}"), &refused.error)
    })?;
    let link = answer.iter().find(|message| message.kind == libc::RTM_NEWLINK);
    let flags = link.and_then(|link| u32_at(&link.body, FLAGS));
    let flags =
        flags.ok_or_else(|| Error::invalid("the kernel's answer about a device is malformed"))?;
    Ok(flags & libc::IFF_UP as u32 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_up_and_a_device_that_is_not_there_is_named() {
        assert!(is_up("lo").unwrap());
        let gone = is_up("nowhere0").unwrap_err();
        assert!(gone.text().contains("nowhere0"), "{}", gone.text());
    }
}
