//! A chart of a run over time, as SVG.

use std::fmt::Write;

/// One curve with its own scale.
pub struct Panel {
    pub title: String,
    /// By second.
    pub values: Vec<f64>,
    /// What the top of the scale means.
    pub top: f64,
    pub unit: &'static str,
}

/// A stretch of time with a name.
pub struct Phase {
    pub name: &'static str,
    pub from: usize,
    pub to: usize,
}

/// All panels below one another, with the phases as bands behind them.
pub fn svg(heading: &str, phases: &[Phase], panels: &[Panel]) -> String {
    let seconds = panels.iter().map(|panel| panel.values.len()).max().unwrap_or(1).max(1);
    let x = |second: usize| LEFT + second as f64 * WIDTH / seconds as f64;
    let height = TOP + panels.len() as f64 * (PANEL + GAP) + GAP;
    let total = LEFT + WIDTH + LEFT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{total}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{heading}</text>\n"
    );
    for (index, phase) in phases.iter().enumerate() {
        let (from, to) = (x(phase.from), x(phase.to));
        let fill = ["#f2f4f7", "#fff"][index % 2];
        let _ = writeln!(
            out,
            "<rect x=\"{from:.1}\" y=\"36\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>\
             <text x=\"{:.1}\" y=\"50\" fill=\"#667\">{}</text>",
            to - from,
            height - 36.0 - GAP,
            from + 4.0,
            phase.name
        );
    }
    for (index, panel) in panels.iter().enumerate() {
        let bottom = TOP + index as f64 * (PANEL + GAP) + PANEL;
        let y = |value: f64| bottom - (value / panel.top).clamp(0.0, 1.0) * (PANEL - 20.0);
        let points: Vec<String> = panel
            .values
            .iter()
            .enumerate()
            .map(|(second, value)| format!("{:.1},{:.1}", x(second) + WIDTH / seconds as f64 / 2.0, y(*value)))
            .collect();
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#667\">{}{}</text>\
             <text x=\"{:.1}\" y=\"{bottom:.1}\" text-anchor=\"end\" fill=\"#667\">0</text>\
             <line x1=\"{LEFT}\" y1=\"{bottom:.1}\" x2=\"{:.1}\" y2=\"{bottom:.1}\" stroke=\"#99a\"/>\
             <polyline fill=\"none\" stroke=\"#1f6feb\" stroke-width=\"1.5\" points=\"{}\"/>",
            LEFT + 4.0,
            bottom - PANEL + 12.0,
            panel.title,
            LEFT - 6.0,
            bottom - PANEL + 24.0,
            panel.top,
            panel.unit,
            LEFT - 6.0,
            LEFT + WIDTH,
            points.join(" ")
        );
    }
    for second in (0..=seconds).step_by((seconds / 10).max(1)) {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#667\">{second} s</text>",
            x(second),
            height - 8.0
        );
    }
    out + "</svg>\n"
}

const LEFT: f64 = 70.0;
const WIDTH: f64 = 760.0;
const TOP: f64 = 60.0;
const PANEL: f64 = 110.0;
const GAP: f64 = 24.0;
