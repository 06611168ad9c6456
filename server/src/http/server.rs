//! Accepts connections and ends them: the limits on heads, time and number that lie below routing.

use super::limits::{BACKLOG, HttpConfig};
use super::router::{router, without_prefix};
use super::rows::RowRouter;
use super::stall::StallGuard;
use super::state::{AppState, Context};
use crate::jobs::runner::run as run_jobs;
use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tower::ServiceExt;

/// hyper reads this much more of a head than the configured limits before it closes the connection
/// without a word: in between a client gets a proper 431.
const HEAD_SLACK: usize = 4;
/// The least buffer that hyper takes.
const HEAD_BYTES_MIN: usize = 8192;
/// Pause after a failed accept; the cause, as a rule, is that the process is out of file handles.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every answer was completed.
    All,
    /// `drain_timeout` passed; so many connections were cut.
    Cut { connections: usize },
}

/// Serves until `shutdown` is ready, then refuses new requests and waits for running answers.
///
/// The state may be filled later: until then everything but /health, /metrics, /version and
/// /openapi.json answers 503.
pub async fn serve(
    listener: TcpListener,
    config: HttpConfig,
    state: AppState,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let drain_timeout = config.drain_timeout;
    let places = Arc::new(Semaphore::new(config.connections_max));
    let context = Context::new(config, state);
    let router = router(context.clone());
    // Ends with this function: what it was doing is done after the next start.
    let mut job_runner = JoinSet::new();
    if let Ok(jobs) = context.jobs() {
        let rows = RowRouter::new(context.in_background());
        job_runner.spawn(run_jobs(jobs.clone(), Arc::new(rows)));
    }
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (stream, place) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept(&listener, &places) => accepted,
        };
        while connections.try_join_next().is_some() {}
        let connection = connection(&context.config, &router, stream);
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            // What ends a connection early is the client's affair: it went away or stalled.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    job_runner.shutdown().await;
    context.drain();
    match tokio::time::timeout(drain_timeout, graceful.shutdown()).await {
        Ok(()) => Drained::All,
        Err(_) => {
            while connections.try_join_next().is_some() {}
            Drained::Cut { connections: connections.len() }
        }
    }
}

/// The next connection, once there is a place for it.
/// Listens with room for a burst: where the system's own default is small, a client that finds the
/// backlog full waits a second before it tries again.
///
/// Errors: the address is taken, or not of this machine.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A port of a server that has just ended is not taken.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it the events of a stream would wait for each other.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "set_nodelay failed");
                }
                return (stream, place);
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

fn connection(
    config: &HttpConfig,
    router: &Router,
    stream: TcpStream,
) -> http1::Connection<
    TokioIo<StallGuard<TcpStream>>,
    impl hyper::service::HttpService<
        hyper::body::Incoming,
        ResBody = Body,
        Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        Future: Send,
    > + use<>,
> {
    let service =
        router.clone().map_request(|mut request: hyper::Request<hyper::body::Incoming>| {
            *request.uri_mut() = without_prefix(std::mem::take(request.uri_mut()));
            request.map(Body::new)
        });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_headers(config.headers_max * HEAD_SLACK)
        .max_buf_size((config.header_bytes_max * HEAD_SLACK).max(HEAD_BYTES_MIN))
        .serve_connection(
            TokioIo::new(StallGuard::new(stream, config.write_timeout)),
            TowerToHyperService::new(service),
        )
}
