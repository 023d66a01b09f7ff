//! The only source of chance in a simulated world: xoshiro256++ filled by splitmix64.
//!
//! Not for secrets. One generator serves the whole world, so an additional draw anywhere changes
//! everything after it; what must stay comparable between two runs takes a generator of its own.

use std::time::Duration;

/// How likely something is, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Odds(u32);

const MILLION: u32 = 1_000_000;

impl Odds {
    pub const NEVER: Self = Self(0);
    pub const ALWAYS: Self = Self(MILLION);

    /// `millionths` out of a million; more than a million is always.
    pub const fn per_million(millionths: u32) -> Self {
        if millionths > MILLION {
            Self::ALWAYS
        } else {
            Self(millionths)
        }
    }

    /// Once in `times` on average.
    pub const fn one_in(times: u32) -> Self {
        assert!(times > 0, "once in no time at all");
        Self(MILLION / times)
    }
}

/// The shortest and the usual longest duration of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    min_ns: u64,
    max_ns: u64,
}

impl Spread {
    pub const fn micros(min: u64, max: u64) -> Self {
        assert!(
            min <= max,
            "a spread runs from its shorter to its longer end"
        );
        Self {
            min_ns: min * 1_000,
            max_ns: max * 1_000,
        }
    }

    /// The longest that anything with this spread ever takes.
    pub const fn longest(self) -> Duration {
        Duration::from_nanos(self.max_ns.saturating_mul(SLOW_FACTOR))
    }
}

/// One operation in so many takes up to so many times its usual longest time.
const SLOW_ONE_IN: u64 = 64;
const SLOW_FACTOR: u64 = 8;

/// A generator of numbers that depend on the seed and on nothing else.
#[derive(Clone, Debug)]
pub struct Chance {
    state: [u64; 4],
}

impl Chance {
    pub fn seeded(seed: u64) -> Self {
        let mut filler = seed;
        Self {
            state: std::array::from_fn(|_| splitmix(&mut filler)),
        }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, which must not be 0. The bias of the remainder does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        self.bits() % bound
    }

    /// An index into something of `len` elements, which must not be 0.
    pub fn index(&mut self, len: usize) -> usize {
        let bound = u64::try_from(len).expect("a length fits u64");
        usize::try_from(self.below(bound)).expect("below a usize")
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "between {low} and {high} there is nothing");
        low + self.below((high - low).saturating_add(1))
    }

    pub fn hit(&mut self, odds: Odds) -> bool {
        // No draw where nothing can happen, so that a fault that is off costs no determinism.
        odds != Odds::NEVER && self.below(u64::from(MILLION)) < u64::from(odds.0)
    }

    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// How long an operation takes: even over the spread, now and then much longer.
    pub fn delay(&mut self, spread: Spread) -> Duration {
        let nanos = if self.one_in(SLOW_ONE_IN) {
            self.between(spread.min_ns, spread.max_ns.saturating_mul(SLOW_FACTOR))
        } else {
            self.between(spread.min_ns, spread.max_ns)
        };
        Duration::from_nanos(nanos)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.bits().to_le_bytes()[..part.len()]);
        }
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_numbers_of_seed_zero_are_those_of_splitmix() {
        let mut state = 0;
        assert_eq!(splitmix(&mut state), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix(&mut state), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn equal_seeds_draw_equal_numbers_and_others_do_not() {
        let draw = |seed| {
            let mut chance = Chance::seeded(seed);
            std::array::from_fn::<u64, 8, _>(|_| chance.bits())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn odds_of_never_and_always_hold() {
        let mut chance = Chance::seeded(1);
        for _ in 0..1_000 {
            assert!(!chance.hit(Odds::NEVER));
            assert!(chance.hit(Odds::ALWAYS));
        }
        let hits = (0..10_000).filter(|_| chance.hit(Odds::one_in(10))).count();
        assert!(
            (800..1_200).contains(&hits),
            "{hits} of 10000 at one in ten"
        );
    }

    /// A fault that a run does not have must leave the run what it was.
    #[test]
    fn odds_of_never_draw_nothing() {
        let mut chance = Chance::seeded(5);
        let mut untouched = chance.clone();
        assert!(!chance.hit(Odds::NEVER));
        assert_eq!(chance.bits(), untouched.bits());
    }

    #[test]
    fn a_fill_of_any_length_touches_every_byte_sooner_or_later() {
        let mut chance = Chance::seeded(3);
        for len in 1..20 {
            let mut seen = vec![0_u8; len];
            for _ in 0..64 {
                let mut bytes = vec![0; len];
                chance.fill(&mut bytes);
                for (kept, new) in seen.iter_mut().zip(bytes) {
                    *kept |= new;
                }
            }
            assert!(seen.iter().all(|byte| *byte == 255));
        }
    }
}
