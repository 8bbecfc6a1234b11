//! What people see: a bar while a window is under way, a line when it is done, a table at the end.

use std::cell::Cell;
use std::fmt::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use templar_record::engine::EngineStats;
use templar_record::event::{Event, NodeEvent, Role, Verdict};
use templar_record::recorder::Recorder;
use templar_record::report::{Report, WindowReport};
use templar_sim::local::guest::Invitation;
use templar_sim::local::network::News;

use crate::metrics;
use crate::output::{is_json, say};

/// Shows a network at work.
#[derive(Debug)]
pub(crate) struct Watcher {
    bar: ProgressBar,
    /// Windows that have had their line.
    shown: Cell<u64>,
}

impl Watcher {
    pub(crate) fn new(windows: u64) -> Self {
        let style = ProgressStyle::with_template("{spinner} window {pos}/{len} {bar:24} {elapsed_precise} {wide_msg}");
        let bar = if is_json() { ProgressBar::hidden() } else { ProgressBar::new(windows) };
        bar.set_style(style.expect("a constant template"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, shown: Cell::new(0) }
    }

    pub(crate) fn on_news(&self, news: &News<'_>) {
        match news {
            News::Preparing(progress) => {
                self.bar.set_message(format!("preparing text: {:.1} MB", progress.text_bytes as f64 / 1e6));
            }
            // Not on standard output, which may be events alone.
            News::Invited(invitation) => self.bar.suspend(|| eprintln!("{}", self::invitation(invitation))),
            News::Event(event, recorder) => self.on_event(event, recorder),
        }
    }

    fn on_event(&self, event: &NodeEvent, recorder: &Recorder) {
        metrics::record(event);
        if is_json() {
            if let Ok(line) = serde_json::to_string(event) {
                say!("{line}");
            }
            return;
        }
        self.bar.set_message(self::event(event));
        match &event.event {
            // A window's line waits for its validation, which ends while the next window trains.
            Event::Validated { window, .. } => self.show_until(window + 1, recorder),
            Event::Settled { window, .. } => self.show_until(*window, recorder),
            Event::Trouble { .. }
            | Event::Diverged { .. }
            | Event::Adopted { .. }
            | Event::CheckpointRefused { .. } => self.print(&self::event(event)),
            Event::Started { settled, .. } if *settled > 0 => self.print(&self::event(event)),
            _ => {}
        }
    }

    fn show_until(&self, end: u64, recorder: &Recorder) {
        for nth in self.shown.get()..end {
            self.print(&window(&recorder.window(nth)));
            self.shown.set(nth + 1);
            self.bar.set_position(nth + 1);
        }
    }

    /// A line that stays, with or without a terminal.
    fn print(&self, line: &str) {
        if self.bar.is_hidden() {
            say!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// How a guest takes part.
fn invitation(invitation: &Invitation) -> String {
    let Invitation { guest, folder, arguments } = invitation;
    format!(
        "{} may take part: copy {} to the machine with the key of hotkey {}, put that key beside it as key.hex, and run \
         start.sh there:\n  templar {}",
        guest.name,
        folder.display(),
        guest.hotkey,
        arguments.join(" ")
    )
}

/// A window in one line.
pub(crate) fn window(report: &WindowReport) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "     -".to_owned(), |value| format!("{value:6.3}"));
    let verdict = if report.certified { "certified" } else { "null     " };
    let roots = if report.one_root { "one root" } else { "ROOTS DIFFER" };
    let mut line = format!(
        "window {:>3}  {verdict}  {} of {} nodes' root {} ({roots})  train loss {}  held-out {} bits/byte  {} contributions of {}",
        report.window,
        report.agreed_by,
        report.settled_by,
        report.state_root.short(),
        number(report.train_loss),
        number(report.val_bits_per_byte),
        report.accepted.len(),
        bytes(report.payload_bytes),
    );
    for fault in &report.faults {
        let _ = write!(line, "\n            uid {} {} ({:?})", fault.uid, fault.fault, fault.attributed_to);
    }
    line
}

/// The table of nodes, and the loss against its floor.
pub(crate) fn summary(report: &Report) -> String {
    let mut text = format!(
        "\n{:>4}  {:<12} {:<10} {:>8} {:>8} {:>10} {:>9}  {}\n",
        "uid", "node", "behaviour", "score", "weight", "emission", "restarts", "final root"
    );
    for node in &report.nodes {
        let score = match node.role {
            Role::Miner => format!("{:.4}", node.score),
            Role::Validator => "-".to_owned(),
        };
        let _ = writeln!(
            text,
            "{:>4}  {:<12} {:<10} {:>8} {:>7.1}% {:>10.3} {:>9}  {}",
            node.uid.0,
            node.name,
            node.behaviour,
            score,
            100.0 * node.weight,
            node.emission,
            node.restarts,
            node.final_state_root.short(),
        );
    }
    let certified = report.windows.iter().filter(|window| window.certified).count();
    let _ = writeln!(text, "\nrun {}: {certified} of {} windows certified", report.run_id, report.windows_planned);
    if !report.late.is_empty() {
        let uids: Vec<String> =
            report.late.iter().map(|late| format!("uid {} at block {}", late.uid, late.block)).collect();
        let _ = writeln!(text, "late {} times: {}", report.late_total, uids.join(", "));
    }
    if let Some(bits) = report.last.val_bits_per_byte {
        let _ = write!(text, "held-out text: {bits:.3} bits per byte");
        if let Some(floor) = report.last.floor_bits_per_byte {
            let _ = write!(text, ", of which {floor:.3} are the text's own entropy, the floor of every model");
        }
        text.push('\n');
    }
    let _ = writeln!(text, "{} tokens in {:.1} s", report.last.tokens, report.last.wall_s);
    text
}

/// An event in one line.
pub(crate) fn event(event: &NodeEvent) -> String {
    let what = match &event.event {
        Event::Started { uid, settled, .. } => format!("started as uid {uid}, {settled} windows settled"),
        Event::Trained { window, steps, train_loss, compute_s, engine, .. } => {
            let engine = engine.as_ref().map_or(String::new(), self::engine);
            format!("window {window}: {steps} inner steps, loss {train_loss:.3}, {compute_s:.1} s{engine}")
        }
        Event::Sealed { window, payload_bytes, .. } => format!("window {window}: sealed {}", bytes(*payload_bytes)),
        Event::Opened { window } => format!("window {window}: key published"),
        Event::Ended { window, outcome } => format!("window {window}: {outcome}"),
        Event::Voted { window, accept, faults, .. } => {
            format!("window {window}: voted for {} contributions, {} faults", accept.len(), faults.len())
        }
        Event::Settled { window, verdict, state_root, .. } => {
            let verdict = match verdict {
                Verdict::Certified { accepted, .. } => format!("certified with {} contributions", accepted.len()),
                Verdict::NoQuorum => "null: less than a third of the stake voted".to_owned(),
                Verdict::NoMajority => "null: no state has more than half of the votes".to_owned(),
            };
            format!("window {window}: {verdict}, root {}", state_root.short())
        }
        Event::Validated { window, bits_per_byte, .. } => {
            format!("window {window}: {bits_per_byte:.3} bits per byte on held-out text")
        }
        Event::Observed { window, uid, score, .. } => format!("window {window}: uid {uid} has score {score:.4}"),
        Event::Weighed { window, weights } => format!("window {window}: set weights of {} miners", weights.len()),
        Event::Diverged { window, own, certified } => format!(
            "window {window}: the network certified {}, this node has {}: going back",
            certified.short(),
            own.short()
        ),
        Event::Adopted { settled, state_root, from } => {
            format!("took over the state after {settled} windows from {from:?}, root {}", state_root.short())
        }
        Event::Misvoted { window, uid, cause, .. } => {
            format!("window {window}: the vote of uid {uid} does not count: {cause}")
        }
        Event::CheckpointRefused { uid, digest, fault } => {
            format!("refused the checkpoint {} of uid {uid}: {fault}", digest.short())
        }
        Event::Unlisted { window, uid, cause, .. } => format!("window {window}: uid {uid} takes no part: {cause}"),
        Event::Misserved { window, uid, fault } => {
            format!("window {window}: uid {uid} serves no certified contribution: {fault}")
        }
        Event::Faults { totals } => {
            let counts: Vec<String> =
                totals.iter().map(|total| format!("{} of {:?}", total.count, total.cause)).collect();
            format!("faults of others so far: {}", counts.join(", "))
        }
        Event::StorageBack { after_s } => format!("its own access to storage works again, after {after_s:.0} s"),
        Event::Trouble { trouble } => format!("trouble: {trouble}"),
        other => format!("{other:?}"),
    };
    format!("{}: {what}", event.node)
}

fn engine(stats: &EngineStats) -> String {
    let of_matmul = 100.0 * stats.model_flops_per_s / stats.matmul_flops_per_s.max(1.0);
    let mfu = stats.mfu().map_or(String::new(), |mfu| format!(", MFU {:.1} %", 100.0 * mfu));
    let EngineStats { device, tokens_per_s, .. } = stats;
    format!(", {tokens_per_s:.0} tokens/s on {device}{mfu}, {of_matmul:.1} % of a matrix product")
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
