//! A process that is under way: waiting for what it does, and ending it.

use std::process::{Child, Command};
use std::time::Duration;

use super::command::ends;

/// Waits until this holds, or until the process has ended.
pub fn until(child: &mut Child, mut holds: impl FnMut() -> bool) {
    while !holds() && !has_ended(child) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn has_ended(child: &mut Child) -> bool {
    child.try_wait().expect("wait").is_some()
}

/// Ends it at once: it can't save anything.
pub fn kill(child: &mut Child) {
    child.kill().expect("kill");
    child.wait().expect("wait");
}

/// Interrupts it as Ctrl-C in a terminal does, and gives what it said.
#[track_caller]
pub fn interrupt(child: Child) -> String {
    end_by(child, "-INT")
}

/// What a command says that a signal ends. Its exit code is that of an interrupt.
#[track_caller]
pub fn end_by(child: Child, signal: &str) -> String {
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(kill.expect("kill").success());
    ends(&child.wait_with_output().expect("ends"), 130)
}
