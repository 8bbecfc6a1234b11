//! `templar bench codec`.

use std::{fs, ops::RangeInclusive, path::PathBuf};

use clap::Args;
use color_eyre::eyre::{Result, WrapErr, eyre};
use indicatif::{ProgressBar, ProgressStyle};
use templar_bench::{
    codec::{self, Options, Row, Sample},
    peers::Text,
    quality::{self, Format},
};
use templar_model::presets::{self, Preset};
use templar_protocol::run::Transform;

use crate::end::End;
use crate::numbers::whole;
use crate::output::{is_json, say};

/// Parameters that can be measured with: some 16 bytes of memory each.
const PARAMS: RangeInclusive<u64> = 1..=1 << 36;

#[derive(Debug, Args)]
pub(crate) struct Codec {
    /// Parameters, made up of copies of a small trained model.
    #[arg(long, default_value_t = 16 << 20, value_parser = whole::<usize>(PARAMS))]
    params: usize,
    #[arg(long, default_value_t = 1, value_parser = whole::<u16>(1..=1024))]
    threads: u16,
    /// Measurements; the median counts.
    #[arg(long, default_value_t = 5, value_parser = whole::<u16>(1..=100))]
    repeats: u16,
    /// Instead: train a small model with every format and every outer rule, and compare the losses. Takes a while.
    #[arg(long)]
    quality: bool,
    /// Instead: train a model with two peers and measure how evenly the positions that they send are spread.
    #[arg(long, conflicts_with = "quality")]
    positions: bool,
    /// With --quality or --positions: the model; without it, one that is small enough for a hundred runs.
    #[arg(long)]
    preset: Option<String>,
    /// With --quality or --positions: windows of each run.
    #[arg(long, default_value_t = 40, value_parser = whole::<usize>(1..=10_000))]
    windows: usize,
    /// With --quality: runs of each kind, each with its own seed.
    #[arg(long, default_value_t = 3, value_parser = whole::<u64>(1..=1000))]
    seeds: u64,
    /// With --quality or --positions: a UTF-8 text to train on; without it, the built-in corpus.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// With --quality: only these formats, and no outer rules: one-bit, one-bit-dct, one-bit-dct-tiles, two-bit,
    /// unquantised, reference-2bit, dense.
    #[arg(long, value_name = "FORMAT", requires = "quality", value_delimiter = ',', value_parser = format)]
    formats: Vec<Format>,
    /// With --quality: a folder for two plots (SVG).
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

impl Codec {
    pub(crate) fn run(self) -> Result<End> {
        if self.quality {
            self.compare()?;
        } else if self.positions {
            self.look_at_positions()?;
        } else {
            self.measure()?;
        }
        Ok(End::Done)
    }

    fn small_preset(&self) -> Result<Preset> {
        self.preset.as_deref().map_or_else(|| Ok(quality::pico()), preset)
    }

    fn text(&self) -> Result<Text> {
        let Some(path) = &self.data else { return Ok(Text::built_in(4 << 20)) };
        Ok(Text::new(&fs::read_to_string(path).wrap_err_with(|| format!("reading {}", path.display()))?))
    }

    fn look_at_positions(&self) -> Result<()> {
        let preset = self.small_preset()?;
        let bar = ProgressBar::new(self.windows as u64);
        let costs = quality::position_costs(&preset, &self.text()?, self.windows, &|| bar.inc(1))?;
        bar.finish_and_clear();
        if is_json() {
            say!("{}", serde_json::to_string_pretty(&costs)?);
            return Ok(());
        }
        say!("| window | bound | rows and columns known | whole payload | sent before | sent by another |");
        say!("|---|---|---|---|---|---|");
        for (window, cost) in (1..).zip(&costs).skip(1) {
            say!(
                "| {window} | {:.3} | {:.3} | {:.3} | {:.1} % | {:.1} % |",
                cost.bound_bits,
                cost.rows_and_columns_bits,
                cost.payload_bits,
                100.0 * cost.repeated_share,
                100.0 * cost.shared_share,
            );
        }
        Ok(())
    }

    fn measure(&self) -> Result<()> {
        let preset = preset("nano")?;
        eprintln!("training {} for two windows, 20 peers, for pseudo-gradients to encode", preset.name);
        let sample = Sample::train(&preset)?;
        let options =
            Options { params: self.params, threads: usize::from(self.threads), repeats: usize::from(self.repeats) };
        let rows = codec::measure(&sample, &options);
        if is_json() {
            say!("{}", serde_json::to_string_pretty(&rows)?);
        } else {
            print_speed(&rows);
        }
        Ok(())
    }

    fn compare(&self) -> Result<()> {
        let options = quality::Options {
            preset: self.small_preset()?,
            peers: 4,
            windows: self.windows,
            seeds: (1..=self.seeds.max(1)).collect(),
        };
        let text = self.text()?;
        let (formats, rules) = match &self.formats[..] {
            [] => (quality::format_arms(&Format::ALL), quality::rule_arms()),
            some => (quality::format_arms(some), Vec::new()),
        };
        let bar = ProgressBar::new(((formats.len() + rules.len()) * options.seeds.len()) as u64);
        bar.set_style(ProgressStyle::with_template("run {pos}/{len} {bar:24} {elapsed_precise}, {eta} left")?);
        let done = || bar.inc(1);
        let formats = quality::measure(&formats, &text, &options, &done);
        let rules = quality::measure(&rules, &text, &options, &done);
        bar.finish_and_clear();
        if is_json() {
            let all = serde_json::json!({ "formats": formats, "rules": rules });
            say!("{}", serde_json::to_string_pretty(&all)?);
        } else {
            print_formats(&formats);
            if !rules.is_empty() {
                print_rules(&rules);
            }
            print_failures(formats.iter().chain(&rules));
        }
        // This comes last, so that a plot that cannot be drawn does not cost the figures.
        if let Some(folder) = &self.plots {
            fs::create_dir_all(folder).wrap_err_with(|| format!("making {}", folder.display()))?;
            if !rules.is_empty() {
                let by_rate = quality::by_rate(&rules);
                quality::plot(&folder.join("rules.svg"), "Outer rule and rate", "α, the outer rate", &by_rate)?;
            }
            let quarters = quality::by_quarter(&formats);
            quality::plot(&folder.join("formats.svg"), "Formats", "quarter of the run", &quarters)?;
        }
        Ok(())
    }
}

/// A format by its name in the JSON.
fn format(name: &str) -> Result<Format, String> {
    let names = |format: &Format| serde_json::to_value(format).ok().and_then(|name| name.as_str().map(str::to_owned));
    let known = || Format::ALL.iter().filter_map(names).collect::<Vec<_>>().join(", ");
    Format::ALL
        .into_iter()
        .find(|format| names(format).as_deref() == Some(name))
        .ok_or_else(|| format!("it is one of {}", known()))
}

fn preset(name: &str) -> Result<Preset> {
    presets::preset(name)
        .ok_or_else(|| eyre!("there is no preset {name:?}; choose one of {}", presets::names().join(", ")))
}

fn name(row: &Row) -> String {
    let format = serde_json::to_value(row.format).ok().and_then(|name| name.as_str().map(str::to_owned));
    let of = if row.transform == Transform::Dct { " of the DCT" } else { "" };
    format.unwrap_or_default() + of
}

fn print_speed(rows: &[Row]) {
    say!(
        "| format | bits/value | × below f32 | 1-D share | small tensors | encode M/s | GB/s | of copy | decode 20 M/s |"
    );
    say!("|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        say!(
            "| {} | {:.3} | {:.1} | {:.2} % | {:.2} % | {:.0} | {:.2} | {:.0} % | {:.0} |",
            name(row),
            row.bits_per_value,
            row.ratio_f32,
            100.0 * row.one_dimensional_share,
            100.0 * row.small_tensor_share,
            row.encode_params_per_s / 1e6,
            row.encode_gb_per_s,
            100.0 * row.encode_fraction_of_copy,
            row.decode20_params_per_s / 1e6,
        );
    }
    if let Some(row) = rows.first() {
        say!("\n{} parameters, {} threads, copy {:.1} GB/s", row.params, row.threads, row.copy_gb_per_s);
        say!("tensors below a chunk have {:.2} % of the parameters", 100.0 * row.small_tensor_params_share);
    }
}

fn print_formats(rows: &[quality::Row]) {
    say!("| format | divided by | α | loss | spread | relative error of what is kept | bits/value |");
    say!("|---|---|---|---|---|---|---|");
    for row in rows {
        let figures = row.figures.as_ref().map_or("diverged | – | – | –".to_owned(), |figures| {
            let quality::Figures { loss, spread, relative_error, bits_per_value, .. } = figures;
            format!("{loss:.4} | {spread:.4} | {relative_error:.4} | {bits_per_value:.2}")
        });
        say!("| {} | {} | {} | {figures} |", row.format, row.rule, row.rate);
    }
}

/// Why some runs have no figures.
fn print_failures<'a>(rows: impl Iterator<Item = &'a quality::Row>) {
    for row in rows {
        for why in &row.failures {
            say!("\n{}, {}, α = {}: {why}", row.format, row.rule, row.rate);
        }
    }
}

/// One line per rule, one column per rate.
fn print_rules(rows: &[quality::Row]) {
    let mut rates: Vec<f64> = rows.iter().map(|row| row.rate).collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    let head: Vec<String> = rates.iter().map(|rate| format!("α = {rate}")).collect();
    say!("\n| format, divided by | {} |", head.join(" | "));
    say!("|---|{}", "---|".repeat(rates.len()));
    let mut seen: Vec<String> = Vec::new();
    for row in rows {
        let name = format!("{}, {}", row.format, row.rule);
        if seen.contains(&name) {
            continue;
        }
        let same = |other: &&quality::Row| (other.format, other.rule) == (row.format, row.rule);
        let cell = |rate: &f64| {
            let cell = rows.iter().filter(same).find(|row| row.rate.total_cmp(rate).is_eq());
            cell.map_or("–".to_owned(), |row| match &row.figures {
                Some(figures) => format!("{:.4} ± {:.3}", figures.loss, figures.spread / 2.0),
                None => "diverged".to_owned(),
            })
        };
        say!("| {name} | {} |", rates.iter().map(cell).collect::<Vec<_>>().join(" | "));
        seen.push(name);
    }
}

#[cfg(test)]
mod tests {
    use templar_host::defaults;
    use templar_protocol::{
        hash::Hash32,
        run::{ChainSpec, CodecKind, DataSpec},
    };

    #[test]
    fn measures_what_new_runs_do() {
        let chain = ChainSpec { genesis: Hash32::of(b"g"), netuid: 3, start_block: 1000 };
        let data = DataSpec { manifest: Hash32::of(b"m"), seed: 1 };
        let nano = super::preset("nano").unwrap();
        let run = defaults::run_spec("t", &nano, chain, data, 1, defaults::mainnet_windows());
        assert_eq!(templar_bench::codec::spec(CodecKind::TopkSign), run.codec);
        assert_eq!(templar_bench::codec::outer(), run.outer);
    }
}
