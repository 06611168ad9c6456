//! The engine thread seen from its handle, on a runner that counts: token n + 1 follows token n.

use super::*;
use crate::engine::plan::{ChunkOutput, Plan, StepOutput};
use crate::engine::runner::{Runner, RunnerError};
use crate::engine::{
    CacheSalt, EngineError, EngineThread, FinishReason, PolicyKind, PrefixCaching, SampledToken,
    SamplingParams, start,
};
use models::TokenId;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Computes a step for each message from the test; without it the step is under way.
struct CountingRunner {
    plan: Option<Plan>,
    permits: Receiver<Result<(), RunnerError>>,
}

impl Runner for CountingRunner {
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        self.plan = Some(plan.clone());
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        let reason = String::from("the test has ended");
        let ended = RunnerError::RankFailed { rank: 0, reason };
        self.permits.recv().unwrap_or(Err(ended))?;
        let plan = self.plan.take().expect("collect follows launch");
        let chunks = plan.chunks.iter().map(|chunk| ChunkOutput {
            sampled: chunk.sample.as_ref().map(|_| SampledToken {
                token: TokenId(chunk.token_ids.last().unwrap().0 + 1),
                logprobs: None,
            }),
            prompt_logprobs: Vec::new(),
        });
        Ok(StepOutput { chunks: chunks.collect() })
    }
}

type Permits = Sender<Result<(), RunnerError>>;

fn config() -> EngineConfig {
    EngineConfig {
        block_size: 4,
        num_blocks: 16,
        max_num_seqs: 2,
        max_num_batched_tokens: 16,
        max_model_len: 64,
        waiting_requests_max: 4,
        waiting_tokens_max: 40,
        policy: PolicyKind::Fcfs,
        prefix_caching: PrefixCaching::Enabled,
    }
}

fn start_engine() -> (EngineHandle, EngineThread, Permits) {
    let (permits, receiver) = channel();
    let (handle, thread) = start(config(), CountingRunner { plan: None, permits: receiver });
    (handle, thread, permits)
}

fn request(prompt: &[u32], max_new_tokens: usize) -> Request {
    Request {
        prompt: prompt.iter().copied().map(TokenId).collect(),
        sampling: SamplingParams { max_new_tokens, ..SamplingParams::default() },
        priority: 0,
        cache_salt: CacheSalt::default(),
    }
}

fn submit(handle: &EngineHandle, prompt: &[u32], max_new_tokens: usize) -> TokenStream {
    let mut admission = handle.admit(1, prompt.len()).unwrap();
    handle.submit(&mut admission, request(prompt, max_new_tokens)).unwrap()
}

fn allow_steps(permits: &Permits, num_steps: usize) {
    for _ in 0..num_steps {
        permits.send(Ok(())).unwrap();
    }
}

fn all_events(mut stream: TokenStream) -> Vec<Event> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event);
        }
        events
    })
}

fn tokens(events: &[Event]) -> Vec<u32> {
    let token = |event: &Event| match event {
        Event::Token(sampled) => Some(sampled.token.0),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

/// Waits for what another thread is about to do.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    panic!("never happened: {what}");
}

#[test]
fn a_stream_tells_start_tokens_and_end_in_order() {
    let (handle, thread, permits) = start_engine();
    allow_steps(&permits, 3);
    let events = all_events(submit(&handle, &[5, 6, 7], 3));
    assert_eq!(events[0], Event::Started { cached_tokens: 0 });
    assert_eq!(tokens(&events), [8, 9, 10]);
    assert_eq!(events[4], Event::Finished { reason: FinishReason::Length });
    assert_eq!(events.len(), 5);
    drop(handle);
    assert_eq!(thread.join(), Ok(()));
}
