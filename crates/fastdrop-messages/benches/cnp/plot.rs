//! The figures as pictures.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use std::path::Path;

/// Apart for those who see red and green alike, too (Okabe and Ito).
const COLORS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// One picture.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    /// Whether each axis is logarithmic.
    pub(crate) log: (bool, bool),
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    /// Lines of one colour belong together.
    color: usize,
    /// What is computed is dashed, what was measured has marks.
    is_measured: bool,
}

impl Line {
    pub(crate) fn computed(color: usize, name: String, points: Vec<(f64, f64)>) -> Self {
        Self { name, points, color, is_measured: false }
    }

    pub(crate) fn measured(color: usize, name: String, points: Vec<(f64, f64)>) -> Self {
        Self { name, points, color, is_measured: true }
    }
}

/// Draws pictures one below the other.
pub(crate) fn draw(file: &Path, charts: &[Chart]) {
    let height = 420 * charts.len() as u32;
    let root = SVGBackend::new(file, (860, height)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    for (area, chart) in root.split_evenly((charts.len(), 1)).iter().zip(charts) {
        let points = || chart.lines.iter().flat_map(|line| &line.points);
        let bounds = |pick: fn(&(f64, f64)) -> f64, log: bool| {
            let low = points().map(pick).fold(f64::INFINITY, f64::min);
            let high = points().map(pick).fold(0.0, f64::max);
            if log { low / 1.2..high * 1.2 } else { 0.0..high * 1.05 }
        };
        let (x, y) = (bounds(|point| point.0, chart.log.0), bounds(|point| point.1, chart.log.1));
        match chart.log {
            (true, true) => draw_chart(area, chart, x.log_scale(), y.log_scale()),
            _ => draw_chart(area, chart, x, y),
        }
    }
    root.present().unwrap();
}

fn draw_chart<X, Y>(area: &DrawingArea<SVGBackend<'_>, Shift>, chart: &Chart, x: X, y: Y)
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut context = ChartBuilder::on(area)
        .caption(&chart.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(38)
        .y_label_area_size(64)
        .right_y_label_area_size(0)
        .build_cartesian_2d(x, y)
        .unwrap();
    context
        .configure_mesh()
        .x_desc(&chart.x)
        .y_desc(&chart.y)
        .light_line_style(WHITE)
        .label_style(("sans-serif", 13))
        .draw()
        .unwrap();
    for line in &chart.lines {
        let color = COLORS[line.color % COLORS.len()];
        let style = color.stroke_width(if line.is_measured { 2 } else { 1 });
        let points = || line.points.iter().copied();
        let drawn = if line.is_measured {
            context.draw_series(points().map(|point| Circle::new(point, 3, color.filled()))).unwrap();
            context.draw_series(LineSeries::new(points(), style)).unwrap()
        } else {
            context.draw_series(DashedLineSeries::new(points(), 6, 4, style)).unwrap()
        };
        drawn.label(&line.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    context
        .configure_series_labels()
        .position(if chart.log.0 {
            SeriesLabelPosition::LowerRight
        } else {
            SeriesLabelPosition::MiddleRight
        })
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()
        .unwrap();
}
