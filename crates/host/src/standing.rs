//! How a node is doing, as the development chain sees it, for its owner's information.

use templar_chain::{ChainError, NeuronInfo, RpcChain};
use templar_protocol::keys::Hotkey;
use templar_protocol::roster::Uid;
use templar_record::event::Role;

/// A node's place in its subnet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    pub uid: Uid,
    /// The mean of the validators' weights for a miner, where 1 is a validator's best.
    pub score: f64,
    /// A miner's share of the chain's incentive, a validator's of its dividends; 0 to 1.
    pub weight: f64,
    /// Paid since its registration, in rao.
    pub paid_rao: u64,
}

impl Standing {
    /// The standing of `hotkey` among all neurons; `None` if it is not registered.
    pub fn among(neurons: &[NeuronInfo], hotkey: &Hotkey, role: Role) -> Option<Self> {
        let share_of = |neuron: &NeuronInfo| match role {
            Role::Miner => f64::from(neuron.incentive),
            Role::Validator => f64::from(neuron.dividends),
        };
        let own = neurons.iter().find(|neuron| neuron.hotkey == *hotkey)?;
        let total: f64 = neurons.iter().map(share_of).sum();
        Some(Self {
            uid: own.uid,
            score: f64::from(own.rating) / f64::from(u16::MAX),
            weight: if total > 0.0 { share_of(own) / total } else { 0.0 },
            paid_rao: own.emission_rao,
        })
    }

    /// Asks the development chain behind `chain`.
    pub async fn read(chain: &RpcChain, hotkey: &Hotkey, role: Role) -> Result<Option<Self>, ChainError> {
        Ok(Self::among(&chain.neurons().await?, hotkey, role))
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::keys::Keypair;

    use super::*;

    #[test]
    fn shares_are_among_the_neurons_of_one_role() {
        let hotkey = |name: &str| Keypair::insecure_dev(1, name).hotkey();
        let neuron = |uid, name, incentive, dividends| NeuronInfo {
            uid: Uid(uid),
            hotkey: hotkey(name),
            registered_at_block: 1,
            stake_rao: 0,
            permit: false,
            incentive,
            dividends,
            emission_rao: 7,
            rating: 13_107,
        };
        let neurons = [neuron(0, "a", 100, 0), neuron(1, "b", 300, 0), neuron(2, "c", 0, 50)];
        let standing = |name, role| Standing::among(&neurons, &hotkey(name), role);
        let expected = Standing { uid: Uid(1), score: 0.2, weight: 0.75, paid_rao: 7 };
        assert_eq!(standing("b", Role::Miner), Some(expected));
        assert_eq!(standing("c", Role::Validator).map(|standing| standing.weight), Some(1.0));
        assert_eq!(standing("nobody", Role::Miner), None);
    }
}
