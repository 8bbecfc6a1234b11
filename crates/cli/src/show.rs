//! What people see: lines for windows, events and work, and the table at the end. No line has more than 100 columns.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use templar_protocol::clock::Schedule;
use templar_protocol::fault::Party;
use templar_protocol::hash::Hash32;
use templar_record::engine::EngineStats;
use templar_record::event::{Cause, Event, NodeEvent, Role, Source, Verdict};
use templar_record::report::{NodeReport, Report, WindowReport};
use templar_sim::local::guest::Invitation;

/// Longest line.
const COLUMNS_MAX: usize = 100;

/// What the losses measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Text, in nats per token.
    Text,
    /// The synthetic trainer's problem: the number falls, and means nothing else.
    Synthetic,
}

/// What the work is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Parameters,
}

/// How a guest takes part.
pub(crate) fn invitation(invitation: &Invitation) -> String {
    let Invitation { guest, folder, .. } = invitation;
    format!(
        "{} may take part. On its machine:\n  1. copy the folder {} there\n  2. put the key of hotkey {} into it as key.hex\n  \
         3. run start.sh in it",
        guest.name,
        folder.display(),
        guest.hotkey,
    )
}

/// A window in one line, with further lines for anything out of the ordinary.
///
/// All miners are in its count: of what came too late, and of guests without a seat, nobody here hears.
pub(crate) fn window(report: &WindowReport, miners: usize, seats: usize, loss: Loss) -> String {
    // Five characters, so that columns stay columns.
    let number = |value: Option<f64>| {
        value.map_or_else(|| "    -".to_owned(), |value| format!("{value:.*}", if value < 10.0 { 3 } else { 2 }))
    };
    let verdict = if report.certified { "certified" } else { "null     " };
    let (train, val) = (number(report.train_loss), number(report.val_loss));
    let losses = match loss {
        Loss::Text => format!("train loss {train}  held-out {} bits/byte", number(report.val_bits_per_byte)),
        Loss::Synthetic => format!("synthetic loss {train}  held-out {val}"),
    };
    let (counted, miners) = (report.accepted.len(), miners.max(report.opened.len()));
    let size = if counted > 0 { format!("  {} each", bytes(report.payload_bytes)) } else { String::new() };
    let mut text = format!("window {:>3}  {verdict}  {losses}  {counted} of {miners} counted{size}", report.window);
    let without = no_seat(report, seats);
    if without > 0 {
        let _ = write!(text, "\n            {without} had no seat: {seats} contributions count per window at most");
    }
    if report.excluded > 0 {
        let _ = write!(text, "\n            {} excluded for what they signed", report.excluded);
    }
    if !report.one_root && report.settled_by > 0 {
        let (agreed, settled, root) = (report.agreed_by, report.settled_by, report.state_root.short());
        let _ = write!(text, "\n            ROOTS DIFFER: only {agreed} of {settled} nodes have root {root}");
    }
    for fault in &report.faults {
        let _ = write!(text, "\n            uid {} {} ({})", fault.uid, fault.fault, party(fault.attributed_to));
    }
    text
}

/// How many opened contributions of a window found all seats taken. If no seat is free, a contribution that has no
/// fault and does not count is one of them, whether or not its node says so.
fn no_seat(report: &WindowReport, seats: usize) -> usize {
    let told = usize::try_from(report.no_seat).unwrap_or(usize::MAX);
    if report.accepted.len() < seats {
        return told;
    }
    let faulty = |uid| report.faults.iter().any(|fault| fault.uid == uid);
    let left_out = report.opened.iter().filter(|uid| !report.accepted.contains(uid) && !faulty(**uid));
    told.max(left_out.count())
}

fn party(party: Party) -> &'static str {
    match party {
        Party::Miner => "the miner's fault",
        Party::Validator => "a validator's fault",
        Party::Storage => "its storage's fault",
        Party::Chain => "the chain's fault",
    }
}

/// The table of nodes, what the run came to, and what the figures mean.
pub(crate) fn summary(report: &Report, loss: Loss) -> String {
    if report.windows.iter().all(|window| window.settled_by == 0) {
        return format!("\nrun {}\nno window was settled, so there is no result", report.run_id);
    }
    let mut text = format!(
        "\n{:>4}  {:<12} {:<9} {:>8} {:>8} {:>10} {:>9}  {}\n",
        "uid", "node", "behaviour", "score", "weight", "paid", "restarts", "final root"
    );
    for node in &report.nodes {
        text += &row(node);
    }
    let certified = report.windows.iter().filter(|window| window.certified).count();
    let _ = writeln!(text, "\nrun {}\n{certified} of {} windows certified", report.run_id, report.windows_planned);
    text += &counted(report);
    text += &late(report);
    if loss == Loss::Text
        && let Some(bits) = report.last.val_bits_per_byte
    {
        let _ = write!(text, "held-out text: {bits:.3} bits per byte");
        if let Some(floor) = report.last.floor_bits_per_byte {
            let _ = write!(text, "; {floor:.3} is the text's own entropy, the floor of every model");
        }
        text.push('\n');
    }
    match report.last.wall_s {
        0.0 => _ = writeln!(text, "{} tokens", report.last.tokens),
        wall_s => _ = writeln!(text, "{} tokens in {wall_s:.1} s", report.last.tokens),
    }
    text + meaning(loss)
}

fn row(node: &NodeReport) -> String {
    let is_guest = node.behaviour == "guest";
    let score = match node.role {
        Role::Miner => format!("{:.4}", node.score),
        Role::Validator => "-".to_owned(),
    };
    let restarts = if is_guest { "-".to_owned() } else { node.restarts.to_string() };
    let has_root = !is_guest && node.final_state_root != Hash32::default();
    let root = if has_root { node.final_state_root.short() } else { "-".to_owned() };
    format!(
        "{:>4}  {:<12} {:<9} {:>8} {:>7.1}% {:>10.3} {:>9}  {}\n",
        node.uid.0,
        node.name,
        node.behaviour,
        score,
        100.0 * node.weight,
        node.emission,
        restarts,
        root
    )
}

/// How many contributions counted in all windows together.
fn counted(report: &Report) -> String {
    let seats = report.config.roster.gather as usize;
    let sum = |of: &dyn Fn(&WindowReport) -> usize| report.windows.iter().map(of).sum::<usize>();
    let miners = report.nodes.iter().filter(|node| node.role == Role::Miner).count();
    let counted = sum(&|window| window.accepted.len());
    let of = sum(&|window| miners.max(window.opened.len()));
    let without = sum(&|window| no_seat(window, seats));
    let mut text = format!("contributions: {counted} of {of} counted");
    if without > 0 {
        let _ = write!(text, ", {without} had no seat: {seats} count per window at most");
    }
    let excluded = report.windows.iter().map(|window| window.excluded).sum::<u64>();
    if excluded > 0 {
        let _ = write!(text, ", {excluded} times a miner was excluded");
    }
    text + "\n"
}

/// Nodes for which paced blocks did not wait, and what became of their part in those windows.
fn late(report: &Report) -> String {
    let schedule = Schedule::new(&report.config);
    let mut blocks: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for late in &report.late {
        blocks.entry((late.uid, schedule.window_at(late.block))).or_default().push(late.block);
    }
    let mut text = String::new();
    for ((uid, window), blocks) in blocks {
        let node = report.nodes.iter().find(|node| node.uid == uid);
        let name = node.map_or_else(|| format!("uid {uid}"), |node| node.name.clone());
        let (first, last) = (blocks[0], blocks[blocks.len() - 1]);
        let at = if first == last { format!("block {first}") } else { format!("blocks {first} to {last}") };
        let _ = write!(text, "{name} was late at {at}");
        let report = window.and_then(|number| report.windows.iter().find(|window| window.window == number));
        if let (Some(window), Some(Role::Miner)) = (report, node.map(|node| node.role)) {
            let did = if window.accepted.contains(&uid) { "counted all the same" } else { "did not count" };
            let _ = write!(text, "; its contribution to window {} {did}", window.window);
        }
        text.push('\n');
    }
    text
}

fn meaning(loss: Loss) -> &'static str {
    match loss {
        Loss::Text => {
            "\nLosses are in nats per token. The score is what the validators measured of a miner's contributions.\n\
             The weight is a miner's share of what all miners are paid, and a validator's of what all validators\n\
             are. Paid is in the development chain's own coin, which has the same units as TAO but no value.\n"
        }
        Loss::Synthetic => {
            "\nThe losses are the synthetic trainer's: they show that the protocol works, and say nothing about text.\n\
             The weight is a miner's share of what all miners are paid, and a validator's of what all validators\n\
             are. Paid is in the development chain's own coin, which has the same units as TAO but no value.\n"
        }
    }
}

/// How far work that began `since` ago has got, and how long it will still take.
pub(crate) fn work(what: &str, unit: Unit, done: u64, all: Option<u64>, since: Duration) -> String {
    let amount = |amount: u64| match unit {
        Unit::Bytes => bytes(amount),
        Unit::Parameters => parameters(amount),
    };
    let Some(all) = all.filter(|all| *all >= done && done > 0) else { return format!("{what}: {}", amount(done)) };
    let left_s = (since.as_secs_f64() * (all - done) as f64 / done as f64).ceil();
    let left = match left_s {
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    };
    let done = match unit {
        Unit::Bytes => bytes(done),
        Unit::Parameters => format!("{:.0} %", 100.0 * done as f64 / all as f64),
    };
    format!("{what}: {done} of {}, about {left} left", amount(all))
}

/// A count with its noun.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Names in a row, the first three and how many more.
pub(crate) fn names(names: &[String]) -> String {
    match names {
        [a, b, c, _, ..] => format!("{a}, {b}, {c} and {} more", names.len() - 3),
        _ => names.join(", "),
    }
}

/// Breaks a line between words, so that none has more than 100 columns unless a word does.
pub(crate) fn fold(line: &str) -> String {
    let mut folded = String::new();
    let mut columns = 0;
    for word in line.split(' ') {
        let width = word.chars().count();
        if columns > 0 && columns + 1 + width > COLUMNS_MAX {
            folded += "\n    ";
            columns = 4;
        } else if columns > 0 {
            folded.push(' ');
            columns += 1;
        }
        folded += word;
        columns += width;
    }
    folded
}

/// A number of parameters, for people.
pub(crate) fn parameters(count: u64) -> String {
    match count as f64 {
        count if count >= 1e9 => format!("{:.1} billion parameters", count / 1e9),
        count if count >= 1e6 => format!("{:.1} million parameters", count / 1e6),
        count => format!("{count} parameters"),
    }
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
                Verdict::Withheld { .. } => {
                    "withheld: an accepted payload cannot be had, so nobody's counts".to_owned()
                }
                Verdict::TooFewVotes => "null: at most half of the stake voted".to_owned(),
                Verdict::NoMajority => "null: no state has more than half of the stake".to_owned(),
            };
            format!("window {window}: {verdict}, root {}", state_root.short())
        }
        Event::Validated { window, bits_per_byte, .. } => {
            format!("window {window}: {bits_per_byte:.3} bits per byte on held-out text")
        }
        Event::Evaluated { window, scores, .. } => {
            let scores: Vec<String> = scores.iter().map(|(uid, score)| format!("uid {uid} {score:.2}")).collect();
            format!("window {window}: mean values, in those of a median contribution: {}", scores.join(", "))
        }
        Event::Weighed { window, weights, .. } => format!("window {window}: set weights of {} uids", weights.len()),
        Event::Diverged { window, own, certified } => format!(
            "window {window}: the network certified {}, this node has {}: going back",
            certified.short(),
            own.short()
        ),
        Event::Adopted { settled, state_root, from } => {
            format!("took over the state after {settled} windows from {}, root {}", source(*from), state_root.short())
        }
        Event::Misvoted { window, uid, cause, .. } => {
            format!("window {window}: the vote of uid {uid} does not count: {cause}")
        }
        Event::CheckpointRefused { uid, digest, fault } => {
            format!("refused the checkpoint {} of uid {uid}: {fault}", digest.short())
        }
        Event::Unlisted { window, uid, cause, .. } => format!("window {window}: uid {uid} takes no part: {cause}"),
        Event::Misserved { window, uid, fault } => {
            format!("window {window}: uid {uid} does not serve the certified contribution correctly: {fault}")
        }
        Event::Faults { totals } => {
            let counts: Vec<String> =
                totals.iter().map(|total| format!("{} of {}", total.count, cause(total.cause))).collect();
            format!("faults of others so far: {}", counts.join(", "))
        }
        Event::StorageBack { after_s } => format!("its own access to storage works again, after {after_s:.0} s"),
        Event::BucketBack { refused } => {
            format!(
                "its own bucket takes again what it puts, after {}",
                count(usize::try_from(*refused).unwrap_or(usize::MAX), "refusal")
            )
        }
        Event::Trouble { trouble } => format!("trouble: {trouble}"),
        // An event of a later release.
        other => serde_json::to_string(other).unwrap_or_default(),
    };
    format!("{}: {what}", event.node)
}

/// A cause as metrics name it, such as `vote: length`.
fn cause(cause: Cause) -> String {
    let value = serde_json::to_value(cause).unwrap_or_default();
    let field = |name: &str| value[name].as_str().unwrap_or("other").to_owned();
    format!("{}: {}", field("of"), field("fault"))
}

fn engine(stats: &EngineStats) -> String {
    let of_matmul = 100.0 * stats.model_flops_per_s / stats.matmul_flops_per_s.max(1.0);
    let mfu = stats.mfu().map_or(String::new(), |mfu| format!(", MFU {:.1} %", 100.0 * mfu));
    let EngineStats { device, tokens_per_s, .. } = stats;
    format!(", {tokens_per_s:.0} tokens/s on {device}{mfu}, {of_matmul:.1} % of a matrix product")
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Local => "its own disk",
        Source::Checkpoint => "a checkpoint",
        Source::Genesis => "the run's start",
    }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::roster::Uid;
    use templar_record::recorder::Recorder;

    use super::*;

    fn report(accepted: u16, opened: u16) -> WindowReport {
        let (accepted, opened) = ((0..accepted).map(Uid).collect(), (0..opened).map(Uid).collect());
        let (state_root, loss) = (Hash32::of(b"r"), Some(10.123));
        WindowReport {
            window: 99_999,
            certified: true,
            one_root: true,
            settled_by: 6,
            agreed_by: 6,
            train_loss: loss,
            val_loss: loss,
            val_bits_per_byte: loss,
            payload_bytes: 123_456_789,
            accepted,
            opened,
            state_root,
            ..Recorder::new(Vec::new()).window(0)
        }
    }

    #[test]
    fn a_window_fits_in_100_columns_and_says_more_only_where_there_is_more() {
        let said = window(&report(20, 32), 32, 20, Loss::Text);
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{said}");
        assert!(
            lines[0].contains("20 of 32 counted") && lines[1].contains("12 had no seat: 20 contributions"),
            "{said}"
        );
        assert_eq!(window(&report(4, 4), 4, 20, Loss::Text).lines().count(), 1);
        let split = WindowReport { one_root: false, agreed_by: 5, ..report(4, 4) };
        assert!(window(&split, 4, 20, Loss::Text).contains("ROOTS DIFFER: only 5 of 6 nodes have root"));
        // A guest's contribution without a seat, and miners that are late, are in the count.
        assert!(window(&report(2, 2), 3, 2, Loss::Text).contains("2 of 3 counted"));
        assert!(window(&report(0, 0), 2, 20, Loss::Text).contains("0 of 2 counted"));
        let synthetic = window(&report(4, 4), 4, 20, Loss::Synthetic);
        assert!(synthetic.contains("synthetic loss 10.12 ") && !synthetic.contains("bits"), "{synthetic}");
    }

    #[test]
    fn a_long_line_is_broken_between_words() {
        assert_eq!(fold("miner-0: short"), "miner-0: short");
        let long = format!("miner-0: {}", "word ".repeat(60).trim_end());
        let folded = fold(&long);
        assert!(folded.lines().count() > 2 && folded.lines().all(|line| line.chars().count() <= 100), "{folded}");
        assert_eq!(folded.split_whitespace().collect::<Vec<_>>(), long.split_whitespace().collect::<Vec<_>>());
        assert!(fold(&format!("see {}", "/a/b".repeat(40))).contains(&"/a/b".repeat(40)), "a path stays whole");
    }

    #[test]
    fn where_seats_are_free_only_nodes_themselves_say_that_they_had_none() {
        assert_eq!(no_seat(&report(3, 4), 20), 0, "it may have come too late");
        assert_eq!(no_seat(&WindowReport { no_seat: 1, ..report(3, 4) }, 20), 1);
        assert_eq!(no_seat(&report(20, 32), 20), 12);
        let excluded = WindowReport { excluded: 2, ..report(20, 20) };
        assert!(window(&excluded, 22, 20, Loss::Text).contains("2 excluded for what they signed"));
    }

    #[test]
    fn work_says_how_long_it_will_take() {
        let after = Duration::from_secs;
        let said = work("making θ₀", Unit::Parameters, 18_000_000_000, Some(72_000_000_000), after(60));
        assert_eq!(said, "making θ₀: 25 % of 72.0 billion parameters, about 3 min left");
        assert_eq!(work("preparing text", Unit::Bytes, 5_000, None, after(1)), "preparing text: 5000 B");
        assert!(work("w", Unit::Bytes, 5_000_000, Some(10_000_000), after(60)).ends_with("about 60 s left"));
    }
}
