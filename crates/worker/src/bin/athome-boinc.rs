//! `athome-boinc`: what stock BOINC clients run. Everything is in [`worker::boinc`].

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    // The client keeps what goes to standard error, and shows it to the project when the task ends.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match std::env::current_exe() {
        Ok(program) => worker::boinc::main(&program, &arguments),
        Err(error) => {
            tracing::error!("this program's file: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    ExitCode::FAILURE
}
