//! The options that the loads share.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use pico_args::Arguments;

use crate::proxy::{Family, Header, Transport};
use crate::run::Timing;
use crate::sys;

/// No load runs longer than this, whatever is requested.
const LONGEST: f64 = 300.0;

/// Why a command line was refused.
pub type Result<T> = std::result::Result<T, String>;

/// Where a load goes and what it looks like.
#[derive(Clone, Copy)]
pub struct Common {
    /// Where the load connects to: the proxy, or the server itself.
    pub target: SocketAddr,
    /// How many ports from that one on have the same behind them.
    pub ports: u16,
    /// Where the load's own server listens.
    pub server: SocketAddr,
    pub header: Header,
    pub timing: Timing,
    /// The number of the first client: runs that follow each other start elsewhere.
    pub first_client: u64,
}

impl Common {
    pub fn parse(arguments: &mut Arguments) -> Result<Common> {
        let server = required(arguments, "--server")?;
        let target = optional(arguments, "--target", server)?;
        if Family::of(target) != Family::of(server) {
            return Err("Options --server and --target: one is IPv4, the other IPv6".to_owned());
        }
        Ok(Common {
            server,
            target,
            ports: bounded(arguments, "--ports", 1, 1..=usize::from(u16::MAX - target.port()) + 1)?
                as u16,
            header: optional(arguments, "--header", Header::None)?,
            timing: Timing {
                warm_up: seconds(arguments, "--warm-up", 0.3)?,
                measure: seconds(arguments, "--seconds", 2.0)?,
            },
            first_client: optional(arguments, "--first-client", sys::now() / 1000)?,
        })
    }

    /// Which IP all of it runs over.
    pub fn family(&self) -> Family {
        Family::of(self.target)
    }

    /// Where the `number`th client connects to: each port in turn.
    pub fn target_of(&self, number: u64) -> SocketAddr {
        let port = self.target.port() + (number % u64::from(self.ports)) as u16;
        SocketAddr::new(self.target.ip(), port)
    }

    /// Appends the header of the `number`th client, if there is to be one.
    pub fn append_header(&self, transport: Transport, number: u64, out: &mut Vec<u8>) {
        let (client, target) = (self.family().client(number), self.target_of(number));
        self.header.append(transport, client, target, out);
    }

    /// True when the server must see the client's address, not the load's own.
    pub fn expects_clients(&self) -> bool {
        self.header != Header::None
    }
}

/// The value of an option that must be there.
pub fn required<T>(arguments: &mut Arguments, name: &'static str) -> Result<T>
where
    T: FromStr,
    T::Err: Display,
{
    arguments.value_from_str(name).map_err(|error| format!("Option {name}: {error}"))
}

/// The value of an option, or what it is without.
pub fn optional<T>(arguments: &mut Arguments, name: &'static str, otherwise: T) -> Result<T>
where
    T: FromStr,
    T::Err: Display,
{
    let value = arguments.opt_value_from_str(name);
    Ok(value.map_err(|error| format!("Option {name}: {error}"))?.unwrap_or(otherwise))
}

/// As `optional`, and refused outside of a range.
pub fn bounded(
    arguments: &mut Arguments,
    name: &'static str,
    otherwise: usize,
    range: RangeInclusive<usize>,
) -> Result<usize> {
    Ok(given(arguments, name, range)?.unwrap_or(otherwise))
}

/// The value of an option within a range; `None` without the option.
pub fn given(
    arguments: &mut Arguments,
    name: &'static str,
    range: RangeInclusive<usize>,
) -> Result<Option<usize>> {
    let value = arguments.opt_value_from_str(name);
    match value.map_err(|error| format!("Option {name}: {error}"))? {
        Some(value) if !range.contains(&value) => Err(format!(
            "Option {name}: {value} is not between {} and {}",
            range.start(),
            range.end()
        )),
        value => Ok(value),
    }
}

/// A time in seconds, with a fraction.
pub fn seconds(arguments: &mut Arguments, name: &'static str, otherwise: f64) -> Result<Duration> {
    let value: f64 = optional(arguments, name, otherwise)?;
    if (0.0..=LONGEST).contains(&value) {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(format!("Option {name}: {value} is not between 0 and {LONGEST} seconds"))
    }
}
