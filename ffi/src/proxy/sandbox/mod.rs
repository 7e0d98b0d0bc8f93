//! The sandbox: the privileges that the process gives up after its start and before the first connection.
//!
//! An intruder who takes over the process then has its sockets, and can neither run another program nor open a file
//! for writing (docs/sandbox.md). There are four mechanisms, each with its own result, because an operating system or
//! a container may refuse any of them:
//!
//! 1. no new privileges (prctl(2), PR_SET_NO_NEW_PRIVS),
//! 2. all capabilities dropped except those that the data path uses, on every thread,
//! 3. descriptors of files that are open for writing, replaced by read-only ones,
//! 4. a system call filter (seccomp(2)), on every thread.

mod capabilities;
mod descriptors;
mod filter;
#[cfg(feature = "fault-injection")]
pub mod takeover;
mod threads;

use std::io;

use crate::abi::errors::{Error, Result};
use crate::abi::layout::{sandbox, SandboxRecord, SandboxRequest};
use crate::system::notify;

/// Enters the sandbox, as far as the system lets it; says what holds. Cannot be undone. Threads that
/// start later inherit it.
pub fn enter(request: &SandboxRequest) -> Result<SandboxRecord> {
    // What is needed later and could not be opened then.
    notify::prepare();
    let before = threads::own_status().map_err(cannot_look)?;
    let keep = capabilities::needed(request);
    let mut record = SandboxRecord::default();
    note(&mut record.files, &mut record.files_errno, descriptors::seal().map(|count| count > 0));
    let lowered = threads::lower_all(keep);
    let after = threads::own_status().map_err(cannot_look)?;
    record.capabilities = after.permitted;
    let lowered = match lowered {
        // Where capset(2) is forbidden and there was nothing to lower, nothing is amiss.
        Err(_) if threads::all_within(keep) => Ok(false),
        lowered => lowered.map(|()| before.permitted != after.permitted),
    };
    note(&mut record.lowered, &mut record.lowered_errno, lowered);
    let filtered = filter::install(filter::Scope::Process, request.offload != 0).and_then(|()| {
        let all = threads::all_filtered()?;
        held(all).map(|()| true)
    });
    note(&mut record.filter, &mut record.filter_errno, filtered);
    // Looked at last: a filter for all threads sets it on all.
    let none_gains = threads::none_gains().and_then(held).map(|()| !before.no_new_privileges);
    note(&mut record.no_new_privileges, &mut record.no_new_privileges_errno, none_gains);
    Ok(record)
}

/// Puts in effect, on every thread, the capabilities that the program has uses for and is permitted. A program
/// file's capabilities may be permitted alone: then the program also starts where only some are available.
pub fn raise_permitted() -> Result<()> {
    if capabilities::is_raised() {
        return Ok(());
    }
    threads::raise_all().map_err(|error| Error::system("Cannot use the capabilities", &error))
}

/// Tries the sandbox on a thread that ends afterwards, and whether it does what it is for; says what
/// `enter` could set here. Changes nothing.
pub fn rehearse(request: &SandboxRequest) -> Result<SandboxRecord> {
    let keep = capabilities::needed(request);
    let offload = request.offload != 0;
    let rehearsal = std::thread::Builder::new()
        .name("sandbox rehearsal".into())
        .spawn(move || rehearse_here(keep, offload))
        .map_err(|error| Error::system("Cannot start a thread", &error))?;
    rehearsal.join().unwrap_or_else(|_| Err(Error::invalid("the rehearsal of the sandbox failed")))
}

fn rehearse_here(keep: u64, offload: bool) -> Result<SandboxRecord> {
    let before = threads::own_status().map_err(cannot_look)?;
    let lowered = capabilities::lower_this_thread(keep);
    let after = threads::own_status().map_err(cannot_look)?;
    let mut record = SandboxRecord { capabilities: after.permitted, ..SandboxRecord::default() };
    note(
        &mut record.no_new_privileges,
        &mut record.no_new_privileges_errno,
        held(after.no_new_privileges).map(|()| !before.no_new_privileges),
    );
    let within = after.permitted & !keep == 0;
    let lowered =
        if within { Ok(before.permitted != after.permitted) } else { lowered.map(|()| true) };
    note(&mut record.lowered, &mut record.lowered_errno, lowered);
    // Which descriptors there will be to replace is not known here; what it takes is.
    note(&mut record.files, &mut record.files_errno, descriptors::writable().map(|_| true));
    let filtered =
        filter::install(filter::Scope::Thread, offload).and_then(|()| held(filter::holds()));
    note(&mut record.filter, &mut record.filter_errno, filtered.map(|()| true));
    Ok(record)
}

fn cannot_look(error: io::Error) -> Error {
    Error::system("Cannot read /proc/self/task", &error)
}

/// A claim that was looked at: EPERM if it does not hold.
fn held(holds: bool) -> io::Result<()> {
    if holds {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Notes a mechanism's result: set now, held before, or not available and why.
fn note(state: &mut u32, errno: &mut i32, result: io::Result<bool>) {
    (*state, *errno) = match result {
        Ok(true) => (sandbox::SET, 0),
        Ok(false) => (sandbox::HELD, 0),
        Err(error) => (sandbox::MISSING, error.raw_os_error().unwrap_or(libc::EIO)),
    };
}
