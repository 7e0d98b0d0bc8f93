//! Detects a dead host at the other end of a connection.
//!
//! The kernel probes a silent host itself (tcp(7), SO_KEEPALIVE), but not while data to it is in flight: then it
//! retransmits, or probes a closed window, for a quarter of an hour. TCP_USER_TIMEOUT would end that sooner, but also
//! every reader that pauses: the kernel does not consider whether the host behind a closed window answers
//! (docs/decisions/0050-dead-hosts.md). The worker therefore checks itself.

use std::io;
use std::os::fd::RawFd;

use crate::net::socket;

/// Seconds between two of the kernel's questions to a host that does not answer.
const INTERVAL_S: u32 = 15;
/// After this many unanswered probes, the kernel considers a silent host dead.
const QUESTIONS: u32 = 9;
/// This many retransmissions or probes must have gone unanswered before we give a host up: to a window
/// that stays closed the kernel sends them two minutes apart.
const TRIES: u8 = 3;

/// `--keepalive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    idle_s: u32,
}

impl Keepalive {
    /// After this many seconds of silence the host is asked; 0 leaves all times to the system
    /// (`net.ipv4.tcp_keepalive_time` and its like). At most 32,767, which is the kernel's limit.
    pub fn new(idle_s: u32) -> Keepalive {
        Keepalive { idle_s }
    }

    /// How often a connection is worth a look, in milliseconds: as often as the host would be asked;
    /// `None` where the system decides.
    pub fn period_ms(self) -> Option<u64> {
        (self.idle_s > 0).then_some(u64::from(self.idle_s) * 1000)
    }

    /// Silence after which a host is dead, in milliseconds: as long as the kernel asks a silent one.
    pub fn dead_after_ms(self) -> u32 {
        (self.idle_s + self.interval_s() * QUESTIONS) * 1000
    }

    fn interval_s(self) -> u32 {
        self.idle_s.min(INTERVAL_S)
    }

    /// Sets a connection's options.
    pub fn apply(self, socket: RawFd) -> io::Result<()> {
        socket::set_int(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
        if self.idle_s == 0 {
            return Ok(());
        }
        let options = [
            (libc::TCP_KEEPINTVL, self.interval_s()),
            (libc::TCP_KEEPCNT, QUESTIONS),
            // Last: on an established connection this starts the timer, with the idle time so far.
            (libc::TCP_KEEPIDLE, self.idle_s),
        ];
        for (name, value) in options {
            socket::set_int(socket, libc::SOL_TCP, name, value as i32)?;
        }
        Ok(())
    }

    /// Whether the host at the other end has not answered for so long that it is dead, though it was
    /// asked, or bytes are under way to it. Never where the system decides.
    pub fn has_lost(self, socket: RawFd) -> bool {
        self.idle_s > 0 && self.is_dead(socket::unanswered(socket))
    }

    /// How often a host that has been silent for so many milliseconds should have been asked; for those whom the
    /// kernel does not ask, because we have no socket.
    pub fn questions(self, silent_ms: u64) -> u32 {
        let idle_ms = u64::from(self.idle_s) * 1000;
        if self.idle_s == 0 || silent_ms < idle_ms {
            return 0;
        }
        let further = (silent_ms - idle_ms) / (u64::from(self.interval_s()) * 1000);
        1 + further.min(u64::from(QUESTIONS) - 1) as u32
    }

    /// Whether such a host is dead, which was asked so often.
    pub fn is_silent_for_good(self, silent_ms: u64, asked: u32) -> bool {
        self.idle_s > 0 && asked >= u32::from(TRIES) && silent_ms >= self.dead_after_ms().into()
    }

    fn is_dead(self, since: socket::Unanswered) -> bool {
        since.ms >= self.dead_after_ms() && since.tries >= TRIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::socket::Unanswered;
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;

    fn options(socket: RawFd) -> [i32; 4] {
        [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            (libc::SOL_TCP, libc::TCP_KEEPIDLE),
            (libc::SOL_TCP, libc::TCP_KEEPINTVL),
            (libc::SOL_TCP, libc::TCP_KEEPCNT),
        ]
        .map(|(level, name)| socket::get_int(socket, level, name).unwrap())
    }

    #[test]
    fn a_connection_gets_its_options() {
        for (idle_s, expected) in [(15, [1, 15, 15, 9]), (4, [1, 4, 4, 9]), (300, [1, 300, 15, 9])]
        {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            Keepalive::new(idle_s).apply(client.as_raw_fd()).unwrap();
            assert_eq!(options(client.as_raw_fd()), expected);
        }
    }

    #[test]
    fn zero_leaves_the_times_to_the_system() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let before = options(listener.as_raw_fd());
        Keepalive::new(0).apply(listener.as_raw_fd()).unwrap();
        assert_eq!(options(listener.as_raw_fd()), [1, before[1], before[2], before[3]]);
    }

    #[test]
    fn a_host_without_a_socket_is_asked_as_the_kernel_would() {
        let keepalive = Keepalive::new(60);
        let asked = |ms| keepalive.questions(ms);
        assert_eq!([0, 59_999, 60_000, 74_999, 75_000].map(asked), [0, 0, 1, 1, 2]);
        assert_eq!([180_000, 195_000, 1_000_000].map(asked), [9, 9, 9]);
        assert!(!keepalive.is_silent_for_good(194_999, 9));
        assert!(!keepalive.is_silent_for_good(195_000, 2));
        assert!(keepalive.is_silent_for_good(195_000, 3));
        // The system decides, and nobody tells us.
        assert_eq!(Keepalive::new(0).questions(u64::MAX), 0);
        assert!(!Keepalive::new(0).is_silent_for_good(u64::MAX, 9));
    }

    #[test]
    fn a_host_is_dead_after_silence_and_unanswered_tries() {
        let keepalive = Keepalive::new(15);
        let silence = |ms, tries| keepalive.is_dead(Unanswered { ms, tries });
        assert!(silence(150_000, 3));
        assert!(!silence(149_999, 9), "not for long enough");
        // A window that has been closed for long is probed every two minutes: one lost probe is none.
        assert!(!silence(240_000, 2));
    }
}
