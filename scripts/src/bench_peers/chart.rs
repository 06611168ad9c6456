//! How many times better than each peer, as bars in an SVG.

use super::peers::Peer;
use super::scenarios::SCENARIOS;
use super::{Run, ratio};
use anyhow::{Result, ensure};
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LABEL_WIDTH: f64 = 190.0;
const BAR_HEIGHT: f64 = 18.0;
const ROW_HEIGHT: f64 = 26.0;
const TOP: f64 = 44.0;
/// Room for the number at a bar's end.
const NUMBER_WIDTH: f64 = 60.0;

pub fn write(peers: &[Peer], runs: &[Run]) -> Result<String> {
    let mut rows = Vec::new();
    for scenario in &SCENARIOS {
        for peer in &peers[1..] {
            let measure = scenario.measures[0];
            if let Some(times) = ratio(runs, scenario, measure, peer.name) {
                let measure = measure.replace('_', " ");
                rows.push((format!("{} ({measure})", scenario.name), peer.name, times));
            }
        }
    }
    let most = rows.iter().map(|(_, _, times)| *times).fold(1.0, f64::max);
    ensure!(most.is_finite(), "a ratio is infinite");
    let scale = (WIDTH - LABEL_WIDTH - NUMBER_WIDTH) / most;
    let height = TOP + rows.len() as f64 * ROW_HEIGHT + 16.0;
    let mut out = String::new();
    let size = format!("viewBox=\"0 0 {WIDTH} {height}\"");
    let font = r#"font-family="sans-serif" font-size="12""#;
    writeln!(out, r#"<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>"#)?;
    writeln!(out, r#"<rect width="{WIDTH}" height="{height}" fill="white"/>"#)?;
    writeln!(
        out,
        r#"<text x="8" y="20" font-size="14">How many times better (1 = as good)</text>"#
    )?;
    for (index, (label, peer, times)) in rows.iter().enumerate() {
        let y = TOP + index as f64 * ROW_HEIGHT;
        let (text_y, width) = (y + BAR_HEIGHT * 0.75, times * scale);
        let colour = if *times >= 1.0 { "#1f6f8b" } else { "#b3541e" };
        writeln!(out, r#"<text x="8" y="{text_y:.1}">{label}</text>"#)?;
        let place = format!(r#"x="{LABEL_WIDTH}" y="{y:.1}" width="{width:.1}""#);
        writeln!(out, r#"<rect {place} height="{BAR_HEIGHT}" fill="{colour}"/>"#)?;
        let x = LABEL_WIDTH + width + 6.0;
        writeln!(out, r#"<text x="{x:.1}" y="{text_y:.1}">{times:.2} {peer}</text>"#)?;
    }
    let (x, bottom) = (LABEL_WIDTH + scale, height - 8.0);
    writeln!(out, r#"<path d="M{x:.1} 34V{bottom:.1}" stroke="black" stroke-dasharray="3 3"/>"#)?;
    writeln!(out, "</svg>")?;
    Ok(out)
}
