//! Rate limit for events that strangers can cause: one line a second for each reason, with the number suppressed.
//!
//! Pure logic: no clock and no ring. The first event of a reason passes immediately. For a second after it, further
//! events of that reason are counted, and the first of them is kept: it becomes the next line. A flood therefore
//! costs one addition per event, each line has a real example, and no count is lost.

use crate::abi::layout::Event;

/// Milliseconds between two lines of one reason.
pub const INTERVAL_MS: u64 = 1_000;
/// From this many lines a second on, listeners share those of a reason.
const MOST_LINES: usize = 64;

/// Events that are alike. All parts come from the program or the kernel, none from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reason {
    kind: u16,
    refusal: u8,
    errno: i32,
    /// The families of client and upstream: 0 without one.
    families: [u8; 2],
    /// The listener; 0 if there are too many lines for one each.
    listener: u32,
}

struct Line {
    reason: Reason,
    /// No other line before this time.
    until: u64,
    /// Events since then, including suppressed ones; the first of them is kept.
    held: u32,
    event: Event,
}

/// The reasons that had a line within the last interval.
#[derive(Default)]
pub struct LogLimit {
    lines: Vec<Line>,
    /// The earliest `until` of a line that holds something.
    due: Option<u64>,
}

impl Reason {
    fn of(event: &Event) -> Reason {
        Reason {
            kind: event.kind,
            refusal: event.refusal,
            errno: event.errno,
            families: [event.client.family, event.upstream.family],
            listener: event.listener,
        }
    }
}

impl LogLimit {
    /// Takes an event: gives it back to be logged now, or holds it. `now`, in milliseconds, never goes
    /// back. Call `pop_due` at `next_deadline` for what is held.
    pub fn admit(&mut self, event: Event, now: u64) -> Option<Event> {
        let mut reason = Reason::of(&event);
        if self.lines.len() >= MOST_LINES && !self.lines.iter().any(|line| line.reason == reason) {
            reason.listener = 0;
        }
        let Some(line) = self.lines.iter_mut().find(|line| line.reason == reason) else {
            self.lines.push(Line { reason, until: now + INTERVAL_MS, held: 0, event });
            return Some(event);
        };
        if line.held == 0 {
            if line.until <= now {
                line.until = now + INTERVAL_MS;
                return Some(event);
            }
            line.event = event;
            let until = line.until;
            self.due = Some(self.due.map_or(until, |due| due.min(until)));
        }
        line.held = line.held.saturating_add(1).saturating_add(event.left_out);
        None
    }

    /// When `pop_due` has something.
    pub fn next_deadline(&self) -> Option<u64> {
        self.due
    }

    /// A held event that is to be logged now, with the number of those left out behind it. Call it
    /// until there is none.
    pub fn pop_due(&mut self, now: u64) -> Option<Event> {
        if self.due? > now {
            return None;
        }
        // Reasons that were quiet for an interval are forgotten.
        self.lines.retain(|line| line.held > 0 || line.until > now);
        let line = self.lines.iter_mut().find(|line| line.held > 0 && line.until <= now);
        let event = line.map(|line| {
            line.until = now + INTERVAL_MS;
            line.take()
        });
        self.due = self.lines.iter().filter(|line| line.held > 0).map(|line| line.until).min();
        event
    }

    /// A held event, due or not: for the end. Call it until there is none.
    pub fn pop(&mut self) -> Option<Event> {
        self.due = None;
        self.lines.iter_mut().find(|line| line.held > 0).map(Line::take)
    }
}

impl Line {
    fn take(&mut self) -> Event {
        let held = std::mem::take(&mut self.held);
        Event { left_out: held - 1, ..self.event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::layout::level;
    use crate::observe::events::EventKind;
    use crate::observe::refusal::Refusal;

    fn event(refusal: Refusal, value: u32) -> Event {
        let event = Event::new(EventKind::HeaderRefused, level::WARN);
        Event { refusal: refusal as u8, value, ..event }
    }

    fn shown(event: Option<Event>) -> Option<(u32, u32)> {
        event.map(|event| (event.value, event.left_out))
    }

    #[test]
    fn the_first_of_a_reason_passes_and_the_second_waits_for_its_second() {
        let mut limit = LogLimit::default();
        assert_eq!(shown(limit.admit(event(Refusal::NotProxy, 1), 5)), Some((1, 0)));
        assert_eq!(limit.next_deadline(), None, "nothing is held");
        assert!(limit.admit(event(Refusal::NotProxy, 2), 6).is_none());
        assert_eq!(limit.next_deadline(), Some(5 + INTERVAL_MS));
        assert!(limit.pop_due(4 + INTERVAL_MS).is_none());
        assert_eq!(shown(limit.pop_due(5 + INTERVAL_MS)), Some((2, 0)));
        assert!(
            limit.admit(event(Refusal::NotProxy, 3), 6 + INTERVAL_MS).is_none(),
            "a new second"
        );
    }

    #[test]
    fn reasons_do_not_hold_each_other_back() {
        let mut limit = LogLimit::default();
        for refusal in [Refusal::NotProxy, Refusal::Timeout, Refusal::PeerNotAllowed] {
            assert!(limit.admit(event(refusal, 0), 0).is_some());
            assert!(limit.admit(event(refusal, 0), 0).is_none());
        }
        let failed = Event { errno: libc::ECONNREFUSED, ..event(Refusal::None, 0) };
        assert!(limit.admit(failed, 0).is_some());
        assert!(limit.admit(Event { errno: libc::EHOSTUNREACH, ..failed }, 0).is_some());
    }

    #[test]
    fn listeners_have_lines_of_their_own_while_there_are_few() {
        let mut limit = LogLimit::default();
        let of = |listener| Event { listener, ..event(Refusal::NotProxy, listener) };
        let lines = (1..=1000).filter(|listener| limit.admit(of(*listener), 0).is_some()).count();
        assert_eq!(lines, MOST_LINES + 1);
        let mut held = 0;
        while let Some(event) = limit.pop() {
            held += 1 + event.left_out as usize;
        }
        assert_eq!(lines + held, 1000);
    }

    #[test]
    fn a_quiet_reason_starts_anew() {
        let mut limit = LogLimit::default();
        assert!(limit.admit(event(Refusal::NotProxy, 1), 0).is_some());
        assert!(limit.admit(event(Refusal::NotProxy, 2), INTERVAL_MS).is_some());
    }

    #[test]
    fn the_end_gives_what_is_held() {
        let mut limit = LogLimit::default();
        for value in 1..=4 {
            limit.admit(event(Refusal::NotProxy, value), 0);
            limit.admit(event(Refusal::Timeout, value), 0);
        }
        assert_eq!(shown(limit.pop()), Some((2, 2)));
        assert_eq!(shown(limit.pop()), Some((2, 2)));
        assert!(limit.pop().is_none());
    }

    /// Whatever comes when: a line a second and reason at most, and every event is in a line or in the
    /// number of one.
    #[test]
    fn no_count_is_lost_and_no_second_has_two_lines() {
        let refusals = [Refusal::NotProxy, Refusal::Timeout, Refusal::Incomplete];
        for seed in 0..200u64 {
            let mut state = seed;
            let mut next = move || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as usize
            };
            let mut limit = LogLimit::default();
            let (mut came, mut told) = ([0u64; 3], [0u64; 3]);
            let mut last_line = [None; 3];
            let mut now = 0;
            let mut tell = |event: Event, at: Option<u64>| {
                let reason =
                    refusals.iter().position(|refusal| *refusal as u8 == event.refusal).unwrap();
                told[reason] += 1 + u64::from(event.left_out);
                if let Some(at) = at {
                    let before: Option<u64> = last_line[reason].replace(at);
                    assert!(before.is_none_or(|before| at >= before + INTERVAL_MS), "seed {seed}");
                }
            };
            for _ in 0..400 {
                match next() % 8 {
                    0 => now += (next() % 1500) as u64,
                    1..3 => now += (next() % 20) as u64,
                    _ => {}
                }
                // A thread wakes at the deadline, or later.
                while let Some(event) = limit.pop_due(now) {
                    tell(event, Some(now));
                }
                assert!(limit.next_deadline().is_none_or(|at| at > now), "seed {seed}");
                let reason = next() % 3;
                let left_out = if next() % 10 == 0 { 7 } else { 0 };
                came[reason] += 1 + left_out;
                let event = Event { left_out: left_out as u32, ..event(refusals[reason], 0) };
                if let Some(event) = limit.admit(event, now) {
                    tell(event, Some(now));
                }
                assert!(limit.lines.len() <= 3);
            }
            while let Some(event) = limit.pop() {
                tell(event, None);
            }
            assert_eq!(told, came, "seed {seed}");
        }
    }
}
