//! The table as a page of the book.

use std::fmt::Write as _;

use templar_record::event::Role;

use crate::r#virtual::engine::Engine;
use crate::r#virtual::table::cells::{Cell, Cells, Key, Network, WINDOWS, network, role_name};
use crate::zoo::kind::Kind;

/// Pay above this share of an honest node's is a hole.
const PAY_MAX: f64 = 0.05;
/// A final loss this much above the honest network's is a hole.
const LOSS_MAX: f64 = 0.02;

/// A kind's cells at one share, over all seeds, and those of the honest network.
struct Group<'a> {
    cells: Vec<(&'a Cell, Option<&'a Cell>)>,
}

/// The page. Cells that have not been simulated are shown as dashes.
pub(super) fn page(cells: &Cells, kinds: &[Kind], seeds: &[u64], engine: Engine) -> String {
    let mut text = introduction(seeds.len(), engine);
    for role in [Role::Miner, Role::Validator] {
        let Network { miners, validators, counts, seats } = network(role);
        let of = if role == Role::Miner { miners } else { validators };
        let shares = counts.map(|count| format!("{count} of {of}")).join(", ");
        let _ = write!(
            text,
            "\n## {}\n\n{miners} miners and {validators} validators of equal stake; adversaries are {shares}.\n\n\
             | kind | seats | pay | final loss | honest excluded | certified | holes |\n|---|---|---|---|---|---|---|\n",
            if role == Role::Miner { "Miners" } else { "Validators" },
        );
        for kind in kinds.iter().filter(|kind| kind.role == role) {
            for seats in seats {
                let groups = counts.map(|count| group(cells, *kind, count, seats, seeds));
                text += &row(kind.name, seats, &groups);
            }
        }
    }
    text
}

fn introduction(seeds: usize, engine: Engine) -> String {
    format!(
        "# What each adversary gains\n\n<!-- Written by `templar sim --table`; do not edit. -->\n\n\
         Each cell has three figures: with about 10, 30 and 45 % of the miners or, for kinds of validators, of the stake. \
         They are means over {seeds} seeds of {WINDOWS} windows with the trainer `{engine}`. *Pay* is an adversary's in \
         units of an honest node's of its role. *Final loss* is relative to the same network without them, of fewer nodes. *Honest \
         excluded* counts windows in which an honest node was excluded or denied. A *hole* is pay above {:.0} %, a final \
         loss more than {:.0} % higher, an honest node excluded, or a window that is not certified; at which shares stands \
         with it. [Adversaries](../adversaries.md) says what each kind tries.\n\n\
         `templar sim --table docs/security/adversaries.md --trainer {engine} --seeds {seeds}` writes this page. Finished \
         cells are kept in the `.json` beside it, from which an interrupted table goes on: remove that file after a change \
         of a rule.\n",
        100.0 * PAY_MAX,
        100.0 * LOSS_MAX,
    )
}

fn group<'a>(cells: &'a Cells, kind: Kind, count: usize, seats: u32, seeds: &[u64]) -> Group<'a> {
    let role = role_name(kind.role);
    let honest = |seed| cells.get(&Key { kind: None, role, count, seats, seed });
    let found = |seed| cells.get(&Key { kind: Some(kind.name), role, count, seats, seed });
    Group { cells: seeds.iter().filter_map(|&seed| Some((found(seed)?, honest(seed)))).collect() }
}

fn row(name: &str, seats: u32, groups: &[Group<'_>; 3]) -> String {
    let show = |figures: [Option<f64>; 3], digits: usize| {
        let figure = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"));
        figures.map(figure).join(" / ")
    };
    let pay = groups.each_ref().map(Group::pay);
    let loss = groups.each_ref().map(Group::loss);
    let excluded = groups.each_ref().map(Group::excluded);
    let certified = groups.each_ref().map(Group::certified);
    let loss_percent = loss.map(|loss| loss.map_or_else(|| "–".to_owned(), |loss| format!("{:+.1} %", 100.0 * loss)));
    let holes = holes(&[
        ("pay", pay.map(|pay| pay.is_some_and(|pay| pay > PAY_MAX))),
        ("loss", loss.map(|loss| loss.is_some_and(|loss| loss > LOSS_MAX))),
        ("exclusion", excluded.map(|count| count.is_some_and(|count| count > 0.0))),
        ("null", certified.map(|count| count.is_some_and(|count| count < WINDOWS as f64))),
        ("broke off", [0, 1, 2].map(|nth| groups[nth].cells.iter().any(|(cell, _)| cell.broke.is_some()))),
    ]);
    let (pay, excluded, certified) = (show(pay, 2), show(excluded, 1), show(certified, 1));
    let loss = loss_percent.join(" / ");
    format!("| {name} | {seats} | {pay} | {loss} | {excluded} | {certified} | {holes} |\n")
}

/// What is open, and at which shares: `pay 30, 45`.
fn holes(found: &[(&str, [bool; 3])]) -> String {
    let shares = |is: &[bool; 3]| {
        let open = ["10", "30", "45"].into_iter().zip(is).filter(|(_, is)| **is).map(|(share, _)| share);
        open.collect::<Vec<_>>().join(", ")
    };
    let open = found.iter().filter(|(_, is)| is.contains(&true));
    let holes: Vec<String> = open.map(|(what, is)| format!("**{what}** {}", shares(is))).collect();
    if holes.is_empty() { "none".to_owned() } else { holes.join("; ") }
}

impl Group<'_> {
    fn mean(&self, of: impl Fn(&Cell, Option<&Cell>) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.cells.iter().filter_map(|(cell, honest)| of(cell, *honest)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    fn pay(&self) -> Option<f64> {
        self.mean(|cell, _| cell.pay)
    }

    /// How much higher than the honest network's.
    fn loss(&self) -> Option<f64> {
        self.mean(|cell, honest| Some(cell.loss? / honest?.loss? - 1.0))
    }

    fn excluded(&self) -> Option<f64> {
        self.mean(|cell, _| Some(cell.honest_exclusions as f64))
    }

    fn certified(&self) -> Option<f64> {
        self.mean(|cell, _| Some(cell.certified as f64))
    }
}

#[cfg(test)]
mod tests {
    use crate::zoo::attack::noise;

    use super::*;

    #[test]
    fn a_row_names_its_holes_and_leaves_out_what_was_not_simulated() {
        let cell = |pay: f64, loss: f64| Cell {
            pay: Some(pay),
            loss: Some(loss),
            honest_exclusions: 0,
            certified: WINDOWS,
            broke: None,
        };
        let mut cells = Cells::default();
        let mut put = |kind, count, cell| {
            let key = Key { kind, role: "miner", count, seats: 20, seed: 1 };
            cells.cells.insert(key.words(), cell);
        };
        put(None, 2, cell(1.0, 2.0));
        put(None, 6, cell(1.0, 2.0));
        put(Some("noise"), 2, cell(0.01, 2.0));
        put(Some("noise"), 6, cell(0.2, 2.1));
        let text = page(&cells, &[noise::KIND], &[1], Engine::Surrogate);
        let row = text.lines().find(|line| line.starts_with("| noise | 20 |")).unwrap();
        assert_eq!(
            row,
            "| noise | 20 | 0.01 / 0.20 / – | +0.0 % / +5.0 % / – | 0.0 / 0.0 / – | 12.0 / 12.0 / – | **pay** 30; **loss** 30 |"
        );
    }
}
