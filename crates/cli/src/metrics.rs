//! Metrics of nodes for Prometheus: their events as counters and gauges, served over HTTP with `--metrics`.
//!
//! The labels are `node` and values that an enum or the chain bounds (a verdict, a fault, a uid), so nothing that a
//! stranger publishes adds a time series.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use color_eyre::eyre::{Context, Result};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde::Serialize;
use serde_json::Value;
use templar_record::engine::EngineStats;
use templar_record::event::{Event, NodeEvent, Role, Verdict};
use templar_record::outcome::Outcome;

/// The option of every verb that runs nodes.
#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    /// Serve metrics for Prometheus at http://ADDRESS/metrics, as in 127.0.0.1:9464.
    #[arg(long, env = "TEMPLAR_METRICS", value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
}

impl MetricsArgs {
    /// Serves what [`record`] counts, until the process ends. Without the option, nothing is kept. Needs a runtime.
    pub(crate) fn serve(&self) -> Result<()> {
        let Some(address) = self.metrics else { return Ok(()) };
        let builder = PrometheusBuilder::new().with_http_listener(address);
        builder.install().wrap_err_with(|| {
            format!("metrics cannot be served at {address}: is the port taken, and the address this machine's?")
        })?;
        describe();
        Ok(())
    }
}

/// Counts an event.
pub(crate) fn record(NodeEvent { node, event }: &NodeEvent) {
    let set = |name: &'static str, value: f64| gauge!(name, "node" => node.clone()).set(value);
    let add = |name: &'static str, by: u64| counter!(name, "node" => node.clone()).increment(by);
    for cause in event.causes() {
        let (of, fault) = (field(&cause, "of"), field(&cause, "fault"));
        counter!("templar_faults_total", "node" => node.clone(), "of" => of, "fault" => fault).increment(1);
    }
    match event {
        Event::Started { settled, role, .. } => {
            add("templar_starts_total", 1);
            // A series that is absent until the first failure gives no rate and no alert.
            let counters: &[&'static str] = match role {
                Role::Miner => &[
                    "templar_contributions_total",
                    "templar_accepted_windows_total",
                    "templar_missed_windows_total",
                    "templar_troubles_total",
                ],
                Role::Validator => &["templar_votes_total", "templar_troubles_total"],
            };
            for name in counters {
                add(name, 0);
            }
            set("templar_settled_windows", *settled as f64);
        }
        Event::Trained { steps, tokens, train_loss, compute_s, engine, .. } => {
            add("templar_train_steps_total", *steps);
            add("templar_train_tokens_total", *tokens);
            set("templar_train_loss_nats", *train_loss);
            set("templar_train_seconds", *compute_s);
            if let Some(stats) = engine {
                record_engine(node, stats);
            }
        }
        Event::Sealed { payload_bytes, comm_s, .. } => {
            set("templar_payload_bytes", *payload_bytes as f64);
            set("templar_upload_seconds", *comm_s);
        }
        Event::Opened { .. } => add("templar_contributions_total", 1),
        Event::Ended { outcome, .. } => {
            counter!("templar_windows_total", "node" => node.clone(), "outcome" => outcome.kind()).increment(1);
            match outcome {
                Outcome::Counted => add("templar_accepted_windows_total", 1),
                Outcome::Missed { .. } => add("templar_missed_windows_total", 1),
                // Votes that the chain had in time, not those handed to it.
                Outcome::Voted | Outcome::Outvoted => add("templar_votes_total", 1),
                _ => {}
            }
        }
        Event::Voted { accept, comm_s, .. } => {
            set("templar_accepted_contributions", accept.len() as f64);
            set("templar_intake_seconds", *comm_s);
        }
        Event::Settled { window, verdict, .. } => {
            let ended = match verdict {
                Verdict::Certified { .. } => "certified",
                Verdict::Withheld { .. } => "withheld",
                Verdict::TooFewVotes => "too-few-votes",
                Verdict::NoMajority => "no-majority",
            };
            counter!("templar_verdicts_total", "node" => node.clone(), "verdict" => ended).increment(1);
            set("templar_settled_windows", (window + 1) as f64);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            set("templar_last_settled_timestamp_seconds", now.as_secs_f64());
        }
        Event::Validated { loss, bits_per_byte, .. } => {
            set("templar_validation_loss_nats", *loss);
            set("templar_validation_bits_per_byte", *bits_per_byte);
        }
        Event::Evaluated { scores, .. } => {
            for (uid, score) in scores {
                gauge!("templar_score", "node" => node.clone(), "uid" => uid.to_string()).set(*score);
            }
        }
        Event::Weighed { weights, .. } => {
            add("templar_weights_set_total", 1);
            set("templar_weighted_miners", weights.len() as f64);
        }
        Event::Diverged { .. } => add("templar_divergences_total", 1),
        Event::Adopted { settled, .. } => {
            add("templar_adopted_states_total", 1);
            set("templar_settled_windows", *settled as f64);
        }
        Event::Trouble { .. } => add("templar_troubles_total", 1),
        _ => {}
    }
}

fn record_engine(node: &str, stats: &EngineStats) {
    let labels = [("node", node.to_owned()), ("device", stats.device.clone())];
    let set = |name: &'static str, value: f64| gauge!(name, &labels).set(value);
    set("templar_engine_tokens_per_second", stats.tokens_per_s);
    set("templar_engine_model_flops_per_second", stats.model_flops_per_s);
    set("templar_engine_matmul_flops_per_second", stats.matmul_flops_per_s);
    set("templar_engine_peak_memory_bytes", stats.peak_memory_bytes as f64);
    if let Some(mfu) = stats.mfu() {
        set("templar_engine_mfu_ratio", mfu);
    }
}

/// A field of a value that serialises to an object of strings.
fn field(of: &impl Serialize, name: &str) -> String {
    let value = serde_json::to_value(of).unwrap_or(Value::Null);
    value[name].as_str().unwrap_or("other").to_owned()
}

/// What Prometheus shows beside each name.
fn describe() {
    describe_counter!("templar_starts_total", "times that the node started");
    describe_gauge!("templar_settled_windows", "windows in the node's state");
    describe_counter!("templar_verdicts_total", "windows settled since the process started, by verdict");
    describe_counter!("templar_windows_total", "windows that ended for the node, by outcome");
    describe_counter!("templar_accepted_windows_total", "windows in which the miner's contribution counts");
    describe_gauge!("templar_last_settled_timestamp_seconds", "Unix time at which a window was last settled");
    describe_counter!("templar_train_steps_total", "inner steps");
    describe_counter!("templar_train_tokens_total", "tokens trained on");
    describe_gauge!("templar_train_loss_nats", "mean loss of the last window's inner steps, nats per token");
    describe_gauge!("templar_train_seconds", "how long the last window's inner steps took");
    describe_gauge!("templar_payload_bytes", "size of the last sealed contribution");
    describe_gauge!("templar_upload_seconds", "duration of a miner's last upload");
    describe_gauge!("templar_intake_seconds", "time from the last put deadline to a validator's vote");
    describe_counter!("templar_contributions_total", "contributions whose key was published");
    describe_counter!("templar_missed_windows_total", "windows to which the miner did not contribute");
    describe_counter!("templar_votes_total", "votes that the chain had in time");
    describe_gauge!("templar_accepted_contributions", "contributions that the last vote accepts");
    describe_counter!("templar_faults_total", "other nodes' faults, by kind of object");
    describe_gauge!("templar_validation_loss_nats", "loss on held-out text, nats per token");
    describe_gauge!("templar_validation_bits_per_byte", "loss on held-out text, bits per byte");
    describe_gauge!("templar_score", "newest score of a miner, by uid");
    describe_counter!("templar_weights_set_total", "times that weights were handed to the chain");
    describe_gauge!("templar_weighted_miners", "miners that had weight when weights were last set");
    describe_counter!("templar_divergences_total", "times that the network certified a state other than the node's");
    describe_counter!("templar_adopted_states_total", "certified states taken over from elsewhere");
    describe_counter!("templar_troubles_total", "failures after which the node tried again");
    describe_gauge!("templar_engine_tokens_per_second", "training speed in the last window, all devices together");
    describe_gauge!("templar_engine_model_flops_per_second", "FLOP/s that the model needs at that speed");
    describe_gauge!("templar_engine_matmul_flops_per_second", "FLOP/s of a plain matrix product, measured on the spot");
    describe_gauge!("templar_engine_mfu_ratio", "model FLOPs utilisation in the last window, 0 to 1");
    describe_gauge!("templar_engine_peak_memory_bytes", "largest memory that one device had in use");
}

#[cfg(test)]
mod tests {
    use templar_protocol::fault::VoteFault;
    use templar_protocol::hash::Hash32;
    use templar_protocol::roster::Uid;
    use templar_record::outcome::Miss;

    use super::*;

    /// What a scrape shows after these events of one node.
    fn scraped(events: &[Event]) -> Vec<String> {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            for event in events {
                record(&NodeEvent { node: "miner-0".to_owned(), event: event.clone() });
            }
        });
        recorder.handle().render().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn a_window_of_a_miner_shows_speed_and_utilisation() {
        let stats = EngineStats {
            device: "cuda".to_owned(),
            tokens_per_s: 1000.0,
            model_flops_per_s: 2e14,
            matmul_flops_per_s: 6e14,
            peak_flops_per_s: Some(8e14),
            peak_memory_bytes: 5,
        };
        let trained =
            |window, engine| Event::Trained { window, steps: 2, tokens: 64, train_loss: 1.5, compute_s: 0.25, engine };
        let lines = scraped(&[trained(0, None), trained(1, Some(stats))]);
        for line in [
            r#"templar_train_tokens_total{node="miner-0"} 128"#,
            r#"templar_train_loss_nats{node="miner-0"} 1.5"#,
            r#"templar_engine_tokens_per_second{node="miner-0",device="cuda"} 1000"#,
            r#"templar_engine_mfu_ratio{node="miner-0",device="cuda"} 0.25"#,
        ] {
            assert!(lines.iter().any(|found| found == line), "{line} is not in {lines:#?}");
        }
    }

    #[test]
    fn what_a_node_counts_is_there_from_its_start() {
        let started = |role| Event::Started { uid: Uid(0), role, settled: 0, state_root: Hash32::default() };
        let (miner, validator) = (scraped(&[started(Role::Miner)]), scraped(&[started(Role::Validator)]));
        let zero = |name: &str| format!(r#"{name}{{node="miner-0"}} 0"#);
        assert!(miner.contains(&zero("templar_missed_windows_total")), "{miner:#?}");
        assert!(validator.contains(&zero("templar_votes_total")), "{validator:#?}");
        assert!(!validator.contains(&zero("templar_missed_windows_total")), "{validator:#?}");
    }

    #[test]
    fn a_window_of_a_miner_counts_by_how_it_ended() {
        let ended = |window, outcome| Event::Ended { window, outcome };
        let missed = || Outcome::Missed { why: Miss::UploadTooLate };
        let outcomes =
            [Outcome::Counted, missed(), Outcome::Counted, Outcome::NoSeat { seats: 20 }, missed(), missed()];
        let events: Vec<Event> = (0..).zip(outcomes).map(|(window, outcome)| ended(window, outcome)).collect();
        let lines = scraped(&events);
        for line in [
            r#"templar_windows_total{node="miner-0",outcome="counted"} 2"#,
            r#"templar_windows_total{node="miner-0",outcome="no-seat"} 1"#,
            r#"templar_windows_total{node="miner-0",outcome="missed"} 3"#,
            r#"templar_accepted_windows_total{node="miner-0"} 2"#,
            r#"templar_missed_windows_total{node="miner-0"} 3"#,
        ] {
            assert!(lines.iter().any(|found| found == line), "{line} is not in {lines:#?}");
        }
    }

    /// A node that mines and one that judges may share a process, as in a demo.
    #[test]
    fn an_upload_and_an_intake_have_a_gauge_each() {
        let sealed = Event::Sealed { window: 0, payload_bytes: 9, comm_s: 2.0 };
        let voted = Event::Voted { window: 0, accept: vec![], faults: vec![], comm_s: 30.0 };
        let lines = scraped(&[sealed, voted]);
        for line in [r#"templar_upload_seconds{node="miner-0"} 2"#, r#"templar_intake_seconds{node="miner-0"} 30"#] {
            assert!(lines.iter().any(|found| found == line), "{line} is not in {lines:#?}");
        }
    }

    #[test]
    fn windows_count_by_verdict_and_faults_by_cause() {
        let settled = |window, verdict| Event::Settled {
            window,
            verdict,
            state_root: Hash32::default(),
            payload_bytes: 0,
            values: 0,
            tokens: 0,
        };
        let misvoted =
            Event::Misvoted { window: 0, uid: Uid(3), fault: VoteFault::Length, cause: "300 bytes".to_owned() };
        let certified = Verdict::Certified { accepted: vec![Uid(1)], excluded: vec![] };
        let lines = scraped(&[
            settled(6, certified.clone()),
            settled(7, Verdict::TooFewVotes),
            settled(8, certified),
            misvoted,
        ]);
        for line in [
            r#"templar_verdicts_total{node="miner-0",verdict="certified"} 2"#,
            r#"templar_verdicts_total{node="miner-0",verdict="too-few-votes"} 1"#,
            r#"templar_settled_windows{node="miner-0"} 9"#,
            r#"templar_faults_total{node="miner-0",of="vote",fault="length"} 1"#,
        ] {
            assert!(lines.iter().any(|found| found == line), "{line} is not in {lines:#?}");
        }
    }
}
