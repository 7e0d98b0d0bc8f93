//! A simulation of the complete UDP side against a naive model: sockets, decoder, clock and log are replaced, and
//! everything between them is the real code.
//!
//! Several workers handle several ports, each with its own directory. While one worker waits for its decoder or has just
//! sent, another may have a turn. The model knows the client of each datagram from the order of arrival alone. It checks
//! that each datagram arrives at most once, at its own port's upstream, from its own client's address, and in order;
//! that none is lost without a reason that the model knows; that each reply goes to the peer that last sent for the
//! client; that tables stay within their limits and gauges are balanced. From time to time another program takes over.
//! A failing seed can be repeated.

mod headers;
mod outside;
mod upgrade;
mod world;

use super::engine::Defects;
use world::World;

/// Where the story comes from: a seed, or a fuzzer's bytes.
pub trait Choices {
    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64;
    /// Whether the story is over.
    fn is_over(&mut self) -> bool;
}

/// A story from a seed, of this many steps.
#[cfg(test)]
pub struct Seed {
    state: u64,
    steps: u32,
}

#[cfg(test)]
impl Seed {
    pub fn new(seed: u64, steps: u32) -> Seed {
        Seed { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, steps }
    }
}

#[cfg(test)]
impl Choices for Seed {
    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 33) % bound
    }

    fn is_over(&mut self) -> bool {
        self.steps = self.steps.saturating_sub(1);
        self.steps == 0
    }
}

/// A story from bytes: it is over when they are.
pub struct Bytes<'a>(pub &'a [u8]);

impl Choices for Bytes<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        u64::from(*first) % bound
    }

    fn is_over(&mut self) -> bool {
        self.0.is_empty()
    }
}

/// What happened, to see that a set of stories has it all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub delivered: u64,
    /// At ports with sessions: headers that began one, and flows without a header.
    pub accepted: u64,
    pub refused: u64,
    pub evicted: u64,
    pub expired: u64,
    pub redirected: u64,
    pub failed: u64,
    pub lost: u64,
    pub taken_over: u64,
    pub foreign: u64,
    pub replies: u64,
    pub without_session: u64,
    pub without_header: u64,
    pub interleaved: u64,
    pub over_limit: u64,
    pub refused_by_limit: u64,
    pub moved: u64,
}

/// Runs one story.
///
/// # Errors
/// What the model did not expect.
pub fn run(choices: &mut dyn Choices, defects: Defects) -> Result<Summary, String> {
    let world = World::new(choices, defects);
    while !world.choices.borrow_mut().is_over() {
        let advance = world.below(4) == 0;
        if advance {
            let by = world.below(world.close_after / 3 + 400);
            world.now.set(world.now.get() + by);
            if by.is_multiple_of(5) {
                world.upgrade();
            }
        }
        match world.below(12) {
            0 => world.reload(),
            1 if world.below(2) == 0 => world.redirect(),
            1 => world.change_reach(),
            2 | 3 => world.reply(),
            _ => world.turn(world.below(world.workers.len() as u64) as usize, 40),
        }
        world.check_bounds();
        if let Some(error) = world.error.borrow_mut().take() {
            return Err(error);
        }
    }
    world.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: u64 = if cfg!(debug_assertions) { 600 } else { 10_000 };
    const STEPS: u32 = 60;

    /// More seeds for a longer look: `MMPROXY_SEEDS=100000 cargo test --release simulation`.
    fn seeds() -> u64 {
        std::env::var("MMPROXY_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS)
    }

    #[test]
    fn every_datagram_reaches_the_upstream_from_its_own_clients_address() {
        let mut all = Summary::default();
        for seed in 0..seeds() {
            let one = run(&mut Seed::new(seed, STEPS), Defects::default());
            let one = one.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            all.delivered += one.delivered;
            all.refused += one.refused;
            all.evicted += one.evicted;
            all.expired += one.expired;
            all.redirected += one.redirected;
            all.failed += one.failed;
            all.lost += one.lost;
            all.taken_over += one.taken_over;
            all.foreign += one.foreign;
            all.replies += one.replies;
            all.without_session += one.without_session;
            all.without_header += one.without_header;
            all.interleaved += one.interleaved;
            all.over_limit += one.over_limit;
            all.refused_by_limit += one.refused_by_limit;
            all.moved += one.moved;
        }
        // Stories in which something never happens prove nothing of it.
        let Summary { delivered, refused, evicted, expired, failed, lost, .. } = all;
        let Summary {
            redirected,
            taken_over,
            foreign,
            replies,
            without_session,
            without_header,
            interleaved,
            over_limit,
            refused_by_limit,
            moved,
            ..
        } = all;
        let kinds = [
            delivered,
            refused,
            evicted,
            expired,
            redirected,
            failed,
            lost,
            taken_over,
            foreign,
            replies,
            without_session,
            without_header,
            interleaved,
            over_limit,
            refused_by_limit,
            moved,
        ];
        assert!(kinds.iter().all(|count| *count > 0), "{all:?}");
    }

    /// How many seeds find something.
    fn found(defects: Defects) -> usize {
        (0..400).filter(|seed| run(&mut Seed::new(*seed, STEPS), defects).is_err()).count()
    }

    #[test]
    fn the_defect_that_gave_datagrams_to_other_clients_is_found() {
        let both = Defects { drop_leaving_groups: true, trust_indexes: true };
        let errors: Vec<String> =
            (0..400).filter_map(|seed| run(&mut Seed::new(seed, STEPS), both).err()).collect();
        assert!(errors.iter().any(|error| error.contains("from the address of")), "{errors:?}");
    }

    #[test]
    fn a_flow_that_takes_its_datagrams_along_is_found() {
        assert!(found(Defects { drop_leaving_groups: true, trust_indexes: false }) > 0);
    }

    #[test]
    fn any_bytes_are_a_story() {
        for seed in 0..200u64 {
            let mut random = Seed::new(seed, 1);
            let bytes: Vec<u8> = (0..300).map(|_| random.below(256) as u8).collect();
            run(&mut Bytes(&bytes), Defects::default())
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }
}
