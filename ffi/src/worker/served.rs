//! A listener's port in one worker, for one transport: everything that a connection or a flow needs of both, behind one
//! pointer.

use std::cell::RefCell;
use std::sync::Arc;

use crate::abi::layout::Event;
use crate::observe::silence::Silence;
use crate::observe::stats::Stats;
use crate::proxy::listener::Listener;
use crate::proxy::port::{Port, Transport};

/// It never changes: connections keep the one that they were accepted by.
pub struct Served {
    pub listener: Arc<Listener>,
    pub port: Arc<Port>,
    pub transport: Transport,
    /// The worker's counters of the listener.
    pub stats: Arc<Stats>,
    /// Whether most of its connections say nothing.
    pub silence: RefCell<Silence>,
}

impl Served {
    pub fn new(
        worker: u32,
        listener: &Arc<Listener>,
        port: &Arc<Port>,
        transport: Transport,
    ) -> Served {
        Served {
            listener: listener.clone(),
            port: port.clone(),
            transport,
            stats: listener.lasting.stats[worker as usize].clone(),
            silence: RefCell::default(),
        }
    }

    /// The listener's number.
    pub fn id(&self) -> u32 {
        self.listener.id
    }

    /// An event of the listener.
    pub fn event(&self, event: Event) -> Event {
        Event { listener: self.id(), ..event }
    }
}
