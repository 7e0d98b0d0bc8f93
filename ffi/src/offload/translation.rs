//! What turns the packets of one connection into those of another: pure arithmetic.

use std::net::SocketAddr;

use super::record::{note, saw, Direction, Entry, Tuple, MOST_REACH};
use crate::net::socket::{End, Numbers, Position};

/// The low half is a sequence number; the rest makes room for it to be taken back by a little.
const EPOCH: u64 = 1 << 32;

/// A packet may be so far ahead, or behind, though no window was larger (as in Linux's connection tracking).
const LEAST_REACH: u32 = 64 << 10;

/// Both connections of a relay: the peer's and the upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub peer: SocketAddr,
    pub listen: SocketAddr,
    pub client: SocketAddr,
    pub upstream: SocketAddr,
}

impl Pair {
    /// What packets from the peer, and from the upstream, have; `None` where the two connections are of
    /// two families.
    pub fn incoming(&self) -> Option<[Tuple; 2]> {
        if self.peer.is_ipv4() != self.upstream.is_ipv4() {
            return None;
        }
        Some([Tuple::new(self.peer, self.listen)?, Tuple::new(self.upstream, self.client)?])
    }

    /// What they have when they arrive at the other end.
    fn outgoing(&self) -> Option<[Tuple; 2]> {
        Some([Tuple::new(self.client, self.upstream)?, Tuple::new(self.listen, self.peer)?])
    }

    /// Those of an entry.
    pub fn of(entry: &Entry) -> Pair {
        let is_ipv6 = entry.notes & note::IPV6 != 0;
        let [[client, upstream], [listen, peer]] =
            [0, 1].map(|direction: usize| entry.directions[direction].to.ends(is_ipv6));
        Pair { peer, listen, client, upstream }
    }
}

/// Where the peer is, and the upstream, as the sockets would be that are gone.
pub fn ends(entry: &Entry) -> [End; 2] {
    let Pair { peer, listen, client, upstream } = Pair::of(entry);
    let has_timestamps = entry.notes & note::TIMESTAMPS != 0;
    let directions = &entry.directions;
    let end = |from, to, mark, direction: usize| {
        let (towards, back) = (&directions[direction], &directions[1 - direction]);
        End {
            from,
            to,
            mark,
            sequence: towards.acknowledged as u32,
            // What it sends next, in its own numbers.
            acknowledgement: (back.acknowledged as u32).wrapping_sub(back.add_sequence),
            timestamp: has_timestamps.then_some(towards.timestamp_base),
        }
    };
    [end(listen, peer, 0, 1), end(client, upstream, entry.mark, 0)]
}

/// The entry for a pair whose sockets are where the numbers say, with everything that was read from one
/// written to the other. `None` where one connection can do what the other cannot.
pub fn entry(pair: &Pair, peer: &Numbers, upstream: &Numbers) -> Option<Entry> {
    let (incoming, outgoing) = (pair.incoming()?, pair.outgoing()?);
    // A segment of one connection must fit into the other, and mean the same there.
    let fits = upstream.largest_in <= peer.largest_out && peer.largest_in <= upstream.largest_out;
    if peer.options != upstream.options || !fits {
        return None;
    }
    let direction = |at: usize, from: &Numbers, to: &Numbers| {
        // The byte that would be read next is the one that would be written next.
        let add_sequence = to.at.write_next.wrapping_sub(from.at.read_next);
        let sent = Sent::new(add_sequence, &from.at, &to.at);
        Direction {
            to: outgoing[at],
            address_sum: outgoing[at].address_sum(&incoming[at]),
            add_sequence,
            window_shift: i32::from(from.scale_in) - i32::from(to.scale_out),
            window_scale: u32::from(from.scale_in),
            timestamp_base: to.clock,
            acknowledged: sent.since,
            sent: sent.upto,
            reach: sent.reach,
            ..Direction::default()
        }
    };
    let directions = [direction(0, peer, upstream), direction(1, upstream, peer)];
    let timestamps = if upstream.has_timestamps() { note::TIMESTAMPS } else { 0 };
    let family = if pair.peer.is_ipv4() { 0 } else { note::IPV6 };
    Some(Entry { directions, notes: timestamps | family, ..Entry::default() })
}

/// What a direction's sender has sent, and may send, when its packets still go to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Those of the first byte that is not acknowledged, and behind the last one that was sent, as they leave: the low
    /// halves are the numbers.
    pub since: u64,
    pub upto: u64,
    /// See `Direction::reach`: what the socket allows counts, too.
    pub reach: u32,
}

impl Sent {
    /// From the positions of the sockets that bytes come from, and go to.
    pub fn new(add_sequence: u32, from: &Position, to: &Position) -> Sent {
        let leaves = |number: u32| number.wrapping_add(add_sequence);
        let allowed = leaves(from.receive_end).wrapping_sub(to.unacknowledged);
        let under_way = leaves(from.receive_next).wrapping_sub(to.unacknowledged);
        let since = EPOCH + u64::from(to.unacknowledged);
        Sent {
            since,
            upto: since + u64::from(under_way),
            reach: allowed.max(to.largest_window).clamp(LEAST_REACH, MOST_REACH),
        }
    }
}

/// By how many bytes what a direction's sender may send now goes beyond the window of its receiver; 0: not at all.
pub fn excess(add_sequence: u32, from: &Position, to: &Position) -> u32 {
    let beyond = from.receive_end.wrapping_add(add_sequence).wrapping_sub(to.write_end) as i32;
    beyond.max(0) as u32
}

/// How many bytes of a direction the receiver has acknowledged beyond a number; the FIN counts as one in
/// TCP, and not here.
pub fn delivered(direction: &Direction, since: u64) -> u64 {
    let end = direction.acknowledged.saturating_sub(since);
    if end > 0 && has_ended(direction) {
        end - 1
    } else {
        end
    }
}

/// Whether its FIN was acknowledged.
pub fn has_ended(direction: &Direction) -> bool {
    direction.seen & saw::FIN != 0
        && (direction.acknowledged as u32).wrapping_sub(direction.fin) as i32 >= 0
}

/// Whether neither end has the connection any more: the BPF program then lets a new one have its addresses and ports.
pub fn is_over(directions: &[Direction; 2]) -> bool {
    directions.iter().any(|direction| direction.seen & saw::RST != 0)
        || directions.iter().all(has_ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> Pair {
        let address = |text: &str| text.parse().unwrap();
        Pair {
            peer: address("203.0.113.1:40000"),
            listen: address("203.0.113.2:443"),
            client: address("192.0.2.7:51000"),
            upstream: address("127.0.0.1:8080"),
        }
    }

    /// Of sockets that have nothing to read, or on its way.
    fn at(read_next: u32, write_next: u32) -> Position {
        Position {
            read_next,
            receive_next: read_next,
            receive_end: read_next.wrapping_add(65_536),
            write_next,
            unacknowledged: write_next,
            write_end: write_next.wrapping_add(65_536),
            largest_window: 65_536,
        }
    }

    fn numbers() -> Numbers {
        Numbers {
            at: at(1000, 2000),
            clock: 7,
            scale_in: 7,
            scale_out: 7,
            options: 7,
            largest_out: 1460,
            largest_in: 1460,
        }
    }

    #[test]
    fn the_next_byte_of_one_is_the_next_byte_of_the_other() {
        // Whatever the numbers are, and where they wrap.
        for (read, written) in [(0, 0), (5, u32::MAX), (u32::MAX, 5), (u32::MAX - 1, u32::MAX)] {
            let peer = Numbers { at: at(read, 2000), ..numbers() };
            let upstream = Numbers { at: at(1000, written), ..numbers() };
            let entry = entry(&pair(), &peer, &upstream).unwrap();
            let add = entry.directions[0].add_sequence;
            for ahead in [0, 1, 70_000, u32::MAX] {
                let translated = read.wrapping_add(ahead).wrapping_add(add);
                assert_eq!(translated, written.wrapping_add(ahead));
            }
        }
    }

    #[test]
    fn an_entry_tells_whoever_adopts_it_where_its_ends_are() {
        let address = |text: &str| text.parse().unwrap();
        let ipv6 = Pair {
            peer: address("[2001:db8::]:40000"),
            listen: address("[2001:db8:1::]:443"),
            client: address("[2001:db8:2::]:51000"),
            upstream: address("[::1]:8080"),
        };
        for pair in [pair(), ipv6] {
            let entry = entry(&pair, &numbers(), &numbers()).unwrap();
            assert_eq!(Pair::of(&entry), pair);
            let incoming = [1, 0].map(|other| entry.directions[other].to.reversed());
            assert_eq!(Some(incoming), pair.incoming());
            let [peer, upstream] = ends(&Entry { mark: 7, ..entry });
            assert_eq!((peer.from, peer.to, peer.mark), (pair.listen, pair.peer, 0));
            assert_eq!(
                (upstream.from, upstream.to, upstream.mark),
                (pair.client, pair.upstream, 7)
            );
            // Where both sockets are: nothing is on its way.
            assert_eq!((peer.sequence, peer.acknowledgement), (2000, 1000));
            assert_eq!(peer.timestamp, Some(7));
        }
        let without = Numbers { options: 6, ..numbers() };
        let entry = entry(&pair(), &without, &without).unwrap();
        assert_eq!(ends(&entry).map(|end| end.timestamp), [None, None]);
    }

    #[test]
    fn what_the_other_connection_cannot_carry_is_refused() {
        let other = [
            Numbers { options: 6, ..numbers() },
            Numbers { largest_in: 65_495, ..numbers() },
            Numbers { largest_out: 1400, ..numbers() },
        ];
        for upstream in other {
            assert_eq!(entry(&pair(), &numbers(), &upstream), None);
        }
        let mixed = Pair { upstream: "[::1]:8080".parse().unwrap(), ..pair() };
        assert_eq!(entry(&mixed, &numbers(), &numbers()), None);
    }

    #[test]
    fn windows_keep_their_size_in_another_scale() {
        let peer = Numbers { scale_in: 9, scale_out: 3, ..numbers() };
        let upstream = Numbers { scale_in: 2, scale_out: 7, ..numbers() };
        let entry = entry(&pair(), &peer, &upstream).unwrap();
        assert_eq!(entry.directions.map(|direction| direction.window_shift), [2, -1]);
    }

    #[test]
    fn what_was_sent_ends_behind_what_waits_to_be_read_and_written() {
        let from = Position { receive_next: 1030, receive_end: 1030 + 200_000, ..at(1000, 7) };
        // Ten bytes are on their way, and thirty wait to be read.
        let to = Position { unacknowledged: u32::MAX - 4, ..at(9, 5) };
        let entry =
            entry(&pair(), &Numbers { at: from, ..numbers() }, &Numbers { at: to, ..numbers() });
        let direction = entry.unwrap().directions[0];
        assert_eq!(direction.acknowledged as u32, u32::MAX - 4);
        assert_eq!(direction.sent - direction.acknowledged, 10 + 30);
        assert_eq!(direction.sent as u32, 35);
        assert_eq!(direction.reach, 10 + 30 + 200_000);
        // A window that no number can say, and one that is closed.
        let reach = |receive_end: u32, largest_window: u32| {
            Sent::new(0, &Position { receive_end, ..from }, &Position { largest_window, ..to })
                .reach
        };
        assert_eq!(reach(to.unacknowledged.wrapping_add(1 << 30), 0), MOST_REACH);
        assert_eq!(reach(to.unacknowledged, 0), LEAST_REACH);
        assert_eq!(reach(to.unacknowledged, 99_000), 99_000);
    }

    #[test]
    fn what_the_sender_may_send_is_compared_with_the_receivers_window() {
        let from = Position { receive_end: 5, ..at(u32::MAX - 9, 0) };
        let to = |window: u32| Position { write_end: 100 + window, ..at(0, 100) };
        let add_sequence = 100u32.wrapping_sub(from.read_next);
        assert_eq!([14, 15, 16].map(|window| excess(add_sequence, &from, &to(window))), [1, 0, 0]);
    }

    #[test]
    fn the_fin_is_no_byte() {
        let since = EPOCH | 100;
        let open = Direction { acknowledged: EPOCH + 150, ..Direction::default() };
        assert_eq!((delivered(&open, since), has_ended(&open)), (50, false));
        let ending = Direction { seen: saw::FIN, fin: 151, ..open };
        assert_eq!((delivered(&ending, since), has_ended(&ending)), (50, false));
        let ended = Direction { acknowledged: EPOCH + 151, ..ending };
        assert_eq!((delivered(&ended, since), has_ended(&ended)), (50, true));
    }
}
