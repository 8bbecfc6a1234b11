//! From a pseudo-gradient to a sealed contribution on disk.

use templar_codec::EncodeError;
use templar_protocol::hash::Hash32;
use templar_record::outcome::Miss;
use templar_train::TrainOutcome;

use crate::frame::error::NodeError;
use crate::frame::local::Saving;
use crate::frame::records::{OptimiserRecord, Stored};
use crate::pretrain::miner::{Miner, Work};
use crate::pretrain::pending::{self, Owed, Pending};
use crate::pretrain::window::Window;

/// Windows after which a sparing miner writes the optimiser's moments. They are two thirds of the state that only it
/// has, and soon renewed: with β₁ = 0.9 and β₂ = 0.95, 30 inner steps leave 4 % and 21 % of the earlier values.
const SPARING_WINDOWS: u64 = 16;

impl Miner {
    /// Seals what was learned in the present window and publishes it, once it is known whether the chain had the last
    /// header in time.
    pub(super) async fn seal_if_ready(&mut self, head: u64) -> Result<(), NodeError> {
        match std::mem::take(&mut self.work) {
            Work::Trained(window, outcome) if self.error_feedback.undecided().is_none() => {
                self.seal(window, outcome, head).await
            }
            work => {
                self.work = work;
                Ok(())
            }
        }
    }

    async fn seal(&mut self, window: Window, outcome: TrainOutcome, head: u64) -> Result<(), NodeError> {
        let number = window.number;
        let moments_due = match self.saving {
            Saving::Exact => true,
            Saving::Sparing => (number + 1).is_multiple_of(SPARING_WINDOWS),
        };
        if moments_due {
            self.store_moments()?;
        }
        let base = self.seat.replica.base(&self.ctx, number).cloned();
        let Some(base) = base.filter(|base| base.run.digest() == window.base_digest) else {
            self.outcomes.miss(number, Miss::BaseReplaced);
            return Ok(());
        };
        if head >= self.ctx.schedule.put_deadline(number) {
            // What comes too late is dropped: error feedback follows from what was committed alone.
            self.outcomes.miss(number, Miss::TrainedTooLate);
            return self.save();
        }
        let (ctx, entry, theta) = (self.ctx.clone(), self.seat.entry, base.theta);
        let context = move || window.context(&ctx, &entry, &theta);
        let context = match self.ctx.compute.run(context).await {
            Ok(context) => context,
            Err(error) => {
                self.outcomes.miss(number, Miss::DataDamaged { cause: error.to_string() });
                return self.save();
            }
        };
        let (steps, tokens) = (outcome.steps.len() as u32, outcome.tokens);
        self.error_feedback.keep_for(&entry);
        let (payload, values, feedback_root) = match self.encode(base.run.settled, outcome.delta).await {
            Ok(encoded) => encoded,
            Err(error) => {
                self.error_feedback.reset();
                self.outcomes.miss(number, Miss::ErrorFeedbackLost { cause: error.to_string() });
                return self.save();
            }
        };
        let work = pending::Work { previous: self.error_feedback.previous(), steps, tokens, feedback_root };
        let pending = Pending::new(&self.ctx, &context, work, payload);
        self.error_feedback.seal(&self.seat.local, self.saving, values, &pending.header.header)?;
        self.pending.push_back(pending);
        self.save()?;
        self.publish(head).await
    }

    /// e ← β·(e + what is owed of `settled` windows) + Δ, and its payload, which leaves e. Gives payload, e, and its root.
    async fn encode(&mut self, settled: u64, delta: Vec<f32>) -> Result<(Vec<u8>, Vec<f32>, Hash32), EncodeError> {
        let codec = self.ctx.codec.clone();
        let is_due = |owed: &&Owed| owed.window < settled && self.error_feedback.is_owed(owed.window);
        let owed: Vec<Vec<u8>> = self.owed.iter().filter(is_due).map(|owed| owed.payload.clone()).collect();
        let mut values = self.error_feedback.take_values();
        let encode = move || {
            for contribution in owed.into_iter().filter_map(|payload| codec.decode(payload).ok()) {
                contribution.give_back(&mut values);
            }
            let payload = codec.encode(&mut values, &delta);
            let root = codec.feedback_root(&values);
            (payload, values, root)
        };
        let (payload, values, root) = self.ctx.compute.run(encode).await;
        Ok((payload?, values, root))
    }

    /// Saves all of the miner's state in one step; unchanged files are not written again.
    pub(super) fn save(&mut self) -> Result<(), NodeError> {
        let local = &self.seat.local;
        let error = self.error_feedback.record().clone();
        let pending = Pending::store(&self.pending, &self.owed, local)?;
        let mut values = vec![Stored::of(&error), Stored::of(&pending), Stored::of(&self.outcomes.record())];
        values.extend(self.moments.as_ref().map(Stored::of));
        self.seat.save(&values)?;
        let local = &self.seat.local;
        let payloads = pending.contributions.iter().map(|one| one.payload_file.as_str());
        let payloads: Vec<&str> = payloads.chain(pending.owed.iter().map(|(_, file)| file.as_str())).collect();
        let kept = error.confirmed.iter().chain(&error.sealed).map(|kept| kept.file.as_str());
        local.retain_files("error", &kept.collect::<Vec<_>>())?;
        local.retain_files("payload", &payloads)?;
        local.retain_files("optimiser", &self.moments.iter().map(|moments| &*moments.file).collect::<Vec<_>>())
    }

    /// Writes the optimiser's moments; the next [`Miner::save`] makes them those of the next start.
    fn store_moments(&mut self) -> Result<(), NodeError> {
        if let Some(trainer) = &self.trainer {
            let file = self.seat.local.put_file("optimiser", &trainer.export_state())?;
            self.moments = Some(OptimiserRecord { file });
        }
        Ok(())
    }
}
