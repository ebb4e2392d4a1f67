//! A line chart as SVG: a few curves over the same named points.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 4] = ["#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad"];

/// A curve: its name, and a value from 0 to 1 (larger ones are cut) for each point.
pub struct Curve {
    /// What the legend says.
    pub name: String,
    /// One for each point.
    pub values: Vec<f64>,
}

/// Writes `benches/results/NAME.svg`.
pub fn write(name: &str, title: &str, axis: &str, points: &[String], curves: &[Curve]) -> anyhow::Result<()> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("results");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(format!("{name}.svg")), svg(title, axis, points, curves)?)?;
    Ok(())
}

fn svg(title: &str, axis: &str, points: &[String], curves: &[Curve]) -> Result<String, std::fmt::Error> {
    let x = |at: usize| LEFT + (WIDTH - LEFT - RIGHT) * at as f64 / (points.len().max(2) - 1) as f64;
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value.clamp(0.0, 1.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{title}</text>\n"
    );
    for step in 0..=5 {
        let value = f64::from(step) / 5.0;
        let (at, to) = (y(value), WIDTH - RIGHT);
        writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{to}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.1}</text>",
            LEFT - 8.0,
            at + 4.0
        )?;
    }
    for (at, point) in points.iter().enumerate() {
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{point}</text>",
            x(at),
            HEIGHT - BOTTOM + 18.0
        )?;
    }
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    writeln!(out, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{axis}</text>", HEIGHT - 10.0)?;
    for (number, curve) in curves.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let line: Vec<String> = curve
            .values
            .iter()
            .enumerate()
            .map(|(at, value)| format!("{:.1},{:.1}", x(at), y(*value)))
            .collect();
        writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        )?;
        for point in &line {
            let (cx, cy) = point.split_once(',').unwrap_or_default();
            writeln!(out, "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"3\" fill=\"{colour}\"/>")?;
        }
        let (at, down) = (WIDTH - RIGHT + 12.0, TOP + 20.0 * number as f64);
        writeln!(
            out,
            "<path d=\"M{at} {down}h18\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{}\" y=\"{}\">{}</text>",
            at + 24.0,
            down + 4.0,
            curve.name
        )?;
    }
    out.push_str("</svg>\n");
    Ok(out)
}
