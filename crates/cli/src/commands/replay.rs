//! `templar replay` and `templar explain`: from an event log to weights again, and to one miner's pay.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Args;
use color_eyre::eyre::{Context, Result, ensure, eyre};
use serde_json::json;
use templar_incentive::charge::Charge;
use templar_incentive::explain::{Explainer, Explanation, Part, WindowOfMiner};
use templar_incentive::replay::{Account, Replay as Replaying};
use templar_protocol::roster::Uid;
use templar_record::event::NodeEvent;
use templar_record::judgement::Decision;
use templar_record::log;
use templar_sim::local::kept;

use crate::end::End;
use crate::failure::coded;
use crate::numbers::whole;
use crate::output::{is_json, say};
use crate::show::count;

/// Compute all faults and weights of an event log again, and say which do not follow from the record.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The event log of a validator or of a network (JSON lines, as `--json` prints them), or the folder of a network.
    #[arg(value_name = "LOG")]
    record: PathBuf,
}

/// Explain a miner's pay: every factor, the windows behind it, and what would raise it.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The event log of a validator or of a network (JSON lines, as `--json` prints them), or the folder of a network.
    #[arg(value_name = "LOG")]
    record: PathBuf,
    /// The miner.
    #[arg(long, value_parser = whole::<u16>(0..=u64::from(u16::MAX)))]
    uid: u16,
    /// Explain it as of this window; without it, as of the end of the log.
    #[arg(long, value_parser = whole::<u64>(0..=u64::MAX))]
    window: Option<u64>,
    /// Of this validator only, by its name in the log.
    #[arg(long, value_name = "NAME")]
    validator: Option<String>,
}

impl Replay {
    pub(crate) fn run(self) -> Result<End> {
        let mut replay = Replaying::default();
        for event in events(&self.record)? {
            replay.take(&event?);
        }
        let (accounts, unbooked) = (replay.accounts(), replay.unbooked());
        ensure_any(&self.record, accounts.len() + unbooked.len())?;
        let differences: usize = accounts.values().map(|account| account.differences.len()).sum();
        let differences = differences + unbooked.len();
        if is_json() {
            let validators: Vec<_> = accounts.iter().map(|(name, account)| account_json(name, account)).collect();
            say!("{}", json!({ "validators": validators, "before_first_book": unbooked, "differences": differences }));
        } else {
            for (name, account) in accounts {
                say!(
                    "{name}: {} judged, {} evaluated; {} and {} of weights computed again",
                    count(account.judged as usize, "window"),
                    account.evaluated,
                    count(account.faults as usize, "fault"),
                    count(account.weighed as usize, "set")
                );
                if account.began_with > 0 {
                    say!("  it begins with a book of {}, which is taken as it is", count(account.began_with, "miner"));
                }
                account.differences.iter().for_each(|difference| say!("  {difference}"));
            }
            for (name, records) in unbooked {
                let records = count(*records as usize, "record");
                say!(
                    "{name}: {records} before its first book, from which nothing follows: the log's beginning is missing"
                );
            }
        }
        if differences > 0 {
            let what = count(differences, "difference");
            return Err(coded("replay")(eyre!("{}: {what} from what follows from the record", self.record.display())));
        }
        if !is_json() {
            say!("every fault and every weight follows from the record, bit for bit");
        }
        Ok(End::Done)
    }
}

fn account_json(name: &str, account: &Account) -> serde_json::Value {
    let differences: Vec<String> = account.differences.iter().map(ToString::to_string).collect();
    json!({
        "validator": name,
        "judged": account.judged,
        "evaluated": account.evaluated,
        "weighed": account.weighed,
        "faults": account.faults,
        "began_with_miners": account.began_with,
        "restarts": account.restarts,
        "differences": differences,
        "weights": account.book.weights(&account.scoring),
    })
}

impl Explain {
    pub(crate) fn run(self) -> Result<End> {
        let mut explainer = Explainer::new(Uid(self.uid), self.window);
        for event in events(&self.record)? {
            explainer.take(&event?);
        }
        let mut explanations = explainer.explanations();
        ensure_any(&self.record, explanations.len())?;
        if let Some(name) = &self.validator {
            let names: Vec<String> = explanations.iter().map(|explanation| explanation.validator.clone()).collect();
            explanations.retain(|explanation| explanation.validator == *name);
            ensure!(!explanations.is_empty(), "the log has no validator `{name}`, but {}", names.join(", "));
        }
        if is_json() {
            say!("{}", json!({ "uid": self.uid, "window": self.window, "validators": explanations }));
            return Ok(End::Done);
        }
        let text: Vec<String> = explanations.iter().map(|explanation| explained(explanation, self.uid)).collect();
        say!("{}", text.join("\n\n"));
        Ok(End::Done)
    }
}

/// The events of a log, or of a network's folder.
fn events(path: &Path) -> Result<impl Iterator<Item = Result<NodeEvent>>> {
    let path = if path.is_dir() { path.join(kept::EVENTS) } else { path.to_owned() };
    let file = File::open(&path).wrap_err_with(|| format!("{} cannot be opened", path.display()))?;
    Ok(log::read(BufReader::new(file)).map(move |event| event.wrap_err_with(|| path.display().to_string())))
}

fn ensure_any(path: &Path, found: usize) -> Result<()> {
    ensure!(
        found > 0,
        "{} has no validator's record: is it an event log, and of a release that writes books?",
        path.display()
    );
    Ok(())
}

/// Pay as a product of factors, and the windows that it comes from.
fn explained(explanation: &Explanation, uid: u16) -> String {
    let Explanation { rating, tokens, .. } = explanation;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut lines = vec![format!("uid {uid} by the record of {}", explanation.validator)];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<28}{value}"));
    line("tokens that passed", format!("{tokens:.0} per window, in the moving average"));
    let mean = rating
        .mean_value()
        .map_or("not evaluated yet".to_owned(), |mean| format!("{mean:.2} of a median contribution's"));
    line("× value factor", format!("{:.2}: mean value {mean}", rating.value_factor()));
    line(
        "  behind it",
        format!(
            "{} and {}",
            count(rating.evaluations as usize, "evaluation"),
            count(rating.charges as usize, "charge")
        ),
    );
    line(
        "× own-data factor",
        format!("{:.2}: advantage on own samples {:+.2}", rating.own_factor(), rating.own_advantage),
    );
    line("= paid tokens", format!("{:.0} per window", tokens * rating.value_factor() * rating.own_factor()));
    let others = explanation.all_paid_tokens.max(explanation.budget_tokens);
    line(
        "÷ budget",
        format!("{others:.0} tokens per window (of which {:.0} are paid to all miners)", explanation.all_paid_tokens),
    );
    line(
        "= share of the emission",
        format!(
            "{}, weight {} of 65535; {} are burned",
            percent(explanation.share),
            explanation.weight,
            percent(explanation.burned)
        ),
    );
    lines.push("  windows, newest first".to_owned());
    lines.extend(explanation.windows.iter().rev().map(|window| format!("    {}", window_line(window))));
    lines.push("  what would raise it".to_owned());
    lines.extend(explanation.advice.iter().map(|advice| format!("    {advice}")));
    lines.join("\n")
}

fn window_line(of: &WindowOfMiner) -> String {
    let part = match of.part {
        Part::NoSeat => "no seat".to_owned(),
        Part::Undecided(Decision::Null) => "null: it counts for nobody".to_owned(),
        Part::Undecided(_) => "withheld: it counts for nobody".to_owned(),
        Part::Passed { tokens, own_failure: false } => format!("passed, {tokens} tokens"),
        Part::Passed { tokens, own_failure: true } => {
            format!("passed, {tokens} tokens, though this validator could not read it")
        }
        Part::NotPassed => "in order here, but less than half of the stake accepted it".to_owned(),
        Part::Faulted(fault, charge) => {
            let cost = match charge {
                Charge::Nothing => "costs this window's tokens",
                Charge::OwnFailure => "this validator's own failure; costs nothing",
                Charge::Bad => "costs as much as a contribution that undoes a median one",
                Charge::Unread => "costs this window's tokens; again and again, it costs all pay",
            };
            format!("{fault} ({cost})")
        }
    };
    let measured = of.improvement.map_or(String::new(), |(own, unseen)| {
        format!("; loss −{:.2} % on own samples, −{:.2} % on unseen ones", 100.0 * own, 100.0 * unseen)
            .replace("−-", "+")
    });
    format!("{}: {part}{measured}", of.window)
}
