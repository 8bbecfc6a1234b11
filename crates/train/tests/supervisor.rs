//! How a node handles workers that misbehave: always a typed error, another worker for the next job, and no moments
//! lost.
//!
//! Workers here are fakes in plain Python (`tests/fake_worker`), so that these tests run without PyTorch.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests panic and print as tests do")]

#[path = "common/tiny.rs"]
mod tiny;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use templar_protocol::layout::Layout;
use templar_train::worker::{LINE_BYTES_MAX, Timeouts};
use templar_train::{
    Moments, StepStats, TokenBatch, TorchOptions, TorchTrainer, TrainError, TrainJob, TrainOutcome, Trainer,
    WorkerError, conformance,
};

use tiny::tiny;

/// Whether the fakes can run. If not, their tests say so and pass: the README asks for Rust and a C compiler only.
fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no python3 to run fake workers");
    }
    found
}

struct Setting {
    trainer: TorchTrainer,
    theta: Vec<f32>,
    batches: Vec<TokenBatch>,
}

impl Setting {
    /// A trainer whose first worker misbehaves and whose later ones do not.
    fn new(misbehaviour: &str, folder: &Path) -> Self {
        let fake = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fake_worker");
        let variable = |name: &str, value: &Path| (name.to_owned(), value.display().to_string());
        let options = TorchOptions {
            environment: vec![
                variable("PYTHONPATH", &fake),
                variable("FAKE", Path::new(misbehaviour)),
                variable("FAKE_ONCE", &folder.join("has-misbehaved")),
            ],
            timeouts: Timeouts {
                start: Duration::from_secs(if misbehaviour == "silent" { 5 } else { 60 }),
                first: Duration::from_secs(20),
                step: Duration::from_secs(3),
                transfer: Duration::from_secs(if misbehaviour.starts_with("hangs-") { 4 } else { 20 }),
            },
            ..TorchOptions::default()
        };
        let (model, inner) = tiny(false);
        let theta = Layout::llama(&model).theta0(&model, 1);
        let batches = conformance::batches(&model, 2, 3, "supervised");
        Self { trainer: TorchTrainer::new(&model, &inner, options), theta, batches }
    }

    fn train(&mut self) -> Result<TrainOutcome, TrainError> {
        let job = TrainJob { theta: &self.theta, batches: &self.batches, first_step: 0, moments: Moments::Carried };
        self.trainer.train(&job, &mut |_: &StepStats| ControlFlow::Continue(()))
    }

    /// How the job of a misbehaving worker ends; the next job must succeed with another worker.
    fn failure(misbehaviour: &str) -> WorkerError {
        let folder = tempfile::tempdir().unwrap();
        let mut setting = Self::new(misbehaviour, folder.path());
        let fresh = setting.trainer.export_state();
        let result = setting.train();
        let error = worker_error(result.unwrap_err());
        assert_eq!(setting.trainer.export_state(), fresh, "{misbehaviour}: a failed job leaves the moments alone");
        let next = setting.train().unwrap_or_else(|error| panic!("after {misbehaviour}: {error}"));
        assert_eq!((next.steps.len(), next.tokens), (2, 2 * 3 * 8), "{misbehaviour}");
        error
    }
}

/// The worker's error behind a trainer's.
fn worker_error(error: TrainError) -> WorkerError {
    let TrainError::Engine(error) = error else { panic!("{error:?}") };
    *error.downcast().expect("an error of the worker")
}

#[test]
fn a_healthy_worker_is_reused_and_measured() {
    if !has_python() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut setting = Setting::new("", folder.path());
    for job in 1..3 {
        let outcome = setting.train().unwrap();
        assert!(outcome.delta[0] > 0.0 && outcome.delta == vec![outcome.delta[0]; setting.theta.len()]);
        // The fake counts its steps in the moments: one process did both jobs.
        assert_eq!(setting.trainer.export_state()[16..24], u64::to_le_bytes(2 * job));
    }
    assert_eq!(setting.trainer.stats().and_then(|stats| stats.mfu()), Some(0.25));
    let batch = setting.batches[0].clone();
    assert_eq!(setting.trainer.evaluate(&setting.theta, &batch).unwrap(), [2.0; 3]);
}

#[test]
fn every_misbehaviour_is_a_typed_error_and_the_next_job_works() {
    if !has_python() {
        return;
    }
    let died = Setting::failure("dies");
    assert!(
        matches!(&died, WorkerError::Died { status, stderr, .. } if status.contains('7') && stderr == "out of imagination"),
        "{died:?}"
    );
    assert!(matches!(Setting::failure("other-version"), WorkerError::Version { found: 1, expected: 2 }));
    let oversized = Setting::failure("oversized");
    assert!(matches!(oversized, WorkerError::LineTooLong { limit_bytes: LINE_BYTES_MAX, .. }), "{oversized:?}");
    let refused = Setting::failure("refuses");
    assert!(matches!(&refused, WorkerError::Failed { why, .. } if why == "no memory left"), "{refused:?}");
    for misbehaviour in ["garbage", "talks", "nan-loss", "other-rate", "miscounts"] {
        let error = Setting::failure(misbehaviour);
        assert!(matches!(error, WorkerError::Protocol { .. }), "{misbehaviour}: {error:?}");
    }
    for misbehaviour in ["wrong-shape", "short-delta", "no-delta"] {
        let error = Setting::failure(misbehaviour);
        assert!(matches!(error, WorkerError::Tensors { file: "delta", .. }), "{misbehaviour}: {error:?}");
    }
    let wrong_moments = Setting::failure("wrong-moments");
    assert!(matches!(wrong_moments, WorkerError::Tensors { file: "state", .. }), "{wrong_moments:?}");
    // A full folder gives the same error as a folder in which something is in the way.
    let blocked = Setting::failure("blocks");
    assert!(matches!(&blocked, WorkerError::Exchange { folder, .. } if folder.contains("theta")), "{blocked:?}");
    assert_eq!(Setting::failure("bad-moments"), WorkerError::NotFinite { file: "state" });
}

#[test]
fn hanging_workers_are_ended_in_time() {
    if !has_python() {
        return;
    }
    let cases = [
        ("hangs", "do an inner step", 3),
        ("silent", "start", 5),
        ("hangs-at-the-end", "finish its job", 4),
        ("hangs-in-the-export", "export its moments", 4),
    ];
    let ends_in_time = |(misbehaviour, expected, limit): (&str, &str, u64)| {
        let started = Instant::now();
        let error = Setting::failure(misbehaviour);
        assert!(
            matches!(error, WorkerError::TimedOut { phase, limit_s, .. } if (phase, limit_s) == (expected, limit)),
            "{misbehaviour}: {error:?}"
        );
        assert!(started.elapsed() < Duration::from_mins(1), "{misbehaviour} took {:?}", started.elapsed());
    };
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || ends_in_time(case));
        }
    });
}

/// What a worker has started ends with it; otherwise the next one would find the memory taken.
#[test]
fn no_process_outlives_its_worker() {
    if !has_python() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut setting = Setting::new("multiplies", folder.path());
    let error = worker_error(setting.train().unwrap_err());
    assert!(matches!(error, WorkerError::TimedOut { .. }), "{error:?}");
    let lock = File::open(folder.path().join("has-misbehaved")).unwrap();
    lock.try_lock().expect("nobody holds the worker's lock any more");
}

/// An evaluation compiles nothing for training, so the first step may still take its time.
#[test]
fn the_first_step_may_take_longer_even_after_an_evaluation() {
    if !has_python() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut setting = Setting::new("compiles", folder.path());
    let batch = setting.batches[0].clone();
    setting.trainer.evaluate(&setting.theta, &batch).unwrap();
    assert_eq!(setting.train().unwrap().steps.len(), 2);
}

#[test]
fn implausible_statistics_are_dropped() {
    if !has_python() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut setting = Setting::new("odd-statistics", folder.path());
    setting.train().unwrap();
    assert_eq!(setting.trainer.stats(), None);
}

#[test]
fn divergence_and_evaluations_are_checked_too() {
    if !has_python() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut setting = Setting::new("diverges", folder.path());
    let error = setting.train().unwrap_err();
    assert!(matches!(error, TrainError::NonFiniteStep { step: 1, what: "gradient" }), "{error:?}");

    let folder = tempfile::tempdir().unwrap();
    let mut setting = Setting::new("inf-delta", folder.path());
    let error = setting.train().unwrap_err();
    assert!(matches!(error, TrainError::NonFiniteStep { step: 1, what: "update" }), "{error:?}");

    for (misbehaviour, is_shape) in [("nan-losses", false), ("wrong-losses", true)] {
        let folder = tempfile::tempdir().unwrap();
        let mut setting = Setting::new(misbehaviour, folder.path());
        let batch = setting.batches[0].clone();
        let error = worker_error(setting.trainer.evaluate(&setting.theta, &batch).unwrap_err());
        let is_as_expected = match error {
            WorkerError::Tensors { file: "losses", .. } => is_shape,
            WorkerError::NotFinite { file: "losses" } => !is_shape,
            _ => false,
        };
        assert!(is_as_expected, "{misbehaviour}: {error:?}");
        assert_eq!(setting.trainer.evaluate(&setting.theta, &batch).unwrap(), [2.0; 3], "another worker does it");
    }
}

/// A worker that dies between two jobs costs nothing: the next one receives the moments.
#[test]
fn moments_outlive_the_worker() {
    if !has_python() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut setting = Setting::new("dies", folder.path());
    setting.train().unwrap_err();
    setting.train().unwrap();
    let state = setting.trainer.export_state();
    let mut restarted = Setting::new("", folder.path());
    restarted.trainer.import_state(&state).unwrap();
    restarted.train().unwrap();
    assert_eq!(restarted.trainer.export_state()[16..24], u64::to_le_bytes(4), "two steps before, two after");
}

#[test]
fn the_error_names_a_missing_python() {
    let (model, inner) = tiny(false);
    let options = TorchOptions { python: PathBuf::from("/no/python/here"), ..TorchOptions::default() };
    let error = TorchTrainer::new(&model, &inner, options).start().unwrap_err();
    // People read the worker's own message, remedy included, and read it once.
    let said = error.to_string();
    assert!(said.contains("\"/no/python/here\"") && said.ends_with("name a Python with --python"), "{said}");
    assert!(std::error::Error::source(&error).is_none(), "{error:?}");
    let error = worker_error(error);
    assert!(matches!(&error, WorkerError::Start { command, .. } if command == "/no/python/here"), "{error:?}");
}
