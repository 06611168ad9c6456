//! `monsoon serve`: binds the port first, answers 503 while the model loads, then serves until a
//! signal or until the device is lost.

pub mod processes;
pub mod load;
pub mod device;
pub mod follow;
pub mod memory;
mod task;
pub mod summary;
pub mod jobs;
mod keys;
mod timing;

use super::{CommandError, StartupError};
use crate::config::{
    ListenConfig, LogConfig, LogFormat, LogLevel, ServeConfig, UnknownFieldsChoice, WebPageChoice,
};
use crate::engine::{EngineHandle, RunnerError};
use crate::http::{self, AppState, Drained, HttpConfig, UnknownFields, WebPage};
use load::Loaded;
use processes::Others;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Answers about a lost device get so long to reach their clients.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(3);

/// An engine without requests ends at once; a request that was cut has one more step.
const ENGINE_END_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until SIGTERM or SIGINT, then lets running requests end. A second signal ends at once.
/// `others`: the processes of the other ranks, if there are any.
///
/// Errors: whatever keeps the server from starting; a lost device; a second signal.
pub async fn run(config: ServeConfig, others: Option<Others>) -> Result<(), CommandError> {
    let start = Instant::now();
    start_logging(&config.log);
    let mut signals = Signals::new()
        .map_err(|source| StartupError::Io { path: "signal handlers".into(), source })?;
    let (listener, address) = bind(&config)?;
    let state = AppState::new();
    if let Some(jobs) = jobs::open(&config)? {
        state.set_jobs(jobs);
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let http_config = http_config(&config);
    let _reloading = keys::reload_on_hangup(&config.listen, http_config.keys.clone())
        .map_err(|source| StartupError::Io { path: "signal handlers".into(), source })?;
    let mut http = tokio::spawn(http::serve(listener, http_config, state.clone(), async {
        // An error means that the sender is gone, which also ends serving.
        let _ = stopped.await;
    }));
    let is_leader = others.is_some();
    let loaded = tokio::select! {
        loaded = load_on_thread(config.clone(), others) => loaded?,
        () = signals.next() => match is_leader {
            // The other processes may be anywhere in their start.
            true => return Err(CommandError::StoppedEarly),
            // Nothing runs yet, so there is nothing to wait for.
            false => return Ok(()),
        },
    };
    let text = summary::summary(&config, &loaded, address, start.elapsed());
    let Loaded { serving, engine_thread, lost, watch, .. } = loaded;
    let engine = serving.engine.clone();
    if matches!(serving.model.task, http::Task::Generate) {
        serving.text.prepare_grammars();
    }
    state.set_serving(serving);
    // A closed standard output is no reason to stop serving.
    let _ = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush());
    let mut engine_end = watch_engine(engine_thread);
    tokio::select! {
        () = signals.next() => {}
        // Nobody told it to end, so something in it is broken.
        _ = &mut http => return Err(CommandError::HttpStopped),
        ended = &mut engine_end => {
            let _ = stop.send(());
            let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, http).await;
            return Ok(ended.expect("the watching thread always answers")?);
        }
        Ok(error) = lost => {
            // A step under way finds it out too, and then the engine answers its clients.
            let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, &mut engine_end).await;
            let _ = stop.send(());
            let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, http).await;
            return Err(error.into());
        }
    }
    if let Some(watch) = watch {
        watch.hurry();
    }
    tracing::info!(seconds = config.listen.drain_timeout.as_secs(), "draining");
    let _ = stop.send(());
    drain(http, &engine, &mut signals).await?;
    // The other ranks are told to end when the engine has.
    match tokio::time::timeout(ENGINE_END_TIMEOUT, engine_end).await {
        Ok(ended) => Ok(ended.expect("the watching thread always answers")?),
        Err(_) if is_leader => Err(CommandError::StoppedEarly),
        Err(_) => Ok(()),
    }
}

async fn drain(
    http: JoinHandle<Drained>,
    engine: &EngineHandle,
    signals: &mut Signals,
) -> Result<(), CommandError> {
    tokio::select! {
        drained = http => match drained {
            Ok(Drained::All) => tracing::info!("all requests ended, bye"),
            Ok(Drained::Cut { connections }) => {
                tracing::warn!(connections, "the time to drain is over, connections were cut")
            }
            Err(error) => tracing::error!(%error, "the HTTP side failed"),
        },
        () = signals.next() => {
            return Err(CommandError::Interrupted { running: engine.stats().running });
        }
    }
    Ok(())
}

fn bind(config: &ServeConfig) -> Result<(TcpListener, SocketAddr), StartupError> {
    let address = SocketAddr::new(config.listen.host, config.listen.port);
    let bind_error = |source| StartupError::Bind { address, source };
    let listener = http::listen(address).map_err(bind_error)?;
    let bound = listener.local_addr().map_err(bind_error)?;
    Ok((listener, bound))
}

pub fn web_page(config: &ListenConfig) -> WebPage {
    match config.web_page {
        WebPageChoice::Served => WebPage::Served,
        WebPageChoice::Absent => WebPage::Absent,
    }
}

pub(super) fn http_config(config: &ServeConfig) -> HttpConfig {
    let defaults = HttpConfig::default();
    // What the queue can never hold is refused for good, not with an invitation to retry.
    let keys = keys::ring(&config.listen);
    let waiting_max = match keys.num_keys() {
        0 | 1 => config.limits.waiting_requests_max,
        // The rest may be kept for other tenants.
        _ => config.limits.waiting_requests_max.div_ceil(2),
    };
    HttpConfig {
        choices_max: defaults.choices_max.min(waiting_max),
        sequences_max: defaults.sequences_max.min(waiting_max),
        keys,
        body_bytes_max: config.listen.body_bytes_max,
        drain_timeout: config.listen.drain_timeout,
        unknown_fields: match config.listen.unknown_fields {
            UnknownFieldsChoice::Ignored => UnknownFields::Ignored,
            UnknownFieldsChoice::Refused => UnknownFields::Refused,
        },
        web_page: web_page(&config.listen),
        ..defaults
    }
}

/// A plain thread, not one of the async runtime's: the process may end while it still works.
pub(super) async fn load_on_thread(
    config: ServeConfig,
    others: Option<Others>,
) -> Result<Loaded, StartupError> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        let _ = sender.send(load::load(&config, others));
    };
    std::thread::Builder::new()
        .name("loader".into())
        .spawn(work)
        .map_err(|source| StartupError::Io { path: "loader thread".into(), source })?;
    receiver.await.unwrap_or(Err(StartupError::LoaderPanicked))
}

pub(super) fn watch_engine(
    thread: crate::engine::EngineThread,
) -> oneshot::Receiver<Result<(), RunnerError>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = sender.send(thread.join());
    });
    receiver
}

pub(super) fn start_logging(config: &LogConfig) {
    let level = match config.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // An error means that a subscriber is set already, which is as good.
    let _ = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// SIGTERM and SIGINT; where there is no SIGTERM, Ctrl-C alone.
pub(super) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    pub(super) fn new() -> std::io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        let terminate = signal(SignalKind::terminate())?;
        Ok(Signals { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    #[cfg(unix)]
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    pub(super) fn new() -> std::io::Result<Signals> {
        Ok(Signals {})
    }

    #[cfg(not(unix))]
    pub(super) async fn next(&mut self) {
        // Without a handler for Ctrl-C the system ends the process, which is what is asked for.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
