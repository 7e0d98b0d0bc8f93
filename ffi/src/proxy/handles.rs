//! The objects behind the handles of the boundary: proxies, workers, control sockets and predecessors, kept until
//! the process ends.

use std::sync::{Arc, Mutex};

use super::Proxy;
use crate::abi::errors::{Error, Result};
use crate::control::server::Server;
use crate::proxy::handover::take::Predecessor;
use crate::system::sync::lock;
use crate::worker::Worker;

static PROXIES: Mutex<Vec<Arc<Proxy>>> = Mutex::new(Vec::new());
static CONTROLS: Mutex<Vec<Arc<Server>>> = Mutex::new(Vec::new());
static PREDECESSORS: Mutex<Vec<Arc<Predecessor>>> = Mutex::new(Vec::new());
static WORKERS: Mutex<Vec<Arc<Worker>>> = Mutex::new(Vec::new());

/// Registers a proxy; its handle.
pub fn add_proxy(proxy: Arc<Proxy>) -> i32 {
    register(&PROXIES, proxy)
}

/// Registers a worker; its handle.
pub fn add_worker(worker: Arc<Worker>) -> i32 {
    register(&WORKERS, worker)
}

/// Registers a control socket; its handle.
pub fn add_control(control: Arc<Server>) -> i32 {
    register(&CONTROLS, control)
}

/// The control socket of a handle.
pub fn control(handle: u32) -> Result<Arc<Server>> {
    look_up(&CONTROLS, handle)
}

/// Registers a predecessor; its handle.
pub fn add_predecessor(predecessor: Arc<Predecessor>) -> i32 {
    register(&PREDECESSORS, predecessor)
}

/// The predecessor of a handle; 0 is none.
pub fn predecessor(handle: u32) -> Result<Option<Arc<Predecessor>>> {
    (handle != 0).then(|| look_up(&PREDECESSORS, handle)).transpose()
}

/// The proxy of a handle.
pub fn proxy(handle: u32) -> Result<Arc<Proxy>> {
    look_up(&PROXIES, handle)
}

/// The worker of a handle.
pub fn worker(handle: u32) -> Result<Arc<Worker>> {
    look_up(&WORKERS, handle)
}

fn register<T>(table: &Mutex<Vec<Arc<T>>>, entry: Arc<T>) -> i32 {
    let mut table = lock(table);
    table.push(entry);
    // Handles start at 1, so that a zeroed one is never valid.
    table.len() as i32
}

fn look_up<T>(table: &Mutex<Vec<Arc<T>>>, handle: u32) -> Result<Arc<T>> {
    let index = (handle as usize).wrapping_sub(1);
    let found = lock(table).get(index).cloned();
    found.ok_or_else(|| Error::invalid(format!("there is no handle {handle}")))
}
