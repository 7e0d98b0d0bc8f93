//! The UDP loads: each command's options, threads and report.

mod flows;
mod load;
mod payload;
mod server;

use std::sync::Arc;
use std::time::Duration;

use pico_args::Arguments;

use crate::options::{bounded, required, Common, Result};
use crate::report::Report;
use crate::run::{conduct, Course, Side, Timing};
use crate::sys;
use crate::tcp::{end, finish, join};

pub use flows::flows;

/// Datagrams that one system call sends or receives.
const BATCH: usize = 64;

/// The most clients that a server tells apart.
const MOST_CLIENTS: usize = 65_536;

/// `udp`.
pub fn load(mut arguments: Arguments) -> Result<()> {
    let common = Common::parse(&mut arguments)?;
    let mode: String = required(&mut arguments, "--mode")?;
    let echo = match mode.as_str() {
        "echo" => true,
        "sink" => false,
        _ => return Err(format!("Option --mode: {mode:?} is not sink or echo")),
    };
    let plan = load::Plan {
        echo,
        clients: bounded(&mut arguments, "--clients", 16, 1..=4096)?,
        peers: bounded(&mut arguments, "--peers", 1, 1..=64)?,
        size: bounded(&mut arguments, "--size", 200, payload::LENGTH..=1400)?,
        rate: bounded(&mut arguments, "--rate", 0, 0..=10_000_000)?,
        segments: arguments.contains("--segments"),
    };
    finish(arguments)?;

    let course = Arc::new(Course::default());
    // A flood requests throughput, a paced load for the delay, too.
    let naps = plan.rate == 0;
    let server = start_server(&course, &common, Service { echo, naps, clients: plan.clients })?;
    let load = Side::start(&course, move |course, counts| {
        load::Load::new(&common, plan)?.run(course, counts)
    });
    let (out, at_server) = (Arc::clone(&load.counts), Arc::clone(&server.counts));
    let mut marks = Vec::new();
    let seconds = conduct(
        &course,
        common.timing,
        || load.is_finished() && server.is_finished(),
        || marks.push((out.sent.get(), at_server.received.get(), out.received.get())),
    );
    let times = join(load)?;
    join(server)?;

    let mut report = Report::default();
    let (first, last) = (marks[0], marks[marks.len() - 1]);
    let per_second = |from: u64, to: u64| (to - from) as f64 / seconds;
    report.number("sent_per_second", per_second(first.0, last.0));
    report.number("delivered_per_second", per_second(first.1, last.1));
    report.number("returned_per_second", per_second(first.2, last.2));
    let (sent, delivered) = (out.sent.get(), at_server.received.get());
    let arrived = if echo { out.received.get() } else { delivered };
    report.count("sent", sent);
    report.count("delivered", delivered);
    report.count("operations", arrived);
    report.number("lost_share", 1.0 - arrived as f64 / sent.max(1) as f64);
    let taken = out.received.get() + out.dropped.get();
    report.count("lost_replies", at_server.sent.get().saturating_sub(taken));
    report.count("load_drops", out.dropped.get() + at_server.dropped.get());
    report.count("failed", out.failed.get() + at_server.failed.get());
    report.count("wrong_client", out.wrong_client.get() + at_server.wrong_client.get());
    report.count("other_port", at_server.other_port.get());
    report.count("out_of_order", at_server.out_of_order.get());
    if echo {
        report.percentiles(&times);
    }
    end(report, seconds);
    Ok(())
}

/// `udp-echo` and `udp-sink`.
pub fn server(mut arguments: Arguments, echo: bool) -> Result<()> {
    let common = Common::parse(&mut arguments)?;
    finish(arguments)?;
    let course = Arc::new(Course::default());
    let service = Service { echo, naps: !echo, clients: MOST_CLIENTS };
    let server = start_server(&course, &common, service)?;
    let counts = Arc::clone(&server.counts);
    let timing = Timing { warm_up: Duration::ZERO, ..common.timing };
    let seconds = conduct(&course, timing, || server.is_finished(), || {});
    join(server)?;
    let mut report = Report::default();
    report.count("received", counts.received.get());
    report.count("sent", counts.sent.get());
    report.count("failed", counts.failed.get());
    report.count("wrong_client", counts.wrong_client.get());
    report.count("other_port", counts.other_port.get());
    report.count("out_of_order", counts.out_of_order.get());
    end(report, seconds);
    Ok(())
}

/// What a server is to do.
struct Service {
    echo: bool,
    naps: bool,
    clients: usize,
}

/// Starts a server for clients that are numbered from `common.first_client` on.
fn start_server(course: &Arc<Course>, common: &Common, service: Service) -> Result<Side<()>> {
    let open = || {
        let socket = sys::udp_socket(common.family())?;
        sys::enlarge_buffers(&socket)?;
        sys::bind(&socket, common.server)?;
        Ok(socket)
    };
    let socket = open()
        .map_err(|error: std::io::Error| format!("Cannot receive on {}: {error}", common.server))?;
    let server = server::Server {
        socket,
        echo: service.echo,
        family: common.family(),
        naps: service.naps,
        clients: service.clients,
        first_client: common.first_client,
        check: common.expects_clients(),
    };
    Ok(Side::start(course, move |course, counts| server.run(course, counts)))
}
