//! Capabilities of the calling thread (capabilities(7)): which are needed, and dropping the others.

use std::io;

use crate::abi::layout::SandboxRequest;
use crate::net::socket;

const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
/// _LINUX_CAPABILITY_VERSION_3: 64 bits in two records.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// A thread's sets, as bits.
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u64,
    permitted: u64,
    inheritable: u64,
}

/// The capabilities to keep, of those that this thread has in effect:
/// - what the clients' addresses and the mark take: CAP_NET_RAW, but CAP_NET_ADMIN where the thread has
///   no other, and for a mark before Linux 5.17;
/// - CAP_NET_BIND_SERVICE, for clients whose own port is below 1024;
/// - CAP_NET_ADMIN, where rules and routes are to be removed at the end, and for TCP_REPAIR, by which
///   connections are handed over.
pub fn needed(request: &SandboxRequest) -> u64 {
    let Ok(sets) = get() else { return NET_RAW | NET_ADMIN | NET_BIND_SERVICE };
    let have = sets.effective;
    let enough = [NET_RAW, NET_ADMIN].into_iter().map(|set| set & have).find(|&set| {
        // Only the effective set: it can be raised again from the permitted one.
        if set == 0 || put(&Sets { effective: set, ..sets }).is_err() {
            return false;
        }
        let enough = socket::check_capabilities(request.mark).is_ok();
        // What was raised a moment ago cannot be refused: it is still permitted.
        let _ = put(&sets);
        enough
    });
    let routing = if request.routing != 0 || request.offload != 0 { NET_ADMIN } else { 0 };
    have & (enough.unwrap_or(NET_RAW | NET_ADMIN) | NET_BIND_SERVICE | routing)
}

/// What the program has uses for.
pub const USEFUL: u64 = NET_BIND_SERVICE | NET_ADMIN | NET_RAW;

/// Whether this thread has in effect what of `USEFUL` it is permitted. So has every other then: the process had one
/// thread when its program file gave it capabilities.
pub fn is_raised() -> bool {
    get().is_ok_and(|sets| sets.permitted & USEFUL & !sets.effective == 0)
}

/// Puts in effect, on the calling thread, what of `USEFUL` is permitted. Runs in a signal handler, as
/// `lower_this_thread`.
pub fn raise_this_thread() -> io::Result<()> {
    let sets = get()?;
    let effective = sets.effective | sets.permitted & USEFUL;
    if effective == sets.effective {
        return Ok(());
    }
    put(&Sets { effective, ..sets })
}

/// Gives up, on the calling thread, every capability but those in `keep`, and every way to more.
/// Allocates nothing and takes no lock: it runs in a signal handler.
pub fn lower_this_thread(keep: u64) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    unsafe {
        // The results of the first and second are looked at in /proc afterwards.
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        // The bounding set limits what an execve(2) may gain, which no new privileges already forbids.
        // It takes CAP_SETPCAP, so that it stays as it is for ordinary users.
        for capability in (0..64).filter(|capability| keep & (1 << capability) == 0) {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                break;
            }
        }
    }
    let sets = get()?;
    let kept =
        Sets { effective: sets.effective & keep, permitted: sets.permitted & keep, inheritable: 0 };
    if (kept.effective, kept.permitted, 0) == (sets.effective, sets.permitted, sets.inheritable) {
        return Ok(());
    }
    put(&kept)
}

fn get() -> io::Result<Sets> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 writes two records.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let joined = |of: fn(&Data) -> u32| u64::from(of(&data[0])) | u64::from(of(&data[1])) << 32;
    Ok(Sets {
        effective: joined(|data| data.effective),
        permitted: joined(|data| data.permitted),
        inheritable: joined(|data| data.inheritable),
    })
}

fn put(sets: &Sets) -> io::Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads two records.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
