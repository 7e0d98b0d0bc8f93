//! The C ABI of the native core, and nothing else.
//!
//! Numbers are `u32` and `i32`; everything larger goes through a buffer that the caller owns.
//! Proxies and workers are integer handles, listeners have numbers; none is a pointer. A result below zero is a `status`
//! code whose sentence `last_error` gives on the same thread.

#![warn(missing_docs)]

mod abi;
mod control;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod header;
mod net;
mod netlink;
mod observe;
mod offload;
mod proxy;
mod system;
mod tcp;
mod trust;
mod udp;
mod worker;

#[cfg(feature = "bindgen")]
pub use abi::printer::print_layout;

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "bindgen")]
use deno_bindgen::deno_bindgen;

use abi::description;
use abi::errors::{self, guard, Error};
use abi::layout::{
    protocol, status, AdoptionRecord, ConnectionRecord, DestinationRecord, Endpoint, Event,
    ListenerRecord, PortRecord, Probe, ReachRecord, ReplyQuery, ReplyRecord, RoutingRecord,
    SandboxRecord, SandboxRequest, SelectionRecord, SurveyRecord, TrustRecord, UsageRecord,
};

use control::{client, server};
use net::socket::Listen;
use observe::log_queue;
use proxy::handover::{give, take::Predecessor};
use proxy::port::{self, Transport};
use proxy::settings::Budgets;
use proxy::stored::Stored;
use proxy::{handles, sandbox, Records};
use system::{
    files, journal, memory, notify, presence, probe, resolve, spawner, usage, usr1, watch,
};

/// Bytes that TypeScript owns for the length of a call: valid for the length given next to it, and
/// aligned to 8.
pub type Buffer = *mut u8;

/// The hash of the exports and records that this library was built with; it must equal `ABI_VERSION`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn abi_version() -> u32 {
    description::FINGERPRINT
}

/// Copies the sentence of this thread's last failed call, UTF-8; returns its whole length in bytes.
///
/// # Safety
/// `text` is valid for writing `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn last_error(text: Buffer, length: u32) -> u32 {
    // SAFETY: the caller's promise.
    errors::copy_last(unsafe { bytes_mut(text, length) }) as u32
}

/// Reads a file into `content`; returns the file's size in bytes, which may be larger than `length`
/// (then nothing is copied, and a larger buffer is needed). Files of 64 MiB and more are refused.
///
/// # Safety
/// `path` is valid for reading `path_length` bytes of UTF-8, `content` for writing `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn read_file(
    path: Buffer,
    path_length: u32,
    content: Buffer,
    length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let (path, content) = unsafe { (bytes(path, path_length), bytes_mut(content, length)) };
        files::read(path, content)
    })
}

/// Watches these files and no others; `paths` are UTF-8, with a zero byte between them. Returns 1 where one
/// was not watched before, so that it may have changed since it was read, otherwise 0.
///
/// # Safety
/// `paths` is valid for reading `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn watch_files(paths: Buffer, length: u32) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| watch::set(unsafe { bytes(paths, length) }))
}

/// Waits up to `timeout_ms` milliseconds until a watched file has changed and the change is complete. Returns 1, or 0
/// if none has changed.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn next_change(timeout_ms: u32) -> i32 {
    guard(|| watch::wait(Duration::from_millis(u64::from(timeout_ms))))
}

/// Writes the addresses of a host name, of a family (4 or 6) and with port 0, as many as there is room for;
/// returns how many. If there is none, `why` gets the reason, UTF-8, filled up with zeroes. It may take
/// many seconds.
///
/// # Safety
/// `name` is valid for reading `name_length` bytes, `addresses` for writing `length` bytes: room for one or
/// more `Endpoint`; `why` for writing `why_length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn resolve(
    name: Buffer,
    name_length: u32,
    family: u32,
    addresses: Buffer,
    length: u32,
    why: Buffer,
    why_length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is an `Endpoint`.
        let addresses: &mut [Endpoint] = unsafe { records_mut(addresses, length)? };
        // SAFETY: the caller's promise.
        let (name, why) = unsafe { (bytes(name, name_length), bytes_mut(why, why_length)) };
        resolve::resolve(name, family, addresses, why)
    })
}

/// Raises the limit of open files to the hard limit; returns the limit now in force.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn raise_file_limit() -> u32 {
    files::raise_limit()
}

/// Queues complete lines for standard error: 1, or 0 when there is no room and they are dropped. Never waits
/// for the reader.
///
/// # Safety
/// `lines` is valid for reading `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn log_push(lines: Buffer, length: u32) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| log_queue::STDERR.push(unsafe { bytes(lines, length) }))
}

/// The number of queued lines that could not be written so far, because the reader is gone or the disk is full.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn log_failed() -> u32 {
    log_queue::STDERR.failed()
}

/// Waits up to `timeout_ms` milliseconds until all that was queued is written: 1, or 0 when it is not.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn log_flush(timeout_ms: u32) -> i32 {
    guard(|| Ok(log_queue::STDERR.flush(Duration::from_millis(u64::from(timeout_ms)))))
}

/// Installs a handler for SIGUSR1 that only counts, instead of Deno's, which opens a debugger. Returns
/// 1 when somebody else had a handler for it, else 0.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn take_usr1() -> i32 {
    guard(usr1::take_over)
}

/// The number of SIGUSR1 since the last call.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn usr1_received() -> u32 {
    usr1::received()
}

/// Whether this process listens on the address of Deno's debugger, 127.0.0.1:9229: 1 or 0.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn debugger_listens() -> i32 {
    guard(|| Ok(i32::from(usr1::debugger_listens())))
}

/// Sends `state` to the service manager: assignments of sd_notify(3), one per line. Returns 1, or 0 without a service
/// manager. A reload gets its time stamp.
///
/// # Safety
/// `state` is valid for reading `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn notify(state: Buffer, length: u32) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| notify::send(unsafe { bytes(state, length) }))
}

/// Updates the service manager's store, so that it holds the current listening sockets of a proxy and nothing else
/// (sd_pid_notify_with_fds(3), FDSTORE). Writes how many of the sockets that the store has passed to this process
/// listen again, and how many were closed; 0 and 0 from the second call on.
///
/// # Safety
/// `came` is valid for writing `length` bytes: two `u32`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn store_listening(proxy: u32, came: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `u32`.
        let [kept, closed] = (unsafe { records_mut::<u32>(came, length)? }) else {
            return Err(Error::invalid("store_listening needs room for two numbers"));
        };
        let came = Stored::update(&*handles::proxy(proxy)?)?;
        (*kept, *closed) = (came.kept, came.closed);
        Ok(0)
    })
}

/// The service manager's watchdog interval in milliseconds; 0 without a watchdog.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn watchdog_ms() -> u32 {
    notify::watchdog_ms()
}

/// Holds a name in this network namespace until the process ends or takes another: an abstract unix socket,
/// from which nothing is read.
///
/// # Safety
/// `name` is valid for reading `length` bytes: 1 to 107.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn hold_name(name: Buffer, length: u32) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| presence::hold(unsafe { bytes(name, length) }))
}

/// Whether standard error goes to systemd's journal: 1 or 0.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn stderr_is_journal() -> i32 {
    journal::on_stderr()
}

/// Prepares a proxy; returns its handle. Nothing listens yet. `predecessor`: from `take_over`, or 0. With one, its
/// listening sockets are taken over instead of opened, and the workers wait for `finish_take_over`.
///
/// # Safety
/// `config` is valid for reading `length` bytes: one `ProxyConfig`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn open_proxy(config: Buffer, length: u32, predecessor: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `ProxyConfig`.
        let config = only(unsafe { records(config, length)? })?;
        proxy::open(config, handles::predecessor(predecessor)?)
    })
}

/// Opens one more worker of a proxy, at most as many as its configuration says; returns its handle.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn open_worker(proxy: u32) -> i32 {
    guard(|| Ok(handles::add_worker(handles::proxy(proxy)?.open_worker()?)))
}

/// Hands relayed TCP connections of a proxy over to the kernel from here on. Takes CAP_BPF and CAP_NET_ADMIN, and
/// Linux 5.17. Call it before the sandbox.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn start_offload(proxy: u32) -> i32 {
    guard(|| handles::proxy(proxy)?.start_offload().map(|()| 0))
}

/// Whether connections that a proxy hands over outlive this program: 0.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn outlives_offload(proxy: u32) -> i32 {
    guard(|| handles::proxy(proxy)?.outlives_offload().map(|()| 0))
}

/// Takes over the connections that earlier programs have left to the kernel. Call it before the sandbox.
///
/// # Safety
/// `record` is valid for writing `length` bytes: one `AdoptionRecord`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn adopt_offload(proxy: u32, record: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is an `AdoptionRecord`.
        let record: &mut AdoptionRecord = only_mut(unsafe { records_mut(record, length)? })?;
        *record = handles::proxy(proxy)?.adopt_offload()?;
        Ok(0)
    })
}

/// From here on a proxy leaves connections to the kernel that need nothing of this program, where they outlive it.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn leave_offload(proxy: u32) -> i32 {
    guard(|| {
        handles::proxy(proxy)?.leave_offload();
        Ok(0)
    })
}

/// Ends what `start_offload` began, after the workers; returns how many connections are left to the kernel.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn end_offload(proxy: u32) -> i32 {
    guard(|| Ok(handles::proxy(proxy)?.end_offload() as i32))
}

/// Whether connections would outlive a program that this process starts: 0. Changes nothing.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn check_pins() -> i32 {
    guard(|| offload::pins::check().map(|()| 0).map_err(Error::unavailable))
}

/// Whether this process may load the BPF program of `start_offload`, and this kernel takes it: 0. Changes nothing.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn check_offload() -> i32 {
    guard(|| offload::check().map(|()| 0).map_err(Error::unavailable))
}

/// Where a worker's scratch region is: `SCRATCH_SIZE` bytes, valid while the process lives; null for a
/// handle that is not a worker's.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn scratch(worker: u32) -> *const c_void {
    handles::worker(worker).map_or(std::ptr::null(), |worker| worker.scratch.address().cast())
}

/// Runs a worker for every listener on the calling thread, until its proxy is stopped (then 0) or it fails. `on_header(length, carrier)` decodes the header in the scratch region and returns an `Action`.
///
/// # Safety
/// `on_header` is a C function of two `u32` that returns one, callable on this thread until `serve`
/// has returned.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn serve(worker: u32, on_header: *const c_void) -> i32 {
    guard(|| {
        if on_header.is_null() {
            return Err(Error::invalid("serve needs a decoder"));
        }
        // SAFETY: the caller's promise.
        let on_header: worker::OnHeader = unsafe { std::mem::transmute(on_header) };
        worker::serve(&*handles::worker(worker)?, on_header)
    })
}

/// Replaces the listeners of a proxy: those with a number are changed, new ones are opened, and all others are closed:
/// they accept nothing new, their connections may finish, and those that remain after `grace_ms` milliseconds end; their
/// UDP flows get the replies of the next second. It checks the requirements (capabilities, free addresses, no loop), and
/// opens a socket for each worker, port and protocol, which starts to queue. Sockets of addresses that stay are not
/// touched, whichever listener has them afterwards; connections and flows continue. `max_flows`, `max_connections` and `max_pipes` are what there may be at
/// once, over all workers and listeners: more connections wait to be accepted, idle flows make room, and a pipe
/// is two descriptors. All or nothing. Writes the listeners' numbers, in order: from 1
/// on, and never again another's.
///
/// # Safety
/// `listeners`, `ports`, `rules` and `destinations` are valid for reading as many bytes as the number behind
/// each says: `ListenerRecord`s, `PortRecord`s, `TrustRecord`s, `DestinationRecord`s; `ids` for writing
/// `ids_length`: a `u32` a listener.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn configure(
    proxy: u32,
    listeners: Buffer,
    listeners_length: u32,
    ports: Buffer,
    ports_length: u32,
    rules: Buffer,
    rules_length: u32,
    destinations: Buffer,
    destinations_length: u32,
    max_flows: u32,
    max_connections: u32,
    max_pipes: u32,
    ids: Buffer,
    ids_length: u32,
    grace_ms: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `ListenerRecord`.
        let listeners: &[ListenerRecord] = unsafe { records(listeners, listeners_length)? };
        // SAFETY: the caller's promise; any bit pattern is a `PortRecord`.
        let ports: &[PortRecord] = unsafe { records(ports, ports_length)? };
        // SAFETY: the caller's promise; any bit pattern is a `TrustRecord`.
        let rules: &[TrustRecord] = unsafe { records(rules, rules_length)? };
        // SAFETY: the caller's promise; any bit pattern is a `DestinationRecord`.
        let destinations: &[DestinationRecord] =
            unsafe { records(destinations, destinations_length)? };
        // SAFETY: the caller's promise; any bit pattern is a `u32`.
        let ids: &mut [u32] = unsafe { records_mut(ids, ids_length)? };
        if ids.len() != listeners.len() {
            return Err(Error::invalid("configure needs room for a number a listener"));
        }
        let grace = Duration::from_millis(u64::from(grace_ms));
        let records = Records { listeners, ports, rules, destinations };
        let budgets = Budgets {
            flows: max_flows as usize,
            connections: max_connections as usize,
            pipes: max_pipes as usize,
        };
        ids.copy_from_slice(&handles::proxy(proxy)?.configure(&records, budgets, grace)?);
        Ok(0)
    })
}

/// Whether a connection or a flow still has a listener as one of the configurations `since` to `until` had
/// it, which a later one has replaced: 1 or 0. The calls of `configure` that went well count from 1. A worker
/// that has not followed the latest yet counts as well.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn listener_in_use(proxy: u32, listener: u32, since: u32, until: u32) -> i32 {
    guard(|| Ok(i32::from(handles::proxy(proxy)?.is_in_use(listener, since, until))))
}

/// Asks every worker of a proxy to stop accepting, to let its connections finish, and to end those that
/// remain after `grace_ms` milliseconds. Lets a waiting `next_events` return.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn stop(proxy: u32, grace_ms: u32) -> i32 {
    guard(|| handles::proxy(proxy)?.stop(Duration::from_millis(u64::from(grace_ms))))
}

/// Moves queued events into `events`, waiting up to `timeout_ms` milliseconds for the first;
/// returns how many there are now.
///
/// # Safety
/// `events` is valid for writing `length` bytes: room for one or more `Event`.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn next_events(
    proxy: u32,
    events: Buffer,
    length: u32,
    timeout_ms: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is an `Event`.
        let events: &mut [Event] = unsafe { records_mut(events, length)? };
        handles::proxy(proxy)?.next_events(events, Duration::from_millis(u64::from(timeout_ms)))
    })
}

/// Moves entries of the access log that are queued into `entries`, as many as there is room for;
/// returns the bytes written. Each is an `AccessRecord` with its header behind it. `next_events`
/// returns early when there are some.
///
/// # Safety
/// `entries` is valid for writing `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn next_access(proxy: u32, entries: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let entries = unsafe { bytes_mut(entries, length) };
        handles::proxy(proxy)?.next_access(entries)
    })
}

/// Writes the counters of a listener, or with 0 those of the proxy, summed over its workers; then the
/// refusals by code, the failed connections by errno, and the histograms (see `ERRNOS` and `HISTOGRAMS`
/// in the layout); returns how many `u64` (host byte order) were written.
///
/// # Safety
/// `counters` is valid for writing `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn stats(proxy: u32, listener: u32, counters: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `u64`.
        let counters: &mut [u64] = unsafe { records_mut(counters, length)? };
        handles::proxy(proxy)?.stats(listener, counters)
    })
}

/// Writes the rules that look in a routing table, and its routes, of both families; returns how many
/// there are, which may be more than there was room for. Needs no capability.
///
/// # Safety
/// `entries` is valid for writing `length` bytes: room for one or more `RoutingRecord`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn list_routing(table: u32, entries: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `RoutingRecord`.
        let entries: &mut [RoutingRecord] = unsafe { records_mut(entries, length)? };
        netlink::list(table, entries)
    })
}

/// Adds a rule or a route. Needs CAP_NET_ADMIN.
///
/// # Safety
/// `entry` is valid for reading `length` bytes: one `RoutingRecord`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn add_routing(entry: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `RoutingRecord`.
        netlink::add(only(unsafe { records(entry, length)? })?)
    })
}

/// Removes a rule or a route, as it was listed; one that no longer exists is not an error. Needs
/// CAP_NET_ADMIN.
///
/// # Safety
/// As `add_routing`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn remove_routing(entry: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `RoutingRecord`.
        netlink::remove(only(unsafe { records(entry, length)? })?)
    })
}

/// Writes how this host reaches an address: one `ReachRecord`.
///
/// # Safety
/// `address` is valid for reading `address_length` bytes: one `Endpoint`; `reach` for writing
/// `reach_length` bytes: one `ReachRecord`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn find_reach(
    address: Buffer,
    address_length: u32,
    reach: Buffer,
    reach_length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is an `Endpoint`.
        let address: &Endpoint = only(unsafe { records(address, address_length)? })?;
        // SAFETY: the caller's promise; any bit pattern is a `ReachRecord`.
        let reach: &mut ReachRecord = only_mut(unsafe { records_mut(reach, reach_length)? })?;
        *reach = netlink::reach::find(address)?;
        Ok(0)
    })
}

/// Writes which way a reply to a client takes, and the rule that decides it: one `ReplyRecord`. Needs no
/// capability.
///
/// # Safety
/// `query` is valid for reading `query_length` bytes: one `ReplyQuery`; `reply` for writing `reply_length`
/// bytes: one `ReplyRecord`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn find_reply(
    query: Buffer,
    query_length: u32,
    reply: Buffer,
    reply_length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `ReplyQuery`.
        let query: &ReplyQuery = only(unsafe { records(query, query_length)? })?;
        // SAFETY: the caller's promise; any bit pattern is a `ReplyRecord`.
        let reply: &mut ReplyRecord = only_mut(unsafe { records_mut(reply, reply_length)? })?;
        *reply = netlink::reply::find(query)?;
        Ok(0)
    })
}

/// Whether an interface is up, by its name: 1 or 0.
///
/// # Safety
/// `name` is valid for reading `length` bytes of UTF-8.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn link_is_up(name: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let name = std::str::from_utf8(unsafe { bytes(name, length) });
        netlink::link::is_up(name.map_err(|_| Error::invalid("a device's name is not UTF-8"))?)
            .map(i32::from)
    })
}

/// Whether nftables has a rule that hands packets to a transparent listener: 1 or 0. Needs CAP_NET_ADMIN.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn has_tproxy() -> i32 {
    guard(|| netlink::tproxy::is_there().map(i32::from))
}

/// Writes a number to a kernel parameter, named as a path below /proc/sys: `net/ipv4/ip_forward`.
///
/// # Safety
/// `name` is valid for reading `length` bytes of UTF-8.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn set_sysctl(name: Buffer, length: u32, value: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        files::set_sysctl(unsafe { bytes(name, length) }, value)
    })
}

/// Whether this process may use the clients' addresses and, unless it is 0, the mark: 0 or a status.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn check_capabilities(mark: u32) -> i32 {
    guard(|| proxy::check_capabilities(mark).map(|()| 0))
}

/// Whether no upstream of some ports, of any number of listeners, is one of these ports, or where the
/// metrics are served: 0 or a status.
///
/// # Safety
/// `metrics` is valid for reading `metrics_length` bytes: one `Endpoint`, empty if there are none;
/// `ports` for `length`: one or more `PortRecord`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn check_forwarding(
    metrics: Buffer,
    metrics_length: u32,
    ports: Buffer,
    length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is an `Endpoint`.
        let metrics: &Endpoint = only(unsafe { records(metrics, metrics_length)? })?;
        // SAFETY: the caller's promise; any bit pattern is a `PortRecord`.
        let ports: &[PortRecord] = unsafe { records(ports, length)? };
        proxy::check_forwarding(metrics, ports).map(|()| 0)
    })
}

/// Whether this process may listen on an address, and nobody else does: 0 or a status. `protocols`: bits
/// of `protocol`.
///
/// # Safety
/// `address` is valid for reading `length` bytes: one `Endpoint`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn check_listen(address: Buffer, length: u32, protocols: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is an `Endpoint`.
        let address: &Endpoint = only(unsafe { records(address, length)? })?;
        let listen = address.socket_addr().ok_or_else(|| Error::invalid("no address came"))?;
        for (bit, transport) in [(protocol::TCP, Transport::Tcp), (protocol::UDP, Transport::Udp)] {
            if protocols & bit != 0 {
                port::check_free(listen, transport, Listen::default())?;
            }
        }
        Ok(0)
    })
}

/// Puts in effect the capabilities that the process is permitted, of those that the program has uses for.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn raise_capabilities() -> i32 {
    guard(|| sandbox::raise_permitted().map(|()| 0))
}

/// Enters the sandbox, as far as the system allows, and writes the result. It cannot be
/// left. Call it when everything is open and before a worker starts.
///
/// # Safety
/// `request` is valid for reading `length` bytes: one `SandboxRequest`; `record` for writing
/// `record_length` bytes: one `SandboxRecord`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn enter_sandbox(
    request: Buffer,
    length: u32,
    record: Buffer,
    record_length: u32,
) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe { sandboxed(request, length, record, record_length, sandbox::enter) })
}

/// Tries the sandbox on a separate thread, which then ends, and writes the result. Changes nothing.
///
/// # Safety
/// As `enter_sandbox`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn rehearse_sandbox(
    request: Buffer,
    length: u32,
    record: Buffer,
    record_length: u32,
) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe { sandboxed(request, length, record, record_length, sandbox::rehearse) })
}

/// # Safety
/// As `enter_sandbox`.
unsafe fn sandboxed(
    request: Buffer,
    length: u32,
    record: Buffer,
    record_length: u32,
    enter: fn(&SandboxRequest) -> errors::Result<SandboxRecord>,
) -> errors::Result<i32> {
    // SAFETY: the caller's promise; any bit pattern is a `SandboxRequest`.
    let request: &SandboxRequest = only(unsafe { records(request, length)? })?;
    // SAFETY: the caller's promise; any bit pattern is a `SandboxRecord`.
    let record: &mut SandboxRecord = only_mut(unsafe { records_mut(record, record_length)? })?;
    *record = enter(request)?;
    Ok(0)
}

/// The process that has the socket of this inode open; 0 when this process may not see it.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn socket_owner(inode: u32) -> i32 {
    guard(|| Ok(files::socket_owner(inode).unwrap_or(0) as i32))
}

/// Writes what this process uses of the system: memory, descriptors, CPU time.
///
/// # Safety
/// `record` is valid for writing `length` bytes: one `UsageRecord`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn process_usage(record: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `UsageRecord`.
        let record: &mut UsageRecord = only_mut(unsafe { records_mut(record, length)? })?;
        *record = usage::usage()?;
        Ok(0)
    })
}

/// Returns the memory to the kernel that the start needed.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn release_memory() -> i32 {
    guard(|| {
        memory::release();
        Ok(0)
    })
}

/// Tries once to reach an upstream, plainly or as a client, and waits for the outcome: 0 when a TCP
/// connection was accepted or a reply to the UDP `payload` came, otherwise the operating system's error
/// (ETIMEDOUT: nothing came in time).
///
/// # Safety
/// `request` is valid for reading `length` bytes: one `Probe`; `payload` for reading `payload_length`.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn probe(
    request: Buffer,
    length: u32,
    payload: Buffer,
    payload_length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is a `Probe`.
        let (requests, payload): (&[Probe], _) =
            unsafe { (records(request, length)?, bytes(payload, payload_length)) };
        probe::run(only(requests)?, payload)
    })
}

/// Tries once whether this host's own connection, or datagram, gets through to an address on which it
/// listens or could, and waits for the outcome: 0, or the operating system's error (ETIMEDOUT: it was lost).
///
/// # Safety
/// `listen` is valid for reading `length` bytes: one `Endpoint`.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn reach_own(
    listen: Buffer,
    length: u32,
    is_tcp: u32,
    timeout_ms: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is an `Endpoint`.
        let listen: &Endpoint = only(unsafe { records(listen, length)? })?;
        let listen = listen.socket_addr().ok_or_else(|| Error::invalid("no address came"))?;
        let transport = if is_tcp == 0 { Transport::Udp } else { Transport::Tcp };
        probe::reach_own(listen, transport, Duration::from_millis(u64::from(timeout_ms)))
    })
}

/// Asks every worker for the connections and flows of a selection, or has it close them; waits for two
/// seconds at most. Writes the totals, and as many records as there is room for.
///
/// # Safety
/// `selection` is valid for reading `length` bytes: one `SelectionRecord`; `survey` for writing
/// `survey_length` bytes: one `SurveyRecord`; `records` for writing `records_length` bytes: any number of
/// `ConnectionRecord`.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn survey_connections(
    proxy: u32,
    selection: Buffer,
    length: u32,
    survey: Buffer,
    survey_length: u32,
    records: Buffer,
    records_length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; any bit pattern is each of these records.
        let (selection, survey, into): (&[SelectionRecord], &mut [SurveyRecord], _) = unsafe {
            let into: &mut [ConnectionRecord] = records_mut(records, records_length)?;
            (self::records(selection, length)?, records_mut(survey, survey_length)?, into)
        };
        *only_mut(survey)? = handles::proxy(proxy)?.survey_records(only(selection)?, into)?;
        Ok(0)
    })
}

/// Opens a control socket, a file of mode 0600, and listens there; returns its handle. One that is stale
/// is replaced; that of the predecessor (from `take_over`, or 0) is taken, and answers nobody before
/// `finish_take_over` and `accept_control`.
///
/// # Safety
/// `path` is valid for reading `length` bytes of UTF-8.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn open_control(path: Buffer, length: u32, predecessor: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let path = text(unsafe { bytes(path, length) })?;
        let predecessor = handles::predecessor(predecessor)?;
        let server = server::Server::open(&path, predecessor.as_deref())?;
        Ok(handles::add_control(Arc::new(server)))
    })
}

/// From now on a control socket that was taken from a predecessor accepts.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn accept_control(control: u32) -> i32 {
    guard(|| {
        handles::control(control)?.set_accepting(true);
        Ok(0)
    })
}

/// Forks the process from which upgrades start this program's command line again, to take over from the
/// program at this control socket. Call it before the sandbox.
///
/// # Safety
/// `path` is valid for reading `length` bytes of UTF-8.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn open_spawner(path: Buffer, length: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        spawner::open(&text(unsafe { bytes(path, length) })?)?;
        Ok(0)
    })
}

/// Starts this program's command line again; returns the number of the process.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn start_successor() -> i32 {
    guard(|| spawner::start().map(|process| process as i32))
}

/// Waits up to `timeout_ms` milliseconds for what the program that was started says on its standard error;
/// returns the bytes written to `words`, 0 when none came, and `INVALID` when none will.
///
/// # Safety
/// `words` is valid for writing `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn successor_words(words: Buffer, length: u32, timeout_ms: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let into = unsafe { bytes_mut(words, length) };
        let read = spawner::words(into, Duration::from_millis(u64::from(timeout_ms)))?;
        read.map(|count| count as i32).ok_or_else(|| Error::invalid("it says no more"))
    })
}

/// Ends the program that was started, if it still runs; returns its status (wait(2)).
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn end_successor() -> i32 {
    guard(spawner::end)
}

/// Hands this program's listening sockets and UDP flows over to whoever has made a request at a control socket,
/// instead of an answer. `words` are for TypeScript there. Writes the other process, how many sockets and
/// flows it has, and for how many milliseconds neither program read, as four `u32`; or, with a status below zero, why this program continues with all that it had,
/// UTF-8 up to a zero byte. The listeners must not be changed meanwhile.
///
/// # Safety
/// `words` is valid for reading `words_length` bytes, `outcome` for writing `length` bytes: 16 or more.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn hand_over(
    proxy: u32,
    control: u32,
    request: u32,
    words: Buffer,
    words_length: u32,
    outcome: Buffer,
    length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let (words, outcome) = unsafe { (bytes(words, words_length), bytes_mut(outcome, length)) };
        let (proxy, control) = (handles::proxy(proxy)?, handles::control(control)?);
        let given = give::give(&proxy, &control, request, words);
        let numbers = |it: give::Given| [it.process, it.sockets, it.flows, it.paused_ms];
        Ok(told(given.map(|given| numbers(given).map(u32::to_ne_bytes)), outcome))
    })
}

/// Tells the program that has taken over that all is done here.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn finish_hand_over(proxy: u32) -> i32 {
    guard(|| {
        give::finish(&*handles::proxy(proxy)?);
        Ok(0)
    })
}

/// Asks the program at a control socket, with a line without its end, to hand over; returns a handle, or 0
/// if nobody answers there. It continues until `finish_take_over`.
///
/// # Safety
/// `path` is valid for reading `path_length` bytes of UTF-8, `request` for `length`.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn take_over(
    path: Buffer,
    path_length: u32,
    request: Buffer,
    length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let (path, request) = unsafe { (bytes(path, path_length), bytes(request, length)) };
        let predecessor = Predecessor::ask(&text(path)?, request)?;
        Ok(match predecessor {
            Some(predecessor) => handles::add_predecessor(Arc::new(predecessor)),
            None => {
                spawner::use_own_stderr();
                0
            }
        })
    })
}

/// Copies the words of a predecessor's TypeScript; returns their length in bytes.
///
/// # Safety
/// `words` is valid for writing `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn predecessor_words(predecessor: u32, words: Buffer, length: u32) -> i32 {
    guard(|| {
        let Some(predecessor) = handles::predecessor(predecessor)? else { return Ok(0) };
        // SAFETY: the caller's promise.
        let room = unsafe { bytes_mut(words, length) };
        let own = predecessor.words();
        room.iter_mut().zip(own).for_each(|(room, byte)| *room = *byte);
        Ok(own.len() as i32)
    })
}

/// Has the predecessor of a proxy hand over, and the workers read. Writes how many UDP flows came as a `u32`;
/// or, with a status below zero, why nothing was handed over, UTF-8 up to a zero byte: this program has to end
/// then.
///
/// # Safety
/// `outcome` is valid for writing `length` bytes: 4 or more.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn finish_take_over(proxy: u32, outcome: Buffer, length: u32) -> i32 {
    guard(|| {
        let proxy = handles::proxy(proxy)?;
        // SAFETY: the caller's promise.
        let outcome = unsafe { bytes_mut(outcome, length) };
        let none = || Error::invalid("there is no predecessor");
        let taken = proxy.predecessor.as_ref().ok_or_else(none)?.finish(&proxy);
        if taken.is_ok() {
            spawner::use_own_stderr();
        }
        Ok(told(taken.map(|flows| [flows.to_ne_bytes()]), outcome))
    })
}

/// Waits up to `timeout_ms` milliseconds for a request at a control socket: its number as a `u32`, then
/// its line. Returns the bytes written; 0 when none came or the socket was closed.
///
/// # Safety
/// `request` is valid for writing `length` bytes: 4,100 are enough for each.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn next_request(
    control: u32,
    request: Buffer,
    length: u32,
    timeout_ms: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let room = unsafe { bytes_mut(request, length) };
        let timeout = Duration::from_millis(u64::from(timeout_ms));
        let Some(request) = handles::control(control)?.next(timeout) else { return Ok(0) };
        let all = [&request.id.to_ne_bytes()[..], &request.line].concat();
        let room =
            room.get_mut(..all.len()).ok_or_else(|| Error::invalid("a request needs more room"))?;
        room.copy_from_slice(&all);
        Ok(all.len() as i32)
    })
}

/// Answers a request with a line, given without its end.
///
/// # Safety
/// `answer` is valid for reading `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn answer_request(
    control: u32,
    request: u32,
    answer: Buffer,
    length: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        handles::control(control)?.answer(request, unsafe { bytes(answer, length) });
        Ok(0)
    })
}

/// Closes a control socket, and removes its file where that is allowed.
#[cfg_attr(feature = "bindgen", deno_bindgen)]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub extern "C" fn close_control(control: u32) -> i32 {
    guard(|| {
        handles::control(control)?.close();
        Ok(0)
    })
}

/// Asks the program at a control socket, with a line without its end; returns the answer's length in
/// bytes. A failure's sentence is in `answer`, up to a zero byte: `last_error` would be of another thread.
///
/// # Safety
/// `path` is valid for reading `path_length` bytes of UTF-8, `request` for `request_length`; `answer` for
/// writing `length` bytes.
#[cfg_attr(feature = "bindgen", deno_bindgen(non_blocking))]
#[cfg_attr(not(feature = "bindgen"), no_mangle)]
pub unsafe extern "C" fn ask_control(
    path: Buffer,
    path_length: u32,
    request: Buffer,
    request_length: u32,
    answer: Buffer,
    length: u32,
    timeout_ms: u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let (path, request, answer) = unsafe {
            (bytes(path, path_length), bytes(request, request_length), bytes_mut(answer, length))
        };
        let timeout = Duration::from_millis(u64::from(timeout_ms));
        let asked = text(path).and_then(|path| client::ask(&path, request, answer, timeout));
        Ok(match asked {
            Ok(length) => length as i32,
            Err(error) => tell_error(&error, answer),
        })
    })
}

/// Writes an error's sentence, up to a zero byte; a status.
fn tell_error(error: &Error, into: &mut [u8]) -> i32 {
    let sentence = error.text().bytes().chain([0]);
    into.iter_mut().zip(sentence).for_each(|(room, byte)| *room = byte);
    status::SYSTEM
}

/// Writes numbers, or an error's sentence; a status.
fn told<const COUNT: usize>(result: errors::Result<[[u8; 4]; COUNT]>, into: &mut [u8]) -> i32 {
    match result {
        Ok(numbers) => {
            into.iter_mut().zip(numbers.as_flattened()).for_each(|(room, byte)| *room = *byte);
            0
        }
        Err(error) => tell_error(&error, into),
    }
}

fn text(bytes: &[u8]) -> errors::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::invalid("a path is not UTF-8"))
}

/// The one record that a call takes.
/// The one record that is written.
fn only_mut<T>(records: &mut [T]) -> errors::Result<&mut T> {
    match records {
        [record] => Ok(record),
        _ => {
            Err(Error::invalid(format!("there is room for {} records, not for one", records.len())))
        }
    }
}

fn only<T>(records: &[T]) -> errors::Result<&T> {
    match records {
        [record] => Ok(record),
        _ => Err(Error::invalid(format!("{} records came, one is taken", records.len()))),
    }
}

/// # Safety
/// `start` is valid for reading `length` bytes, unless `length` is 0.
unsafe fn bytes<'a>(start: Buffer, length: u32) -> &'a [u8] {
    if start.is_null() || length == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(start, length as usize) }
}

/// # Safety
/// `start` is valid for writing `length` bytes, unless `length` is 0, and nobody else looks at them.
unsafe fn bytes_mut<'a>(start: Buffer, length: u32) -> &'a mut [u8] {
    if start.is_null() || length == 0 {
        return &mut [];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(start, length as usize) }
}

/// The whole buffer as records of one kind; an error if it is not a whole number of them.
///
/// # Safety
/// As `bytes`, and every bit pattern is a `T`.
unsafe fn records<'a, T>(start: Buffer, length: u32) -> errors::Result<&'a [T]> {
    let count = record_count::<T>(start, length)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: the caller's promise; size and alignment were checked.
    Ok(unsafe { std::slice::from_raw_parts(start.cast(), count) })
}

/// # Safety
/// As `bytes_mut`, and every bit pattern is a `T`.
unsafe fn records_mut<'a, T>(start: Buffer, length: u32) -> errors::Result<&'a mut [T]> {
    let count = record_count::<T>(start, length)?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: the caller's promise; size and alignment were checked.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast(), count) })
}

fn record_count<T>(start: Buffer, length: u32) -> errors::Result<usize> {
    let size = std::mem::size_of::<T>();
    if start.is_null() && length > 0
        || !(start as usize).is_multiple_of(std::mem::align_of::<T>())
        || !(length as usize).is_multiple_of(size)
    {
        return Err(Error::invalid(format!("{length} bytes are not records of {size} bytes")));
    }
    Ok(length as usize / size)
}
