//! Connections that are opened, used once, and then only held: for measuring what they cost.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pico_args::Arguments;

use crate::options::{bounded, Common, Result};
use crate::report::Report;
use crate::run::{report_ready, wait_for_end_of_input, Course, Phase};
use crate::sys;
use crate::tcp::{end, exchange_once, finish, join, open, start_echo};

/// So many connections fit into the usual limit of 20,000 files.
pub const MOST: usize = 12_000;

/// An open connection, with the number of its client.
pub type Held = (u64, OwnedFd);

/// Opens connections one after the other, each with one exchange. Returns them, and how many failed.
pub fn hold(common: &Common, connections: usize) -> (Vec<Held>, u64) {
    let mut failed = 0;
    let mut held: Vec<Held> = Vec::new();
    for number in common.first_client..common.first_client + connections as u64 {
        let opened =
            open(common, number).and_then(|socket| exchange_once(&socket, number).map(|()| socket));
        match opened {
            Ok(socket) => held.push((number, socket)),
            Err(_) => failed += 1,
        }
    }
    (held, failed)
}

/// How many of the connections the other side has closed. Nothing else makes an idle one readable.
pub fn count_closed(held: &[Held]) -> io::Result<u64> {
    let mut closed = 0;
    for (_, socket) in held {
        closed += u64::from(sys::wait_readable(socket, 0)?);
    }
    Ok(closed)
}

/// `tcp-idle`: opens the connections one after the other, each with one exchange, prints a line
/// `{"ready":N}`, waits until standard input ends (at most `--seconds`), sees whether every
/// connection still works, and reports.
pub fn idle(mut arguments: Arguments) -> Result<()> {
    let common = Common::parse(&mut arguments)?;
    let connections = bounded(&mut arguments, "--connections", 5000, 1..=MOST)?;
    finish(arguments)?;

    let course = Arc::new(Course::default());
    let server = start_echo(&course, &common)?;
    let started = sys::now();
    let (held, failed) = hold(&common, connections);
    report_ready(held.len() as u64);
    wait_for_end_of_input(common.timing.measure)?;
    let broken =
        held.iter().filter(|(number, socket)| exchange_once(socket, *number).is_err()).count();
    let seconds = (sys::now() - started) as f64 / 1e9;
    drop(held);
    course.enter(Phase::End);
    let served = Arc::clone(&server.counts);
    join(server)?;

    let mut report = Report::default();
    report.count("operations", connections as u64 - failed);
    report.count("failed", failed + broken as u64 + served.failed.get());
    report.count("wrong_client", served.wrong_client.get());
    report.count("other_port", served.other_port.get());
    end(report, seconds);
    Ok(())
}
