//! `templar export`

use std::path::PathBuf;

use clap::Args;
use color_eyre::eyre::Result;
use templar_sim::local::export;

use crate::end::End;
use crate::output::{is_json, say};
use crate::outputs::{ModelOut, ReportOut};
use crate::show::{self, Loss};

/// Export the model and the report of a `demo` or `localnet` from its folder, whether or not it ran to its end.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The network's folder.
    folder: PathBuf,
    #[command(flatten)]
    out: ModelOut,
    #[command(flatten)]
    report: ReportOut,
}

impl Export {
    pub(crate) fn run(self) -> Result<End> {
        self.out.check(None)?;
        self.report.check(None)?;
        let outcome = export::outcome(&self.folder)?;
        // What was asked for comes first: if it fails, the failure is the only document.
        self.report.write(&outcome.report)?;
        let model = self.out.write(&outcome, &self.folder.join("dataset"))?;
        if is_json() {
            say!("{}", serde_json::to_string(&outcome.report)?);
            return Ok(End::Done);
        }
        say!("{}", show::summary(&outcome.report, Loss::Text).trim_end());
        if let Some(model) = model {
            say!("\nmodel written to {}", model.display());
        }
        Ok(End::Done)
    }
}
