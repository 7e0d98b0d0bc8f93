//! The TCP loads: each command's options, threads and report.

mod bpf_echo;
mod echo;
mod exchange;
mod idle;
mod ping_pong;
mod pump;
mod rate;

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pico_args::Arguments;

use crate::options::{bounded, given, Common, Result};
use crate::proxy::Transport;
use crate::report::Report;
use crate::run::{
    conduct, conduct_to_drain, report_one, report_ready, wait_for_end_of_input, wait_for_line,
    Count, Counts, Course, Phase, Side, Timing,
};
use crate::sys;
use pump::Receipt;

pub use bpf_echo::bpf_echo;
pub use echo::serve_echo;
pub use exchange::{Exchange, Step};
pub use idle::idle;

/// How long `tcp-pingpong --held` waits for whoever measures the proxy.
const MEASURER: Duration = Duration::from_secs(30);

/// How long opening one connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// `tcp-bulk`.
pub fn bulk(mut arguments: Arguments) -> Result<()> {
    let common = Common::parse(&mut arguments)?;
    let connections = bounded(&mut arguments, "--connections", 50, 1..=1000)?;
    let receipt = receipt(&mut arguments);
    finish(arguments)?;

    let course = Arc::new(Course::default());
    let listener = listen(common.server)?;
    let check = common.expects_clients();
    let server = Side::start(&course, move |course, counts| {
        pump::Pump::new(course, counts, receipt)?.serve(listener, check)
    });
    let load = Side::start(&course, move |course, counts| {
        let mut pump = pump::Pump::new(course, counts, receipt)?;
        for number in 0..connections as u64 {
            let socket = open(&common, common.first_client + number)?;
            // The server's first byte says that the connection is there end to end: only then the
            // next, for a proxy with a short accept queue is not what this load is about.
            if !sys::wait_readable(&socket, CONNECT.as_millis() as i32)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            pump.add(socket)?;
        }
        pump.run()
    });
    let (up, down) = (Arc::clone(&server.counts), Arc::clone(&load.counts));
    let mut marks = Vec::new();
    let seconds = conduct(
        &course,
        common.timing,
        || load.is_finished() && (server.is_finished() || course.phase() < Phase::Drain),
        || marks.push((sys::now(), up.received.get(), down.received.get())),
    );
    let unfinished = join(load)? + join(server)?;

    let mut report = Report::default();
    let (first, last) = (marks[0], marks[marks.len() - 1]);
    let gigabits = |bytes: u64| bytes as f64 * 8e-9 / seconds;
    report.number("up_gbit", gigabits(last.1 - first.1));
    report.number("down_gbit", gigabits(last.2 - first.2));
    report.number("slowest_tenth", slowest_tenth(&marks));
    report.count("operations", up.received.get() + down.received.get());
    report.count("lost_up", down.sent.get().saturating_sub(up.received.get()));
    report.count("lost_down", up.sent.get().saturating_sub(down.received.get()));
    report.count("unfinished", unfinished);
    report.count("failed", up.failed.get() + down.failed.get());
    report.count("wrong_client", up.wrong_client.get());
    end(report, seconds);
    Ok(())
}

/// The slowest tenth of a second, both directions together, as a share of the mean.
fn slowest_tenth(marks: &[(u64, u64, u64)]) -> f64 {
    let speed = |from: &(u64, u64, u64), to: &(u64, u64, u64)| {
        (to.1 + to.2 - from.1 - from.2) as f64 / (to.0 - from.0).max(1) as f64
    };
    let mean = speed(&marks[0], &marks[marks.len() - 1]);
    // The last interval may be a fraction of a tenth: too short to judge.
    let whole = marks.windows(2).filter(|pair| pair[1].0 - pair[0].0 > 50_000_000);
    whole.map(|pair| speed(&pair[0], &pair[1])).fold(f64::INFINITY, f64::min) / mean
}

/// `tcp-rate`.
pub fn rate(mut arguments: Arguments) -> Result<()> {
    let common = Common::parse(&mut arguments)?;
    let at_once = bounded(&mut arguments, "--at-once", 32, 1..=1024)?;
    finish(arguments)?;

    let course = Arc::new(Course::default());
    let server = start_echo(&course, &common)?;
    let load = Side::start(&course, move |course, counts| {
        rate::Rate::new(&common, at_once)?.run(course, counts)
    });
    let counts = Arc::clone(&load.counts);
    let seconds = conduct(&course, common.timing, || load.is_finished(), || {});
    let times = join(load)?;
    let served = Arc::clone(&server.counts);
    join(server)?;

    let mut report = Report::default();
    report.number("per_second", times.count() as f64 / seconds);
    report.percentiles(&times);
    end_exchanges(report, &counts, &served, seconds);
    Ok(())
}

/// `tcp-pingpong`. With `--held`, so many other connections are open and idle meanwhile, and what
/// they cost to open and to close stays out of the proxy's processor time: the load prints
/// `{"ready":N}` and waits for a line before it starts, prints `{"exchanged":N}` when the warm-up and when
/// the measured time is over, and waits for the end of its input before anything closes.
pub fn ping_pong(mut arguments: Arguments) -> Result<()> {
    let common = Common::parse(&mut arguments)?;
    let connections = bounded(&mut arguments, "--connections", 32, 1..=1000)?;
    let storm = bounded(&mut arguments, "--storm", 0, 0..=100_000)?;
    let held = given(&mut arguments, "--held", 0..=idle::MOST)?;
    finish(arguments)?;

    let course = Arc::new(Course::default());
    let server = start_echo(&course, &common)?;
    let (others, not_opened) = idle::hold(&common, held.unwrap_or(0));
    if held.is_some() {
        report_ready(others.len() as u64);
        wait_for_line(MEASURER)?;
    }
    let common = Common { first_client: common.first_client + others.len() as u64, ..common };
    let load = Side::start(&course, move |course, counts| {
        ping_pong::PingPong::open(&common, connections, counts)?.run(course, counts)
    });
    let storm = (storm > 0).then(|| {
        let common = Common { first_client: common.first_client + connections as u64, ..common };
        Side::start(&course, move |course, counts| {
            rate::Rate::new(&common, 64)?.paced(storm).run(course, counts)
        })
    });
    let counts = Arc::clone(&load.counts);
    let report_exchanges = || report_one("exchanged", counts.received.get());
    let mut is_first_tick = true;
    let seconds = conduct_to_drain(
        &course,
        common.timing,
        || load.is_finished() && storm.as_ref().is_none_or(Side::is_finished),
        || {
            if std::mem::take(&mut is_first_tick) && held.is_some() {
                report_exchanges();
            }
        },
    );
    if held.is_some() {
        report_exchanges();
        wait_for_end_of_input(MEASURER)?;
    }
    let closed = idle::count_closed(&others)
        .map_err(|error| format!("Cannot look at the idle connections: {error}"))?;
    course.enter(Phase::End);
    counts.failed.add(not_opened + closed);
    let times = join(load)?;
    let mut report = Report::default();
    report.number("per_second", times.count() as f64 / seconds);
    report.percentiles(&times);
    if let Some(storm) = storm {
        let counts = Arc::clone(&storm.counts);
        let times = join(storm)?;
        report.number("storm_per_second", times.count() as f64 / seconds);
        report.count("storm_operations", counts.received.get());
        report.count("storm_failed", counts.failed.get());
    }
    let served = Arc::clone(&server.counts);
    join(server)?;
    end_exchanges(report, &counts, &served, seconds);
    Ok(())
}

/// `tcp-echo`.
pub fn echo_server(arguments: Arguments) -> Result<()> {
    serve_alone(arguments, |listener, check, course, counts| {
        serve_echo(listener, check, course, counts)
    })
}

/// `tcp-drain`.
pub fn drain_server(mut arguments: Arguments) -> Result<()> {
    let receipt = receipt(&mut arguments);
    serve_alone(arguments, move |listener, check, course, counts| {
        pump::Pump::new(course, counts, receipt)?.serve(listener, check).map(|_unfinished| ())
    })
}

fn receipt(arguments: &mut Arguments) -> Receipt {
    if arguments.contains("--copy") {
        Receipt::Copy
    } else {
        Receipt::Discard
    }
}

fn serve_alone(
    mut arguments: Arguments,
    serve: impl FnOnce(OwnedFd, bool, &Course, &Counts) -> io::Result<()> + Send + 'static,
) -> Result<()> {
    let common = Common::parse(&mut arguments)?;
    finish(arguments)?;
    let course = Arc::new(Course::default());
    let listener = listen(common.server)?;
    let check = common.expects_clients();
    let server = Side::start(&course, move |course, counts| serve(listener, check, course, counts));
    let counts = Arc::clone(&server.counts);
    let timing = Timing { warm_up: Duration::ZERO, ..common.timing };
    let seconds = conduct(&course, timing, || server.is_finished(), || {});
    join(server)?;
    let mut report = Report::default();
    report.count("opened", counts.opened.get());
    report.count("received", counts.received.get());
    report.count("sent", counts.sent.get());
    report.count("failed", counts.failed.get());
    report.count("wrong_client", counts.wrong_client.get());
    end(report, seconds);
    Ok(())
}

/// Starts the server that sends everything back.
pub fn start_echo(course: &Arc<Course>, common: &Common) -> Result<Side<()>> {
    let listener = listen(common.server)?;
    let check = common.expects_clients();
    Ok(Side::start(course, move |course, counts| serve_echo(listener, check, course, counts)))
}

/// Opens a connection and sends its header; nonblocking from there on.
pub fn open(common: &Common, number: u64) -> io::Result<OwnedFd> {
    let mut stream = TcpStream::connect_timeout(&common.target, CONNECT)?;
    let mut header = Vec::new();
    common.append_header(Transport::Stream, number, &mut header);
    stream.write_all(&header)?;
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

/// One exchange, waited for.
pub fn exchange_once(socket: &OwnedFd, number: u64) -> io::Result<()> {
    let mut exchange = Exchange::default();
    exchange.start(number, |_| {});
    let mut step = exchange.advance(socket)?;
    while step == Step::Receiving {
        if !sys::wait_readable(socket, CONNECT.as_millis() as i32)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        step = exchange.advance(socket)?;
    }
    match step {
        Step::Done => Ok(()),
        // A message so small does not fill a buffer that was empty.
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn end_exchanges(mut report: Report, counts: &Counts, served: &Counts, seconds: f64) {
    report.count("operations", counts.received.get());
    report.count("failed", counts.failed.get() + served.failed.get());
    report.count("wrong_client", served.wrong_client.get());
    report.count("other_port", served.other_port.get());
    end(report, seconds);
}

/// Adds what every report ends with, and prints it.
pub fn end(mut report: Report, seconds: f64) {
    report.number("seconds", seconds);
    report.number("load_cpu_seconds", sys::cpu_seconds());
    report.print();
}

/// Refuses what is left of a command line.
pub fn finish(arguments: Arguments) -> Result<()> {
    match arguments.finish().as_slice() {
        [] => Ok(()),
        [first, ..] => Err(format!("Option {first:?} is not known; --help lists them")),
    }
}

fn listen(address: SocketAddr) -> Result<OwnedFd> {
    sys::listen(address).map_err(|error| format!("Cannot listen on {address}: {error}"))
}

/// The result of a side, its error as a sentence.
pub fn join<T: Send + 'static>(side: Side<T>) -> Result<T> {
    side.join().map_err(|error| format!("The load failed: {error}"))
}

/// True for what ends in the measured time.
pub fn measures(course: &Course) -> bool {
    course.phase() == Phase::Measure
}

/// Accepts every connection that waits; those that broke meanwhile count as failed.
fn accept_all(
    listener: &OwnedFd,
    failed: &Count,
    mut add: impl FnMut(OwnedFd, SocketAddr) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        match sys::accept(listener) {
            Ok((socket, peer)) => add(socket, peer)?,
            Err(error) if sys::is_busy(&error) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => failed.add(1),
            Err(error) => return Err(error),
        }
    }
}
