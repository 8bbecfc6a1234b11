//! Plots loss over the outer rate, one line per rule, and the formats' curves.

use std::path::Path;

use plotters::prelude::*;

use crate::quality::row::{Figures, Row};

/// Why no plot was drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the plot {path}: {why}")]
pub struct PlotError {
    path: String,
    why: String,
}

/// Draws lines (a name, and points) into an SVG file.
pub fn plot(path: &Path, title: &str, x: &str, lines: &[(String, Vec<(f64, f64)>)]) -> Result<(), PlotError> {
    draw(path, title, x, lines).map_err(|error| PlotError { path: path.display().to_string(), why: error.to_string() })
}

fn draw(
    path: &Path,
    title: &str,
    x: &str,
    lines: &[(String, Vec<(f64, f64)>)],
) -> Result<(), Box<dyn std::error::Error>> {
    if lines.is_empty() {
        return Err("every run diverged".into());
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let range = |get: fn(&(f64, f64)) -> f64| {
        let least = points().map(get).fold(f64::MAX, f64::min);
        let most = points().map(get).fold(f64::MIN, f64::max);
        let margin = 0.05 * (most - least).max(1e-9);
        least - margin..most + margin
    };
    let area = SVGBackend::new(path, (760, 460)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(range(|point| point.0), range(|point| point.1))?;
    chart.configure_mesh().x_desc(x).y_desc("held-out loss, nats per token").draw()?;
    for (index, (name, points)) in lines.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
        chart.draw_series(line)?.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

/// The lines of the rules' plot: one per format and rule.
pub fn by_rate(rows: &[Row]) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for row in rows {
        let Some(figures) = &row.figures else { continue };
        let name = format!("{}, {}", row.format, row.rule);
        match lines.iter_mut().find(|(line, _)| *line == name) {
            Some((_, points)) => points.push((row.rate, figures.loss)),
            None => lines.push((name, vec![(row.rate, figures.loss)])),
        }
    }
    lines
}

/// The lines of the formats' plot: the loss after each quarter of the run.
pub fn by_quarter(rows: &[Row]) -> Vec<(String, Vec<(f64, f64)>)> {
    let curve =
        |figures: &Figures| figures.curve.iter().enumerate().map(|(at, &loss)| ((at + 1) as f64, loss)).collect();
    rows.iter().filter_map(|row| Some((row.format.to_string(), curve(row.figures.as_ref()?)))).collect()
}
