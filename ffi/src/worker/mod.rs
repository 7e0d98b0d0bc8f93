//! A worker: one thread with one epoll, from a connection's first byte to its last. It handles every listener.

mod busy_poll;
pub mod context;
pub mod deadlines;
pub mod decision;
pub mod poll;
mod scratch;
pub mod served;
pub mod slab;
mod state;
mod trusted;
mod wake;

use std::io;
use std::sync::TryLockError;

use crate::abi::errors::{Error, Result};
use crate::proxy::handover::stages::Stage;
use crate::proxy::survey::Part;
use crate::tcp::connections::Connections;
use crate::udp::Udp;
use busy_poll::BusyPoll;
pub use context::{Context, OnHeader};
use poll::{Events, Interest, Token};
pub use state::Worker;

/// Serves a worker until its proxy is stopped.
pub fn serve(worker: &Worker, on_header: OnHeader) -> Result<i32> {
    let _serving = match worker.serving.try_lock() {
        Ok(guard) => guard,
        // A thread that panicked here has unwound: the worker is free.
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            return Err(Error::invalid("the worker is served by another thread"))
        }
    };
    let predecessor = worker.proxy.predecessor.as_ref();
    let arriving = match predecessor.map(|predecessor| predecessor.wait(worker.index)) {
        None => None,
        Some(Some(arriving)) => Some(arriving),
        // Its sockets are the predecessor's for good.
        Some(None) => return Ok(0),
    };
    worker.proxy.clear_gauges(worker.index);
    Turns::start(worker, on_header)
        .and_then(|mut turns| {
            if let Some(arriving) = arriving {
                turns.udp.adopt(&turns.cx, arriving);
            }
            predecessor
                .iter()
                .for_each(|predecessor| predecessor.begin(worker.proxy.settings.workers));
            turns.run()
        })
        .map_err(|error| Error::system("Cannot serve the listeners", &error))?;
    Ok(0)
}

/// A thread's state, turn after turn.
pub struct Turns<'a> {
    pub cx: Context<'a>,
    pub tcp: Connections,
    pub udp: Udp,
    pub events: Events,
    busy_poll: BusyPoll,
    /// The last events were of connections.
    streams: bool,
    /// How far this worker has followed a hand-over.
    stage: Stage,
}

impl<'a> Turns<'a> {
    /// Begins to serve every listener.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn start(worker: &'a Worker, on_header: OnHeader) -> io::Result<Turns<'a>> {
        let cx = Context::new(worker, on_header)?;
        // Edge-triggered: it reports each signal once, and nobody needs to read it.
        cx.poll.add(worker.wake.fd(), Token::Wake, Interest::Changes)?;
        let settings = &worker.proxy.settings;
        let mut turns = Turns {
            tcp: Connections::new(),
            udp: Udp::new(settings),
            events: Events::new(),
            busy_poll: BusyPoll::new(settings.workers, processors()),
            streams: false,
            stage: Stage::default(),
            cx,
        };
        turns.look_around()?;
        // A worker that starts again in the middle of a hand-over has to follow it.
        turns.follow_hand_over()?;
        Ok(turns)
    }

    /// Serves until the proxy is stopped.
    fn run(&mut self) -> io::Result<()> {
        loop {
            self.wait()?;
            self.turn()?;
            if let Some(stop_at) = self.cx.worker.proxy.stop_at() {
                let finished = self.tcp.stop(&self.cx) & self.udp.stop(&self.cx);
                if finished || self.cx.worker.proxy.now() >= stop_at {
                    self.tcp.end_all(&self.cx);
                    self.udp.end_all(&self.cx);
                    return Ok(());
                }
            }
        }
    }

    /// Sleeps until something is to be done.
    fn wait(&mut self) -> io::Result<()> {
        let timeout = if self.tcp.has_work() {
            0
        } else {
            let proxy = &self.cx.worker.proxy;
            let stop = proxy.stop_at();
            let (tcp, udp) = (self.tcp.next_deadline(), self.udp.next_deadline());
            sleep_ms(self.cx.now, [tcp, udp, stop, self.cx.next_held()])
        };
        self.busy_poll.wait(&self.cx.poll, &mut self.events, timeout, self.streams)?;
        self.cx.now = self.cx.worker.proxy.now();
        Ok(())
    }

    /// Does what is to be done: for the events that came, then for what is due.
    pub fn turn(&mut self) -> io::Result<()> {
        self.look_around()?;
        if self.events.len() > 0 {
            self.streams = false;
        }
        let mut woken = false;
        for index in 0..self.events.len() {
            match self.events.get(index) {
                (Token::Wake, _) => {
                    woken = true;
                    self.answer_survey();
                }
                (Token::TcpListener(key), _) => {
                    self.streams = true;
                    self.tcp.set_acceptable(key);
                }
                (Token::UdpListener(key), _) => self.udp.set_receivable(key),
                (Token::Flow(key), _) => self.udp.on_reply(&self.cx, key),
                (token, bits) => {
                    self.streams = true;
                    self.tcp.on_event(&mut self.cx, token, bits);
                }
            }
        }
        self.tcp.turn(&mut self.cx);
        self.udp.turn(&self.cx);
        self.cx.tell_held();
        if woken {
            // Last: what came with this turn's events is done.
            self.follow_hand_over()?;
        }
        Ok(())
    }

    /// Follows a hand-over to where it is.
    fn follow_hand_over(&mut self) -> io::Result<()> {
        let (stage, going) = self.cx.worker.proxy.stages.now();
        if stage == self.stage {
            return Ok(());
        }
        let mut leaving = None;
        match stage {
            Stage::Serving => {
                self.tcp.resume(&self.cx, &going)?;
                self.udp.resume(&self.cx, &going)?;
            }
            Stage::Paused => {
                self.tcp.pause(&self.cx, &going);
                self.udp.pause(&self.cx, &going);
            }
            Stage::Leaving => leaving = Some(self.udp.leaving()),
            Stage::Released => {
                self.tcp.release(&mut self.cx, &going);
                self.udp.release(&self.cx, &going);
            }
        }
        self.stage = stage;
        self.cx.worker.proxy.stages.follow(self.cx.worker.index, stage, leaving);
        Ok(())
    }

    /// Answers whoever asks for the connections, or wants some closed.
    fn answer_survey(&mut self) {
        let Some(survey) = self.cx.worker.proxy.surveys.part_of(self.cx.worker.index) else {
            return;
        };
        let mut part = Part::default();
        self.tcp.survey(&self.cx, &survey, &mut part);
        self.udp.survey(&self.cx, &survey, &mut part);
        survey.answer(part);
    }

    /// Looks at what others have changed: this host's addresses, the listeners.
    pub fn look_around(&mut self) -> io::Result<()> {
        self.cx.look_at_addresses();
        let Some((before, now)) = self.cx.look_at_listeners() else { return Ok(()) };
        if self.cx.worker.proxy.stop_at().is_some() {
            // Nothing is opened any more.
            return Ok(());
        }
        self.tcp.follow(&mut self.cx, &now)?;
        self.udp.follow(&self.cx, &now)?;
        for listener in before.listeners.iter().filter(|known| now.find(known.id).is_none()) {
            if let Some(ends_at) = listener.lasting.ends_at.get() {
                self.tcp.end_later(listener.id, self.cx.worker.proxy.ms_of(*ends_at));
            }
        }
        Ok(())
    }
}

/// How many processors this process may use at a time: its affinity, and a container's quota.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Milliseconds to sleep until the earliest of the deadlines; -1 without any.
fn sleep_ms<const COUNT: usize>(now: u64, deadlines: [Option<u64>; COUNT]) -> i32 {
    match deadlines.into_iter().flatten().min() {
        None => -1,
        Some(at) => i32::try_from(at.saturating_sub(now)).unwrap_or(i32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_ends_at_the_earliest_deadline() {
        assert_eq!(sleep_ms(5, [None, None, None]), -1);
        assert_eq!(sleep_ms(5, [Some(9), None, Some(7)]), 2);
        assert_eq!(sleep_ms(5, [Some(3), None, None]), 0);
        assert_eq!(sleep_ms(0, [Some(u64::MAX), None, None]), i32::MAX);
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod turns_tests;
