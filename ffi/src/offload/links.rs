//! Links between the BPF program and the interfaces, by their files in the BPF file system: what bpf(2) offers of them
//! and `aya` does not.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Commands of bpf(2) (linux/bpf.h).
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// The sandbox allows it.
pub const LINK_DETACH: libc::c_long = 34;

/// A link to one interface.
pub struct Link(OwnedFd);

/// The start of `union bpf_attr`, as OBJ_GET has it.
#[repr(C)]
#[derive(Default)]
struct Get {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// As OBJ_GET_INFO_BY_FD has it.
#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// The start of `struct bpf_link_info`, with the part of TCX links. Newer kernels know more and fill in this much.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface: u32,
    attach_type: u32,
}

impl Link {
    /// Opens the link that is pinned at a path.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn open(path: &Path) -> io::Result<Link> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut get = Get { pathname: path.as_ptr() as u64, ..Get::default() };
        let fd = bpf(OBJ_GET, &mut get)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else has it.
        Ok(Link(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes the program off the interface, whoever else has the link.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn detach(&self) -> io::Result<()> {
        bpf(LINK_DETACH, &mut (self.0.as_raw_fd() as u32)).map(drop)
    }

    /// Whether the link leads nowhere: it was detached, or its interface is gone. One that does not say so does not.
    pub fn is_defunct(&self) -> bool {
        let mut info = Info::default();
        let mut get = GetInfo {
            fd: self.0.as_raw_fd() as u32,
            length: size_of::<Info>() as u32,
            info: (&raw mut info) as u64,
        };
        bpf(OBJ_GET_INFO_BY_FD, &mut get).is_ok() && info.interface == 0
    }
}

/// bpf(2). `attributes`: the start of a `union bpf_attr` that the command takes; the rest is zero for the kernel.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads as many bytes as `attributes` has. Pointers in them are those of the callers above, to
    // what outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}
