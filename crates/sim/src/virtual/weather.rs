//! Failures of machines, links and services, drawn by seed: nobody means them, and nobody else may be blamed for them.
//!
//! What is drawn for a window depends on the seed and the windows before it alone, so a shorter simulation has the same
//! weather as the beginning of a longer one.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use templar_protocol::hash::{Hash32, Hasher, Stream};
use templar_protocol::run::RunSpec;
use templar_store::{Fault, Op};
use tokio::time::Instant;

use crate::plan::Member;
use crate::r#virtual::invariants::Disturbances;
use crate::r#virtual::scenario::{Incident, Scenario, What};
use crate::r#virtual::world::BLOCK;
use crate::zoo::failure::cut_off_chain;
use crate::zoo::failure::skewed_clock;

/// How much goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Faults {
    #[default]
    None,
    /// Half a failure per window, of up to 15 blocks; every operation on the cloud takes up to half a second.
    Light,
    /// Up to three failures per window, of up to 50 blocks; every operation on the cloud takes up to three seconds.
    Heavy,
}

impl Faults {
    pub const ALL: [Self; 3] = [Self::None, Self::Light, Self::Heavy];
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Light => "light",
            Self::Heavy => "heavy",
        })
    }
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|level| level.to_string() == text);
        known.ok_or_else(|| format!("{text:?} is no level of faults; use none, light or heavy"))
    }
}

/// What befalls a node for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blow {
    /// Its process dies, and is started again at the end.
    Crash,
    /// No bucket answers it.
    NoCloud,
    /// Every request of its to a bucket hangs.
    HangingCloud,
    /// It hears nothing of the chain, and the chain nothing of it.
    NoChain,
    /// Neither chain nor cloud.
    NoNetwork,
    /// Its bucket answers nobody.
    BucketDown,
    /// Each of its requests takes so many seconds.
    SlowLink { delay_s: u64 },
    /// So many of a hundred of its requests fail.
    Flaky { percent: u64 },
    /// Its clock is an hour ahead, and services refuse it.
    SkewedClock,
}

/// A blow, and when it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spell {
    pub node: String,
    pub window: u64,
    /// Counted from the window's first block.
    pub block: u64,
    pub blocks: u64,
    pub blow: Blow,
}

impl fmt::Display for Spell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, window, block, blocks, blow } = self;
        write!(f, "{node}: {blow:?} from block {block} of window {window}, for {blocks} blocks")
    }
}

/// All that goes wrong in a simulation.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    seed: u64,
    /// Longest time that an operation on the cloud takes of itself.
    jitter: Duration,
    pub spells: Vec<Spell>,
}

impl Weather {
    /// Draws what befalls `members` in so many windows. The first window is calm, so that everybody is listed.
    pub fn draw(seed: u64, level: Faults, members: &[Member], windows: u64, window_blocks: u64) -> Self {
        let (jitter_ms, blocks_max) = match level {
            Faults::None => return Self::default(),
            Faults::Light => (500, 15),
            Faults::Heavy => (3000, 50),
        };
        let mut spells: Vec<Spell> = Vec::new();
        for window in 1..windows {
            let mut stream = Hasher::new("templar sim weather").update_value(&(seed, window)).clone().into_stream();
            let count = match level {
                Faults::None => 0,
                Faults::Light => stream.below(2),
                Faults::Heavy => stream.below(4),
            };
            for _ in 0..count {
                let node = members[stream.below(members.len() as u64) as usize].name.clone();
                let (block, blocks) = (stream.below(window_blocks), 2 + stream.below(blocks_max - 1));
                let spell = Spell { node, window, block, blocks, blow: Blow::draw(&mut stream) };
                // One thing after the other, so that a node is never started without its chain.
                let begin = window * window_blocks + block;
                let is_free = |other: &Spell| {
                    other.node != spell.node || other.window * window_blocks + other.block + other.blocks < begin
                };
                if spells.iter().all(is_free) {
                    spells.push(spell);
                }
            }
        }
        Self { seed, jitter: Duration::from_millis(jitter_ms), spells }
    }

    /// What these failures explain.
    pub fn disturbances(&self, window_blocks: u64) -> Disturbances {
        let mut disturbances = Disturbances::default();
        for Spell { node, window, block, blocks, blow } in &self.spells {
            let last = window + (block + blocks) / window_blocks;
            disturbances.add(node, *window, last);
            if matches!(blow, Blow::SlowLink { .. } | Blow::Flaky { .. }) {
                disturbances.add_poor_link(node, *window, last);
            }
        }
        disturbances
    }

    /// Lets it come over the nodes of `scenario`, whose run starts at `start_block`.
    pub fn befall(&self, scenario: &mut Scenario, start_block: u64, window_blocks: u64) {
        let began: Arc<OnceLock<Instant>> = Arc::default();
        // Block 1 is made before the clock starts.
        let time = |block: u64| BLOCK * (block.saturating_sub(1)) as u32;
        let span = move |spell: &Spell| {
            let first = start_block + spell.window * window_blocks + spell.block;
            time(first)..time(first + spell.blocks)
        };
        for spell in &self.spells {
            let (node, span) = (spell.node.clone(), span(spell));
            match spell.blow {
                Blow::Crash => scenario.incidents.extend(crash(spell, window_blocks)),
                Blow::NoChain | Blow::NoNetwork => {
                    let began = began.clone();
                    let cut = move |setup| cut_off_chain::wrap(setup, *began.get_or_init(Instant::now), span.clone());
                    scenario.wrap(&node, cut);
                }
                Blow::SkewedClock => {
                    let began = began.clone();
                    scenario.wrap(&node, move |setup| {
                        let since = began.get_or_init(Instant::now).elapsed();
                        let span = span.start.saturating_sub(since)..span.end.saturating_sub(since);
                        skewed_clock::wrap(setup, span, "")
                    });
                }
                _ => {}
            }
        }
        let spells: Vec<(Spell, Range<Duration>)> =
            self.spells.iter().map(|spell| (spell.clone(), span(spell))).collect();
        let mut stream = Hasher::new("templar sim jitter").update_value(&self.seed).clone().into_stream();
        let jitter_ms = self.jitter.as_millis() as u64;
        if jitter_ms == 0 {
            return;
        }
        scenario.cloud_fault = Some(Box::new(move |op| {
            let now = began.get_or_init(Instant::now).elapsed();
            let mut current = spells.iter().filter(|(_, span)| span.contains(&now)).map(|(spell, _)| spell);
            let fault = current.find_map(|spell| spell.strike(op, &mut stream));
            fault.or_else(|| Some(Fault::Delay(Duration::from_millis(stream.below(jitter_ms)))))
        }));
    }
}

/// Kills the node, and starts it again.
fn crash(spell: &Spell, window_blocks: u64) -> [Incident; 2] {
    let end = spell.block + spell.blocks;
    let Spell { node, window, block, .. } = spell.clone();
    let start =
        Incident { window: window + end / window_blocks, block: end % window_blocks, what: What::Start(node.clone()) };
    [Incident { window, block, what: What::Kill(node) }, start]
}

impl Blow {
    fn draw(stream: &mut Stream) -> Self {
        match stream.below(9) {
            0 => Self::Crash,
            1 => Self::NoCloud,
            2 => Self::HangingCloud,
            3 => Self::NoChain,
            4 => Self::NoNetwork,
            5 => Self::BucketDown,
            6 => Self::SlowLink { delay_s: 2 + stream.below(20) },
            7 => Self::Flaky { percent: 10 + stream.below(60) },
            _ => Self::SkewedClock,
        }
    }
}

impl Spell {
    /// What becomes of an operation while this lasts.
    fn strike(&self, op: &Op, stream: &mut Stream) -> Option<Fault> {
        let acts = op.actor == self.node;
        match self.blow {
            Blow::NoCloud | Blow::NoNetwork if acts => Some(Fault::Unavailable),
            Blow::BucketDown if op.bucket == self.node => Some(Fault::Unavailable),
            Blow::HangingCloud if acts => Some(Fault::Delay(Duration::from_mins(50))),
            Blow::SlowLink { delay_s } if acts => Some(Fault::Delay(Duration::from_secs(delay_s))),
            Blow::Flaky { percent } if acts => (stream.below(100) < percent).then_some(Fault::Unavailable),
            _ => None,
        }
    }
}

/// The weather of a scenario that is otherwise whole, in which it is then checked what must hold.
pub fn befall(scenario: &mut Scenario, level: Faults) -> Weather {
    let plan = &scenario.plan;
    let RunSpec { windows, chain, .. } = plan.spec_without_root(Hash32::default(), Hash32::default());
    let weather = Weather::draw(plan.seed, level, &plan.members(), plan.windows, windows.blocks);
    weather.befall(scenario, chain.start_block, windows.blocks);
    scenario.disturbances = Some(weather.disturbances(windows.blocks));
    weather
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_simulation_has_the_same_weather_and_levels_differ() {
        let members = Scenario::new(4, 3, 1, 1).plan.members();
        let draw = |level, windows| Weather::draw(5, level, &members, windows, 20).spells;
        let (long, short) = (draw(Faults::Heavy, 40), draw(Faults::Heavy, 15));
        assert!(long.starts_with(&short) && long.len() > short.len() && short.iter().all(|spell| spell.window > 0));
        let light = draw(Faults::Light, 40).len();
        assert!((5..long.len()).contains(&light), "{light} of {}", long.len());
        assert_eq!(draw(Faults::None, 40), []);
    }

    #[test]
    fn nothing_befalls_a_node_that_suffers_already() {
        let members = Scenario::new(1, 1, 1, 1).plan.members();
        let spells = Weather::draw(9, Faults::Heavy, &members, 100, 20).spells;
        for node in ["miner-0", "validator-0"] {
            let of_node: Vec<_> = spells.iter().filter(|spell| spell.node == node).collect();
            assert!(of_node.len() > 10);
            let begin = |spell: &Spell| spell.window * 20 + spell.block;
            assert!(of_node.windows(2).all(|pair| begin(pair[0]) + pair[0].blocks < begin(pair[1])), "{of_node:?}");
        }
    }

    #[test]
    fn levels_have_names() {
        for level in Faults::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!("hail".parse::<Faults>().is_err());
    }
}
