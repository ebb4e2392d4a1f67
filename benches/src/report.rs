//! Rows: one figure each, with what it was held against.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// What was measured beside it in the same run, with its own figure.
    pub against: String,
    /// How many times better than that (more is better, whatever the unit).
    pub ratio: Option<f64>,
    /// The ratio (or, without one, the value) that it must reach; none is information only.
    pub bar: Option<f64>,
    /// Where we mean to be.
    pub goal: Option<f64>,
    /// Whether it reaches its bar.
    pub ok: bool,
}

/// What a ratio must reach, and where we mean to be.
#[derive(Debug, Clone, Copy)]
pub struct Bars {
    /// Below this the row is not ok; none is information only.
    pub floor: Option<f64>,
    /// Where we mean to be.
    pub goal: Option<f64>,
}

impl Bars {
    /// Both.
    pub const fn new(floor: f64, goal: f64) -> Self {
        Self { floor: Some(floor), goal: Some(goal) }
    }
}

/// All rows of a run, printed as they come.
pub struct Report {
    rows: Vec<Row>,
    json: bool,
    only: Option<String>,
    notes: Vec<String>,
}

impl Report {
    /// An empty report; begins the table on standard output.
    pub fn new(json: bool, only: Option<String>) -> Self {
        if !json {
            println!("{}\n", crate::machine::describe());
            println!(
                "{:<52} {:>9} {:<6} {:>7} {:>6} {:>6}  against",
                "name", "value", "unit", "ratio", "bar", "goal"
            );
        }
        Self { rows: Vec::new(), json, only, notes: Vec::new() }
    }

    /// Whether rows of this name are asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// Something that a reader of the table must know (a tool that is missing).
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        eprintln!("note: {text}");
        self.notes.push(text);
    }

    /// Adds a row that is `ratio` times better than what was measured beside it.
    pub fn ratio(
        &mut self,
        name: &str,
        (value, unit): (f64, &'static str),
        against: String,
        ratio: f64,
        bars: Bars,
    ) {
        let Bars { floor: bar, goal } = bars;
        let ok = bar.is_none_or(|bar| ratio >= bar);
        let (name, unit) = (name.to_owned(), unit.to_owned());
        self.push(Row { name, value, unit, against, ratio: Some(ratio), bar, goal, ok });
    }

    /// Adds a row whose value must be at most `bar`.
    pub fn at_most(&mut self, name: &str, value: f64, unit: &'static str, bar: f64, goal: f64) {
        let ok = value <= bar;
        let row = Row {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            against: "an absolute bound".to_owned(),
            ratio: None,
            bar: Some(bar),
            goal: Some(goal),
            ok,
        };
        self.push(row);
    }

    /// Adds a row that is information only.
    pub fn stated(&mut self, name: &str, value: f64, unit: &'static str) {
        let (against, ratio, bar, goal) = ("stated".to_owned(), None, None, None);
        let (name, unit) = (name.to_owned(), unit.to_owned());
        self.push(Row { name, value, unit, against, ratio, bar, goal, ok: true });
    }

    /// Adds a row.
    pub fn push(&mut self, row: Row) {
        if self.json {
            println!("{}", serde_json::to_string(&row).expect("numbers and texts"));
        } else {
            println!("{}", line(&row));
        }
        self.rows.push(row);
    }

    /// Whether every row reaches its bar.
    pub fn all_ok(&self) -> bool {
        self.rows.iter().all(|row| row.ok)
    }

    /// Writes `benches/results/AREA.md`; not where nothing was measured.
    pub fn write(&self, area: &str) -> anyhow::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("results");
        fs::create_dir_all(&dir)?;
        let mut text = format!(
            "# {area}\n\nMade by `cargo run --release -p velo-benches -- {area}` on {}.\n\nMachine: {}.\n\nA ratio says how many times better than what stands beside it; both were measured in this run.\n\n",
            crate::machine::today(),
            crate::machine::describe(),
        );
        text.push_str("| what | value | unit | against | ratio | floor | goal | ok |\n|---|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let number =
                |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
            writeln!(
                text,
                "| {} | {:.3} | {} | {} | {} | {} | {} | {} |",
                row.name,
                row.value,
                row.unit,
                row.against,
                number(row.ratio),
                number(row.bar),
                number(row.goal),
                if row.ok { "yes" } else { "**no**" }
            )?;
        }
        if !self.notes.is_empty() {
            text.push_str("\nNotes:\n");
            self.notes.iter().try_for_each(|note| writeln!(text, "- {note}"))?;
        }
        fs::write(dir.join(format!("{area}.md")), text)?;
        Ok(())
    }
}

fn line(row: &Row) -> String {
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
    format!(
        "{:<52} {:>9.3} {:<6} {:>7} {:>6} {:>6}  {}{}",
        row.name,
        row.value,
        row.unit,
        number(row.ratio),
        number(row.bar),
        number(row.goal),
        row.against,
        if row.ok { "" } else { "  ** MISSED **" }
    )
}
