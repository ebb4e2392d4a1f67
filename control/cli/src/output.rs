//! What the user sees: text for people or one JSON object, and the words for numbers.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use serde::Serialize;
use serde_json::json;

/// How this run speaks.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// One JSON object instead of text.
    pub json: bool,
    /// Only what was asked for.
    pub quiet: bool,
    /// Whether standard error is a terminal.
    pub terminal: bool,
}

impl Output {
    /// As the flags say.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, terminal: std::io::stderr().is_terminal() }
    }

    /// The answer: `value` as JSON, or what `text` makes.
    pub fn answer(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        if self.json {
            return line(&serde_json::to_string(value)?);
        }
        let text = text();
        if text.is_empty() { Ok(()) } else { line(text.trim_end_matches('\n')) }
    }

    /// Something that the user may like to know, on standard error.
    pub fn note(&self, text: impl Display) {
        if !self.quiet && !self.json {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Something that the user should know, on standard error, also with -q.
    pub fn warn(&self, text: impl Display) {
        let _ = writeln!(std::io::stderr(), "warning: {text}");
    }

    /// Why it failed.
    pub fn failure(&self, error: &anyhow::Error, status: u8) {
        let message = format!("{error:#}");
        let _ = writeln!(std::io::stderr(), "error: {message}");
        if self.json {
            let _ = line(&json!({ "ok": false, "status": status, "error": message }).to_string());
        }
    }
}

/// One line on standard output. Where nobody reads any more (`velo ls | head`), the program has done what it should.
fn line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

/// `1.25 GB`: decimal units, as network speeds have.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// `1 file`, `20,000 files`.
pub fn count(number: u64, noun: &str) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{grouped} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `3.2 s`, `4 min 10 s`.
pub fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.2} s");
    }
    let whole = seconds as u64;
    match whole {
        ..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3600 % 24),
    }
}

/// ` (0.25 ms, 0.01 % lost)`: how a path does, where that is known.
pub fn link(rtt_us: Option<u64>, loss_ppm: Option<u64>) -> String {
    let rtt = rtt_us.map(|us| format!("{:.2} ms", us as f64 / 1000.0));
    let loss = loss_ppm.map(|ppm| format!("{:.2} % lost", ppm as f64 / 10_000.0));
    let known: Vec<_> = rtt.into_iter().chain(loss).collect();
    if known.is_empty() { String::new() } else { format!(" ({})", known.join(", ")) }
}

/// `2026-11-21 09:15:00` (UTC) of milliseconds since 1970.
pub fn date(ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").trim_end_matches('Z').to_owned()
}

/// Columns under headings; numbers (columns in `right`) are set to the right.
pub fn table(headings: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>| {
        let mut row = String::new();
        for (column, cell) in cells.enumerate() {
            let pad = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            if column > 0 {
                row.push_str("  ");
            }
            if right.contains(&column) {
                row.push_str(&pad);
                row.push_str(cell);
            } else {
                row.push_str(cell);
                row.push_str(&pad);
            }
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    push(&mut headings.iter().copied());
    for row in rows {
        push(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_words() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_250_000_000), "1.25 GB");
        assert_eq!(bytes(999_999), "1.00 MB");
        assert_eq!(bytes(123_400_000), "123 MB");
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(1_020_000, "file"), "1,020,000 files");
        assert_eq!(seconds(250.0), "4 min 10 s");
        assert_eq!(link(Some(250), Some(100)), " (0.25 ms, 0.01 % lost)");
        assert_eq!(link(None, None), "");
        assert_eq!(date(0), "1970-01-01 00:00:00");
    }

    #[test]
    fn columns_align() {
        let rows = [vec!["a".into(), "10".into()], vec!["bcd".into(), "2".into()]];
        assert_eq!(table(&["x", "n"], &[1], &rows), "x     n\na    10\nbcd   2\n");
    }
}
