//! Rows and curves of what has been run.

use serde::Serialize;

use crate::strategies::done::{Cell, Done, Figures, Outcome};
use crate::strategies::family::Family;

/// A family at its best rates, over all seeds.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub group: &'static str,
    pub family: String,
    /// The best arm of those that have been run.
    pub arm: String,
    /// Whether every rate has been looked at, and the best one run with every seed.
    pub is_complete: bool,
    /// Held-out loss at the end, nats per token: the mean over the seeds. None if it diverged with one of them, or has
    /// not been run.
    pub loss: Option<f64>,
    /// Largest minus smallest loss over the seeds.
    pub spread: Option<f64>,
    /// The mean loss of the average of θ over the last tenth of the run.
    pub averaged_loss: Option<f64>,
    pub seeds: usize,
    /// What a peer sends per inner step.
    pub bytes_per_step: Option<f64>,
    /// The rates whose best value is at an end of those that were tried.
    pub edges: Vec<&'static str>,
}

/// One row per family.
pub fn rows(families: &[Family], seeds: &[u64], done: &Done) -> Vec<Row> {
    families.iter().map(|family| row(family, seeds, done)).collect()
}

fn row(family: &Family, seeds: &[u64], done: &Done) -> Row {
    let search = family.search(seeds, done);
    let seen = search.finished.iter().min_by(|a, b| loss(done, a).total_cmp(&loss(done, b)));
    let arm = search.best.map(|arm| arm.to_string()).or_else(|| seen.map(|cell| cell.arm.clone()));
    let figures = arm.as_deref().map(|arm| figures(done, arm, seeds)).unwrap_or_default();
    let mean = |get: &dyn Fn(&Figures) -> f64| {
        (!figures.is_empty()).then(|| figures.iter().map(|&figures| get(figures)).sum::<f64>() / figures.len() as f64)
    };
    let losses = || figures.iter().map(|figures| figures.loss);
    Row {
        group: family.group,
        family: family.name.clone(),
        is_complete: search.best.is_some() && search.wanted.is_empty(),
        loss: mean(&|figures| figures.loss),
        spread: (figures.len() > 1).then(|| losses().fold(f64::MIN, f64::max) - losses().fold(f64::MAX, f64::min)),
        averaged_loss: mean(&|figures| figures.averaged_loss),
        seeds: figures.len(),
        bytes_per_step: mean(&|figures| figures.bytes_per_step),
        arm: arm.unwrap_or_else(|| family.start.to_string()),
        edges: search.edges,
    }
}

fn loss(done: &Done, cell: &Cell) -> f64 {
    done.loss(cell).unwrap_or(f64::INFINITY)
}

/// What an arm's seeds came to: nothing if one of them diverged, because the mean of the others would flatter it.
fn figures<'a>(done: &'a Done, arm: &str, seeds: &[u64]) -> Vec<&'a Figures> {
    let outcomes = seeds.iter().filter_map(|&seed| done.outcome(&Cell { arm: arm.to_owned(), seed }));
    let figures: Option<Vec<&Figures>> = outcomes
        .map(|outcome| match outcome {
            Outcome::Finished(figures) => Some(figures),
            Outcome::Failed { .. } => None,
        })
        .collect();
    figures.unwrap_or_default()
}

/// For every family with figures, its best arm's mean loss over inner steps.
pub fn curves(families: &[Family], seeds: &[u64], done: &Done) -> Vec<(String, Vec<(f64, f64)>)> {
    let line = |family: &Family| {
        let figures = figures(done, &row(family, seeds, done).arm, seeds);
        let first = figures.first()?;
        let length = figures.iter().map(|figures| figures.curve.len()).min()?;
        let points = (0..length).map(|at| {
            let mean = figures.iter().map(|figures| figures.curve[at].1).sum::<f64>() / figures.len() as f64;
            (first.curve[at].0 as f64, mean)
        });
        Some((family.name.clone(), points.collect()))
    };
    families.iter().filter_map(line).collect()
}
