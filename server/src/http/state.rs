//! What the routes share: the model being served, once it is loaded, and the HTTP side's own state.

use super::error::ApiError;
use super::limits::HttpConfig;
use super::responses::store::ResponseStore;
use super::task::Task;
use crate::engine::{EngineHandle, Lane};
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::text::{TextStage, ToolFormat};
use models::{GenerationDefaults, TokenId};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// A loaded model, ready for requests.
pub struct Serving {
    pub text: TextStage,
    pub engine: EngineHandle,
    pub model: ServedModel,
}

/// What the endpoints must know of the model.
#[derive(Debug, Clone)]
pub struct ServedModel {
    /// At least one; the first answers where a request names none.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Prompt and answer together.
    pub max_model_len: usize,
    /// Ids from here on are padding: never sampled and refused in prompts.
    pub vocab_size: usize,
    pub eos_token_ids: Vec<TokenId>,
    pub generation: GenerationDefaults,
    /// How it calls tools; `None`: it cannot.
    pub tool_format: Option<ToolFormat>,
    pub thinking: ThinkingModel,
    pub task: Task,
}

/// Whether a model thinks before it answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ThinkingModel {
    #[default]
    No,
    Yes,
    /// And its chat template can tell it how much.
    TakesEffort,
}

impl ThinkingModel {
    pub fn of(text: &TextStage) -> ThinkingModel {
        match (text.has_reasoning(), text.takes_reasoning_effort()) {
            (false, _) => ThinkingModel::No,
            (true, false) => ThinkingModel::Yes,
            (true, true) => ThinkingModel::TakesEffort,
        }
    }
}

/// Empty while the model loads; filled once.
#[derive(Clone, Default)]
pub struct AppState {
    serving: Arc<OnceLock<Serving>>,
    jobs: Arc<OnceLock<Jobs>>,
}

impl AppState {
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on requests are served. Panics if called twice.
    pub fn set_serving(&self, serving: Serving) {
        assert!(!serving.model.names.is_empty(), "a served model has a name");
        assert!(self.serving.set(serving).is_ok(), "a model is loaded once");
        if let Some(jobs) = self.jobs.get() {
            jobs.look_again();
        }
    }

    pub fn serving(&self) -> Option<&Serving> {
        self.serving.get()
    }

    /// Files and batch jobs are served; without it they are not. Panics if called twice.
    pub fn set_jobs(&self, jobs: Jobs) {
        assert!(self.jobs.set(jobs).is_ok(), "jobs are opened once");
    }
}

/// What each handler gets.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
    lane: Lane,
}

pub struct Inner {
    pub config: HttpConfig,
    pub metrics: Metrics,
    pub responses: ResponseStore,
    state: AppState,
    draining: AtomicBool,
    body_bytes: AtomicUsize,
    /// The same of requests in the background, which take nobody's room.
    background_body_bytes: AtomicUsize,
}

impl std::ops::Deref for Context {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl Context {
    pub fn new(config: HttpConfig, state: AppState) -> Self {
        let inner = Inner {
            config,
            metrics: Metrics::new(),
            responses: ResponseStore::default(),
            state,
            draining: AtomicBool::new(false),
            body_bytes: AtomicUsize::new(0),
            background_body_bytes: AtomicUsize::new(0),
        };
        Self { inner: Arc::new(inner), lane: Lane::Interactive }
    }

    /// The same server, for requests that nobody waits for: all that is done with the result is
    /// done in the background.
    pub fn in_background(&self) -> Context {
        Context { inner: Arc::clone(&self.inner), lane: Lane::Background }
    }

    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Errors: still loading.
    pub fn serving(&self) -> Result<&Serving, ApiError> {
        self.state.serving().ok_or(ApiError::Loading)
    }

    /// Errors: this server does no batch jobs.
    pub fn jobs(&self) -> Result<&Jobs, ApiError> {
        self.state.jobs.get().ok_or(ApiError::JobsOff)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// New requests are refused from now on, running ones end normally.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        if let Some(serving) = self.state.serving() {
            serving.engine.drain();
        }
    }

    /// Counts a body's bytes as long as the result lives. Errors: too many of them in flight.
    pub fn reserve_body(&self) -> BodyReservation {
        BodyReservation { context: self.clone(), bytes: 0 }
    }

    pub fn retry_after_s(&self) -> u64 {
        self.config.retry_after.as_secs().max(1)
    }
}

/// A share of `bodies_bytes_max`.
pub struct BodyReservation {
    context: Context,
    bytes: usize,
}

impl BodyReservation {
    /// Errors: the bodies in flight would exceed `bodies_bytes_max`.
    pub fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let bytes_max = self.context.config.bodies_bytes_max;
        let before = self.counter().fetch_add(bytes, Ordering::AcqRel);
        self.bytes += bytes;
        if before + bytes > bytes_max {
            let retry_after_s = self.context.retry_after_s();
            return Err(ApiError::BodiesInFlight { bytes: before, bytes_max, retry_after_s });
        }
        Ok(())
    }
}

impl BodyReservation {
    fn counter(&self) -> &AtomicUsize {
        match self.context.lane {
            Lane::Interactive => &self.context.body_bytes,
            Lane::Background => &self.context.background_body_bytes,
        }
    }
}

impl Drop for BodyReservation {
    fn drop(&mut self) {
        self.counter().fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
