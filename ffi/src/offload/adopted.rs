//! Connections that another program has handed over to the kernel: those of one that has ended are this one's to look
//! after, and those of one that still runs become so when it ends.
//!
//! Nothing of them is counted or listed any more. They have their addresses until they are over.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};

use super::entries::Entries;
use super::links::Link;
use super::pins::{self, Base, Directory};
use super::record::{state, Entry, Reference, Tuple, LAYOUT};
use super::{goes_on, monotonic_ns, reasons, remove, translation};
use crate::abi::layout::AdoptionRecord;
use crate::net::socket;
use crate::system::sync::lock;

/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The kernel's keepalive, as it is without a setting: silence, then so many questions, so far apart (tcp(7)).
const SILENCE_S: u64 = 7200;
const QUESTIONS: u64 = 9;
const INTERVAL_S: u64 = 75;

/// The connections of other programs.
#[derive(Default)]
pub struct Adopted {
    held: Mutex<Vec<Held>>,
    /// How many other programs there are.
    programs: AtomicUsize,
}

/// What another program has.
struct Held {
    directory: Directory,
    /// It has ended, and nobody else has taken it over.
    is_ours: bool,
    tuples: HashMap<MapData, Tuple, Reference>,
    entries: Entries,
    links: Vec<Link>,
    /// Once it is ours.
    going: Vec<Going>,
}

/// An entry that goes on.
struct Going {
    index: u32,
    /// It was over at the last look: the ends may still repeat themselves.
    lingers: bool,
    /// In nanoseconds (CLOCK_MONOTONIC): since when we look, and when the hosts were asked last.
    since: u64,
    asked: [u64; 2],
}

impl Adopted {
    pub fn is_empty(&self) -> bool {
        self.programs.load(Ordering::Relaxed) == 0
    }

    /// Whether one of the programs has a connection with packets of such a tuple that goes on.
    pub fn hold(&self, tuple: &Tuple) -> bool {
        !self.is_empty()
            && lock(&self.held).iter().any(|held| goes_on(&held.tuples, &held.entries, tuple))
    }

    /// How many connections are looked after.
    pub fn count(&self) -> usize {
        lock(&self.held).iter().map(Held::count).sum()
    }

    /// Takes over what belongs to nobody, and removes what nobody can use. `own`: this program's directory.
    ///
    /// # Errors
    /// Why nothing can be known of them, in words.
    pub fn take_over(self: &Arc<Adopted>, own: Option<&Path>) -> Result<AdoptionRecord, String> {
        let base = Base::open()?;
        let namespace = pins::namespace().map_err(|error| reasons(&error))?;
        let mut record = AdoptionRecord::default();
        let mut found = Vec::new();
        for (name, directory) in base.directories().map_err(|error| reasons(&error))? {
            if own == Some(directory.path()) {
                continue;
            }
            let is_ours = directory.try_lock();
            if is_ours && is_defunct(&directory) {
                let _ = directory.remove();
            } else if name.namespace != namespace {
                // Of a program that runs there, or will.
            } else if name.layout != LAYOUT {
                // Connections that cannot be read would have their addresses for good.
                if is_ours && directory.remove().is_ok() {
                    record.unreadable += 1;
                }
            } else {
                found.push((directory, is_ours));
            }
        }
        for (directory, is_ours) in found {
            let mut held = match Held::open(directory) {
                Ok(held) => held,
                Err(directory) => {
                    record.unreadable += u32::from(is_ours && directory.remove().is_ok());
                    continue;
                }
            };
            if is_ours {
                record.ended += held.begin(monotonic_ns());
                record.adopted += held.count() as u32;
                if held.going.is_empty() {
                    let _ = held.directory.remove();
                    continue;
                }
            }
            lock(&self.held).push(held);
        }
        self.programs.store(lock(&self.held).len(), Ordering::Relaxed);
        if !self.is_empty() {
            let looks = self.clone();
            let thread = std::thread::Builder::new().name("adopted".into());
            thread.spawn(move || looks.run()).map_err(|error| reasons(&error))?;
        }
        Ok(record)
    }

    fn run(&self) {
        while !self.is_empty() {
            std::thread::sleep(LOOK);
            let mut held = lock(&self.held);
            held.retain_mut(|held| held.look(monotonic_ns()));
            self.programs.store(held.len(), Ordering::Relaxed);
        }
    }
}

impl Held {
    /// Opens what a directory has; the directory again where that is nothing that this program can read.
    fn open(directory: Directory) -> Result<Held, Directory> {
        let parts = maps(&directory)
            .and_then(|(tuples, entries)| Some((tuples, entries, directory.links().ok()?)));
        let Some((tuples, entries, links)) = parts else { return Err(directory) };
        Ok(Held { directory, is_ours: false, tuples, entries, links, going: Vec::new() })
    }

    fn count(&self) -> usize {
        self.going.iter().filter(|going| is_adoptable(&self.entries, going.index)).count()
    }

    /// Begins to look after them. Those that still needed sockets are ended; how many.
    fn begin(&mut self, now: u64) -> u32 {
        self.is_ours = true;
        let mut ended = 0;
        for index in 0..self.entries.count() as u32 {
            match self.entries.state(index).load(Ordering::Acquire) {
                state::FREE => {}
                state::OFFLOADED if self.entries.draining(index).load(Ordering::Acquire) == 0 => {
                    self.going.push(Going { index, lingers: false, since: now, asked: [0; 2] });
                }
                before => {
                    self.end(index, before == state::OFFLOADED);
                    // Another connection has had the addresses since, or its own sockets told the ends.
                    ended += u32::from(before == state::OFFLOADED);
                }
            }
        }
        ended
    }

    /// Whether there is something left to look after.
    fn look(&mut self, now: u64) -> bool {
        if !self.is_ours {
            if !self.directory.try_lock() {
                return true;
            }
            self.begin(now);
        }
        let mut going = std::mem::take(&mut self.going);
        going.retain_mut(|going| self.look_at(going, now));
        self.going = going;
        if self.going.is_empty() {
            // The sandbox lets nobody remove the files: the next start does.
            self.links.iter().for_each(|link| drop(link.detach()));
        }
        !self.going.is_empty()
    }

    /// Whether a connection goes on.
    fn look_at(&mut self, going: &mut Going, now: u64) -> bool {
        let directions = self.entries.entry(going.index).directions;
        let is_over = translation::is_over(&directions)
            || self.entries.state(going.index).load(Ordering::Acquire) != state::OFFLOADED;
        if is_over {
            if going.lingers {
                self.end(going.index, false);
            }
            return !std::mem::replace(&mut going.lingers, true);
        }
        going.lingers = false;
        for (host, direction) in directions.iter().enumerate() {
            let silent = now.saturating_sub(direction.heard.max(going.since));
            match due(silent, now.saturating_sub(going.asked[host])) {
                Due::Nothing => {}
                Due::Question => {
                    let ends = translation::ends(&self.entries.entry(going.index));
                    // One that cannot be asked is silent, too.
                    let _ = socket::ask(ends[host]);
                    going.asked[host] = now;
                }
                Due::End => {
                    self.end(going.index, true);
                    return false;
                }
            }
        }
        true
    }

    /// Gives the addresses of an entry back. `resets`: the ends do not know of it.
    fn end(&mut self, index: u32, resets: bool) {
        let entry = self.entries.entry(index);
        let to = [0, 1].map(|direction: usize| entry.directions[direction].to);
        // What arrived, and what the sockets of a hand-over sent.
        let tuples = [to[1].reversed(), to[0].reversed(), to[0], to[1]];
        remove(&mut self.tuples, index, &tuples);
        self.entries.state(index).store(state::FREE, Ordering::Release);
        if resets {
            for end in translation::ends(&entry) {
                // Whoever is not reached here is reset by the kernel when it speaks again.
                let _ = socket::reset(end);
            }
        }
    }
}

/// The maps of a directory.
fn maps(directory: &Directory) -> Option<(HashMap<MapData, Tuple, Reference>, Entries)> {
    let open = |path: &Path| MapData::from_pin(path).and_then(Map::from_map_data).ok();
    let tuples = HashMap::try_from(open(&directory.tuples())?).ok()?;
    let Map::Array(entries) = open(&directory.entries())? else { return None };
    let info = entries.info().ok()?;
    if info.value_size() as usize != size_of::<Entry>() {
        return None;
    }
    Some((tuples, Entries::map(&entries.fd(), info.max_entries() as usize).ok()?))
}

/// Whether an entry's connection needs no socket, and goes on.
pub fn is_adoptable(entries: &Entries, index: u32) -> bool {
    let directions = [0, 1].map(|direction| entries.direction(index, direction));
    entries.state(index).load(Ordering::Acquire) == state::OFFLOADED
        && entries.draining(index).load(Ordering::Acquire) == 0
        && !translation::is_over(&directions)
}

/// Whether the program of a directory, which nobody has, is attached to nothing.
fn is_defunct(directory: &Directory) -> bool {
    directory.links().is_ok_and(|links| links.iter().all(Link::is_defunct))
}

/// What is due for a host, by how long it has been silent and when it was asked, in nanoseconds.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Question,
    End,
}

fn due(silent: u64, since_asked: u64) -> Due {
    const SECOND: u64 = 1_000_000_000;
    if silent < SILENCE_S * SECOND {
        return Due::Nothing;
    }
    if silent >= (SILENCE_S + QUESTIONS * INTERVAL_S) * SECOND {
        return Due::End;
    }
    if since_asked >= INTERVAL_S * SECOND {
        Due::Question
    } else {
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_host_is_asked_as_by_the_kernel_and_then_given_up() {
        let second = 1_000_000_000;
        let at = |silent_s: u64, asked_s: u64| due(silent_s * second, asked_s * second);
        assert_eq!(at(7199, 9999), Due::Nothing);
        assert_eq!(at(7200, 9999), Due::Question);
        assert_eq!(at(7260, 60), Due::Nothing);
        assert_eq!(at(7275, 75), Due::Question);
        assert_eq!(at(7200 + 9 * 75 - 1, 75), Due::Question);
        assert_eq!(at(7200 + 9 * 75, 75), Due::End);
    }
}
