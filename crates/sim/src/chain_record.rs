//! What a development chain knows of the network at the end, in the form that the report needs.

use templar_chain::DevChain;
use templar_record::recorder::Neuron;
use templar_record::report::Late;

/// All neurons and what they were paid.
pub fn neurons(chain: &DevChain) -> Vec<Neuron> {
    let neurons = chain.emissions().into_iter();
    neurons
        .map(|neuron| Neuron {
            uid: neuron.uid,
            hotkey: neuron.hotkey,
            incentive: neuron.incentive,
            dividends: neuron.dividends,
            emission_rao: neuron.emission_rao,
        })
        .collect()
}

/// Nodes for which paced blocks did not wait, and how often that happened.
pub fn late(chain: &DevChain) -> (Vec<Late>, u64) {
    let neurons = chain.emissions();
    let uid = |hotkey| neurons.iter().find(|neuron| neuron.hotkey == hotkey).map(|neuron| neuron.uid);
    let late = chain.late().into_iter().filter_map(|(block, hotkey)| Some(Late { block, uid: uid(hotkey)? }));
    (late.collect(), chain.late_total())
}
