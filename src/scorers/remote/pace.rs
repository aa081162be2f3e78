//! The *pace* of requests: a limit for each second, a time before which the server wants none, and
//! longer and longer pauses after failures. Waiting ends when the user asks to stop.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use crate::bail_input;
use crate::base::environment::variable;
use crate::base::error::Error;
use crate::base::interrupt;

/// The longest time that a server may ask us to wait. If it is longer, the request is given up.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The longest pause before a request is sent again, if the server names none.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

pub struct Pace {
    /// The time from one request to the next. Zero means no limit.
    gap: Duration,
    /// The length of the first pause, about. Each next one is twice as long.
    pause: Duration,
    gate: Mutex<Gate>,
}

struct Gate {
    /// When the limit of requests a second lets the next one go.
    next: Instant,
    /// When the server wants the next request at the earliest.
    held: Instant,
}

/// Whether a request may go.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    Now,
    /// The server wants no request for this time, which is longer than [`PATIENCE`].
    NotFor(Duration),
}

impl Pace {
    /// A pace of `per_second` requests. The pauses begin with `IREPAIR_RETRY_MS` milliseconds
    /// (1,000).
    pub fn new(per_second: Option<f64>) -> Result<Self> {
        let pause = match variable("IREPAIR_RETRY_MS") {
            None => Duration::from_secs(1),
            Some(text) => match text.trim().parse() {
                Ok(milliseconds) => Duration::from_millis(milliseconds),
                Err(_) => bail_input!("IREPAIR_RETRY_MS={text}: expected a number of milliseconds"),
            },
        };
        let gap = per_second.map_or(Duration::ZERO, |n| Duration::from_secs_f64(1.0 / n));
        let now = Instant::now();
        Ok(Self { gap, pause, gate: Mutex::new(Gate { next: now, held: now }) })
    }

    /// Waits until a request may go. Errors if the user asks to stop.
    pub fn turn(&self) -> Result<Turn> {
        loop {
            let wait = {
                let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                let held = gate.held.saturating_duration_since(now);
                if held > PATIENCE {
                    return Ok(Turn::NotFor(held));
                }
                let wait = held.max(gate.next.saturating_duration_since(now));
                if wait.is_zero() {
                    gate.next = now + self.gap;
                }
                wait
            };
            sleep(wait)?;
            if wait.is_zero() {
                return Ok(Turn::Now);
            }
        }
    }

    /// Holds every request back for this time, because the server wants it.
    pub fn hold(&self, time: Duration) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.held = gate.held.max(Instant::now() + time);
    }

    /// Waits before a request is sent again, after its `failures`-th failure. Errors if the user
    /// asks to stop.
    pub fn pause(&self, failures: u32) -> Result<()> {
        let nanoseconds = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .subsec_nanos();
        sleep(pause(self.pause, failures, f64::from(nanoseconds % 1_000_000) / 1e6))
    }
}

/// base · 2^(failures − 1), of which the upper half depends on `chance` (0 to 1), so that clients
/// don't all come back at the same moment.
fn pause(base: Duration, failures: u32, chance: f64) -> Duration {
    let doubled = base.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE).mul_f64(0.5 + 0.5 * chance)
}

/// The time in a `Retry-After`, which is in seconds or an HTTP date (RFC 9110, 10.2.3). At most a
/// day.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let time = match value.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            httpdate::parse_http_date(value.trim()).ok()?.duration_since(now).unwrap_or_default()
        }
    };
    Some(time.min(Duration::from_secs(86_400)))
}

/// Sleeps in short pieces, so that an interrupt is seen soon.
fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        if interrupt::asked() {
            return Err(Error::Interrupted(
                "interrupted while scoring; the answers so far are kept".into(),
            )
            .into());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let second = Duration::from_secs(1);
        let seconds = |failures, chance| pause(second, failures, chance).as_secs_f64();
        assert_eq!([1, 2, 3, 4].map(|n| seconds(n, 1.0)), [1.0, 2.0, 4.0, 8.0]);
        assert_eq!((seconds(3, 0.0), seconds(3, 0.5)), (2.0, 3.0));
        assert_eq!((seconds(40, 1.0), pause(Duration::MAX, 9, 1.0)), (60.0, LONGEST_PAUSE));
    }

    #[test]
    fn servers_name_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        let seconds = |value: &str| retry_after(value, now).map(|d| d.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds(" 0 "), Some(0));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:50:07 GMT"), Some(30));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0), "past");
        assert_eq!(seconds("18446744073709551615"), Some(86_400));
        assert_eq!((seconds("soon"), seconds("-1"), seconds("1.5")), (None, None, None));
    }

    #[test]
    fn a_server_that_wants_a_long_rest_is_not_waited_for() {
        let pace = Pace::new(None).expect("pace");
        assert_eq!(pace.turn().expect("turn"), Turn::Now);
        pace.hold(PATIENCE + Duration::from_secs(60));
        pace.hold(Duration::ZERO);
        assert!(matches!(pace.turn().expect("turn"), Turn::NotFor(time) if time > PATIENCE));
    }
}
