//! How long somebody's node takes part, and what it has earned: what its owner sees at the end.

use std::time::Duration;

use serde_json::json;
use templar_chain::RpcChain;
use templar_host::standing::Standing;
use templar_protocol::keys::Hotkey;
use templar_record::event::{Event, Role, Verdict};
use templar_record::trouble::Trouble;

/// How long the chain may take to say what was paid. That is for information only, and nothing waits for it.
const PATIENCE: Duration = Duration::from_secs(3);
/// After this many failures in a row to follow the chain, some 20 s each, a network that had a planned end has ended.
const LOST_MAX: u32 = 2;

/// Why a node ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The last window is settled.
    LastWindow,
    /// The chain went away before that.
    ChainGone,
}

/// A node's part in its network.
#[derive(Debug)]
pub(crate) struct Tenure {
    /// It ends after this many windows; without a number, never.
    until_window: Option<u64>,
    /// Whether anybody wants to see the standing.
    is_shown: bool,
    url: String,
    hotkey: Hotkey,
    role: Role,
    chain: Option<RpcChain>,
    standing: Option<Standing>,
    /// Windows that were settled, and those in which a contribution of this node counted.
    settled: u64,
    counted: u64,
    lost: u32,
}

impl Tenure {
    pub(crate) fn new(until_window: Option<u64>, is_shown: bool, url: String, hotkey: Hotkey, role: Role) -> Self {
        let (chain, standing) = (None, None);
        Self { until_window, is_shown, url, hotkey, role, chain, standing, settled: 0, counted: 0, lost: 0 }
    }

    /// Takes in an event of the node, and returns why the node should end, if it should.
    pub(crate) async fn note(&mut self, event: &Event) -> Option<Ending> {
        match event {
            Event::Settled { window, verdict, .. } => {
                self.lost = 0;
                self.settled += 1;
                if self.is_shown {
                    self.look().await;
                }
                if let (Verdict::Certified { accepted, .. }, Some(standing)) = (verdict, &self.standing) {
                    self.counted += u64::from(accepted.contains(&standing.uid));
                }
                self.until_window.is_some_and(|until| window + 1 >= until).then_some(Ending::LastWindow)
            }
            Event::Trouble { trouble: Trouble::NoHeads { .. } } => {
                self.lost += 1;
                (self.until_window.is_some() && self.lost >= LOST_MAX).then_some(Ending::ChainGone)
            }
            _ => None,
        }
    }

    /// Asks the chain how this node is doing. Only a development chain answers this question.
    async fn look(&mut self) {
        let looking = async {
            if self.chain.is_none() {
                self.chain = RpcChain::connect(&self.url).await.ok();
            }
            Standing::read(self.chain.as_ref()?, &self.hotkey, self.role).await.ok().flatten()
        };
        if let Ok(Some(standing)) = tokio::time::timeout(PATIENCE, looking).await {
            self.standing = Some(standing);
        }
    }

    /// The final result, for people or as JSON; `None` if the standing is not known.
    pub(crate) fn summary(&self, is_json: bool) -> Option<String> {
        let Standing { uid, score, weight, paid_rao } = self.standing?;
        let (settled, counted, paid) = (self.settled, self.counted, paid_rao as f64 / 1e9);
        if is_json {
            let standing = json!({
                "uid": uid, "score": score, "weight": weight, "paid": paid, "windows": settled, "counted": counted
            });
            return Some(json!({ "standing": standing }).to_string());
        }
        let percent = 100.0 * weight;
        Some(match self.role {
            Role::Miner => format!(
                "final result of uid {uid}: contributions counted in {counted} of {settled} windows\n  \
                 score    {score:.3} from the validators' weights (the best miner has 1)\n  \
                 weight   {percent:.1} % of what all miners were paid last\n  \
                 paid     {paid:.3} so far, in the chain's own coin (1 = 10⁹ rao)"
            ),
            Role::Validator => format!(
                "final result of uid {uid}: {settled} windows settled\n  \
                 weight   {percent:.1} % of what all validators were paid last\n  \
                 paid     {paid:.3} so far, in the chain's own coin (1 = 10⁹ rao)"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::hash::Hash32;
    use templar_protocol::keys::Keypair;
    use templar_protocol::roster::Uid;

    use super::*;

    fn tenure(until_window: Option<u64>) -> Tenure {
        let hotkey = Keypair::insecure_dev(1, "guest").hotkey();
        Tenure::new(until_window, false, "ws://127.0.0.1:1".to_owned(), hotkey, Role::Miner)
    }

    fn settled(window: u64) -> Event {
        let verdict = Verdict::Certified { accepted: vec![Uid(3)], excluded: vec![] };
        Event::Settled { window, verdict, state_root: Hash32::of(b"r"), payload_bytes: 1, values: 1, tokens: 1 }
    }

    #[tokio::test]
    async fn a_node_ends_with_its_last_window_or_with_its_chain() {
        let lost = Event::Trouble { trouble: Trouble::NoHeads { cause: "refused".to_owned() } };
        let mut guest = tenure(Some(3));
        assert_eq!(guest.note(&settled(1)).await, None);
        assert_eq!(guest.note(&lost).await, None);
        assert_eq!(guest.note(&settled(2)).await, Some(Ending::LastWindow));
        assert_eq!(guest.note(&lost).await, None, "a window in between says that the chain is there");
        assert_eq!(guest.note(&lost).await, Some(Ending::ChainGone));
        // Without an end in sight a node waits for its chain, however long that takes.
        let mut node = tenure(None);
        for _ in 0..100 {
            assert_eq!(node.note(&lost).await, None);
        }
        assert_eq!(node.note(&settled(1_000_000)).await, None);
    }

    #[tokio::test]
    async fn the_summary_says_what_counted_and_what_was_paid() {
        let mut guest = tenure(Some(9));
        assert_eq!(guest.summary(false), None);
        guest.standing = Some(Standing { uid: Uid(3), score: 0.5, weight: 0.25, paid_rao: 1_500_000_000 });
        guest.note(&settled(0)).await;
        let said = guest.summary(false).unwrap();
        for part in ["uid 3", "counted in 1 of 1 windows", "0.500", "25.0 %", "1.500"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let json: serde_json::Value = serde_json::from_str(&guest.summary(true).unwrap()).unwrap();
        assert_eq!(json["standing"]["paid"], 1.5);
    }
}
