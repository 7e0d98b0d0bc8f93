//! A load generator for PROXY protocol unwrappers. Each command makes one kind of load against a
//! proxy and serves it at the other end, ends by itself, and prints one JSON object.

mod histogram;
mod options;
mod proxy;
mod report;
mod run;
mod startup;
mod sys;
mod tcp;
mod udp;

use std::process::ExitCode;

use pico_args::Arguments;

const USAGE: &str = "\
mmproxy-loadgen COMMAND --server ADDRESS [OPTION]...

Makes one kind of load, serves its other end at --server, and prints one JSON object.

Commands, with their own options:
  tcp-bulk      both directions at once, as fast as it goes  --connections 50 (1-1000)
                                                             --copy (receive to a buffer, do not
                                                             discard in the kernel)
  tcp-rate      connect, 64 bytes there and back, close      --at-once 32 (1-1024)
  tcp-pingpong  64 bytes there and back on open connections  --connections 32 (1-1000)
                                                             --storm 0 (new connections a second)
                                                             --held N (0-12000 idle ones beside it;
                                                             waits for a line before it starts, and
                                                             for the end of input before it closes)
  tcp-idle      open connections, say so, hold them until    --connections 5000 (1-12000)
                standard input ends
  tcp-echo      only the server of tcp-rate and the like
  tcp-drain     only the server of tcp-bulk                --copy
  udp           datagrams of many clients                    --mode sink|echo (echo)
                                                             --clients 16 (1-4096), --peers 1 (1-64)
                                                             --size 200 (24-1400), --rate 0 (flood)
                                                             --segments (send with UDP_SEGMENT)
  udp-flows     a new client and peer for each datagram      --at-once 32 (1-1024), --count 8000
  udp-echo      only the server of udp-flows and the like
  udp-sink      the same, but it answers nothing
  bpf-echo      a BPF program as the server: TCP segments turn round on loopback, until standard
                input ends (IPv4, Linux 6.6, the machine's root, net.ipv4.tcp_timestamps=0)
  startup       start a command, wait until it relays        --timeout 10, then -- COMMAND...

Options of all:
  --server ADDRESS    where the load's own server listens (IP:port, [IPv6]:port)
  --target ADDRESS    where the load goes: the proxy (default: straight to the server)
  --ports N           each connection of tcp-rate and each flow of udp-flows goes to the next one of
                      N ports from the target's on (default 1)
  --header KIND       none, v1 or v2, before the payload (default none)
  --warm-up SECONDS   not measured (default 0.3)
  --seconds SECONDS   measured (default 2, at most 300)
  --first-client N    the number of the first client address (default: from the clock)
";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_env();
    if arguments.contains(["-h", "--help"]) {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match dispatch(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(mut arguments: Arguments) -> options::Result<()> {
    let command = arguments.subcommand().map_err(|error| format!("Command: {error}"))?;
    sys::raise_file_limit().map_err(|error| format!("Cannot raise the file limit: {error}"))?;
    match command.as_deref() {
        Some("tcp-bulk") => tcp::bulk(arguments),
        Some("tcp-rate") => tcp::rate(arguments),
        Some("tcp-pingpong") => tcp::ping_pong(arguments),
        Some("tcp-idle") => tcp::idle(arguments),
        Some("tcp-echo") => tcp::echo_server(arguments),
        Some("tcp-drain") => tcp::drain_server(arguments),
        Some("udp") => udp::load(arguments),
        Some("udp-flows") => udp::flows(arguments),
        Some("udp-echo") => udp::server(arguments, true),
        Some("udp-sink") => udp::server(arguments, false),
        Some("bpf-echo") => tcp::bpf_echo(arguments),
        Some("startup") => startup::run(arguments),
        Some(other) => Err(format!("There is no command {other:?}; --help lists them")),
        None => Err("A command is missing; --help lists them".to_owned()),
    }
}
