//! The addresses on which this program itself listens. No upstream and no client may have one of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::listener::Listener;
use super::port::Transport;
use super::port::Wanted;
use crate::abi::errors::{Error, Result};
use crate::trust::addresses::Nature;
use crate::trust::client;
use crate::trust::host::Known;

/// The addresses of all listeners and of the metrics, by port: what a header names is looked up here,
/// however many listeners there are.
#[derive(Debug, Default)]
pub struct Places {
    tcp: Vec<SocketAddr>,
    udp: Vec<SocketAddr>,
    metrics: Option<SocketAddr>,
}

impl Places {
    /// Of these listeners, and of the metrics over TCP.
    pub fn of(listeners: &[Arc<Listener>], metrics: Option<SocketAddr>) -> Places {
        let ports = listeners.iter().flat_map(|listener| &listener.ports);
        Places::new(
            ports.map(|port| (port.listen, port.tcp.is_some(), port.udp.is_some())),
            metrics,
        )
    }

    /// Of addresses, each with whether it is served over TCP and over UDP.
    pub fn new(
        listens: impl Iterator<Item = (SocketAddr, bool, bool)>,
        metrics: Option<SocketAddr>,
    ) -> Places {
        let mut places = Places { metrics, ..Places::default() };
        places.tcp.extend(metrics);
        for (listen, tcp, udp) in listens {
            places.tcp.extend(tcp.then_some(listen));
            places.udp.extend(udp.then_some(listen));
        }
        places.tcp.sort_by_key(SocketAddr::port);
        places.udp.sort_by_key(SocketAddr::port);
        places
    }

    /// The address at which what is sent somewhere arrives, if this program listens there.
    ///
    /// `is_own`: whether an address is one of this host's.
    pub fn arrives_at(
        &self,
        to: SocketAddr,
        transport: Transport,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> Option<SocketAddr> {
        let places = match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        };
        let first = places.partition_point(|place| place.port() < to.port());
        places[first..]
            .iter()
            .take_while(|place| place.port() == to.port())
            .find(|place| client::arrives_at(to, **place, &is_own))
            .copied()
    }

    /// Whether a port's upstreams lie elsewhere.
    ///
    /// # Errors
    /// `LOOP` with both addresses.
    pub fn check(&self, port: &Wanted, known: &Known) -> Result<()> {
        let is_own = |ip| known.nature_of(ip) == Nature::Own;
        for transport in Transport::BOTH.into_iter().filter(|transport| port.has(*transport)) {
            for upstream in port.upstreams.all() {
                let Some(listen) = self.arrives_at(upstream, transport, is_own) else { continue };
                let is_metrics = self.metrics == Some(listen) && transport == Transport::Tcp;
                let what = if is_metrics { "serves its metrics" } else { "listens" };
                return Err(Error::forwarding_loop(format!(
                    "Cannot forward to {upstream}: mmproxy itself {what} there, on {listen}"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(listens: &[(&str, bool, bool)], metrics: Option<&str>) -> Places {
        let listens = listens.iter().map(|(text, tcp, udp)| (text.parse().unwrap(), *tcp, *udp));
        Places::new(listens, metrics.map(|text| text.parse().unwrap()))
    }

    #[test]
    fn a_place_is_found_among_many_by_its_transport() {
        let listens: Vec<(String, bool, bool)> =
            (1..=1000).map(|port| (format!("127.0.0.1:{port}"), port % 2 == 0, true)).collect();
        let listens: Vec<(&str, bool, bool)> =
            listens.iter().map(|(text, tcp, udp)| (&text[..], *tcp, *udp)).collect();
        let places = places(&listens, Some("127.0.0.1:9100"));
        let arrives = |to: &str, transport| {
            let found = places.arrives_at(to.parse().unwrap(), transport, |_| false);
            found.map(|found| found.to_string())
        };
        assert_eq!(arrives("127.0.0.1:500", Transport::Tcp).as_deref(), Some("127.0.0.1:500"));
        assert_eq!(arrives("127.0.0.1:501", Transport::Tcp), None);
        assert_eq!(arrives("127.0.0.1:501", Transport::Udp).as_deref(), Some("127.0.0.1:501"));
        assert_eq!(arrives("127.0.0.2:501", Transport::Udp), None);
        assert_eq!(arrives("127.0.0.1:9100", Transport::Udp), None);
        assert!(arrives("127.0.0.1:9100", Transport::Tcp).is_some());
    }

    #[test]
    fn an_upstream_at_any_listener_is_a_loop_and_says_where() {
        let places = places(
            &[("127.0.0.1:25", true, false), ("0.0.0.0:465", true, false)],
            Some("127.0.0.1:9100"),
        );
        let known = Known::Unlisted(libc::EAFNOSUPPORT);
        let check =
            |upstream: &str| places.check(&Wanted::for_tests(upstream.parse().unwrap()), &known);
        for (upstream, says) in [
            ("127.0.0.1:25", "listens there, on 127.0.0.1:25"),
            ("127.0.0.9:465", "listens there, on 0.0.0.0:465"),
            ("127.0.0.1:9100", "serves its metrics there, on 127.0.0.1:9100"),
        ] {
            let error = check(upstream).unwrap_err();
            assert!(error.text().ends_with(says), "{}", error.text());
        }
        assert!(check("127.0.0.1:26").is_ok());
    }
}
