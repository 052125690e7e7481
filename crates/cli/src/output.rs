//! What a person or a program reads: results on standard output, status, logs and errors on standard error.

use std::{
    error::Error,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use network::ClientError;
use serde::Serialize;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Shortest time between two lines of status where nobody watches a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Status of a command that failed because the hub did not answer.
const HUB_AWAY: u8 = 3;
/// Longest text of a stranger that is shown on one line.
const STRANGE_CHARACTERS_MAX: usize = 300;

/// Whether results are for people or for programs.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    /// One JSON document, or one JSON line an event.
    pub(crate) json: bool,
}

impl Output {
    /// Prints a result: the value as JSON, or the text.
    pub(crate) fn result<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        print(&if self.json {
            serde_json::to_string_pretty(value)?
        } else {
            text()
        })
    }

    /// Prints one event of many: the value as one line of JSON, or the text.
    pub(crate) fn event<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        print(&if self.json {
            serde_json::to_string(value)?
        } else {
            text()
        })
    }
}

/// Prints a text and a line's end to standard output. A reader that has gone (`| head`) is no failure of ours.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}

/// Prints an error once, with its causes and what to do, and gives the exit status.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    let mut text = format!("athome: {}", printable_lines(&format!("{error:#}")));
    if let Some(advice) = advice(error) {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{advice}");
    }
    // Without standard error there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
    match client_error(error) {
        Some(error) if error.is_temporary() => ExitCode::from(HUB_AWAY),
        _ => ExitCode::FAILURE,
    }
}

/// What a person can do about an error whose own words don't say it.
fn advice(error: &anyhow::Error) -> Option<String> {
    match client_error(error)? {
        ClientError::Unreachable { address, .. } => Some(format!(
            "Is a hub running at {address}? `athome hub` starts one; --hub or ATHOME_HUB names another."
        )),
        ClientError::Address { .. } => Some(
            "Give the hub's address as http://HOST:PORT, for example http://127.0.0.1:7700."
                .to_owned(),
        ),
        ClientError::Refused { code, .. } if code == "not_operator" => Some(
            "Run this on the hub's machine, or give the operator's token in ATHOME_OPERATOR_TOKEN."
                .to_owned(),
        ),
        ClientError::Refused { status: 404, .. } => {
            Some("`athome run list` shows the runs of this hub.".to_owned())
        }
        ClientError::Refused { .. } => None,
        ClientError::Malformed { .. } | ClientError::TooLong { .. } => {
            Some("Is it a hub of the same version that answers there?".to_owned())
        }
    }
}

/// The call to a hub that failed, wherever it stands in the chain.
fn client_error(error: &anyhow::Error) -> Option<&ClientError> {
    error
        .chain()
        .find_map(|cause: &(dyn Error + 'static)| cause.downcast_ref())
}

/// A stranger's text on one line, without the characters that would command a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|it| {
            if it.is_control() || is_invisible(it) {
                ' '
            } else {
                it
            }
        })
        .take(STRANGE_CHARACTERS_MAX)
        .collect();
    if line.len() < text.len() && text.chars().count() > STRANGE_CHARACTERS_MAX {
        line.push('…');
    }
    line
}

/// Like [`printable`], but whole and with its lines.
pub(crate) fn printable_lines(text: &str) -> String {
    text.chars()
        .map(|it| {
            if it != '\n' && (it.is_control() || is_invisible(it)) {
                ' '
            } else {
                it
            }
        })
        .collect()
}

/// Marks that turn the direction of writing, so that a line reads as another.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Rows under a heading, columns as wide as their widest cell; the last column is not padded.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut heading.iter().copied())];
    lines.extend(
        rows.iter()
            .map(|row| line(&mut row.iter().map(String::as_str))),
    );
    lines.join("\n")
}

/// All that is drawn on the terminal, so that logs don't tear it.
fn drawn() -> &'static MultiProgress {
    static DRAWN: OnceLock<MultiProgress> = OnceLock::new();
    DRAWN.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
}

/// One line that says how things stand: redrawn on a terminal, else printed when it has changed, not too often.
pub(crate) enum StatusLine {
    /// A terminal: the line is drawn again and again.
    Drawn(ProgressBar),
    /// No terminal: a thread prints the newest text whenever a line is due.
    Printed(mpsc::Sender<String>),
}

impl StatusLine {
    /// A status line on standard error.
    pub(crate) fn new() -> Self {
        if !io::stderr().is_terminal() {
            let (sender, texts) = mpsc::channel();
            thread::spawn(move || print_lines(&texts));
            return Self::Printed(sender);
        }
        let bar = drawn().add(ProgressBar::new_spinner());
        let style = ProgressStyle::with_template("{spinner} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::Drawn(bar)
    }

    /// Shows `text` until the next call.
    pub(crate) fn set(&mut self, text: &str) {
        let text = printable(text);
        match self {
            Self::Drawn(bar) => bar.set_message(text),
            // The thread lives as long as the sender.
            Self::Printed(sender) => drop(sender.send(text)),
        }
    }

    /// Shows `text` at once and keeps it on the screen.
    pub(crate) fn keep(&mut self, text: &str) {
        let text = printable(text);
        match self {
            Self::Drawn(bar) => bar.println(text),
            Self::Printed(_) => print_line(&text),
        }
    }

    /// Takes the line away.
    pub(crate) fn end(self) {}
}

/// Prints the newest of the texts every [`LINE_EVERY`], if it is another; ends when no more can come.
fn print_lines(texts: &mpsc::Receiver<String>) {
    let mut printed = String::new();
    let mut due = Instant::now() + LINE_EVERY;
    while let Ok(mut newest) = texts.recv() {
        loop {
            match texts.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(newer) => newest = newer,
                Err(mpsc::RecvTimeoutError::Timeout) => break,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
        if newest != printed {
            print_line(&newest);
            printed = newest;
        }
        due = Instant::now() + LINE_EVERY;
    }
}

fn print_line(text: &str) {
    // Without standard error there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if let Self::Drawn(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Sends logs to standard error; `filter` falls back on `default` where it can't be read.
pub(crate) fn start_logs(filter: Option<&str>, default: &str) {
    let (filter, complaint) = match filter.map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(default), Some(error)),
        None => (EnvFilter::new(default), None),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(BesideStatus)
        .init();
    if let Some(error) = complaint {
        tracing::warn!("the log filter can't be read, so {default} holds: {error}");
    }
}

/// Standard error, with the status line out of the way while a log line is written.
struct BesideStatus;

impl<'a> MakeWriter<'a> for BesideStatus {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for BesideStatus {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        drawn().suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, expected) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn a_strangers_text_cannot_command_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{202e}d"), "a [2Jb c d");
        assert_eq!(
            printable(&"x".repeat(400)).chars().count(),
            STRANGE_CHARACTERS_MAX + 1
        );
        assert_eq!(printable_lines("a\u{7}\nb"), "a \nb");
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["long".to_owned(), "2".to_owned()],
        ];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong  2");
    }
}
