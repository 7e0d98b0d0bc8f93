//! The course of a load: warm up, measure, drain, end; and what its threads count meanwhile.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};
use std::sync::{mpsc, Arc};
use std::thread::{sleep, JoinHandle};
use std::time::Duration;

use crate::options;
use crate::report::Report;
use crate::sys;

/// How often a thread looks at the phase when nothing else wakes it.
pub const LOOK: Duration = Duration::from_millis(20);

/// How long a drain may take before what is still under way counts as lost.
const DRAIN: Duration = Duration::from_secs(3);

/// How often `conduct` looks at the counters while it measures.
const TICK: Duration = Duration::from_millis(100);

/// Where a load stands. It only ever moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    WarmUp,
    Measure,
    /// Start nothing new, finish what is under way.
    Drain,
    End,
}

/// The phase, seen by all threads of a load.
#[derive(Default)]
pub struct Course(AtomicU8);

impl Course {
    pub fn phase(&self) -> Phase {
        match self.0.load(Relaxed) {
            0 => Phase::WarmUp,
            1 => Phase::Measure,
            2 => Phase::Drain,
            _ => Phase::End,
        }
    }

    pub fn enter(&self, phase: Phase) {
        self.0.store(phase as u8, Relaxed);
    }
}

/// How long a load warms up and is measured.
#[derive(Clone, Copy)]
pub struct Timing {
    pub warm_up: Duration,
    pub measure: Duration,
}

/// A number that one thread raises and another reads.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one side of a load counts. Bytes for TCP bulk; messages and datagrams for all else.
#[derive(Default)]
pub struct Counts {
    /// Connections opened or accepted.
    pub opened: Count,
    pub sent: Count,
    pub received: Count,
    /// Connections, exchanges or system calls that failed.
    pub failed: Count,
    /// Datagrams for which this side's own receive buffers had no room.
    pub dropped: Count,
    /// Messages that came from another address than that of the client named inside.
    pub wrong_client: Count,
    /// Messages from the right address but another port.
    pub other_port: Count,
    /// Datagrams that came after a later one of the same client, or twice.
    pub out_of_order: Count,
}

/// A side of a load: a thread and its counts.
pub struct Side<T> {
    pub counts: Arc<Counts>,
    thread: JoinHandle<std::io::Result<T>>,
}

impl<T: Send + 'static> Side<T> {
    /// Starts a side. It is to end by itself soon after the course has entered `End`.
    pub fn start(
        course: &Arc<Course>,
        body: impl FnOnce(&Course, &Counts) -> std::io::Result<T> + Send + 'static,
    ) -> Side<T> {
        let counts = Arc::new(Counts::default());
        let (course, own) = (Arc::clone(course), Arc::clone(&counts));
        let (prepared, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let result = sys::prepare_thread();
            drop(prepared);
            result?;
            body(&course, &own)
        });
        // Its descriptor table is a copy: what is opened from here on must not be in it, or closing
        // would close only one of two. The channel ends once the copy is made.
        let _ = wait.recv() as Result<(), mpsc::RecvError>;
        Side { counts, thread }
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the side's end; its result.
    pub fn join(self) -> std::io::Result<T> {
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Leads a load through its phases, calling `tick` every tenth of a second while it measures.
/// Returns the measured seconds. It gives up early when `finished` says that the load has ended,
/// and waits for that after measuring.
pub fn conduct(
    course: &Course,
    timing: Timing,
    finished: impl Fn() -> bool,
    tick: impl FnMut(),
) -> f64 {
    let seconds = conduct_to_drain(course, timing, finished, tick);
    course.enter(Phase::End);
    seconds
}

/// The same, but the servers go on: the caller enters `End`.
pub fn conduct_to_drain(
    course: &Course,
    timing: Timing,
    finished: impl Fn() -> bool,
    mut tick: impl FnMut(),
) -> f64 {
    wait_until(timing.warm_up, &finished);
    course.enter(Phase::Measure);
    let started = sys::now();
    let end = started + timing.measure.as_nanos() as u64;
    tick();
    while sys::now() < end && !finished() {
        let left = Duration::from_nanos(end.saturating_sub(sys::now()));
        sleep(left.min(TICK));
        tick();
    }
    course.enter(Phase::Drain);
    let seconds = (sys::now() - started) as f64 / 1e9;
    wait_until(DRAIN, &finished);
    seconds
}

/// Prints a line `{"ready":N}` for whoever waits for it.
pub fn report_ready(count: u64) {
    report_one("ready", count);
}

/// Prints a line with one number.
pub fn report_one(name: &'static str, count: u64) {
    let mut report = Report::default();
    report.count(name, count);
    report.print();
}

/// Waits until standard input has a line or ends, or for so long.
pub fn wait_for_line(limit: Duration) -> options::Result<()> {
    next_line(limit).map_err(|error| format!("Cannot read standard input: {error}"))
}

fn next_line(limit: Duration) -> io::Result<()> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    if sys::wait_readable(&input, limit.as_millis() as i32)? {
        io::stdin().read_line(&mut String::new())?;
    }
    Ok(())
}

/// Waits until standard input ends, or for so long.
pub fn wait_for_end_of_input(limit: Duration) -> options::Result<()> {
    end_of_input(limit).map_err(|error| format!("Cannot read standard input: {error}"))
}

fn end_of_input(limit: Duration) -> io::Result<()> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let end = sys::now() + limit.as_nanos() as u64;
    let mut buffer = [0; 64];
    while sys::now() < end {
        let left = (end.saturating_sub(sys::now()) / 1_000_000) as i32;
        if sys::wait_readable(&input, left)? && io::stdin().read(&mut buffer)? == 0 {
            return Ok(());
        }
    }
    Ok(())
}

fn wait_until(limit: Duration, finished: &impl Fn() -> bool) {
    let end = sys::now() + limit.as_nanos() as u64;
    while sys::now() < end && !finished() {
        let left = Duration::from_nanos(end.saturating_sub(sys::now()));
        sleep(left.min(Duration::from_millis(5)));
    }
}
