//! Host names (getaddrinfo(3)). A lookup may take many seconds: never on a thread that relays.

use std::ffi::{CStr, CString};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::abi::errors::{Error, Result};
use crate::abi::layout::Endpoint;

/// Writes a name's addresses of a family (4 or 6) with port 0, in the order of RFC 6724, as many as there is
/// room for; how many. If there is none, `why` gets the reason, UTF-8 and filled up with zeroes.
pub fn resolve(name: &[u8], family: u32, into: &mut [Endpoint], why: &mut [u8]) -> Result<i32> {
    let name = CString::new(name).map_err(|_| Error::invalid("a host name has no zero byte"))?;
    let family = match family {
        4 => libc::AF_INET,
        6 => libc::AF_INET6,
        _ => return Err(Error::invalid("a family is 4 or 6")),
    };
    match look_up(&name, family) {
        Ok(found) => {
            let count = found.len().min(into.len());
            into.iter_mut().zip(found).for_each(|(room, address)| *room = address.into());
            Ok(count as i32)
        }
        Err(reason) => {
            why.fill(0);
            let length = reason.len().min(why.len());
            why[..length].copy_from_slice(&reason.as_bytes()[..length]);
            Ok(0)
        }
    }
}

/// At least one address, each once, or why there is none.
fn look_up(name: &CStr, family: i32) -> std::result::Result<Vec<SocketAddr>, String> {
    // SAFETY: zeroes are valid hints.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_family = family;
    // Otherwise each address comes once for each kind of socket.
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut list: *mut libc::addrinfo = std::ptr::null_mut();
    // SAFETY: name and hints are valid for the length of the call, and `list` for writing.
    let code = unsafe { libc::getaddrinfo(name.as_ptr(), std::ptr::null(), &hints, &mut list) };
    if code == libc::EAI_SYSTEM {
        return Err(io::Error::last_os_error().to_string());
    }
    if code != 0 {
        // SAFETY: the C library's texts last forever.
        let text = unsafe { CStr::from_ptr(libc::gai_strerror(code)) };
        return Err(text.to_string_lossy().into_owned());
    }
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: an entry of the list, which is freed below.
        let entry = unsafe { &*next };
        // SAFETY: as above.
        if let Some(address) = unsafe { address_of(entry) } {
            if !found.contains(&address) {
                found.push(address);
            }
        }
        next = entry.ai_next;
    }
    // SAFETY: the call above made the list, and nothing refers to it any more.
    unsafe { libc::freeaddrinfo(list) };
    if found.is_empty() {
        return Err("no address".to_owned());
    }
    Ok(found)
}

/// # Safety
/// The entry's address is as long as its family says.
unsafe fn address_of(entry: &libc::addrinfo) -> Option<SocketAddr> {
    match entry.ai_family {
        libc::AF_INET => {
            // SAFETY: the caller's promise.
            let address = unsafe { entry.ai_addr.cast::<libc::sockaddr_in>().read_unaligned() };
            Some((Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)), 0).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the caller's promise.
            let address = unsafe { entry.ai_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, 0, 0, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(name: &str, family: u32) -> (Vec<String>, String) {
        let (mut into, mut why) = ([Endpoint::default(); 4], [0; 64]);
        let count = resolve(name.as_bytes(), family, &mut into, &mut why).unwrap() as usize;
        let found = into[..count].iter().filter_map(Endpoint::socket_addr);
        let why = String::from_utf8_lossy(&why).trim_end_matches('\0').to_owned();
        (found.map(|address| address.to_string()).collect(), why)
    }

    #[test]
    fn a_name_of_the_hosts_file_has_its_addresses_once() {
        assert_eq!(addresses("localhost", 4), (vec!["127.0.0.1:0".to_owned()], String::new()));
    }

    #[test]
    fn a_name_that_is_none_says_why() {
        let (found, why) = addresses("a..b", 4);
        assert!(found.is_empty() && !why.is_empty(), "{found:?} {why}");
    }
}
