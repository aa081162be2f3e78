//! *Progress* on stderr: a bar on a terminal, elsewhere a line now and then, nothing with
//! `--quiet`.

use crate::say;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};

use super::plain::{message, plain_line};

/// The bars of [`Progress::note`]: several may be there at the same time.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Whether somebody looks at stderr.
pub fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Writes the rate and the time left, or nothing before the first step.
fn pace(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    let rate = state.per_sec();
    let written = match rate {
        0.0 => Ok(()),
        1.0.. => write!(out, "{rate:.1}/s, {:#} left", HumanDuration(state.eta())),
        _ => write!(out, "{:.1} s each, {:#} left", 1.0 / rate, HumanDuration(state.eta())),
    };
    // Writing to a string doesn't fail.
    debug_assert!(written.is_ok());
}

/// The words for the time left, if each of `more` steps takes as long as the `made` ones did in the
/// mean, with all that was done between them.
fn left(spent: Duration, made: u32, more: usize) -> String {
    let seconds = spent.as_secs_f64() / f64::from(made.max(1)) * more as f64;
    match more {
        0 => String::new(),
        _ => format!(
            ", {:#} left",
            HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        ),
    }
}

/// A bar that knows what was done before, so that its rate counts only what is done from now on.
fn hidden(done: usize, total: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::hidden());
    let bar = bar.with_position(done as u64);
    bar.tick();
    bar.reset_eta();
    bar
}

/// Progress of one piece of work.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    every: usize,
    valid: Option<f64>,
    pieces: Pieces,
    begun: Instant,
    /// Steps made since `begun`.
    made: u32,
}

/// Work that is counted in pieces instead of steps.
struct Pieces {
    what: String,
    done: usize,
    total: usize,
    said: Instant,
}

/// The time between two lines about work in pieces.
const SILENCE: Duration = Duration::from_secs(10);

impl Progress {
    /// Progress of `total` steps of `what`; `done` of them were made before.
    pub fn new(what: &str, done: usize, total: usize, quiet: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal() && std::env::var_os("CI").is_none();
        let bar = (on_terminal && !quiet).then(|| {
            let bar = hidden(done, total).with_prefix(plain_line(what).into_owned());
            bar.set_draw_target(ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(
                "{prefix} {wide_bar:.cyan/blue} {pos}/{len} {pace}  {msg}",
            );
            bar.set_style(
                style.unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("pace", pace),
            );
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let pieces =
            Pieces { what: plain_line(what).into_owned(), done, total, said: Instant::now() };
        Self {
            bar,
            quiet,
            every: (total / 20).clamp(1, 100),
            valid: None,
            pieces,
            begun: Instant::now(),
            made: 0,
        }
    }

    /// Progress of something that runs elsewhere and is told of by [`Self::say`].
    pub fn note(what: &str, quiet: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal() && std::env::var_os("CI").is_none();
        let bar = (on_terminal && !quiet).then(|| {
            let bar = BARS
                .get_or_init(MultiProgress::new)
                .add(ProgressBar::new_spinner().with_prefix(plain_line(what).into_owned()));
            let style = "{prefix} {elapsed}  {wide_msg}";
            bar.set_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let pieces =
            Pieces { what: plain_line(what).into_owned(), done: 0, total: 0, said: Instant::now() };
        Self { bar, quiet, every: 1, valid: None, pieces, begun: Instant::now(), made: 0 }
    }

    /// Shows a line about it.
    pub fn say(&mut self, what: &str, line: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(plain_line(line).into_owned()),
            None if !self.quiet => say!("{what}: {line}"),
            None => {}
        }
    }

    /// Shows that step `step` of `total` was made in `seconds`, with its `figures`.
    pub fn step(&mut self, step: usize, total: usize, seconds: f64, figures: &str) {
        let valid = self.valid.map_or(String::new(), |v| format!(" valid {v:.4}"));
        let message = format!("{figures}{valid}");
        self.made += 1;
        match &self.bar {
            Some(bar) => {
                bar.set_position(step as u64);
                bar.set_message(message);
            }
            None if !self.quiet && (step.is_multiple_of(self.every) || step == total) => {
                let left = left(self.begun.elapsed(), self.made, total.saturating_sub(step));
                say!("step {step}/{total}: {message} ({seconds:.2} s a step{left})");
            }
            None => {}
        }
    }

    /// Shows what was done before the first step. The time of the steps counts from here.
    pub fn before_steps(&mut self, text: String) {
        self.begun = Instant::now();
        match &self.bar {
            Some(bar) => {
                bar.println(message(&text));
                bar.reset_eta();
            }
            None if !self.quiet => say!("{text}"),
            None => {}
        }
    }

    /// Keeps the loss on the held-back rows, which the next steps show.
    pub fn validation(&mut self, loss: f64) {
        self.valid = Some(loss);
    }

    /// Shows that `n` more pieces are done.
    pub fn advance(&mut self, n: usize) {
        let pieces = &mut self.pieces;
        pieces.done += n;
        match &self.bar {
            Some(bar) => bar.inc(n as u64),
            None if !self.quiet && pieces.said.elapsed() >= SILENCE => {
                pieces.said = Instant::now();
                let done = pieces.done.min(pieces.total);
                say!("{}: {done} of {}", pieces.what, pieces.total);
            }
            None => {}
        }
    }

    /// Shows on a bar what is being done between two steps.
    pub fn doing(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(plain_line(what).into_owned());
        }
    }

    /// Clears the bar for other lines; it is drawn again at the next step.
    pub fn suspend(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message("");
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_of_steps_made_here() {
        assert_eq!(left(Duration::from_secs(30), 10, 60), ", 3m left");
        assert_eq!(left(Duration::from_secs(30), 10, 0), "");
        let bar = hidden(5000, 8000);
        std::thread::sleep(Duration::from_millis(20));
        assert!(bar.per_sec() < 1.0);
        bar.set_position(5001);
        assert!(bar.per_sec() < 60.0, "{}", bar.per_sec());
    }
}
