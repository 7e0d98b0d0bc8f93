//! Interfaces: names, numbers, and whether one is up.

use std::ffi::CStr;
use std::io;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::link::{LinkFlags, LinkHeader};

use super::message::Request;
use super::open;
use crate::abi::errors::{Error, Result};

/// A name as records have it: it ends in a zero.
pub type Name = [u8; libc::IF_NAMESIZE];

/// Whether an interface is up, as its operator has it (IFF_UP). Needs no capability.
///
/// # Errors
/// There is no such interface.
pub fn is_up(name: &str) -> Result<bool> {
    let asked = LinkHeader { index: index_of(&name_of(name))?, ..LinkHeader::default() };
    let request = Request::new(libc::RTM_GETLINK, NLM_F_ACK, &asked);
    let answer = open()?.ask(&request).map_err(|refused| {
        Error::system(format!("Cannot look at the device {name}"), &refused.error)
    })?;
    let link = answer.iter().find(|message| message.kind == libc::RTM_NEWLINK);
    // The header has what was requested; the attributes stay unread.
    let link = link.and_then(|link| LinkHeader::parse(&link.body).ok());
    link.map(|link| link.flags.contains(LinkFlags::Up))
        .ok_or_else(|| Error::invalid("the kernel's answer about a device is malformed"))
}

/// A name as records have it; a longer one than there can be is cut.
pub fn name_of(text: &str) -> Name {
    let mut name = Name::default();
    let length = text.len().min(name.len() - 1);
    name[..length].copy_from_slice(&text.as_bytes()[..length]);
    name
}

/// A name as text. One that is not UTF-8 is of no rule that was listed.
pub fn text_of(name: &Name) -> String {
    CStr::from_bytes_until_nul(name).unwrap_or_default().to_string_lossy().into_owned()
}

/// The name of an interface's number (if_indextoname(3)); empty for one that is gone.
pub fn name_at(index: u32) -> Name {
    let mut name = Name::default();
    // SAFETY: there is room for the longest name and its zero.
    unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    name
}

/// The number of an interface's name (if_nametoindex(3)).
pub fn index_of(name: &Name) -> Result<u32> {
    let name = CStr::from_bytes_until_nul(name)
        .map_err(|_| Error::invalid("a device's name is malformed"))?;
    // SAFETY: the name ends in a zero and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(Error::system(
            format!("Cannot find the device {}", name.to_string_lossy()),
            &io::Error::last_os_error(),
        )),
        index => Ok(index),
    }
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

    #[test]
    fn a_name_is_cut_to_what_the_kernel_has_room_for() {
        assert_eq!(text_of(&name_of("lo")), "lo");
        assert_eq!(text_of(&name_of("a-name-that-is-too-long")), "a-name-that-is-");
        assert!(index_of(&[b'a'; 16]).is_err(), "without a zero");
    }
}
