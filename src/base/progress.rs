//! Progress on stderr: a bar on a terminal, a line every so many steps elsewhere, nothing with `--quiet`.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};

/// Of what runs elsewhere, perhaps several at a time.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Rate and time left, of which nothing is known before the first step.
fn pace(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    let rate = state.per_sec();
    let written = match rate {
        0.0 => Ok(()),
        1.0.. => write!(out, "{rate:.1}/s, {:#} left", HumanDuration(state.eta())),
        _ => write!(out, "{:.1} s each, {:#} left", 1.0 / rate, HumanDuration(state.eta())),
    };
    // Writing to the bar's own string does not fail.
    debug_assert!(written.is_ok());
}

/// Time left of some more steps, if each takes as long as those that were made, with all that is done between them.
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

/// A bar that has seen what was done before, so that its rate is of what is done from here on.
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
    parts: Parts,
    begun: Instant,
    /// Steps since then.
    made: u32,
}

/// Of work without steps.
struct Parts {
    what: String,
    done: usize,
    total: usize,
    said: Instant,
}

/// A line of work without steps is due after this long.
const SILENCE: Duration = Duration::from_secs(10);

impl Progress {
    /// `total` steps of `what`, of which `done` are made already.
    pub fn new(what: &str, done: usize, total: usize, quiet: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal() && std::env::var_os("CI").is_none();
        let bar = (on_terminal && !quiet).then(|| {
            let bar = hidden(done, total).with_prefix(what.to_owned());
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
        let parts = Parts { what: what.to_owned(), done, total, said: Instant::now() };
        Self {
            bar,
            quiet,
            every: (total / 20).clamp(1, 100),
            valid: None,
            parts,
            begun: Instant::now(),
            made: 0,
        }
    }

    /// A line at a time of something that runs elsewhere.
    pub fn note(what: &str, quiet: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal() && std::env::var_os("CI").is_none();
        let bar = (on_terminal && !quiet).then(|| {
            let bar = BARS
                .get_or_init(MultiProgress::new)
                .add(ProgressBar::new_spinner().with_prefix(what.to_owned()));
            let style = "{prefix} {elapsed}  {wide_msg}";
            bar.set_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let parts = Parts { what: what.to_owned(), done: 0, total: 0, said: Instant::now() };
        Self { bar, quiet, every: 1, valid: None, parts, begun: Instant::now(), made: 0 }
    }

    /// A line of it.
    pub fn say(&mut self, what: &str, line: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(line.to_owned()),
            None if !self.quiet => eprintln!("{what}: {line}"),
            None => {}
        }
    }

    /// Step `step` of `total` was made in `seconds`; `figures` tells of it.
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
                eprintln!("step {step}/{total}: {message} ({seconds:.2} s a step{left})");
            }
            None => {}
        }
    }

    /// Says what was done before the first step; the pace of steps is counted from here.
    pub fn before_steps(&mut self, text: String) {
        self.begun = Instant::now();
        match &self.bar {
            Some(bar) => {
                bar.println(text);
                bar.reset_eta();
            }
            None if !self.quiet => eprintln!("{text}"),
            None => {}
        }
    }

    /// The held-back rows were looked at.
    pub fn validation(&mut self, loss: f64) {
        self.valid = Some(loss);
    }

    /// `n` more pieces are done.
    pub fn advance(&mut self, n: usize) {
        let parts = &mut self.parts;
        parts.done += n;
        match &self.bar {
            Some(bar) => bar.inc(n as u64),
            None if !self.quiet && parts.said.elapsed() >= SILENCE => {
                parts.said = Instant::now();
                eprintln!("{}: {} of {}", parts.what, parts.done.min(parts.total), parts.total);
            }
            None => {}
        }
    }

    /// Clears the bar for other lines; it is drawn again at the next step.
    pub fn suspend(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message("");
        }
    }

    /// Takes the bar away.
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
