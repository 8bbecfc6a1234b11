//! The start of a local network: its chain does not pass the snapshot of window 0 before every own node has published
//! its bucket. A node that is not listed there takes no part in the window, and a slow machine would train nothing.

use std::time::Duration;

use templar_chain::DevChain;
use templar_protocol::clock::Schedule;
use templar_protocol::keys::Hotkey;
use templar_protocol::run::RunSpec;
use tokio::time::Instant;

use crate::plan::Member;

/// How long the chain waits: large models and engines take minutes to load.
const PATIENCE: Duration = Duration::from_mins(5);

/// The wait for the nodes of a network.
#[derive(Debug)]
pub(crate) struct Listing {
    chain: DevChain,
    awaited: Vec<(String, Hotkey)>,
    deadline: Instant,
}

/// How far the wait has got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// These nodes are not listed yet.
    For(Vec<String>),
    /// The chain goes on, without these nodes.
    Over(Vec<String>),
}

impl Listing {
    /// Holds the chain; `None` if it is past the snapshot, as when a network resumes.
    pub(crate) fn new(chain: &DevChain, members: &[Member], spec: &RunSpec) -> Option<Self> {
        let snapshot = Schedule::new(spec).snapshot_block(0);
        if chain.newest().number >= snapshot {
            return None;
        }
        chain.hold(Some(snapshot));
        let awaited = members.iter().map(|member| (member.name.clone(), member.keypair.hotkey())).collect();
        Some(Self { chain: chain.clone(), awaited, deadline: Instant::now() + PATIENCE })
    }

    /// Releases the chain when nobody is missing any more, except the nodes that ended, or when the time is over.
    pub(crate) fn check(&mut self, has_ended: impl Fn(&str) -> bool) -> Wait {
        let listed = |hotkey: &Hotkey| self.chain.is_committed(hotkey);
        let missing = self.awaited.iter().filter(|(_, hotkey)| !listed(hotkey)).map(|(name, _)| name.clone());
        let missing: Vec<String> = missing.collect();
        if Instant::now() < self.deadline && missing.iter().any(|name| !has_ended(name)) {
            return Wait::For(missing.into_iter().filter(|name| !has_ended(name)).collect());
        }
        self.chain.hold(None);
        Wait::Over(missing)
    }
}

#[cfg(test)]
mod tests {
    use templar_chain::{BlockTime, Chain, run_blocks};
    use templar_protocol::hash::Hash32;
    use tokio::sync::watch;

    use super::*;
    use crate::plan::Plan;
    use crate::r#virtual::scenario::tiny_preset;

    /// A chain whose blocks wait for nobody, and the members of its network.
    fn hasty() -> (DevChain, Vec<Member>, RunSpec, watch::Sender<bool>) {
        let plan =
            Plan { miners: 1, validators: 1, windows: 1, seed: 1, preset: tiny_preset(), adversaries: Vec::new() };
        let chain = DevChain::open(None, plan.chain_config()).unwrap();
        let spec = plan.spec(chain.genesis_hash(), Hash32::of(b"m"));
        let (members, stop) = (plan.members(), watch::Sender::new(false));
        for member in &members {
            chain.register(member.keypair.hotkey(), member.stake_rao).unwrap();
        }
        (chain, members, spec, stop)
    }

    #[tokio::test(start_paused = true)]
    async fn the_chain_does_not_pass_the_first_snapshot_before_every_node_is_listed() {
        let (chain, members, spec, stop) = hasty();
        let mut listing = Listing::new(&chain, &members, &spec).unwrap();
        let blocks = run_blocks(chain.clone(), BlockTime::Fixed(Duration::from_millis(1)), stop.subscribe());
        let blocks = tokio::spawn(blocks);
        let snapshot = Schedule::new(&spec).snapshot_block(0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(chain.newest().number, snapshot - 1);
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(listing.check(|_| false), Wait::For(names(&["miner-0", "validator-0"])));
        let commit = async |nth: usize| {
            chain.submit_commitment(&members[nth].keypair, spec.chain.netuid, vec![vec![1]]).await.unwrap();
        };
        commit(0).await;
        assert_eq!(listing.check(|_| false), Wait::For(names(&["validator-0"])));
        commit(1).await;
        assert_eq!(listing.check(|_| false), Wait::Over(Vec::new()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let at_snapshot = chain.snapshot(spec.chain.netuid, snapshot).await.unwrap();
        assert!(at_snapshot.neurons.iter().all(|neuron| neuron.commitment.is_some()), "{at_snapshot:?}");
        assert_eq!(Listing::new(&chain, &members, &spec).map(|_| ()), None, "a network that resumes waits for nobody");
        stop.send_replace(true);
        blocks.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_node_that_ended_or_for_ever() {
        let (chain, members, spec, _stop) = hasty();
        let mut listing = Listing::new(&chain, &members, &spec).unwrap();
        assert_eq!(listing.check(|name| name == "miner-0"), Wait::For(vec!["validator-0".to_owned()]));
        let both = || Wait::Over(vec!["miner-0".to_owned(), "validator-0".to_owned()]);
        assert_eq!(listing.check(|_| true), both());
        let mut listing = Listing::new(&chain, &members, &spec).unwrap();
        tokio::time::advance(PATIENCE).await;
        assert_eq!(listing.check(|_| false), both());
    }
}
