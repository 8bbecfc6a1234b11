//! From a settled window to what a validator has on record of it.

use std::sync::Arc;

use templar_protocol::certificate::refused;
use templar_protocol::fault::FaultKind;
use templar_protocol::roster::EntryId;
use templar_record::judgement::{Decision, Judged, Judgement, StakeVote};

use crate::frame::context::Context;
use crate::pretrain::fetch::Opened;
use crate::pretrain::intake::Intake;
use crate::pretrain::replica::Settled;

/// The record of a window. `intake` is what this validator found itself, if it looked; `applied` is what the outer step
/// was made of, wherever it was fetched from.
pub(super) fn judgement(
    ctx: &Context,
    settled: &Settled,
    intake: Option<&Intake>,
    applied: &[Arc<Opened>],
) -> Judgement {
    let certificate = &settled.certificate;
    let decision = match certificate.root() {
        None => Decision::Null,
        Some(_) if !settled.is_applied => Decision::Withheld,
        Some(_) => Decision::Certified,
    };
    let Settled { window, ballots, .. } = settled;
    let refused = refused(certificate, &window.roster, &window.candidates, &window.base.standing, ballots);
    let contributions = contributions(intake, applied);
    let slice_tokens = ctx.spec.slice_tokens(window.number);
    let judged = |entry: EntryId| {
        let opened = contributions.iter().find(|(of, _)| *of == entry);
        let tokens = opened.map_or(slice_tokens, |(_, opened)| opened.header.header.tokens);
        let found = intake.and_then(|intake| intake.verdicts().find(|(of, _)| **of == entry));
        let fault = found.map_or(Some(FaultKind::NotJudged), |(_, verdict)| verdict.err());
        let vote = if certificate.passed(&entry) {
            StakeVote::Passed
        } else if refused.contains(&entry) {
            StakeVote::Refused
        } else {
            StakeVote::Split
        };
        Judged { entry, vote, tokens, fault }
    };
    let miners = window.candidates.iter().map(|candidate| judged(candidate.entry)).collect();
    Judgement { window: certificate.window, decision, miners }
}

/// What this validator opened itself, and what the outer step applied besides.
pub(super) fn contributions(intake: Option<&Intake>, applied: &[Arc<Opened>]) -> Vec<(EntryId, Arc<Opened>)> {
    let mut found: Vec<(EntryId, Arc<Opened>)> = intake.map_or(Vec::new(), |intake| {
        let valid = intake.verdicts().filter_map(|(entry, verdict)| Some((*entry, verdict.ok()?.clone())));
        valid.collect()
    });
    for opened in applied {
        let entry = opened.header.header.entry;
        if !found.iter().any(|(of, _)| *of == entry) {
            found.push((entry, opened.clone()));
        }
    }
    found
}
