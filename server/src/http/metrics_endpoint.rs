//! GET /metrics, in the format that the scraper asks for.

use super::state::Context;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub async fn metrics(State(context): State<Context>, headers: HeaderMap) -> Response {
    let stats = context.serving().ok().map(|serving| serving.engine.stats());
    let jobs = match context.jobs() {
        // A database that does not answer costs its own metrics alone.
        Ok(jobs) => jobs.stats().await.ok(),
        Err(_) => None,
    };
    let (stats, jobs) = (stats.as_ref(), jobs.as_ref());
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        let text = context.metrics.encode_open_metrics(stats, jobs);
        return ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response();
    }
    let text = context.metrics.encode_prometheus(stats, jobs);
    ([(header::CONTENT_TYPE, PROMETHEUS)], text).into_response()
}
