//! A *child* is a command of this program that runs in a process of its own. What it says on stderr
//! is shown as progress.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::HumanDuration;

use crate::bail_input;
use crate::base::files;
use crate::base::interrupt;
use crate::base::progress::Progress;
use crate::model::device;
use crate::settings::SETTINGS;
use crate::train::state;

/// How a child ended.
pub enum Outcome {
    /// It did its work. The text is what it printed.
    Done(String),
    /// It failed. The text is its error.
    Failed(String),
    Interrupted,
}

/// Does `work` for every item, `at_once` of them at a time, and gives the results in the order of
/// the items. After an error nothing new is begun. If there are several errors, the one of the
/// first item is returned.
pub fn several<T: Sync, R: Send>(
    at_once: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done: Vec<Mutex<Option<Result<R>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(items.len()) {
            scope.spawn(|| {
                while !failed.load(Ordering::SeqCst) {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let (Some(item), Some(slot)) = (items.get(index), done.get(index)) else {
                        break;
                    };
                    let result = work(item);
                    failed.fetch_or(result.is_err(), Ordering::SeqCst);
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    let results =
        done.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
    // An item without a result was not begun, so it comes after one that failed.
    results.map_while(|result| result).collect()
}

/// Counts processes of one kind, and estimates how long those that are left will take.
pub struct Countdown {
    total: usize,
    at_once: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Processes that have begun or were not needed.
    begun: usize,
    /// Processes that have ended.
    ended: u32,
    /// The time that they took altogether.
    spent: Duration,
}

impl Countdown {
    /// A countdown for `total` processes, of which `at_once` run at a time.
    pub fn of(total: usize, at_once: usize) -> Self {
        Self { total, at_once, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a process that is not needed, because its result exists.
    pub fn pass(&self) {
        self.counts().begun += 1;
    }

    /// Runs the next process. `work` gets a title for its progress.
    pub fn run<R>(&self, name: &str, work: impl FnOnce(&str) -> R) -> R {
        let title = {
            let mut counts = self.counts();
            let rest = self.total.saturating_sub(counts.begun);
            let rest = rest.div_ceil(self.at_once.max(1)) as u32;
            let left = match counts.spent.checked_div(counts.ended) {
                Some(each) => format!(", about {} left", HumanDuration(each * rest)),
                None => String::new(),
            };
            counts.begun += 1;
            format!("{name} ({} of {}{left})", counts.begun, self.total)
        };
        let begun = Instant::now();
        let done = work(&title);
        let mut counts = self.counts();
        counts.ended += 1;
        counts.spent += begun.elapsed();
        done
    }
}

/// How many of the last lines of a process are searched for its error.
const END: usize = 50;

/// Why a process failed: the last line that names an error. If it names the place of a panic, the
/// next line belongs to it. If no line names an error, it is the last line.
fn reason(said: &VecDeque<String>) -> String {
    let panicked = |line: &str| line.contains("panicked");
    let at = said.iter().rposition(|line| line.starts_with("error:") || panicked(line));
    let at = at.unwrap_or(said.len().saturating_sub(1));
    let why = said.get(at).map_or("it said nothing", |line| line.trim_start_matches("error: "));
    match said.get(at + 1).filter(|_| panicked(why)) {
        Some(next) => format!("{why} {next}"),
        None => why.to_owned(),
    }
}

/// Whether there is an unfinished run of this folder with a state, which `--resume` can go on with.
pub fn has_state(out: &Path) -> bool {
    state::path(&files::partial(out).join("irepair")).is_file()
}

/// What children run on: devices, how many children at a time, and threads for each.
pub struct Machine {
    /// The names of the devices, and how many children run on each.
    devices: Vec<(String, AtomicUsize)>,
    /// How many children run at a time.
    pub at_once: usize,
    /// The threads that a child may use. `None` leaves the number to the child.
    threads: Option<usize>,
}

impl Machine {
    /// `devices`: a list of names. Without `jobs`, one child runs on each of them; without
    /// `threads`, children that run together share the cores. Errors (bad input) if a device can't
    /// be had, or `jobs` is 0.
    pub fn new(devices: &str, jobs: Option<usize>, threads: Option<usize>) -> Result<Self> {
        let devices: Vec<(String, AtomicUsize)> =
            device::several(devices)?.into_iter().map(|name| (name, AtomicUsize::new(0))).collect();
        let at_once = jobs.unwrap_or(devices.len());
        if at_once == 0 {
            bail_input!("--jobs 0: must be at least 1");
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = || (at_once > 1).then(|| (cores / at_once).max(1));
        Ok(Self { devices, at_once, threads: threads.or_else(shared) })
    }

    /// The device for work of this process itself.
    pub fn first(&self) -> &str {
        self.devices.first().map_or("cpu", |(name, _)| name)
    }

    /// A place on the device on which fewest children run.
    fn place(&self) -> Place<'_> {
        loop {
            let count = |(_, running): &&(String, AtomicUsize)| running.load(Ordering::SeqCst);
            let Some(least) = self.devices.iter().min_by_key(count) else {
                unreachable!("a list of names has at least one");
            };
            let (name, running) = least;
            let now = running.load(Ordering::SeqCst);
            // Another thread may have taken the same place in between.
            if running.compare_exchange(now, now + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return Place { device: name, running };
            }
        }
    }
}

/// A place of one child on a device, until it is dropped.
struct Place<'a> {
    device: &'a str,
    running: &'a AtomicUsize,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A child that is not started yet.
pub struct Child<'a> {
    title: &'a str,
    machine: &'a Machine,
    quiet: bool,
}

impl<'a> Child<'a> {
    pub fn new(title: &'a str, machine: &'a Machine, quiet: bool) -> Self {
        Self { title, machine, quiet }
    }

    /// Makes the repair that a file of settings describes, or goes on with it where it has a state.
    pub fn repair(&self, config: &Path, out: &Path) -> Result<Outcome> {
        let goes_on = if has_state(out) { "--resume" } else { "--overwrite" };
        let [config, out] = [config, out].map(|path| path.display().to_string());
        self.run(&["repair", "--config", &config, "--out", &out, goes_on])
    }

    /// Runs the command with these arguments to its end, on the device that has most room. An
    /// interrupt of this process is passed on, so that the child can save its state. Errors if the
    /// process can't be started or read.
    pub fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        let program = std::env::current_exe().context("where this program is")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let place = self.machine.place();
        command.args(["--device", place.device]);
        if let Some(threads) = self.machine.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        // The arguments hold all settings, also those that this process read from the environment.
        for setting in SETTINGS.iter() {
            command.env_remove(setting.variable());
        }
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            // Ctrl-C on the terminal reaches this process only, which passes it on.
            command.process_group(0);
        }
        ends_with_its_parent(&mut command);
        let mut child = command.spawn().context("starting a run")?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let printed = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.map(|mut s| s.read_to_string(&mut text)).transpose().map(|_| text)
        });
        let (send, lines) = channel();
        let said = std::thread::spawn(move || {
            for line in stderr
                .map(BufReader::new)
                .into_iter()
                .flat_map(BufRead::lines)
                .map_while(std::io::Result::ok)
            {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut progress = Progress::note(self.title, self.quiet);
        let (mut last, mut told) = (VecDeque::new(), false);
        loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    progress.say(self.title, &line);
                    if last.len() == END {
                        last.pop_front();
                    }
                    last.push_back(line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if interrupt::asked() && !told {
                told = true;
                interrupt(&mut child)?;
            }
        }
        progress.finish();
        let status = child.wait().context("waiting for a run")?;
        said.join().ok();
        let text = printed
            .join()
            .ok()
            .context("reading what a run printed")?
            .context("reading what a run printed")?;
        Ok(match status.code() {
            Some(0) => Outcome::Done(text),
            _ if interrupt::asked() => Outcome::Interrupted,
            Some(130) => Outcome::Interrupted,
            Some(_) => Outcome::Failed(reason(&last)),
            None => Outcome::Failed(format!(
                "it was killed ({status}); there may have been too little memory"
            )),
        })
    }
}

/// A run whose parent is killed would hold its folder, and the same task could not go on: it is
/// asked to end, and saves its state.
#[cfg(target_os = "linux")]
fn ends_with_its_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec nothing is called but prctl, which takes no lock and no memory.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn ends_with_its_parent(_: &mut Command) {}

#[cfg(unix)]
fn interrupt(child: &mut std::process::Child) -> Result<()> {
    // SAFETY: the process is ours and was not waited for, so its id can't belong to another one.
    unsafe {
        libc::kill(child.id() as libc::pid_t, libc::SIGINT);
    }
    Ok(())
}

#[cfg(not(unix))]
fn interrupt(child: &mut std::process::Child) -> Result<()> {
    child.kill().context("ending a run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_line_that_says_so() {
        let of = |lines: &[&str]| reason(&lines.iter().map(|line| (*line).to_owned()).collect());
        assert_eq!(of(&["step 1/4: block 3", "error: no memory", "  a hint"]), "no memory");
        let panic = [
            "thread 'main' panicked at a.rs:1:2:",
            "index out of bounds",
            "note: run with `RUST_BACKTRACE=1`",
        ];
        assert_eq!(of(&panic), "thread 'main' panicked at a.rs:1:2: index out of bounds");
        assert_eq!((of(&["one", "two"]).as_str(), of(&[]).as_str()), ("two", "it said nothing"));
    }

    #[test]
    fn children_spread_over_devices() {
        // Without GPUs both names mean the CPU, but they are two places.
        let machine = Machine::new("cpu, auto", None, None).expect("two devices");
        assert_eq!((machine.at_once, machine.first()), (2, "cpu"));
        let (first, second) = (machine.place(), machine.place());
        assert_eq!((first.device, second.device), ("cpu", "auto"));
        drop(second);
        assert_eq!(machine.place().device, "auto");
        let four = Machine::new("cpu,auto", Some(4), None).expect("two each");
        let places: Vec<Place> = (0..4).map(|_| four.place()).collect();
        assert_eq!(places.iter().filter(|place| place.device == "auto").count(), 2);
        for (list, why) in [("cpu,cpu", "given twice"), ("cpu,", "unknown"), ("tpu,cpu", "tpu")] {
            let error = Machine::new(list, None, None).map(|_| ()).expect_err(list).to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(Machine::new("cpu", Some(0), None).is_err());
    }

    #[test]
    fn several_at_a_time_in_order() {
        let items: Vec<u64> = (0..20).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // The first three wait for each other, so that they overlap on a slow machine, too.
        let together = std::sync::Barrier::new(3);
        let work = |item: &u64| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if *item < 3 {
                together.wait();
            }
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(item * item)
        };
        let squares = several(3, &items, work).expect("all done");
        assert_eq!(squares, items.iter().map(|i| i * i).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert!(several(3, &[], work).expect("nothing to do").is_empty());
    }

    #[test]
    fn after_a_failure_nothing_new_is_begun() {
        let begun = AtomicUsize::new(0);
        let items: Vec<u64> = (0..100).collect();
        let error = several(2, &items, |item| {
            begun.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            if *item >= 5 { Err(anyhow::anyhow!("item {item}")) } else { Ok(()) }
        });
        assert_eq!(error.expect_err("failed").to_string(), "item 5");
        assert!(begun.load(Ordering::SeqCst) <= 8);
    }
}
