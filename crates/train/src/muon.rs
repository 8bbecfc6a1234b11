//! Muon (Jordan et al., 2024): a matrix moves by its momentum with all singular values brought close to 1.
//!
//! m ← μ·m + (1 − μ)·g; u = NS(μ·m + (1 − μ)·g), Nesterov's look ahead; θ ← (1 − lr·wd)·θ − lr·√max(1, rows / columns)·u.
//! The iteration forgets the length of what it gets, so neither momentum nor look ahead needs a bias correction.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use templar_cpu::NewtonSchulz;
use templar_protocol::layout::TensorSpec;
use templar_protocol::run::{InnerSpec, Optimiser};

use crate::adamw::global_norm;

/// Whether Muon updates this tensor: a matrix of a layer, in a run with Muon.
pub(crate) fn takes_muon(inner: &InnerSpec, tensor: &TensorSpec) -> bool {
    inner.optimiser == Optimiser::Muon && tensor.shape.len() == 2 && tensor.name.starts_with("model.layers.")
}

/// The optimiser and its momentum.
#[derive(Debug)]
pub struct Muon {
    keep: f64,
    weight_decay: f64,
    tensors: Vec<Place>,
    /// Moving average of the gradient.
    momentum: Vec<f32>,
    /// Memory of updates in progress, kept for the next step.
    rooms: Mutex<Vec<Room>>,
}

/// One matrix.
#[derive(Debug)]
struct Place {
    theta: Range<usize>,
    rows: usize,
    columns: usize,
}

#[derive(Debug, Default)]
struct Room {
    update: Vec<f32>,
    iteration: NewtonSchulz,
}

impl Muon {
    /// Fresh momentum for `tensors`: matrices in the order of the flat parameters.
    ///
    /// # Panics
    /// If a tensor is not a matrix.
    pub fn new<'a>(tensors: impl IntoIterator<Item = &'a TensorSpec>, inner: &InnerSpec) -> Self {
        let place = |tensor: &TensorSpec| {
            let &[rows, columns] = &tensor.shape[..] else { panic!("{} is not a matrix", tensor.name) };
            Place { theta: tensor.range(), rows: rows as usize, columns: columns as usize }
        };
        let tensors: Vec<Place> = tensors.into_iter().map(place).collect();
        let values = tensors.iter().map(|place| place.theta.len()).sum();
        Self {
            keep: inner.muon_momentum,
            weight_decay: inner.muon_weight_decay,
            tensors,
            momentum: vec![0.0; values],
            rooms: Mutex::default(),
        }
    }

    /// One step on its matrices in `theta` with the gradient `scale · gradient`. The result does not depend on the
    /// number of threads.
    ///
    /// # Panics
    /// If `theta` or `gradient` are too short for the tensors.
    pub fn step(&mut self, theta: &mut [f32], gradient: &[f32], scale: f64, rate: f64) {
        let (keep, take) = (self.keep as f32, (1.0 - self.keep) as f32);
        let keep_theta = (1.0 - rate * self.weight_decay) as f32;
        let (mut jobs, mut theta, mut passed) = (vec![], theta, 0);
        let mut momentum = &mut self.momentum[..];
        for place in &self.tensors {
            let (own, rest) = std::mem::take(&mut theta)[place.theta.start - passed..].split_at_mut(place.theta.len());
            (theta, passed) = (rest, place.theta.end);
            let (own_momentum, rest) = std::mem::take(&mut momentum).split_at_mut(own.len());
            momentum = rest;
            let reach = (rate * (place.rows as f64 / place.columns as f64).max(1.0).sqrt()) as f32;
            jobs.push(Job {
                theta: own,
                gradient: &gradient[place.theta.clone()],
                momentum: own_momentum,
                columns: place.columns,
                scale: scale as f32,
                keep,
                take,
                keep_theta,
                reach,
            });
        }
        let rooms = &self.rooms;
        jobs.into_par_iter().with_max_len(1).for_each(|job| {
            let mut room = lock(rooms).pop().unwrap_or_default();
            job.run(&mut room);
            lock(rooms).push(room);
        });
    }

    pub(crate) fn momentum(&self) -> &[f32] {
        &self.momentum
    }

    pub(crate) fn momentum_mut(&mut self) -> &mut [f32] {
        &mut self.momentum
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.momentum.fill(0.0);
    }
}

fn lock(rooms: &Mutex<Vec<Room>>) -> std::sync::MutexGuard<'_, Vec<Room>> {
    rooms.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The step of one matrix.
struct Job<'a> {
    theta: &'a mut [f32],
    gradient: &'a [f32],
    momentum: &'a mut [f32],
    columns: usize,
    scale: f32,
    keep: f32,
    take: f32,
    keep_theta: f32,
    /// How far an update with singular values of 1 moves.
    reach: f32,
}

impl Job<'_> {
    fn run(self, room: &mut Room) {
        let Room { update, iteration } = room;
        update.clear();
        update.extend(self.momentum.iter_mut().zip(self.gradient).map(|(momentum, gradient)| {
            let gradient = self.take * (self.scale * gradient);
            *momentum = self.keep * *momentum + gradient;
            self.keep * *momentum + gradient
        }));
        let norm = global_norm(update);
        if norm > 0.0 {
            for value in update.iter_mut() {
                *value = (f64::from(*value) / norm) as f32;
            }
            iteration.orthogonalise(update, self.columns);
        }
        for (theta, update) in self.theta.iter_mut().zip(update) {
            *theta = self.keep_theta * *theta - self.reach * *update;
        }
    }
}

#[cfg(test)]
mod tests {
    use templar_protocol::layout::Layout;

    use super::*;

    fn layout() -> Layout {
        let shapes = [("vector", vec![3]), ("tall", vec![8, 2]), ("wide", vec![2, 6])];
        Layout::new(shapes.map(|(name, shape)| (name.to_owned(), shape)))
    }

    fn muon(inner: &InnerSpec) -> Muon {
        Muon::new(&layout().tensors()[1..], inner)
    }

    fn inner() -> InnerSpec {
        templar_model::presets::preset("nano").unwrap().inner
    }

    fn length(values: &[f32]) -> f64 {
        values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
    }

    /// The first step is along the gradient's singular vectors, whatever its length, and a tall matrix moves farther.
    #[test]
    fn updates_have_the_length_that_shapes_give() {
        let gradient: Vec<f32> = (0..31u16).map(|at| f32::from(at * 37 % 19) - 9.0).collect();
        let steps = [1.0, 1e-6].map(|scale| {
            let mut theta = vec![0.0; 31];
            muon(&inner()).step(&mut theta, &gradient, scale, 0.1);
            theta
        });
        for theta in &steps {
            assert!(theta[..3].iter().all(|&value| value == 0.0), "other tensors stay");
            // Two singular values of about 1: √2 long, and twice as far with four times as many rows as columns.
            let (tall, wide) = (length(&theta[3..19]) / 0.1, length(&theta[19..]) / 0.1);
            assert!((2.0..3.5).contains(&tall) && (1.0..1.75).contains(&wide), "{tall} {wide}");
        }
        let apart: Vec<f32> = steps[0].iter().zip(&steps[1]).map(|(one, two)| one - two).collect();
        assert!(length(&apart) < 1e-4, "{apart:?}");
    }

    #[test]
    fn matrices_decay_and_momentum_goes_on() {
        let inner = InnerSpec { muon_weight_decay: 0.5, muon_momentum: 0.5, ..inner() };
        let mut one = muon(&inner);
        let mut theta = vec![2.0; 31];
        one.step(&mut theta, &[0.0; 31], 1.0, 0.1);
        assert!(theta[3..].iter().all(|value| (value - 1.9).abs() < 1e-6), "{theta:?}");
        let gradient: Vec<f32> = (0..31u8).map(f32::from).collect();
        one.step(&mut theta, &gradient, 1.0, 0.1);
        assert!((one.momentum()[1] - 2.0).abs() < 1e-6, "half of the gradient");
        let before = theta.clone();
        one.step(&mut theta, &[0.0; 31], 1.0, 0.1);
        assert!((length(&theta) - 0.95 * length(&before)).abs() > 0.01, "the momentum moves what no gradient does");
        one.reset();
        assert!(one.momentum().iter().all(|&value| value == 0.0));
    }
}
