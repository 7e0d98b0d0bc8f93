//! How long a proxy takes from its start to its first connection.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use pico_args::Arguments;

use crate::options::{seconds, Common, Result};
use crate::proxy::Transport;
use crate::report::Report;
use crate::run::{Course, Phase};
use crate::sys;
use crate::tcp::{end, finish, join, start_echo, Exchange, Step};

/// Between two attempts.
const PAUSE: Duration = Duration::from_micros(200);
/// How long the command may take to end when asked to.
const STOP: Duration = Duration::from_secs(5);

/// `startup`: starts the command behind `--`, connects until it accepts and an exchange comes back,
/// reports both times, and ends it.
pub fn run(arguments: Arguments) -> Result<()> {
    let mut words = arguments.finish();
    let Some(dashes) = words.iter().position(|word| word == "--") else {
        return Err("A command is missing behind --".to_owned());
    };
    let command = words.split_off(dashes);
    let [_dashes, program, rest @ ..] = command.as_slice() else {
        return Err("A command is missing behind --".to_owned());
    };
    let mut arguments = Arguments::from_vec(words);
    let common = Common::parse(&mut arguments)?;
    let limit = seconds(&mut arguments, "--timeout", 10.0)?;
    finish(arguments)?;

    let course = Arc::new(Course::default());
    let server = start_echo(&course, &common)?;
    let started = sys::now();
    let mut child = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("Cannot start {program:?}: {error}"))?;
    let outcome = first_exchange(&common, started + limit.as_nanos() as u64, &mut child);
    stop(&mut child).map_err(|error| format!("Cannot end {program:?}: {error}"))?;
    course.enter(Phase::End);
    let served = Arc::clone(&server.counts);
    join(server)?;
    let (accepted, answered) =
        outcome.map_err(|error| format!("Nothing came through {program:?}: {error}"))?;

    let mut report = Report::default();
    report.number("accepted_ms", (accepted - started) as f64 / 1e6);
    report.number("answered_ms", (answered - started) as f64 / 1e6);
    report.count("operations", 1);
    report.count("failed", served.failed.get());
    report.count("wrong_client", served.wrong_client.get());
    report.count("other_port", served.other_port.get());
    end(report, (answered - started) as f64 / 1e9);
    Ok(())
}

/// When a connection was first accepted, and when an exchange was first answered.
fn first_exchange(common: &Common, end: u64, child: &mut Child) -> io::Result<(u64, u64)> {
    let mut accepted = None;
    let mut number = common.first_client;
    loop {
        let attempt = TcpStream::connect(common.target).and_then(|stream| {
            let accepted = *accepted.get_or_insert_with(sys::now);
            number += 1;
            exchange(common, stream, number)?;
            Ok((accepted, sys::now()))
        });
        let error = match attempt {
            Ok(times) => return Ok(times),
            Err(error) => error,
        };
        if sys::now() > end || child.try_wait()?.is_some() {
            return Err(error);
        }
        sleep(PAUSE);
    }
}

fn exchange(common: &Common, stream: TcpStream, number: u64) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let socket: OwnedFd = stream.into();
    let mut exchange = Exchange::default();
    exchange.start(number, |bytes| {
        common.append_header(Transport::Stream, number, bytes);
    });
    while exchange.advance(&socket)? != Step::Done {
        if !sys::wait_readable(&socket, 1000)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

fn stop(child: &mut Child) -> io::Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    sys::terminate(child.id())?;
    let end = sys::now() + STOP.as_nanos() as u64;
    while sys::now() < end {
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}
