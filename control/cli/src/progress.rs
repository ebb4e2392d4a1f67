//! How far a command has come: a bar on a terminal, a line now and then elsewhere, nothing with --json or -q.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{self, Output};

/// The time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows how far a command has come.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    what: String,
    last_line: Instant,
    begun: Instant,
    total: u64,
    done: u64,
}

impl Progress {
    /// Begins to show `what`, of `total` bytes (0: not known yet).
    pub fn begin(output: &Output, what: &str, total: u64) -> Self {
        let shown = !output.quiet && !output.json;
        let bar = (shown && output.terminal).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            bar.set_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let now = Instant::now();
        let progress = Self {
            bar,
            lines: shown && !output.terminal,
            what: what.to_owned(),
            last_line: now,
            begun: now,
            total,
            done: 0,
        };
        progress.style();
        progress
    }

    fn style(&self) {
        let template = if self.total > 0 {
            "{prefix:>12} {bar:30} {decimal_bytes:>9} of {decimal_total_bytes} {decimal_bytes_per_sec:>12} {eta:>4} left {msg}"
        } else {
            "{prefix:>12} {spinner} {decimal_bytes:>9} {decimal_bytes_per_sec:>12} {msg}"
        };
        if let (Some(bar), Ok(style)) = (&self.bar, ProgressStyle::with_template(template)) {
            bar.set_style(style.progress_chars("=> "));
        }
    }

    /// What is happening now.
    pub fn phase(&mut self, what: &str) {
        self.what = what.to_owned();
        if let Some(bar) = &self.bar {
            bar.set_prefix(what.to_owned());
        }
    }

    /// The bytes in all are known now.
    pub fn total(&mut self, total: u64) {
        if total != self.total {
            let changed = (self.total > 0) != (total > 0);
            self.total = total;
            if let Some(bar) = &self.bar {
                bar.set_length(total);
            }
            if changed {
                self.style();
            }
        }
    }

    /// So many bytes are done; `message` says more where there is more to say.
    pub fn set(&mut self, done: u64, message: &str) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            if bar.message() != message {
                bar.set_message(message.to_owned());
            }
        }
        if self.lines && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let rate = done as f64 / self.begun.elapsed().as_secs_f64();
            let of =
                if self.total > 0 { format!(" of {}", output::bytes(self.total)) } else { String::new() };
            let message = if message.is_empty() { String::new() } else { format!(", {message}") };
            eprintln!(
                "{}: {}{of}, {}/s{message}",
                self.what,
                output::bytes(done),
                output::bytes(rate as u64)
            );
        }
    }

    /// So many bytes more are done.
    pub fn add(&mut self, bytes: u64) {
        self.set(self.done + bytes, "");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
