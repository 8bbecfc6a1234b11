//! What is reported about a run.

use serde::Serialize;

use crate::quality::formats::Format;
use crate::quality::rules::Rule;

/// One run: a format and a rule, over all seeds.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub format: Format,
    pub rule: Rule,
    /// α, the outer learning rate.
    pub rate: f64,
    /// `None` if the run diverged with any of its seeds, because the mean of the others would flatter it.
    #[serde(flatten)]
    pub figures: Option<Figures>,
    /// Why each failed seed failed.
    pub failures: Vec<String>,
}

/// The results of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Held-out loss at the end, nats per token: the mean over the seeds.
    pub loss: f64,
    /// Largest minus smallest loss over the seeds.
    pub spread: f64,
    /// The mean loss after each quarter of the run.
    pub curve: Vec<f64>,
    /// ‖kept − sent‖² / ‖kept‖², over the values that were kept.
    pub relative_error: f64,
    /// Payload bits per value sent.
    pub bits_per_value: f64,
}
