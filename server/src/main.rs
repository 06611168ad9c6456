//! The program `monsoon`: reads what was asked for, runs it, and alone picks the exit code: 0 done, 1 failed while running,
//! 2 the operator must act (a flag, a file, a model).

use server::commands::{StartupError, doctor, pull};
use server::config::{self, Command, ConfigError, Environment};
use std::process::ExitCode;

const EXIT_FAILED: u8 = 1;
const EXIT_STARTUP: u8 = 2;

fn main() -> ExitCode {
    let env: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match run(&env) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(env: &Environment) -> anyhow::Result<()> {
    match config::parse(std::env::args_os(), env).map_err(StartupError::from)? {
        Command::Pull(config) => pull::run(config)?,
        Command::Doctor(config) => doctor::run(config, env)?,
        Command::Serve(_) | Command::Chat(_) | Command::Bench(_) => {}
    }
    Ok(())
}

fn report(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<StartupError>() {
        // Help and version are errors to clap, but not to the user: they go to standard output, with exit code 0.
        Some(StartupError::Config(ConfigError::Usage(usage))) => {
            let _ = usage.print();
            ExitCode::from(usage.exit_code() as u8)
        }
        Some(startup) => {
            eprintln!("error: {startup}");
            ExitCode::from(EXIT_STARTUP)
        }
        None => {
            eprintln!("error: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
