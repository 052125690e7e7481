//! Asking for a password: hidden at a terminal, one line of standard input otherwise.

use std::io::{self, IsTerminal as _};

use anyhow::{Context as _, ensure};

/// The password for an address.
pub(super) fn ask(email: &str) -> anyhow::Result<String> {
    let stdin = io::stdin();
    let is_terminal = stdin.is_terminal();
    if is_terminal {
        super::eprint_line(&format!("Password of {email}, which is not shown:"))?;
    }
    let mut line = String::new();
    let read = if is_terminal {
        hidden(|| stdin.read_line(&mut line))
    } else {
        stdin.read_line(&mut line)
    };
    read.context("can't read the password")?;
    let password = line.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "no password was given");
    Ok(password.to_owned())
}

/// Reads while the terminal shows nothing of what is typed.
#[cfg(unix)]
fn hidden<T>(read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let outcome = read();
    tcsetattr(&stdin, OptionalActions::Flush, &before)?;
    outcome
}

/// Where terminals are another thing, what is typed is seen.
#[cfg(not(unix))]
fn hidden<T>(read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    read()
}
