//! The command line; the only place from which the process exits.

use std::io::Write;
use std::process::ExitCode;

use pgusher::cli::{self, Cli, Task};
use pgusher::{boot, inspect};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Cli::Print(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Cli::Fail(text) => {
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
        Cli::Run(options) if options.task != Task::Serve => {
            let answer = inspect::answer(&options);
            let _ = std::io::stdout().write_all(answer.out.as_bytes());
            let _ = std::io::stderr().write_all(answer.err.as_bytes());
            if answer.good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Cli::Run(options) => match boot::run(&options) {
            Ok(()) => {
                // Workers are in their loops; they end with the process, and nobody waits for them.
                std::process::exit(0);
            }
            Err(boot::NotStarted) => ExitCode::FAILURE,
        },
    }
}
