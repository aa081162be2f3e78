//! What a person sees on a terminal: one live line, then a summary that fits the screen.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use nix::pty::{Winsize, openpty};

use crate::support::command::CommandLine;
use crate::support::files::Folder;
use crate::support::repaired::demo;

const SIZE: (u16, u16) = (24, 80);

/// What the real binary writes to a terminal of 24 lines of 80 columns, colours and movements and
/// all.
fn on_terminal(folder: &Folder, line: &CommandLine) -> Vec<u8> {
    let size = Winsize { ws_row: SIZE.0, ws_col: SIZE.1, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).expect("a terminal");
    let end = |fd: &OwnedFd| fd.try_clone().expect("another end");
    // Bars are not drawn in CI, and this test looks at one.
    let mut command = line.clone().env_remove("CI").env("TERM", "xterm-256color").command();
    command.current_dir(folder.root());
    let mut child = command
        .stdin(end(&pty.slave))
        .stdout(end(&pty.slave))
        .stderr(pty.slave)
        .spawn()
        .expect("runs");
    // The command holds ends of its own. While they are open, reading does not end.
    drop(command);
    let (mut master, mut written, mut part) = (File::from(pty.master), Vec::new(), [0; 4096]);
    // Where the other end is closed, Linux gives an error.
    while let Ok(n @ 1..) = master.read(&mut part) {
        written.extend(&part[..n]);
    }
    assert!(child.wait().expect("ends").success(), "{}", String::from_utf8_lossy(&written));
    written
}

/// The rows of a screen on which this was written.
fn screen(written: &[u8]) -> Vec<String> {
    let mut parser = vt100::Parser::new(SIZE.0, SIZE.1, 0);
    parser.process(written);
    parser.screen().rows(0, SIZE.1).map(|row| row.trim_end().to_owned()).collect()
}

#[test]
fn a_terminal_shows_one_live_line_and_then_a_summary_that_fits() {
    // All parameters: more of the model than the summary has room for.
    let line = demo("out").and("--method dapt+kl --max-steps 3");
    let written = on_terminal(&Folder::new(), &line);
    let find = |bytes: &[u8]| written.windows(bytes.len()).position(|w| w == bytes).expect("drawn");
    // Up to the carriage return that begins the next drawing, this is what stands there.
    let until_the_next = |from: usize| {
        from + written[from..].iter().position(|byte| *byte == b'\r').expect("drawn again")
    };
    let drawn = until_the_next(find(b" 2/3 "));
    let rows = screen(&written[..drawn]);
    let live: Vec<&String> = rows.iter().filter(|row| row.contains("loss")).collect();
    assert_eq!(live.len(), 1, "{rows:#?}");
    for words in ["repair ", " 2/3 ", "left", "block all loss ", " NLL ", " KL "] {
        assert!(live[0].contains(words), "{words:?} is not in {:?}", live[0]);
    }
    let last = rows.iter().rfind(|row| !row.is_empty());
    assert_eq!(last, Some(live[0]), "something stands below the live line");
    // Before the first step nothing is known of the time left.
    let rows = screen(&written[..until_the_next(find(b" 0/3 "))]);
    let live = rows.iter().find(|row| row.contains(" 0/3")).expect("a live line");
    assert!(!live.contains("left"), "{live}");
    // At the end the line is gone, and the whole summary is to be seen.
    let rows = screen(&written);
    let said = rows.join("\n");
    let begins = rows.iter().any(|row| row.trim_start().starts_with("before "));
    assert!(begins, "the summary is longer than a screen:\n{said}");
    for words in [
        "toxic, greedy (%)",
        "and 4 more, each by ",
        "6 of 6 blocks",
        "3 steps",
        "undo: irepair patch",
        "next: irepair",
    ] {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    assert!(!said.contains("s left "), "{said}");
}
