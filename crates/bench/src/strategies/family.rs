//! Arms of one kind, and how their best rates are found.

use templar_protocol::run::{CodecKind, MeanOver, Optimiser, Transform};

use crate::strategies::arm::{Arm, Denser, Exchange, Inner, Outer, Sparse};
use crate::strategies::done::{Cell, Done};

/// An arm whose rates are looked for one after the other, each with the best of those before it.
#[derive(Debug, Clone)]
pub struct Family {
    /// The table that it belongs to, such as `methods`.
    pub group: &'static str,
    pub name: String,
    pub start: Arm,
    pub axes: Vec<Axis>,
}

/// Values of one rate.
#[derive(Debug, Clone)]
pub enum Axis {
    Lr(&'static [f64]),
    MuonLr(&'static [f64]),
    /// α of whatever outer step the arm has.
    Rate(&'static [f64]),
    /// μ of Nesterov's outer step.
    Momentum(&'static [f64]),
    /// Steps of warm-up after a reset.
    Warmup(&'static [u64]),
}

/// How far a family's search has come.
#[derive(Debug, Clone, Default)]
pub struct Search {
    pub finished: Vec<Cell>,
    /// What is to be run next, in any order.
    pub wanted: Vec<(Arm, Cell)>,
    /// Runs that come after those, as far as is known.
    pub later: usize,
    /// The best arm, once all rates have been looked at.
    pub best: Option<Arm>,
    /// The axes on which the best value is the first or the last, so that a better one may lie beyond.
    pub edges: Vec<&'static str>,
}

impl Family {
    /// Where the search stands after `done`, and what it needs next.
    pub fn search(&self, seeds: &[u64], done: &Done) -> Search {
        let (mut search, mut best) = (Search::default(), self.start);
        for (nth, axis) in self.axes.iter().enumerate() {
            let arms: Vec<Arm> = (0..axis.len()).map(|value| axis.set(best, value)).collect();
            search.need(&arms, &seeds[..1], done);
            if !search.wanted.is_empty() {
                search.later = self.axes[nth + 1..].iter().map(|axis| axis.len() - 1).sum::<usize>() + seeds.len() - 1;
                return search;
            }
            let loss = |arm: &Arm| done.loss(&Cell::new(arm, seeds[0])).unwrap_or(f64::INFINITY);
            let at =
                (0..arms.len()).min_by(|&a, &b| loss(&arms[a]).total_cmp(&loss(&arms[b]))).expect("an axis has values");
            best = arms[at];
            if arms.len() > 2 && !matches!(axis, Axis::Warmup(_)) && (at == 0 || at == arms.len() - 1) {
                search.edges.push(axis.name());
            }
        }
        search.need(&[best], seeds, done);
        search.best = Some(best);
        search
    }
}

impl Search {
    fn need(&mut self, arms: &[Arm], seeds: &[u64], done: &Done) {
        for arm in arms {
            for &seed in seeds {
                let cell = Cell::new(arm, seed);
                match done.outcome(&cell) {
                    Some(_) => self.finished.push(cell),
                    None => self.wanted.push((*arm, cell)),
                }
            }
        }
    }
}

impl Axis {
    fn name(&self) -> &'static str {
        match self {
            Self::Lr(_) => "learning rate",
            Self::MuonLr(_) => "Muon's learning rate",
            Self::Rate(_) => "α",
            Self::Momentum(_) => "μ",
            Self::Warmup(_) => "warm-up",
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Lr(values) | Self::MuonLr(values) | Self::Rate(values) | Self::Momentum(values) => values.len(),
            Self::Warmup(values) => values.len(),
        }
    }

    /// `arm` with the axis at its `nth` value.
    pub(super) fn set(&self, arm: Arm, nth: usize) -> Arm {
        let (mut inner, mut exchange) = (arm.inner, arm.exchange);
        match (self, &mut exchange) {
            (Self::Lr(values), _) => inner.lr = values[nth],
            (Self::MuonLr(values), _) => inner.muon_lr = values[nth],
            (Self::Warmup(values), _) => inner.reset_warmup_steps = values[nth],
            (
                Self::Rate(values),
                Exchange::Dense(Outer::Plain { rate } | Outer::Nesterov { rate, .. })
                | Exchange::Sparse(Sparse { rate, .. }),
            ) => *rate = values[nth],
            (Self::Momentum(values), Exchange::Dense(Outer::Nesterov { momentum, .. })) => *momentum = values[nth],
            (Self::Rate(_) | Self::Momentum(_), _) => unreachable!("the arm has no such rate"),
        }
        Arm { inner, exchange }
    }
}

const ADAMW: Inner = Inner {
    optimiser: Optimiser::Adamw,
    lr: 3e-3,
    muon_lr: 0.02,
    steps: 8,
    reset_every_windows: 0,
    reset_warmup_steps: 0,
};
const MUON: Inner = Inner { optimiser: Optimiser::Muon, lr: 6e-3, muon_lr: 0.01, ..ADAMW };
/// What an auditor can train again without a private state.
const STATELESS: Inner = Inner { reset_every_windows: 1, reset_warmup_steps: 3, ..MUON };
const OURS: Sparse = Sparse {
    kind: CodecKind::TopkSign,
    transform: Transform::None,
    k: 64,
    error_decay: 0.95,
    mean_over: MeanOver::Senders,
    min_senders: 2,
    rate: 0.4,
    denser: None,
};

const LRS: Axis = Axis::Lr(&[1.5e-3, 3e-3, 6e-3, 1.2e-2]);
/// What is sparse takes higher rates.
const HIGHER_LRS: Axis = Axis::Lr(&[3e-3, 6e-3, 1.2e-2, 2.4e-2]);
const MUON_LRS: Axis = Axis::MuonLr(&[0.005, 0.01, 0.02, 0.04]);
const RATES: Axis = Axis::Rate(&[0.25, 0.4, 0.65, 1.0, 1.5]);
/// Where one sender of sixteen moves a coordinate by a sixteenth.
const RATES_OVER_PEERS: Axis = Axis::Rate(&[1.0, 2.0, 4.0, 8.0]);

/// Everything that is compared, in the order in which it is run.
pub fn families() -> Vec<Family> {
    [methods(), resets(), outer_steps(), bytes()].concat()
}

/// The table: each method at its best.
fn methods() -> Vec<Family> {
    let family = |name: &str, inner, exchange, axes: &[Axis]| Family {
        group: "methods",
        name: name.to_owned(),
        start: Arm { inner, exchange },
        axes: axes.to_vec(),
    };
    let dense = |rate, momentum| Exchange::Dense(Outer::Nesterov { rate, momentum });
    let sparse_loco = Sparse { kind: CodecKind::TopkTwoBit, mean_over: MeanOver::Peers, ..OURS };
    let momenta = Axis::Momentum(&[0.6, 0.8, 0.9]);
    let outer_rates = Axis::Rate(&[0.3, 0.5, 0.7, 1.0]);
    vec![
        family("data-parallel-adamw", ADAMW, Exchange::EveryStep, &[LRS]),
        family("data-parallel-muon", MUON, Exchange::EveryStep, &[MUON_LRS, LRS]),
        family("ours", MUON, Exchange::Sparse(OURS), &[RATES, MUON_LRS, HIGHER_LRS]),
        family(
            "ours-stateless",
            STATELESS,
            Exchange::Sparse(OURS),
            &[RATES, Axis::Warmup(&[0, 3]), MUON_LRS, HIGHER_LRS],
        ),
        family("before", ADAMW, Exchange::Sparse(OURS), &[RATES, LRS]),
        family("sparseloco", ADAMW, Exchange::Sparse(sparse_loco), &[RATES_OVER_PEERS, LRS]),
        family("muloco", MUON, dense(0.7, 0.6), &[outer_rates.clone(), MUON_LRS, LRS]),
        family("diloco", ADAMW, dense(0.7, 0.8), &[outer_rates, momenta, LRS]),
        family("averaging", ADAMW, Exchange::Dense(Outer::Plain { rate: 1.0 }), &[LRS]),
    ]
}

/// How often moments may be forgotten, for both optimisers and several H at equal tokens.
fn resets() -> Vec<Family> {
    let mut families = Vec::new();
    for (optimiser, carried) in [("muon", MUON), ("adamw", ADAMW)] {
        for steps in [8, 15, 30] {
            for every in if steps == 8 { vec![0, 1, 2, 4, 8] } else { vec![0, 1, 4] } {
                let inner = Inner { steps, reset_every_windows: every, ..carried };
                let often = if every == 0 { "never".to_owned() } else { format!("every-{every}") };
                families.push(Family {
                    group: "resets",
                    name: format!("{optimiser}-h{steps}-{often}"),
                    start: Arm { inner, exchange: Exchange::Sparse(OURS) },
                    axes: if every == 0 { vec![] } else { vec![Axis::Warmup(&[0, 3])] },
                });
            }
        }
    }
    families
}

/// What a coordinate's sum is divided by, over rates.
fn outer_steps() -> Vec<Family> {
    let rules = [
        ("senders", MeanOver::Senders, 1, RATES),
        ("max-senders-2", MeanOver::Senders, 2, RATES),
        ("max-senders-4", MeanOver::Senders, 4, RATES),
        ("peers", MeanOver::Peers, 1, RATES_OVER_PEERS),
    ];
    let family = |(name, mean_over, min_senders, rates): (&str, _, _, _)| Family {
        group: "outer",
        name: name.to_owned(),
        start: Arm { inner: MUON, exchange: Exchange::Sparse(Sparse { mean_over, min_senders, ..OURS }) },
        axes: vec![rates],
    };
    rules.map(family).to_vec()
}

/// More or fewer bytes: k with H at equal bytes per token, the error feedback's decay, and denser windows.
fn bytes() -> Vec<Family> {
    let family = |name: String, steps, sparse| Family {
        group: "bytes",
        name,
        start: Arm { inner: Inner { steps, ..MUON }, exchange: Exchange::Sparse(sparse) },
        axes: vec![],
    };
    let mut families = Vec::new();
    families.extend(
        [(32, 4), (64, 8), (128, 16), (256, 32)].map(|(k, h)| family(format!("k{k}-h{h}"), h, Sparse { k, ..OURS })),
    );
    families.extend([128, 256, 512, 768].map(|k| family(format!("k{k}-h8"), 8, Sparse { k, ..OURS })));
    families.extend(
        [0.8, 0.9, 0.98, 1.0]
            .map(|error_decay| family(format!("decay-{error_decay}"), 8, Sparse { error_decay, ..OURS })),
    );
    families.push(family("dct".to_owned(), 8, Sparse { transform: Transform::Dct, ..OURS }));
    families.extend([(8, 256), (16, 512)].map(|(every_windows, k)| {
        let denser = Some(Denser { every_windows, k });
        family(format!("k{k}-every-{every_windows}"), 8, Sparse { denser, ..OURS })
    }));
    families
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_axis_fits_its_arm() {
        let families = families();
        let names: BTreeSet<(&str, &str)> = families.iter().map(|family| (family.group, &*family.name)).collect();
        assert_eq!(names.len(), families.len());
        for family in &families {
            let mut arms = BTreeSet::new();
            for axis in &family.axes {
                arms.extend((0..axis.len()).map(|nth| axis.set(family.start, nth).to_string()));
            }
            let values: usize = family.axes.iter().map(Axis::len).sum();
            // The start is on every axis.
            assert!(arms.len() + family.axes.len().saturating_sub(1) >= values, "{}: {arms:?}", family.name);
        }
    }
}
