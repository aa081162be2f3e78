//! A *command line* of irepair, as a user types it, and what came of running it.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A command line of the real binary, and the variables that it is given.
#[derive(Clone, Debug)]
pub struct CommandLine {
    words: Vec<OsString>,
    variables: Vec<(String, Option<OsString>)>,
}

/// The command line of these words, which spaces divide: `irepair("repair --max-steps 3 -q")`.
/// A value that may hold spaces itself is added by [`CommandLine::with`].
pub fn irepair(words: &str) -> CommandLine {
    // Normal text is kept between runs. What an earlier build left must not decide a test.
    let cache =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cache-{}", std::process::id()));
    CommandLine { words: Vec::new(), variables: Vec::new() }
        .and(words)
        .env("HF_HUB_OFFLINE", "1")
        .env("IREPAIR_CACHE", cache)
        // Repairs of tests are too short to mend anything. Tests of the verdict ask for its code.
        .env("IREPAIR_FAIL_ON", "nothing")
}

impl CommandLine {
    /// More words, which spaces divide.
    pub fn and(mut self, words: &str) -> Self {
        self.words.extend(words.split_whitespace().map(OsString::from));
        self
    }

    /// A flag and its value, whatever characters that holds.
    pub fn with(self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg(flag).arg(value)
    }

    /// One word, whatever characters it holds.
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().to_owned());
        self
    }

    /// The variable has this value.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    pub fn envs(self, variables: &[(&str, &str)]) -> Self {
        variables.iter().fold(self, |line, (name, value)| line.env(name, value))
    }

    /// The variable is not set.
    pub fn env_remove(mut self, name: &str) -> Self {
        self.variables.push((name.to_owned(), None));
        self
    }

    /// Not started yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_irepair"));
        command.args(&self.words);
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    pub fn run(&self) -> Output {
        self.command().output().expect("runs")
    }

    /// Runs in a shell that has done this before, such as `ulimit`.
    #[cfg(unix)]
    pub fn run_after(&self, script: &str) -> Output {
        let line = self.command();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{script}; exec \"$@\""), "sh"]);
        shell.arg(line.get_program()).args(line.get_args());
        for (name, value) in line.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.output().expect("runs")
    }

    /// A process that goes on by itself. It says nothing on stdout, and stderr is kept.
    pub fn start(&self) -> Child {
        self.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts")
    }

    /// Runs, goes well, and gives what it printed on stdout.
    #[track_caller]
    pub fn ok(&self) -> String {
        ok(&self.run())
    }

    /// Runs, goes well, and gives what it printed on stdout, read as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.ok()).expect("JSON alone on stdout")
    }

    /// Runs, goes well, and gives what it printed on stderr.
    #[track_caller]
    pub fn warns(&self) -> String {
        let output = self.run();
        ok(&output);
        stderr(&output)
    }

    /// Runs, ends with this exit code, and says these words. Gives all that it said on stderr.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) -> String {
        let error = ends(&self.run(), code);
        for word in words {
            assert!(error.contains(word), "{:?}: {word:?} is not in: {error}", self.words);
        }
        error
    }
}

/// What was printed on stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What was printed on stdout by a command that went well.
#[track_caller]
pub fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What was said on stderr by a command that ended with this exit code, and without a panic.
#[track_caller]
pub fn ends(output: &Output, code: i32) -> String {
    let error = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}
