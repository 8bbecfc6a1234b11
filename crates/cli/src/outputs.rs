//! What a run leaves for its user: the model of `--out` and the report of `--report`. Both places are checked before
//! anything starts, so that no result is lost at the end of a training.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use color_eyre::eyre::{Context, Result, bail, ensure, eyre};
use templar_data::{Dataset, Split};
use templar_model::hf;
use templar_record::report::Report;
use templar_sim::local::network::Outcome;

use crate::commands::model_folder;
use crate::failure::coded;

/// Tokens of the sample whose logits are written beside a model, for other programs to check theirs by.
const LOGITS_TOKENS_MAX: usize = 64;

/// Where the model goes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ModelOut {
    /// Write the final model to this folder, in the Hugging Face layout.
    #[arg(long, env = "TEMPLAR_OUT", value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// Where the report goes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ReportOut {
    /// Write the run's report to this file, as JSON.
    #[arg(long, env = "TEMPLAR_REPORT", value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

impl ModelOut {
    /// Checks that a model can be written there.
    pub(crate) fn check(&self, temporary: Option<&Path>) -> Result<()> {
        self.check_place(temporary).map_err(coded("io"))
    }

    fn check_place(&self, temporary: Option<&Path>) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        check_parent("--out", out, temporary)?;
        if !out.exists() {
            return Ok(());
        }
        ensure!(out.is_dir(), "--out {} is a file; name a folder", out.display());
        let mut entries = out.read_dir().wrap_err_with(|| format!("--out {} cannot be read", out.display()))?;
        ensure!(
            entries.next().is_none() || holds_a_model(out),
            "--out {} contains files that do not belong to a model; name a new or empty folder",
            out.display()
        );
        check_writable("--out", out)
    }

    /// Writes the model, if one was asked for, and returns its folder.
    pub(crate) fn write(&self, outcome: &Outcome, folder: &Path) -> Result<Option<&Path>> {
        let Some(out) = &self.out else { return Ok(None) };
        let theta = outcome.theta.as_ref().map_err(|missing| eyre!("there is no model to write: {missing}"))?;
        let dataset = Dataset::open(folder)?;
        let model = &outcome.spec.model;
        hf::export(out, model, theta, Some(dataset.manifest().end_of_text))
            .wrap_err_with(|| format!("the model cannot be written to {}", out.display()))?;
        model_folder::export_tokenizer(out, model, folder, dataset.manifest())?;
        let sample = dataset.sample(Split::HeldOut, 0)?;
        let tokens = &sample[..sample.len().min(LOGITS_TOKENS_MAX)];
        hf::export_logits(out, model, theta, tokens, 1)
            .wrap_err_with(|| format!("logits cannot be written to {}", out.display()))?;
        Ok(Some(out))
    }
}

impl ReportOut {
    /// Checks that a report can be written there.
    pub(crate) fn check(&self, temporary: Option<&Path>) -> Result<()> {
        self.check_place(temporary).map_err(coded("io"))
    }

    fn check_place(&self, temporary: Option<&Path>) -> Result<()> {
        let Some(path) = &self.report else { return Ok(()) };
        ensure!(!path.is_dir(), "--report {} is a folder; name a file", path.display());
        if is_written_through(path) {
            return Ok(());
        }
        check_parent("--report", path, temporary)
    }

    /// Writes the whole report or nothing, if one was asked for.
    pub(crate) fn write(&self, report: &Report) -> Result<()> {
        let Some(path) = &self.report else { return Ok(()) };
        let text = serde_json::to_string_pretty(report)? + "\n";
        write_whole(path, text.as_bytes())
            .wrap_err_with(|| format!("the report cannot be written to {}", path.display()))
    }
}

/// Whether a folder holds a model such as `--out` writes, which may be replaced.
fn holds_a_model(out: &Path) -> bool {
    let config = std::fs::read_to_string(out.join("config.json")).unwrap_or_default();
    let has_weights = ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| out.join(name).is_file());
    has_weights && ["LlamaForCausalLM", "Qwen3ForCausalLM"].iter().any(|model| config.contains(model))
}

/// Pipes, devices and links, such as /dev/stdout, are written to directly: a file must not replace them.
fn is_written_through(path: &Path) -> bool {
    let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    is_link || path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if is_written_through(path) {
        return File::options().write(true).create(true).truncate(true).open(path)?.write_all(bytes);
    }
    let mut builder = tempfile::Builder::new();
    // With the permissions of any new file, not only for its owner.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.prefix(".templar-report-").tempfile_in(parent(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// The folder that something is in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn check_parent(option: &str, path: &Path, temporary: Option<&Path>) -> Result<()> {
    let parent = parent(path);
    let shown = || format!("{option} {}", path.display());
    match parent.metadata() {
        Ok(metadata) => ensure!(metadata.is_dir(), "{}: {} is not a folder", shown(), parent.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("{}: the folder {} does not exist; make it first, or name another", shown(), parent.display())
        }
        Err(error) => return Err(error).wrap_err_with(shown),
    }
    if let Some(temporary) = temporary
        && let (Ok(parent), Ok(temporary)) = (parent.canonicalize(), temporary.canonicalize())
    {
        ensure!(!parent.starts_with(temporary), "{} is in the network's temporary folder, which is removed", shown());
    }
    check_writable(option, parent)
}

/// Tries to write: missing rights, a full disk and a read-only file system all show that way.
fn check_writable(option: &str, folder: &Path) -> Result<()> {
    let file = tempfile::NamedTempFile::new_in(folder);
    file.map(drop).wrap_err_with(|| format!("{option}: nothing can be written in {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_cannot_take_a_result_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Some(folder.path().join(name));
        std::fs::write(folder.path().join("file"), "text").unwrap();
        std::fs::create_dir_all(folder.path().join("other")).unwrap();
        std::fs::write(folder.path().join("other/letter.txt"), "mine").unwrap();
        std::fs::create_dir_all(folder.path().join("model")).unwrap();
        std::fs::write(folder.path().join("model/config.json"), r#"{"architectures": ["LlamaForCausalLM"]}"#).unwrap();
        std::fs::write(folder.path().join("model/model.safetensors"), "").unwrap();
        std::fs::create_dir_all(folder.path().join("qwen")).unwrap();
        std::fs::write(folder.path().join("qwen/config.json"), r#"{"architectures": ["Qwen3ForCausalLM"]}"#).unwrap();
        std::fs::write(folder.path().join("qwen/model.safetensors"), "").unwrap();
        std::fs::create_dir_all(folder.path().join("web")).unwrap();
        std::fs::write(folder.path().join("web/config.json"), "{}").unwrap();
        let out = |name: &str| ModelOut { out: at(name) }.check(None).map_err(|error| format!("{error:#}"));
        let report = |name: &str| ReportOut { report: at(name) }.check(None).map_err(|error| format!("{error:#}"));
        for name in ["new", "model", "qwen"] {
            assert_eq!(out(name), Ok(()), "{name}");
        }
        assert_eq!((report("new"), report("file")), (Ok(()), Ok(())));
        for (said, what) in [
            (out("file"), "is a file; name a folder"),
            (out("none/model"), "does not exist; make it first"),
            (out("other"), "contains files that do not belong to a model"),
            (out("web"), "contains files that do not belong to a model"),
            (out("file/model"), "is not a folder"),
            (report("other"), "is a folder; name a file"),
            (report("none/report.json"), "does not exist; make it first"),
        ] {
            let said = said.unwrap_err();
            assert!(said.contains(what), "{said}");
        }
        let inside = ReportOut { report: at("other/report.json") }.check(Some(folder.path())).unwrap_err().to_string();
        assert!(inside.contains("temporary folder, which is removed"), "{inside}");
        let names: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 5, "a check leaves nothing behind: {names:?}");
    }
}
