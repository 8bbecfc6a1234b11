//! What rehearsals have in common: who takes part, the folder, and what is left at the end.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use color_eyre::eyre::{Context, ContextCompat, Report as Failure, Result, ensure, eyre};
use serde_json::{Value, from_value};
use templar_host::engine::EngineName;
use templar_model::presets::{self, Preset};
use templar_node::pretrain::checkpoint::Retention;
use templar_protocol::hash::Hash32;
use templar_protocol::layout::Layout;
use templar_protocol::run::CodecKind;
use templar_record::event::Role;
use templar_record::report::Report;
use templar_sim::local::error::NetworkError;
use templar_sim::local::initial;
use templar_sim::local::kept::{Definition, MINERS_MAX, Ring, VALIDATORS_MAX, WINDOWS_MAX};
use templar_sim::local::needs::{self, Machine};
use templar_sim::local::network::{Network, NoTheta, Outcome, Text};
use templar_sim::plan::Plan;
use templar_sim::r#virtual::scenario::NODES_MAX;
use templar_sim::zoo::attack::Several;

use crate::commands::corpus::CorpusArgs;
use crate::commands::engine::TorchArgs;
use crate::end::End;
use crate::failure::coded;
use crate::metrics::MetricsArgs;
use crate::numbers::whole;
use crate::output::{is_json, say};
use crate::outputs::{ModelOut, ReportOut};
use crate::show::{self, Loss};

/// Options of every rehearsal, with real parts or simulated ones.
#[derive(Debug, Args)]
pub(crate) struct RehearsalArgs {
    /// Windows to train.
    #[arg(long, env = "TEMPLAR_WINDOWS", default_value_t = 12, value_parser = whole::<u64>(1..=WINDOWS_MAX))]
    pub(crate) windows: u64,
    /// Miners.
    #[arg(long, env = "TEMPLAR_MINERS", default_value_t = 4, value_parser = whole::<u16>(1..=u64::from(NODES_MAX) - 1))]
    miners: u16,
    /// Validators.
    #[arg(long, env = "TEMPLAR_VALIDATORS", default_value_t = 2, value_parser = whole::<u16>(1..=u64::from(VALIDATORS_MAX)))]
    validators: u16,
    /// Seed of everything random: keys, data, θ₀, blocks.
    #[arg(long, env = "TEMPLAR_SEED", default_value_t = 0, value_parser = whole::<u64>(0..=i64::MAX as u64))]
    pub(crate) seed: u64,
    /// How contributions become bytes: topk-sign, topk-2bit or dense-f32.
    #[arg(long, env = "TEMPLAR_CODEC", default_value = "topk-sign", value_parser = codec)]
    pub(crate) codec: CodecKind,
    /// How the last miners or validators misbehave, as in noise or late-vote=2; the page on adversaries has the kinds.
    #[arg(long, env = "TEMPLAR_ADVERSARY", num_args = 1.., value_delimiter = ',', value_name = "KIND[=COUNT]")]
    adversary: Vec<Several>,
    #[command(flatten)]
    pub(crate) report: ReportOut,
}

impl RehearsalArgs {
    pub(crate) fn plan(&self, preset: Preset) -> Result<Plan> {
        self.check_adversaries(Role::Miner, "miners", self.miners.into()).map_err(coded("usage"))?;
        self.check_adversaries(Role::Validator, "validators", self.validators.into()).map_err(coded("usage"))?;
        Ok(Plan {
            miners: usize::from(self.miners),
            validators: usize::from(self.validators),
            windows: self.windows,
            seed: self.seed,
            preset,
            adversaries: self.adversary.iter().flat_map(|several| vec![several.kind; several.count.into()]).collect(),
        })
    }

    /// Checks that there are at most so many miners, and that a chain has room for all nodes.
    pub(crate) fn check_size(&self, miners_max: u16) -> Result<()> {
        let (miners, nodes) = (self.miners, self.miners + self.validators);
        let too_many =
            (miners > miners_max).then(|| format!("--miners {miners}: it must be {miners_max} or fewer here"));
        let no_room = (nodes > NODES_MAX).then(|| format!("{nodes} nodes: a subnet has room for {NODES_MAX}"));
        match too_many.or(no_room) {
            Some(wrong) => Err(coded("usage")(eyre!("{wrong}"))),
            None => Ok(()),
        }
    }

    fn check_adversaries(&self, role: Role, plural: &str, nodes: usize) -> Result<()> {
        let of_role = self.adversary.iter().filter(|several| several.kind.role == role);
        let bad: usize = of_role.map(|several| usize::from(several.count)).sum();
        ensure!(bad == 0 || bad < nodes, "{bad} of {nodes} {plural} would misbehave; at least one must be honest");
        Ok(())
    }

    /// Shows the report, and writes it if a file was named.
    pub(crate) fn finish(&self, report: &Report, loss: Loss) -> Result<()> {
        if is_json() {
            say!("{}", serde_json::to_string(report)?);
        } else {
            say!("{}", show::summary(report, loss).trim_end());
        }
        self.report.write(report)
    }
}

/// A codec by its name in `run.toml`.
pub(crate) fn codec(name: &str) -> Result<CodecKind, serde_json::Error> {
    from_value(Value::from(name))
}

/// A key of `run.toml` and its value.
pub(crate) fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it has no `=`; write KEY=VALUE, such as outer.rate=0.65")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// Keys of `run.toml` that are computed.
pub(crate) const DERIVED: [&str; 3] = ["theta0.root", "theta0.source", "data.manifest"];

/// A preset by its name.
pub(crate) fn preset(name: &str) -> Result<Preset> {
    presets::preset(name)
        .with_context(|| format!("there is no preset {name:?}; there are {}", presets::names().join(", ")))
        .map_err(coded("usage"))
}

/// Options of a network of real parts.
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    #[command(flatten)]
    pub(crate) rehearsal: RehearsalArgs,
    /// Size of the model: nano, micro, 150m, 1b, 7b, 8b or 72b.
    #[arg(long, env = "TEMPLAR_PRESET", default_value = "nano")]
    preset: String,
    /// Start from this model's weights, in its shape: a folder in Hugging Face's layout, such as one of --out, or the
    /// folder of a network that was kept.
    #[arg(long, env = "TEMPLAR_FROM", value_name = "DIR", conflicts_with = "preset")]
    from: Option<PathBuf>,
    /// Give a key of the run another value, such as outer.rate=0.65 (several allowed; docs/run-keys.md has all).
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    #[command(flatten)]
    corpus: CorpusArgs,
    /// Engines of the nodes, miners first; the last one applies to all remaining nodes: builtin or torch.
    #[arg(long, env = "TEMPLAR_ENGINES", value_name = "ENGINE", num_args = 1.., default_value = "builtin", value_delimiter = ',')]
    engine: Vec<EngineName>,
    #[command(flatten)]
    out: ModelOut,
    /// Keep the network's files (chain, buckets, nodes) in this folder, and resume the network already in it.
    #[arg(long, env = "TEMPLAR_FOLDER", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Let the validators serve the contributions that counted for good, so that `templar run verify --from-genesis`
    /// can compute every θ again.
    #[arg(long, env = "TEMPLAR_ARCHIVE")]
    archive: bool,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
    #[command(flatten)]
    torch: TorchArgs,
}

/// A folder for the network's files, removed at the end unless the user named it.
#[derive(Debug)]
pub(crate) enum Folder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }

    /// The folder, if it will be removed at the end.
    pub(crate) fn temporary(&self) -> Option<&Path> {
        match self {
            Self::Kept(_) => None,
            Self::Temporary(folder) => Some(folder.path()),
        }
    }

    /// Keeps the folder, so that somebody can look into it.
    pub(crate) fn keep(self) -> PathBuf {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.keep(),
        }
    }
}

impl NetworkArgs {
    /// The network that was asked for, in `folder`, if it fits this machine and its results have a place to go.
    pub(crate) fn network(&self, folder: &Folder) -> Result<Network> {
        let mut preset = preset(&self.preset)?;
        self.rehearsal.check_size(MINERS_MAX)?;
        if let Some(from) = &self.from {
            preset = Preset { name: "its shape", model: initial::shape(from)?, ..preset };
        }
        let text = self.corpus.text(&mut preset).map_err(coded("data"))?;
        let mut plan = self.rehearsal.plan(preset)?;
        self.adjust(&mut plan).map_err(coded("usage"))?;
        // Nodes on this machine share its cores.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = u32::try_from((cores / (plan.miners + plan.validators)).max(1)).ok();
        let network = Network {
            plan,
            codec: self.rehearsal.codec,
            set: self.set.clone(),
            from: self.from.clone(),
            text,
            folder: folder.path().to_path_buf(),
            engines: self.torch.engines(&self.engine, threads).map_err(coded("usage"))?,
            retention: if self.archive { Retention::ForGood } else { Retention::Promised },
        };
        needs::check(&network, Machine::here(folder.path()))?;
        let temporary = folder.temporary();
        self.out.check(temporary)?;
        self.rehearsal.report.check(temporary)?;
        Ok(network)
    }

    /// What --set says about model and inner steps, which decide what is prepared before there is a run.
    fn adjust(&self, plan: &mut Plan) -> Result<()> {
        let mut spec = plan.spec_without_root(Hash32::default(), Hash32::default());
        let vocabulary = spec.model.vocab_size;
        for (key, value) in &self.set {
            let derived = DERIVED.contains(&key.as_str()) || key.starts_with("chain.") || key.starts_with("theta0.");
            ensure!(!derived, "--set {key}: a local network decides that itself");
            spec.set(key, value).wrap_err_with(|| format!("--set {key}={value}"))?;
        }
        ensure!(spec.model.vocab_size >= vocabulary, "--set model.vocab_size: the text has {vocabulary} tokens");
        (plan.preset.model, plan.preset.inner) = (spec.model, spec.inner);
        Ok(())
    }

    pub(crate) fn folder(&self) -> Result<Folder> {
        let Some(path) = &self.folder else {
            let folder = tempfile::Builder::new().prefix("templar-").tempdir();
            return Ok(Folder::Temporary(folder.wrap_err("no temporary folder can be made; name one with --folder")?));
        };
        if !Definition::is_in(path) && path.exists() {
            let is_free =
                Definition::is_free(path).wrap_err_with(|| format!("--folder {} cannot be used", path.display()))?;
            ensure!(is_free, "{} is not empty: name another folder, or remove what is in it", path.display());
        }
        Ok(Folder::Kept(path.clone()))
    }

    /// Says what is about to happen, unless only events are wanted.
    pub(crate) fn introduce(&self, ring: Ring, network: &Network, folder: &Folder) {
        if !is_json() {
            say!("{}", self.introduction(ring, network, folder));
        }
    }

    fn introduction(&self, ring: Ring, network: &Network, folder: &Folder) -> String {
        let plan = &network.plan;
        let (model, inner) = (&plan.preset.model, &plan.preset.inner);
        let size = show::parameters(Layout::llama(model).len() as u64);
        let places = match ring {
            Ring::Demo => "all in this process",
            Ring::Localnet => "each in its own process",
        };
        let data = match &network.text {
            Text::BuiltIn => "the built-in corpus: 4 MB of generated text with a known entropy".to_owned(),
            Text::Paths { sources, .. } => {
                sources.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
            }
            Text::Prepared(folder) => format!("the prepared dataset in {}", folder.display()),
        };
        let tokens = inner.samples_of(0) * u64::from(model.seq_len);
        let files = match folder {
            Folder::Kept(path) => format!("{} (if interrupted, the same command resumes from here)", path.display()),
            Folder::Temporary(folder) => {
                format!("{}, removed at the end (--folder DIR keeps them)", folder.path().display())
            }
        };
        let results =
            [(&self.out.out, "the model", "--out DIR"), (&self.rehearsal.report.report, "the report", "--report FILE")];
        let results = results.map(|(path, what, option)| match path {
            Some(path) => format!("{what} goes to {}", path.display()),
            None => format!("{option} would keep {what}"),
        });
        format!(
            "{} and {}, {places}\n  \
             model    {}, {size}\n  \
             data     {data}\n  \
             windows  {}: in each, miners train and publish, validators judge, what counts moves the model\n  \
             window   {} inner steps of {} sequences of {} tokens: {tokens} tokens per miner\n  \
             files    {files}\n  \
             results  {}",
            show::count(plan.miners, "miner"),
            show::count(plan.validators, "validator"),
            plan.preset.name,
            plan.windows,
            inner.steps_of(0),
            inner.batch_sequences,
            model.seq_len,
            results.join("; "),
        )
    }

    /// Shows the result and writes what was asked for. If something failed, the network's files stay, and the error
    /// says what can be done with them.
    pub(crate) fn finish(
        &self,
        ring: Ring,
        outcome: Result<Option<Outcome>, NetworkError>,
        folder: Folder,
    ) -> Result<End> {
        let outcome = match outcome {
            Ok(Some(outcome)) => outcome,
            Ok(None) => return Ok(End::Stopped),
            // Nothing has run, so there is nothing to look into.
            Err(error) if error.is_before_start() => return Err(error.into()),
            Err(error) => return Err(left(ring, "the network failed", None, folder, error.into())),
        };
        if let Err(error) = self.rehearsal.finish(&outcome.report, Loss::Text) {
            return Err(left(ring, "the network's result could not be written", Some(&outcome), folder, error));
        }
        if !outcome.failures.is_empty() {
            let failures: Vec<String> = outcome.failures.iter().map(ToString::to_string).collect();
            let failures = coded("network")(eyre!("{}", failures.join("\n  ")));
            return Err(left(ring, "the network failed", Some(&outcome), folder, failures));
        }
        if outcome.stopped && matches!(outcome.theta, Err(NoTheta::NothingSettled)) {
            return Ok(End::Stopped);
        }
        let written = match self.out.write(&outcome, &folder.path().join("dataset")) {
            Ok(written) => written,
            Err(error) => {
                return Err(left(ring, "the network's result could not be written", Some(&outcome), folder, error));
            }
        };
        if !is_json() {
            say!("{}", self.next_steps(ring, &outcome, written, &folder));
        }
        Ok(if outcome.stopped { End::Stopped } else { End::Done })
    }

    /// What can be done with the result.
    fn next_steps(&self, ring: Ring, outcome: &Outcome, model: Option<&Path>, folder: &Folder) -> String {
        let mut lines = vec!["\nNext:".to_owned()];
        match (model, folder) {
            (Some(model), _) => {
                let model = model.display();
                lines.push(format!("  the model is in {model}; try it: templar generate {model} --prompt \"The \""));
            }
            (None, Folder::Kept(folder)) => {
                lines.push(format!("  export the model: templar export {} --out DIR", folder.display()));
            }
            (None, Folder::Temporary(_)) => {
                lines.push(format!(
                    "  this model was not kept; to keep the next one: templar {} --out DIR",
                    ring.verb()
                ));
            }
        }
        match &self.rehearsal.report.report {
            Some(report) => lines.push(format!("  every window and node in figures: {}", report.display())),
            None => lines.push("  all figures of a run: --report FILE".to_owned()),
        }
        if let (Folder::Kept(_), true) = (folder, outcome.stopped) {
            lines.push(format!(
                "  resume with the same command: templar {} … --folder {}",
                ring.verb(),
                folder.path().display()
            ));
        }
        lines.join("\n")
    }
}

/// Adds to an error which files are left, and what they are good for.
fn left(ring: Ring, what: &str, outcome: Option<&Outcome>, folder: Folder, error: Failure) -> Failure {
    let folder = folder.keep();
    let (shown, verb) = (folder.display(), ring.verb());
    let mut advice = format!("{what}; its files are left in {shown}:\n  look into them, or remove them: rm -r {shown}");
    if outcome.is_some_and(|outcome| outcome.theta.is_ok()) {
        let _ = write!(
            advice,
            "\n  export the model and the report so far: templar export {shown} --out DIR --report FILE"
        );
    }
    if outcome.is_none_or(|outcome| !outcome.failures.is_empty()) && Definition::is_in(&folder) {
        let _ = write!(
            advice,
            "\n  once the cause is fixed, resume with templar {verb} and the same options, with --folder {shown}"
        );
    }
    error.wrap_err(advice)
}
