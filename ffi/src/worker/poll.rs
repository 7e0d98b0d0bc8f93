//! epoll(7), and the meaning of its 64 bits of user data.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::net::socket::check;

/// Whom an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Something changed: look around.
    Wake,
    /// A listening TCP socket.
    TcpListener(Key),
    /// A listening UDP socket.
    UdpListener(Key),
    /// The peer's side of a connection.
    Peer(Key),
    /// The upstream's side of a connection.
    Upstream(Key),
    /// The upstream socket of a UDP flow.
    Flow(Key),
}

/// A slot of a table, and which of its successive tenants is meant: an event that was already
/// fetched may be for one that has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub index: u32,
    /// 28 bits.
    pub generation: u32,
}

impl Key {
    /// The bits of a generation that an event can carry.
    pub const GENERATIONS: u32 = (1 << 28) - 1;
}

impl Token {
    fn pack(self) -> u64 {
        let keyed = |kind: u64, key: Key| {
            kind << 60 | u64::from(key.generation & Key::GENERATIONS) << 32 | u64::from(key.index)
        };
        match self {
            Token::Wake => 0,
            Token::TcpListener(key) => keyed(1, key),
            Token::UdpListener(key) => keyed(2, key),
            Token::Peer(key) => keyed(3, key),
            Token::Upstream(key) => keyed(4, key),
            Token::Flow(key) => keyed(5, key),
        }
    }

    fn unpack(data: u64) -> Token {
        let generation = (data >> 32) as u32 & Key::GENERATIONS;
        let key = Key { index: data as u32, generation };
        match data >> 60 {
            1 => Token::TcpListener(key),
            2 => Token::UdpListener(key),
            3 => Token::Peer(key),
            4 => Token::Upstream(key),
            5 => Token::Flow(key),
            _ => Token::Wake,
        }
    }
}

/// Events to watch for.
#[derive(Clone, Copy)]
pub enum Interest {
    /// Readable, again and again while it is (level-triggered).
    Readable,
    /// Every change of readiness, once (edge-triggered): for connections, which remember it.
    Changes,
}

impl Interest {
    fn bits(self) -> u32 {
        (match self {
            Interest::Readable => libc::EPOLLIN,
            Interest::Changes => {
                libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET
            }
        }) as u32
    }
}

/// One epoll instance.
pub struct Poll(OwnedFd);

impl Poll {
    pub fn new() -> io::Result<Poll> {
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        Ok(Poll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches a descriptor; events that are already pending are reported as well. Closing the descriptor ends it.
    pub fn add(&self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.bits(), u64: token.pack() };
        // SAFETY: the event is valid for the length of the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) })?;
        Ok(())
    }

    /// Stops watching a descriptor that stays open.
    pub fn remove(&self, fd: RawFd) {
        // SAFETY: the kernel ignores the event of a deletion (since 2.6.9). A descriptor that is not
        // watched is as good as removed.
        unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut())
        };
    }

    /// Waits up to `timeout_ms` (-1: forever) and fills `events`.
    pub fn wait(&self, events: &mut Events, timeout_ms: i32) -> io::Result<()> {
        // SAFETY: the list has room for as many events as it has slots.
        let count = check(unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.list.as_mut_ptr(),
                events.list.len() as i32,
                timeout_ms,
            )
        });
        events.count = match count {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(())
    }
}

/// Room for the events of one wait.
pub struct Events {
    list: Box<[libc::epoll_event]>,
    count: usize,
}

impl Events {
    pub fn new() -> Events {
        Events { list: vec![libc::epoll_event { events: 0, u64: 0 }; 256].into(), count: 0 }
    }

    /// How many the last wait brought.
    pub fn len(&self) -> usize {
        self.count
    }

    /// One event: whom it is for, and the EPOLL bits.
    pub fn get(&self, index: usize) -> (Token, u32) {
        let event = self.list[index];
        (Token::unpack(event.u64), event.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let key = Key { index: u32::MAX, generation: Key::GENERATIONS };
        for token in [
            Token::Wake,
            Token::TcpListener(key),
            Token::UdpListener(key),
            Token::Peer(key),
            Token::Upstream(Key { index: 0, generation: 1 }),
            Token::Flow(key),
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
