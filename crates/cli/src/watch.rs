//! Shows a network at work: on a terminal with a bar that moves within a window, and in any case with a line per window
//! and per failure. Without a terminal, a line is printed at least every ten seconds.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use templar_record::event::{Event, NodeEvent};
use templar_record::outcome::Outcome;
use templar_record::recorder::Recorder;
use templar_sim::local::network::{Moment, News, Phase, Work};

use crate::metrics;
use crate::output::{is_json, say};
use crate::show::{self, Loss};

/// Silence after which a line says how far the network is.
const SILENCE_MAX: Duration = Duration::from_secs(9);
/// Work before the start that takes less time is not shown.
const WORTH_TELLING: Duration = Duration::from_secs(1);
/// Parts into which the bar divides a window.
const PARTS: u64 = 1000;

/// Shows a network at work.
#[derive(Debug)]
pub(crate) struct Watcher {
    bar: ProgressBar,
    windows: u64,
    loss: Loss,
    /// Miners, guests among them.
    miners: Cell<usize>,
    /// Most contributions that count in a window.
    seats: Cell<usize>,
    nodes: Cell<usize>,
    /// The nodes that have started since this process did.
    up: RefCell<BTreeSet<String>>,
    /// Windows whose line has been printed.
    shown: Cell<u64>,
    /// The window with which this process begins.
    next: Cell<u64>,
    /// When the last line was printed.
    spoke: Cell<Instant>,
    /// When the work before the start began.
    working: Cell<Option<(show::Unit, Instant)>>,
    /// Nodes for which blocks did not wait, by window.
    late: RefCell<BTreeMap<u64, BTreeSet<String>>>,
}

impl Watcher {
    pub(crate) fn new(windows: u64, loss: Loss) -> Self {
        let bar = if is_json() { ProgressBar::hidden() } else { ProgressBar::new(windows * PARTS) };
        Self::with(bar, windows, loss)
    }

    /// Without a bar: a simulation passes its windows faster than one could show.
    pub(crate) fn simulation(windows: u64, loss: Loss) -> Self {
        Self::with(ProgressBar::hidden(), windows, loss)
    }

    fn with(bar: ProgressBar, windows: u64, loss: Loss) -> Self {
        let style = ProgressStyle::with_template("{spinner} {prefix} {bar:15} {elapsed_precise} {msg}");
        bar.set_style(style.expect("a constant template"));
        bar.set_prefix("starting");
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            bar,
            windows,
            loss,
            miners: Cell::new(0),
            seats: Cell::new(usize::MAX),
            nodes: Cell::new(0),
            up: RefCell::default(),
            shown: Cell::new(0),
            next: Cell::new(0),
            spoke: Cell::new(Instant::now()),
            working: Cell::new(None),
            late: RefCell::default(),
        }
    }

    /// Sets how many miners there are, and how many seats each window has.
    pub(crate) fn set_miners(&self, miners: usize, seats: u32) {
        self.miners.set(miners);
        self.seats.set(seats as usize);
    }

    pub(crate) fn on_news(&self, news: &News<'_>) {
        match news {
            // Not on standard output, which may consist of events alone.
            News::Invited(invitation) => self.bar.suspend(|| eprintln!("{}", show::invitation(invitation))),
            News::Event(event, recorder) => self.on_event(event, recorder),
            _ if is_json() => {}
            News::Starting(work) => self.on_work(*work),
            News::Resumed { windows, measured } => {
                self.shown.set(*measured);
                self.next.set(*windows);
                self.print(&format!("resuming this network: {windows} of {} windows are trained", self.windows));
            }
            News::Stands { spec, nodes, miners } => {
                self.set_miners(*miners, spec.roster.gather);
                self.nodes.set(*nodes);
                self.bar.set_message("nodes are starting");
            }
            News::Awaited { nodes } => self.on_awaited(nodes),
            News::NotListed { nodes } => self.print(&show::fold(&format!(
                "the first window begins without {}: no bucket of theirs is on the chain in time; see their errors, \
                 or stop and start again on a machine with less load",
                show::names(nodes)
            ))),
            News::Moment(moment) => self.on_moment(*moment),
            News::Late { node, block, window } => self.on_late(node, *block, *window),
        }
    }

    fn on_work(&self, work: Work) {
        let unit = work_unit(work);
        let begun = match self.working.get() {
            Some((same, begun)) if same == unit => begun,
            _ => Instant::now(),
        };
        self.working.set(Some((unit, begun)));
        if begun.elapsed() < WORTH_TELLING {
            return;
        }
        let (what, done, all) = match work {
            Work::Text(progress) => ("preparing text", progress.read_bytes, progress.source_bytes),
            Work::Theta0 { done_parameters, parameters } => ("making θ₀", done_parameters, Some(parameters)),
        };
        let line = show::work(what, unit, done, all, begun.elapsed());
        if self.is_silent(if self.spoke.get() < begun { WORTH_TELLING } else { SILENCE_MAX }) {
            self.print(&line);
        }
        self.bar.set_message(line);
    }

    fn on_awaited(&self, nodes: &[String]) {
        let what = format!("waiting for {} to be listed on the chain", show::names(nodes));
        if self.is_silent(SILENCE_MAX) {
            self.print(&what);
        }
        self.bar.set_message(what);
    }

    fn on_moment(&self, moment: Moment) {
        let window = moment.window.unwrap_or(0);
        let share = if moment.window.is_some() { moment.share } else { 0.0 };
        // Counted from 0, as in all lines.
        let last = self.windows - 1;
        self.bar.set_prefix(format!("window {} of 0-{last}", window.min(last)));
        // The bar never moves backwards, and is full only at the end.
        let position = (((window as f64 + share) * PARTS as f64) as u64).min(self.windows * PARTS - 1);
        self.bar.set_position(position.max(self.bar.position()));
        let what = if window >= self.windows { "judging the last window".to_owned() } else { phase(moment) };
        if self.is_silent(SILENCE_MAX) {
            let place = if moment.window.is_some() && window < self.windows {
                format!("window {window}: ")
            } else {
                String::new()
            };
            self.print(&format!("{place}{what} (block {})", moment.block));
        }
        self.bar.set_message(what);
    }

    fn on_late(&self, node: &str, block: u64, window: Option<u64>) {
        let window = window.unwrap_or(0);
        if self.late.borrow_mut().entry(window).or_default().insert(node.to_owned()) {
            self.print(&format!("{node} is late: the chain went on without it at block {block}, in window {window}"));
        }
    }

    pub(crate) fn on_event(&self, event: &NodeEvent, recorder: &Recorder) {
        metrics::record(event);
        if is_json() {
            if let Ok(line) = serde_json::to_string(event) {
                say!("{line}");
            }
            return;
        }
        match &event.event {
            // A window's line waits for its validation, which ends while the next window trains.
            Event::Validated { window, .. } => self.show_until(window + 1, recorder),
            Event::Settled { window, .. } => self.show_until(*window, recorder),
            Event::Trouble { .. }
            | Event::Diverged { .. }
            | Event::Adopted { .. }
            | Event::CheckpointRefused { .. }
            // Nothing else says why a node took no part.
            | Event::Ended { outcome: Outcome::NotListed, .. } => self.print(&show::fold(&show::event(event))),
            Event::Started { .. } => self.on_started(event),
            _ => {}
        }
    }

    /// The first starts of all nodes share one line; any other start has its own.
    fn on_started(&self, event: &NodeEvent) {
        let mut nodes = self.up.borrow_mut();
        let (is_first, up) = (nodes.insert(event.node.clone()), nodes.len());
        if !is_first {
            self.print(&show::event(event));
        } else if up == self.nodes.get() {
            self.print(&format!("all {up} nodes are up; training begins with window {}", self.next.get()));
        }
    }

    fn show_until(&self, end: u64, recorder: &Recorder) {
        for nth in self.shown.get()..end.min(self.windows) {
            let report = recorder.window(nth);
            self.print(&show::window(&report, self.miners.get(), self.seats.get(), self.loss));
            for node in self.late.borrow_mut().remove(&nth).unwrap_or_default() {
                let accepted = recorder.uid(&node).is_some_and(|uid| report.accepted.contains(&uid));
                let what = late_consequence(accepted, recorder.outcome(nth, &node));
                self.print(&format!("{:12}{node} was late{what}", ""));
            }
            self.shown.set(nth + 1);
        }
    }

    fn is_silent(&self, longest: Duration) -> bool {
        self.bar.is_hidden() && self.spoke.get().elapsed() >= longest
    }

    /// A line that stays, with or without a terminal.
    pub(crate) fn print(&self, line: &str) {
        self.spoke.set(Instant::now());
        self.bar.suspend(|| say!("{line}"));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn work_unit(work: Work) -> show::Unit {
    match work {
        Work::Text(_) => show::Unit::Bytes,
        Work::Theta0 { .. } => show::Unit::Parameters,
    }
}

fn phase(moment: Moment) -> String {
    match (moment.phase, moment.steps) {
        (Phase::Waiting, _) => "waiting for the first window".to_owned(),
        (Phase::Training, Some((done, all))) => format!("training: {done} of {all} inner steps"),
        (Phase::Training, None) => "training".to_owned(),
        (Phase::Uploading, _) => "uploading".to_owned(),
        (Phase::Judging, _) => "judging".to_owned(),
    }
}

/// What became of a late node's part, as far as is known.
fn late_consequence(accepted: bool, outcome: Option<&Outcome>) -> &'static str {
    match outcome {
        _ if accepted => "; its contribution counted all the same",
        Some(Outcome::Voted) => "; its vote counted all the same",
        Some(Outcome::VoteLate | Outcome::Abstained { .. }) => "; its vote did not count",
        Some(Outcome::Outvoted) | None => "",
        Some(_) => "; its contribution did not count",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_late_node_is_what_became_of_it() {
        assert!(late_consequence(true, None).contains("counted all the same"));
        assert!(late_consequence(false, Some(&Outcome::NotListed)).contains("contribution did not count"));
        assert!(late_consequence(false, Some(&Outcome::VoteLate)).contains("vote did not count"));
        assert_eq!(late_consequence(false, None), "");
    }

    #[test]
    fn a_bar_says_what_the_nodes_do_in_a_few_words() {
        let moment = |phase, steps| Moment { block: 1, window: Some(0), phase, share: 0.1, steps };
        assert_eq!(phase(moment(Phase::Training, Some((14, 32)))), "training: 14 of 32 inner steps");
        assert_eq!(phase(moment(Phase::Judging, None)), "judging");
        // The bar's other parts take 46 columns at most where windows have four digits.
        assert!(46 + phase(moment(Phase::Training, Some((2560, 2560)))).len() <= 82);
    }
}
