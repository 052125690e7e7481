//! The program that stock BOINC clients run: a worker whose hub is reached by the client alone, in files.
//!
//! The client starts the program with a folder of its own, the slot. There lies a signed unit ([`protocol::boinc`]); what is
//! to go back is one file. Key, carried state and the model of the last unit are kept in the project's folder, under
//! `athome`, because a slot lasts as long as one unit.
//!
//! Two processes do it. The one that the client started attends to the client ([`attend`]) and computes nothing; its child
//! computes ([`child`]) and talks to nobody but its parent, by lines. So "suspend" is a matter of stopping the child: it
//! uses no processor time whatever it is at, in the middle of a step or of a hash over the whole model.

mod attend;
mod channels;
mod child;
mod evaluate;
mod output;
mod prepare;
mod reins;
mod slot;
mod train;
mod unit;

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};

/// First argument of the computing process; its parent's process id follows.
const COMPUTE: &str = "compute";

/// Does what the client asks; `arguments` without the program's name.
#[must_use]
pub fn main(program: &Path, arguments: &[String]) -> ExitCode {
    let outcome = match arguments {
        [first, parent, rest @ ..] if first == COMPUTE => child::main(parent, rest),
        all => attend::main(program, all),
    };
    outcome.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}

/// What the client's command line says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Arguments {
    /// Threads to compute with.
    threads: Option<usize>,
}

impl Arguments {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        let mut left = arguments.iter();
        while let Some(argument) = left.next() {
            match argument.as_str() {
                "--nthreads" => {
                    let number = left.next().context("--nthreads needs a number")?;
                    let number = number.parse().ok().filter(|it| *it > 0);
                    parsed.threads =
                        Some(number.context("--nthreads needs a number greater than 0")?);
                }
                // A variant of the application for one core is started with arguments for none.
                "" => {}
                other => bail!("the argument {other:?} is not known"),
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
