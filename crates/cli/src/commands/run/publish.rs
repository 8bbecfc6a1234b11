//! `templar run publish`

use std::path::PathBuf;

use clap::Args;
use color_eyre::eyre::{Context, Result, ensure};
use serde_json::json;
use templar_data::Dataset;
use templar_host::home::BucketFile;
use templar_node::frame::dataset;
use templar_protocol::run::Theta0Source;
use templar_store::{OwnBucket, S3Options, S3Store, is_loopback};

use crate::commands::run::weights;
use crate::files::{BUCKET_KEYS, read_run, read_secret};
use crate::output::{is_json, say};
use crate::progress::{Progress, Unit};

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The run's file.
    #[arg(default_value = "run.toml")]
    file: PathBuf,
    /// Folder of the run's dataset.
    #[arg(long, alias = "data", env = "TEMPLAR_DATASET", value_name = "DIR")]
    dataset: PathBuf,
    /// For a run that starts from weights: the folder that `run init --from` wrote.
    #[arg(long, env = "TEMPLAR_WEIGHTS", value_name = "DIR")]
    weights: Option<PathBuf>,
    /// The bucket, with the credential that may write into it (see the operator's guide).
    #[arg(long, env = "TEMPLAR_BUCKET", value_name = "FILE")]
    bucket: PathBuf,
}

impl Publish {
    #[tokio::main]
    pub(super) async fn run(self) -> Result<()> {
        let spec = read_run(&self.file)?;
        let dataset =
            Dataset::open(&self.dataset).wrap_err_with(|| format!("dataset in {}", self.dataset.display()))?;
        dataset::check(&spec, dataset.manifest())?;
        let weights = weights::open(&spec, self.weights.as_deref())?;
        ensure!(
            spec.theta0.source == Theta0Source::Seed || weights.is_some(),
            "the run starts from weights with root {}: name their folder with --weights",
            spec.theta0.root
        );
        let bucket: OwnBucket = read_secret::<BucketFile>(&self.bucket, BUCKET_KEYS)?.into();
        let options = S3Options { allow_http_loopback: is_loopback(&bucket.locator.endpoint), ..S3Options::default() };
        let (name, store) = (bucket.locator.bucket.clone(), S3Store::new(bucket, options)?);
        dataset::publish(&store, &dataset).await?;
        if let Some(weights) = weights {
            let layout = spec.layout();
            let (mut progress, all, mut done) =
                (Progress::new("uploading the weights", Unit::Bytes), 4 * layout.len() as u64, 0);
            let tell = |bytes| {
                done += bytes;
                progress.show(done, all);
            };
            weights.publish(&store, &layout, tell).await?;
            progress.finish();
        }
        if is_json() {
            say!("{}", json!({ "run_id": spec.id(), "bucket": name }));
        } else {
            say!("what nodes of run {} need is in the bucket {name}: its public locator is their data.toml", spec.id());
        }
        Ok(())
    }
}
