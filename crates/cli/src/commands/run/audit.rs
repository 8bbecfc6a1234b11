//! `templar run verify --from-genesis`

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use color_eyre::eyre::{Context, Result, eyre};
use serde_json::{Value, json};
use templar_chain::{Chain, RpcChain};
use templar_node::frame::weights::Weights;
use templar_node::pretrain::audit::{self, Audited, Auditor, Progress as Moment, Spans, Verdict};
use templar_protocol::run::{RunId, RunSpec};
use templar_sim::local::audit::serve;
use templar_store::{S3Options, S3Store, is_loopback};

use crate::end::End;
use crate::failure::coded;
use crate::output::{is_json, say};
use crate::progress::{Progress, Unit};

/// Wrong objects that are listed for people; JSON has more of them.
const WRONG_SHOWN: usize = 20;

/// Audits the network in a folder that `demo` or `localnet` kept.
#[tokio::main]
pub(super) async fn of_folder(folder: &Path) -> Result<End> {
    let (served, auditor) = serve(folder).await?;
    let run = auditor.spec.id();
    let audited = watched(auditor).await;
    served.end().await;
    Ok(tell(run, &audited?))
}

/// Audits a run through a chain and the buckets that it names.
#[tokio::main]
pub(super) async fn of_chain(spec: RunSpec, url: &str, samples: Option<u64>, weights: Option<Weights>) -> Result<End> {
    let chain = RpcChain::connect(url).await.wrap_err_with(|| format!("the chain at {url} cannot be used"))?;
    let chain: Arc<dyn Chain> = Arc::new(chain);
    let sources = audit::sources(&*chain, &spec).await?;
    // Buckets are on loopback only in a local network, whose chain is there, too.
    let options = S3Options { allow_http_loopback: is_loopback(url), ..S3Options::default() };
    let (run, store) = (spec.id(), Arc::new(S3Store::reader(options)?));
    Ok(tell(run, &watched(Auditor { spec, chain, store, sources, samples, weights }).await?))
}

/// Runs an audit, with progress on standard error if it takes long.
async fn watched(auditor: Auditor) -> Result<Audited> {
    let mut back = Some(Progress::new("fetching the states", Unit::Windows));
    let mut forward = Progress::new("recomputing the windows", Unit::Windows);
    let mut watch = |moment| match moment {
        Moment::Back { states, all } => {
            if let Some(back) = &mut back {
                back.show(states, all);
            }
        }
        Moment::Forward { windows, all } => {
            if let Some(back) = back.take() {
                back.finish();
            }
            forward.show(windows, all);
        }
    };
    let audited = auditor.run(&mut watch).await;
    if let Some(back) = back {
        back.finish();
    }
    forward.finish();
    audited.map_err(|error| match error {
        audit::AuditError::WrongTheta0 { .. } | audit::AuditError::Weights(_) => coded("run")(error.into()),
        error => coded("chain")(eyre!(error)),
    })
}

fn tell(run: RunId, audited: &Audited) -> End {
    if is_json() {
        say!("{}", document(run, audited));
    } else {
        say!("{}", text(run, audited).trim_end());
    }
    match audited.verdict {
        Verdict::Verified => End::Done,
        _ => End::Refuted,
    }
}

fn text(run: RunId, audited: &Audited) -> String {
    let Audited { verdict, settled, tip, windows, tally, wall_s } = audited;
    let mut text = match verdict {
        Verdict::Verified => format!("run {run}: verified, {settled} windows from the beginning to the state {tip}\n"),
        Verdict::Missing { window, key } => format!(
            "run {run}: NOT verified. Window {window}: nobody serves {key} as its name promises, so nothing is proven from there \
             to window {}\n",
            settled.saturating_sub(1)
        ),
        Verdict::Contradicted { window, why } => {
            format!("run {run}: NOT verified. What is certified breaks the rules in window {window}: {why}\n")
        }
    };
    let (certified, null, withheld) = (windows.certified, windows.null, windows.withheld);
    let _ = writeln!(text, "certificates  {certified} certified, {null} null, {withheld} withheld");
    let mut line = |head: &str, parts: &[(&str, &Spans)]| {
        let parts = parts.iter().filter(|(_, spans)| !spans.is_empty());
        let parts: Vec<String> = parts.map(|(what, spans)| format!("{what} {spans}")).collect();
        if !parts.is_empty() {
            let _ = writeln!(text, "{head:<14}{}", parts.join("; "));
        }
    };
    line(
        "θ",
        &[
            ("recomputed in windows", &windows.theta_recomputed),
            ("certified only (θ before it, or its payloads, are not served) in", &windows.theta_certified),
        ],
    );
    line(
        "chain",
        &[
            ("inputs as on the chain in windows", &windows.chain_all),
            ("only block hashes compared in", &windows.chain_hashes),
            ("nothing served of", &windows.chain_nothing),
        ],
    );
    let megabytes = tally.bytes as f64 / 1e6;
    let _ = writeln!(text, "read          {} objects, {megabytes:.2} MB in {wall_s:.1} s", tally.objects);
    for wrong in tally.wrong.iter().take(WRONG_SHOWN) {
        let _ = writeln!(text, "wrong         {}: {}: {}", wrong.owner, wrong.key, wrong.what);
    }
    if tally.wrong_count > WRONG_SHOWN as u64 {
        let _ = writeln!(text, "wrong         and {} more", tally.wrong_count - WRONG_SHOWN as u64);
    }
    for (owner, how) in &tally.silent {
        let _ = writeln!(text, "silent        {owner}: {how}");
    }
    text
}

fn document(run: RunId, audited: &Audited) -> Value {
    let Audited { verdict, settled, tip, windows, tally, wall_s } = audited;
    let verdict = match verdict {
        Verdict::Verified => json!({ "kind": "verified" }),
        Verdict::Missing { window, key } => json!({ "kind": "missing", "window": window, "key": key }),
        Verdict::Contradicted { window, why } => json!({ "kind": "contradicted", "window": window, "why": why }),
    };
    let wrong = tally.wrong.iter();
    let wrong = wrong.map(|wrong| json!({ "owner": wrong.owner, "key": wrong.key, "what": wrong.what }));
    json!({
        "run_id": run,
        "verdict": verdict,
        "windows": settled,
        "state": tip,
        "certified": windows.certified,
        "null": windows.null,
        "withheld": windows.withheld,
        "theta": { "recomputed": windows.theta_recomputed.0, "certified_only": windows.theta_certified.0 },
        "chain": {
            "inputs": windows.chain_all.0,
            "hashes_only": windows.chain_hashes.0,
            "nothing": windows.chain_nothing.0,
        },
        "objects": tally.objects,
        "bytes": tally.bytes,
        "wall_s": wall_s,
        "wrong": wrong.collect::<Vec<_>>(),
        "wrong_count": tally.wrong_count,
        "silent": tally.silent,
    })
}
