//! The queue between the engine and one client.

use super::handle::lock;
use super::request::Event;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// Events of a request beside its tokens: Started, PromptLogprobs, Pooled, and Finished or Failed.
const OTHER_EVENTS_MAX: usize = 4;

/// The engine's end of a `TokenStream`.
pub(super) struct EventSender(Arc<EventQueue>);

impl EventSender {
    pub fn new(queue: &Arc<EventQueue>) -> Self {
        Self(Arc::clone(queue))
    }

    /// Hands over events and wakes the client once. Returns whether the stream ended with them.
    pub fn send(&self, events: impl IntoIterator<Item = Event>) -> bool {
        let mut state = self.0.lock();
        for event in events {
            assert!(!state.has_ended, "nothing follows the last event");
            state.has_ended = matches!(event, Event::Finished { .. } | Event::Failed(_));
            state.events.push_back(event);
            state.num_sent += 1;
        }
        assert!(state.num_sent <= self.0.events_max, "a request has a bounded number of events");
        let has_ended = state.has_ended;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        has_ended
    }
}

/// Bounded by what a request can cause at all, so the engine never waits for a slow client.
pub(super) struct EventQueue {
    events_max: usize,
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    events: VecDeque<Event>,
    num_sent: usize,
    /// The last event was sent.
    has_ended: bool,
    waker: Option<Waker>,
}

impl EventQueue {
    pub fn new(max_new_tokens: usize) -> Self {
        let events_max = max_new_tokens.saturating_add(OTHER_EVENTS_MAX);
        Self { events_max, state: Mutex::default() }
    }

    pub fn try_pop(&self) -> Option<Event> {
        self.lock().events.pop_front()
    }

    /// Whether the last event was sent, taken or not.
    pub fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = self.lock();
        if let Some(event) = state.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if state.has_ended {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        lock(&self.state)
    }
}
