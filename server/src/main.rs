//! The program `monsoon`: reads what was asked for, runs it, and alone picks the exit code: 0 done,
//! 1 failed while running, 2 the operator must act (a flag, a file, a model).

use server::commands::serve::processes::{self, Place};
use server::commands::{CommandError, StartupError, batch, bench, chat, doctor, pull, serve};
use server::config::{self, Command, ConfigError, Environment, ServeConfig};
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
    let command = config::parse(std::env::args_os(), env);
    let command = command.map_err(|error| CommandError::Startup(error.into()))?;
    match command {
        Command::Serve(config) => run_serve(*config, env)?,
        Command::Chat(config) => run_async(chat::run(config))?,
        Command::Bench(config) => run_async(bench::run(*config))?,
        Command::Batch(config) => run_async(batch::run(*config))?,
        Command::Pull(config) => pull::run(config)?,
        Command::Doctor(config) => doctor::run(config, env)?,
    }
    Ok(())
}

/// One process of several, or the only one.
fn run_serve(config: ServeConfig, env: &Environment) -> anyhow::Result<()> {
    let joined = processes::join(&config, env).map_err(CommandError::Startup);
    let (membership, place) = joined?;
    let result = match place {
        Place::Alone => run_async(serve::run(config, None)),
        Place::Leader(others) => run_async(serve::run(config, Some(others))),
        Place::Follower(others) => run_async(serve::follow::run(config, others)),
    };
    match result {
        Ok(()) => membership.leave(),
        Err(_) => membership.abandon(),
    }
    result
}

fn run_async(work: impl Future<Output = Result<(), CommandError>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // Not waited for: a thread that still reads standard input or loads a model ends with the
    // process.
    runtime.shutdown_background();
    Ok(result?)
}

fn report(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<CommandError>() {
        // Help and version are errors to clap, but not to the user: they go to standard output,
        // with exit code 0.
        Some(CommandError::Startup(StartupError::Config(ConfigError::Usage(usage)))) => {
            let _ = usage.print();
            ExitCode::from(usage.exit_code() as u8)
        }
        Some(CommandError::Startup(startup)) => {
            eprintln!("error: {startup}");
            ExitCode::from(EXIT_STARTUP)
        }
        _ => {
            // Messages name their causes themselves.
            eprintln!("error: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
