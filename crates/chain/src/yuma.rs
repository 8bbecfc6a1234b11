//! The epoch of a subnet: from validators' weights to everybody's share of the reward.
//!
//! The rules are those that Bittensor's documentation names Yuma consensus, without its optional refinements:
//!
//! 1. each validator's weights are normalised to a sum of 1;
//! 2. *consensus* of a neuron = the stake-weighted median of its weights (κ = 0.5): what at least half of the stake
//!    supports;
//! 3. weights above consensus are clipped to it, so a minority can neither promote nor enrich anybody;
//! 4. *incentive* = stake-weighted sum of the clipped weights, normalised;
//! 5. *bonds*: an exponential moving average (α = 0.1) of each validator's share in supporting a neuron;
//! 6. *dividends* of a validator = its bonds in the neurons × their incentive, normalised.
//!
//! Arithmetic: sums of stake in integers, all else in `f64` by + − × ÷ in one fixed order, so every machine gets the
//! same bits.

/// How much of the newest support enters the bonds at each epoch.
pub const BOND_ALPHA: f64 = 0.1;

/// A validator at an epoch. Weights and bonds name neurons by index; indices out of range are a caller's error.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Voter {
    pub stake_rao: u64,
    /// (neuron, weight), at most one per neuron.
    pub weights: Vec<(u16, u16)>,
    /// (neuron, bond) from the last epoch, at most one per neuron.
    pub bonds: Vec<(u16, f64)>,
}

/// The result of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Per neuron: the clipping level.
    pub consensus: Vec<f64>,
    /// Per neuron: share of the miners' reward. Sums to 1, or all 0 if no consensus supports anybody.
    pub incentive: Vec<f64>,
    /// Per voter: share of the validators' reward. Sums to 1, or all 0 where incentive is.
    pub dividends: Vec<f64>,
    /// Per voter: the new bonds, without zeros, by neuron.
    pub bonds: Vec<Vec<(u16, f64)>>,
}

/// One epoch over `neurons` neurons.
pub fn epoch(neurons: usize, voters: &[Voter]) -> Outcome {
    let total_stake: u128 = voters.iter().map(|voter| u128::from(voter.stake_rao)).sum();
    let weights: Vec<Vec<f64>> = voters.iter().map(|voter| normalised_row(neurons, &voter.weights)).collect();
    let consensus: Vec<f64> = (0..neurons).map(|neuron| stake_median(voters, &weights, neuron, total_stake)).collect();

    // support[v][n] = stake share × clipped weight: what the ranks and the bonds are made of.
    let support: Vec<Vec<f64>> = voters
        .iter()
        .zip(&weights)
        .map(|(voter, row)| {
            let share = if total_stake == 0 { 0.0 } else { voter.stake_rao as f64 / total_stake as f64 };
            row.iter().zip(&consensus).map(|(weight, level)| share * weight.min(*level)).collect()
        })
        .collect();

    let mut incentive: Vec<f64> = (0..neurons).map(|neuron| support.iter().map(|row| row[neuron]).sum()).collect();
    normalise(&mut incentive);
    let bonds = next_bonds(neurons, voters, &support);
    let mut dividends: Vec<f64> =
        bonds.iter().map(|row| row.iter().zip(&incentive).map(|(bond, share)| bond * share).sum()).collect();
    normalise(&mut dividends);
    Outcome { consensus, incentive, dividends, bonds: bonds.iter().map(|row| sparse(row)).collect() }
}

/// The smallest weight such that more than half of the stake gives that much or less (κ = 0.5). With two validators of
/// equal stake that is the higher of their weights, so one absent validator of two stops nothing.
fn stake_median(voters: &[Voter], weights: &[Vec<f64>], neuron: usize, total_stake: u128) -> f64 {
    let mut column: Vec<(f64, u64)> =
        weights.iter().zip(voters).map(|(row, voter)| (row[neuron], voter.stake_rao)).collect();
    column.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut below: u128 = 0;
    for (weight, stake_rao) in column {
        below += u128::from(stake_rao);
        if below * 2 > total_stake {
            return weight;
        }
    }
    0.0
}

/// bonds' = normalise(α · normalise(support) + (1 − α) · bonds), each per neuron over the voters.
fn next_bonds(neurons: usize, voters: &[Voter], support: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut bonds: Vec<Vec<f64>> = voters.iter().map(|voter| dense(neurons, &voter.bonds)).collect();
    for neuron in 0..neurons {
        let mut newest: Vec<f64> = support.iter().map(|row| row[neuron]).collect();
        normalise(&mut newest);
        let mut column: Vec<f64> = bonds
            .iter()
            .zip(&newest)
            .map(|(row, newest)| BOND_ALPHA * newest + (1.0 - BOND_ALPHA) * row[neuron])
            .collect();
        normalise(&mut column);
        for (row, bond) in bonds.iter_mut().zip(column) {
            row[neuron] = bond;
        }
    }
    bonds
}

fn normalised_row(neurons: usize, weights: &[(u16, u16)]) -> Vec<f64> {
    let mut row = vec![0.0; neurons];
    for (neuron, weight) in weights {
        row[usize::from(*neuron)] = f64::from(*weight);
    }
    normalise(&mut row);
    row
}

/// Scales to a sum of 1; leaves a row of zeros alone.
fn normalise(values: &mut [f64]) {
    let sum: f64 = values.iter().sum();
    if sum > 0.0 {
        for value in values {
            *value /= sum;
        }
    }
}

fn dense(neurons: usize, entries: &[(u16, f64)]) -> Vec<f64> {
    let mut row = vec![0.0; neurons];
    for (neuron, value) in entries {
        row[usize::from(*neuron)] = *value;
    }
    row
}

fn sparse(row: &[f64]) -> Vec<(u16, f64)> {
    row.iter().enumerate().filter(|(_, value)| **value != 0.0).map(|(neuron, value)| (neuron as u16, *value)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(found: &[f64], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-12, "{found} instead of {wanted}");
        }
    }

    /// Neurons: validators A (0, stake 600) and B (1, stake 400), miners 2 and 3. A says 0.8/0.2, B says 0.2/0.8.
    fn two_by_two() -> [Voter; 2] {
        [
            Voter { stake_rao: 600, weights: vec![(2, 4), (3, 1)], bonds: vec![] },
            Voter { stake_rao: 400, weights: vec![(2, 1), (3, 4)], bonds: vec![] },
        ]
    }

    #[test]
    fn two_validators_and_two_miners_by_hand() {
        // A has the majority, so its weights are the medians; B's 0.8 for miner 3 is clipped to 0.2.
        // Ranks: 0.6·0.8 + 0.4·0.2 = 0.56 and 0.6·0.2 + 0.4·0.2 = 0.20, of 0.76.
        let outcome = epoch(4, &two_by_two());
        close(&outcome.consensus, &[0.0, 0.0, 0.8, 0.2]);
        close(&outcome.incentive, &[0.0, 0.0, 14.0 / 19.0, 5.0 / 19.0]);
        // First bonds: A has 0.48 of 0.56 and 0.12 of 0.20; dividends 14/19·6/7 + 5/19·3/5 = 15/19.
        close(&[outcome.bonds[0][0].1, outcome.bonds[0][1].1], &[6.0 / 7.0, 0.6]);
        close(&outcome.dividends, &[15.0 / 19.0, 4.0 / 19.0]);

        // B comes round to A's view: support 0.48 : 0.32, of which a tenth enters the bonds.
        let [mut a, mut b] = two_by_two();
        a.bonds = outcome.bonds[0].clone();
        b.bonds = outcome.bonds[1].clone();
        b.weights = a.weights.clone();
        let outcome = epoch(4, &[a, b]);
        close(&outcome.incentive, &[0.0, 0.0, 0.8, 0.2]);
        close(&[outcome.bonds[0][0].1, outcome.bonds[0][1].1], &[0.9 * 6.0 / 7.0 + 0.06, 0.6]);
    }

    #[test]
    fn one_absent_validator_of_two_equal_ones_stops_nothing_and_nobody_gives_nothing() {
        let present = Voter { stake_rao: 5, weights: vec![(0, 3), (1, 1)], bonds: vec![] };
        let absent = Voter { stake_rao: 5, ..Voter::default() };
        let outcome = epoch(2, &[absent.clone(), present]);
        close(&outcome.incentive, &[0.75, 0.25]);
        close(&outcome.dividends, &[0.0, 1.0]);
        let idle = epoch(2, &[absent]);
        assert_eq!((idle.incentive, idle.dividends), (vec![0.0; 2], vec![0.0]));
        assert_eq!(epoch(1, &[]).incentive, [0.0]);
    }

    fn voters() -> impl Strategy<Value = Vec<Voter>> {
        let weights = prop::collection::vec(any::<u16>(), 5)
            .prop_map(|row| row.into_iter().enumerate().map(|(n, w)| (n as u16, w)).collect());
        let voter = (0..1_000_000u64, weights).prop_map(|(stake_rao, weights)| Voter {
            stake_rao,
            weights,
            bonds: vec![(1, 0.5)],
        });
        prop::collection::vec(voter, 1..6)
    }

    proptest! {
        #[test]
        fn shares_are_shares(voters in voters()) {
            let outcome = epoch(5, &voters);
            for shares in [&outcome.incentive, &outcome.dividends] {
                let sum: f64 = shares.iter().sum();
                prop_assert!(sum == 0.0 || (sum - 1.0).abs() < 1e-9, "{sum}");
                prop_assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
            }
        }

        #[test]
        fn a_minority_cannot_pay_whom_the_majority_does_not(mut voters in voters(), minority in 0..1000u64) {
            // Everybody but the newcomer gives neuron 0 nothing.
            for voter in &mut voters {
                voter.weights[0].1 = 0;
                voter.stake_rao += 1000;
            }
            voters.push(Voter { stake_rao: minority, weights: vec![(0, u16::MAX)], bonds: vec![] });
            prop_assert!(epoch(5, &voters).incentive[0] <= 0.0);
        }
    }
}
