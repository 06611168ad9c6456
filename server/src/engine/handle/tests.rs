//! The engine thread seen from its handle, on a runner that counts: token n + 1 follows token n.

use super::*;
use crate::engine::plan::{ChunkOutput, LastStep, Plan, StepOutput};
use crate::engine::runner::{Runner, RunnerError};
use crate::engine::{
    CacheSalt, EngineError, EngineThread, FinishReason, Overlap, PolicyKind, PrefixCaching,
    SampledToken, SamplingParams, start,
};
use models::TokenId;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Computes a step for each message from the test; without it the step is under way.
struct CountingRunner {
    under_way: VecDeque<Plan>,
    last_step: LastStep,
    permits: Receiver<Result<(), RunnerError>>,
}

impl Runner for CountingRunner {
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        self.under_way.push_back(plan.clone());
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        let reason = String::from("the test has ended");
        let ended = RunnerError::RankFailed { rank: 0, reason };
        self.permits.recv().unwrap_or(Err(ended))?;
        let plan = self.under_way.pop_front().expect("collect follows launch");
        let chunks = plan.chunks.iter().map(|chunk| ChunkOutput {
            sampled: chunk.sample.as_ref().map(|_| SampledToken {
                token: TokenId(self.last_step.token_ids(chunk).last().unwrap().0 + 1),
                logprobs: None,
            }),
            prompt_logprobs: Vec::new(),
            pooled: None,
        });
        let output = StepOutput { chunks: chunks.collect() };
        self.last_step.remember(&plan, &output);
        Ok(output)
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
        double_cost_context: usize::MAX,
        waiting_requests_max: 4,
        waiting_tokens_max: 40,
        policy: PolicyKind::Fcfs,
        prefix_caching: PrefixCaching::Enabled,
        overlap: Overlap::Enabled,
    }
}

fn start_engine() -> (EngineHandle, EngineThread, Permits) {
    start_with(Overlap::Enabled)
}

fn start_with(overlap: Overlap) -> (EngineHandle, EngineThread, Permits) {
    let (sender, permits) = channel();
    let (under_way, last_step) = (VecDeque::new(), LastStep::default());
    let runner = CountingRunner { under_way, last_step, permits };
    let (handle, thread) = start(EngineConfig { overlap, ..config() }, runner);
    (handle, thread, sender)
}

fn request(prompt: &[u32], max_new_tokens: usize) -> Request {
    Request {
        prompt: prompt.iter().copied().map(TokenId).collect(),
        sampling: SamplingParams { max_new_tokens, ..SamplingParams::default() },
        pooling: None,
        priority: 0,
        lane: Lane::Interactive,
        tenant: Default::default(),
        cache_salt: CacheSalt::default(),
        constraint: None,
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

/// Until two requests run: the second may have come while the first's first step was under way.
fn run_both(handle: &EngineHandle, permits: &Permits) {
    allow_steps(permits, 1);
    eventually("two requests run", || handle.stats().started == 2);
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

#[test]
fn a_dropped_stream_frees_its_blocks_within_one_step() {
    let (handle, _thread, permits) = start_engine();
    let kept = submit(&handle, &[5, 6], 4);
    let dropped = submit(&handle, &[20, 21, 22, 23, 24, 25], 30);
    run_both(&handle, &permits);
    drop(dropped);
    allow_steps(&permits, 10);
    assert_eq!(tokens(&all_events(kept)), [7, 8, 9, 10]);
    eventually("the engine is idle", || handle.stats().running == 0);
    let stats = handle.stats();
    assert_eq!((stats.aborted, stats.finished_length), (1, 1));
    assert_eq!(stats.blocks_free, stats.blocks_total);
}

#[test]
fn a_stream_dropped_while_waiting_leaves_the_queue() {
    let (handle, _thread, permits) = start_engine();
    let running = [submit(&handle, &[1], 9), submit(&handle, &[2], 9)];
    run_both(&handle, &permits);
    let waiting = submit(&handle, &[3, 4, 5], 9);
    assert_eq!((handle.stats().waiting, handle.stats().waiting_tokens), (1, 3));
    drop(waiting);
    allow_steps(&permits, 1);
    eventually("its place is free", || handle.stats().waiting == 0);
    assert_eq!(handle.stats().waiting_tokens, 0);
    assert_eq!(handle.stats().started, 2);
    drop(running);
    allow_steps(&permits, 1);
    eventually("an idle engine sees drops too", || handle.stats().aborted == 3);
}

#[test]
fn places_are_reserved_all_or_none() {
    let (handle, _thread, _permits) = start_engine();
    let three = handle.admit(3, 10).unwrap();
    let full = Rejected::QueueFull { waiting: 3, waiting_max: 4 };
    assert_eq!(handle.admit(2, 1).err(), Some(full));
    let one = handle.admit(1, 30).unwrap();
    assert!(handle.admit(1, 0).is_err());
    drop(one);
    let too_many = Rejected::TooManyTokens { tokens: 41, tokens_max: 40 };
    assert_eq!(handle.admit(1, 31).err(), Some(too_many));
    drop(three);
    let stats = handle.stats();
    assert_eq!((stats.waiting, stats.waiting_tokens), (0, 0));
    assert_eq!((stats.rejected_queue_full, stats.rejected_too_many_tokens), (2, 1));
}

#[test]
fn no_tenant_can_take_the_places_that_are_kept_for_another() {
    let (handle, _thread, _permits) = start_engine();
    let tenant = |id, weight| Tenant { id: TenantId(id), weight, weights: 2 };
    let admit =
        |id, places, tokens| handle.admit_for(tenant(id, 1), Lane::Interactive, places, tokens);
    // One of the four places is kept for each, and ten of the 40 tokens.
    let of_first = admit(1, 3, 30).expect("its own place, and two for whoever comes first");
    let full = Rejected::QueueFull { waiting: 3, waiting_max: 3 };
    assert_eq!(admit(1, 1, 0).err(), Some(full));
    let of_second = admit(2, 1, 10).expect("its own");
    assert_eq!(
        admit(2, 1, 0).err(),
        Some(Rejected::QueueFull { waiting: 4, waiting_max: 4 }),
        "the common places are taken"
    );
    assert!(matches!(admit(2, 0, 1), Err(Rejected::TooManyTokens { tokens: 41, tokens_max: 40 })));
    assert_eq!((handle.stats().waiting, handle.stats().waiting_tokens), (4, 40));
    drop(of_first);
    let rest = admit(2, 2, 20).expect("the common places are free again");
    drop((of_second, rest));
    assert_eq!((handle.stats().waiting, handle.stats().waiting_tokens), (0, 0));
}

#[test]
fn the_real_prompt_length_takes_the_place_of_the_estimate() {
    let (handle, _thread, permits) = start_engine();
    let _running = [submit(&handle, &[1], 9), submit(&handle, &[2], 9)];
    run_both(&handle, &permits);
    let mut admission = handle.admit(2, 21).unwrap();
    let _short = handle.submit(&mut admission, request(&[1, 2, 3], 1)).unwrap();
    assert_eq!(handle.stats().waiting_tokens, 3 + 11);
    let too_long = handle.submit(&mut admission, request(&[7; 38], 1));
    let expected = Rejected::TooManyTokens { tokens: 41, tokens_max: 40 };
    assert_eq!(too_long.err(), Some(expected));
    assert_eq!((handle.stats().waiting, handle.stats().waiting_tokens), (1, 3));
}

#[test]
fn a_request_that_never_fits_fails_at_once() {
    let (handle, _thread, _permits) = start_engine();
    let mut admission = handle.admit(1, 0).unwrap();
    let stream = handle.submit(&mut admission, request(&[1; 65], 1)).unwrap();
    let error = EngineError::PromptTooLong { tokens: 65, tokens_max: 64 };
    assert_eq!(all_events(stream), [Event::Failed(error)]);
    assert_eq!(handle.stats().rejected_never_fits, 1);
    let small = EngineConfig { num_blocks: 3, ..config() };
    let error = EngineError::NeverFits { needed: 4, total: 3 };
    assert_eq!(small.check(&request(&[1; 8], 6)), Err(error));
    assert_eq!(small.check(&request(&[1; 8], 5)), Ok(()));
}

#[test]
fn a_lost_device_fails_all_requests_and_closes_the_door() {
    let (handle, thread, permits) = start_engine();
    let streams = [submit(&handle, &[1], 9), submit(&handle, &[2], 9), submit(&handle, &[3], 9)];
    let admission = handle.admit(1, 1).unwrap();
    let lost = RunnerError::RankFailed { rank: 0, reason: "unplugged".into() };
    permits.send(Err(lost.clone())).unwrap();
    assert_eq!(thread.join(), Err(lost.clone()));
    for stream in streams {
        let events = all_events(stream);
        assert_eq!(events, [Event::Failed(EngineError::DeviceLost(lost.to_string()))]);
    }
    assert_eq!(handle.health(), EngineHealth::Stopped { reason: lost.to_string() });
    assert_eq!(handle.admit(1, 1).err(), Some(Rejected::EngineStopped));
    drop(admission);
    assert_eq!(handle.stats().failed, 3);
}

#[test]
fn a_panic_in_the_engine_is_a_lost_device() {
    struct Panicking;
    impl Runner for Panicking {
        fn launch(&mut self, _plan: &Plan) -> Result<(), RunnerError> {
            panic!("broken invariant");
        }
        fn collect(&mut self) -> Result<StepOutput, RunnerError> {
            unreachable!("launch panics")
        }
    }
    let (handle, thread) = start(config(), Panicking);
    let events = all_events(submit(&handle, &[1], 9));
    let lost = RunnerError::EnginePanicked { reason: "broken invariant".into() };
    assert_eq!(events, [Event::Failed(EngineError::DeviceLost(lost.to_string()))]);
    assert_eq!(thread.join(), Err(lost));
    assert!(matches!(handle.health(), EngineHealth::Stopped { .. }));
}

#[test]
fn a_step_under_way_for_too_long_is_stuck() {
    let (handle, _thread, permits) = start_engine();
    let late = |handle: &EngineHandle, seconds| {
        handle.shared().health_at(Instant::now() + Duration::from_secs(seconds))
    };
    assert_eq!(late(&handle, 100), EngineHealth::Ok, "an idle engine is not stuck");
    let _stream = submit(&handle, &[1], 1);
    eventually("a step is under way", || handle.stats().running == 1);
    assert_eq!(handle.health(), EngineHealth::Ok);
    assert!(
        matches!(late(&handle, 9), EngineHealth::Stuck { step_age } if step_age > STEP_TIME_MAX)
    );
    permits.send(Ok(())).unwrap();
    eventually("the step has ended", || handle.stats().running == 0);
    assert_eq!(late(&handle, 100), EngineHealth::Ok);
}

#[test]
fn one_request_alone_overlaps_too() {
    for (overlap, num_launched) in [(Overlap::Disabled, 1), (Overlap::Enabled, 2)] {
        let (handle, _thread, permits) = start_with(overlap);
        let stream = submit(&handle, &[1], 3);
        eventually("the steps are launched", || handle.stats().steps == num_launched);
        assert_eq!(handle.stats().overlapped_steps, num_launched - 1);
        allow_steps(&permits, 3);
        assert_eq!(tokens(&all_events(stream)), [2, 3, 4]);
        let stats = handle.stats();
        assert_eq!((stats.steps, stats.wasted_tokens), (3, 0));
    }
}

#[test]
fn a_stop_is_told_while_the_step_ahead_is_under_way() {
    let (handle, thread, permits) = start_engine();
    let mut admission = handle.admit(1, 1).unwrap();
    let mut stopping = request(&[1], 9);
    stopping.sampling.stop_token_ids = vec![TokenId(3)];
    let stream = handle.submit(&mut admission, stopping).unwrap();
    allow_steps(&permits, 2);
    let events = all_events(stream);
    assert_eq!(tokens(&events), [2, 3]);
    assert_eq!(events.last(), Some(&Event::Finished { reason: FinishReason::Stop }));
    let stats = handle.stats();
    assert_eq!((stats.steps, stats.blocks_free), (3, stats.blocks_total));
    drop((handle, admission));
    allow_steps(&permits, 1);
    assert_eq!(thread.join(), Ok(()));
}

#[test]
fn each_of_two_steps_under_way_can_be_stuck() {
    let (handle, _thread, permits) = start_engine();
    let late = |seconds| handle.shared().health_at(Instant::now() + Duration::from_secs(seconds));
    let _stream = submit(&handle, &[1], 2);
    eventually("both steps are under way", || handle.stats().overlapped_steps == 1);
    assert_eq!(late(7), EngineHealth::Ok);
    assert!(matches!(late(9), EngineHealth::Stuck { .. }), "the first");
    allow_steps(&permits, 1);
    eventually("the first has ended", || handle.stats().generated_tokens == 1);
    assert_eq!(late(7), EngineHealth::Ok);
    eventually("the second is waited for", || matches!(late(9), EngineHealth::Stuck { .. }));
    allow_steps(&permits, 1);
    eventually("the second has ended", || handle.stats().running == 0);
    assert_eq!(late(100), EngineHealth::Ok);
}

#[test]
fn draining_refuses_new_requests_and_ends_what_was_admitted() {
    let (handle, thread, permits) = start_engine();
    let stream = submit(&handle, &[1], 3);
    let mut admission = handle.admit(2, 2).unwrap();
    handle.drain();
    assert_eq!(handle.admit(1, 1).err(), Some(Rejected::ShuttingDown));
    let admitted = handle.submit(&mut admission, request(&[11], 2)).unwrap();
    allow_steps(&permits, 20);
    assert_eq!(tokens(&all_events(stream)), [2, 3, 4]);
    assert_eq!(tokens(&all_events(admitted)), [12, 13]);
    assert!(!thread.is_finished(), "a place is still reserved");
    drop(admission);
    assert_eq!(thread.join(), Ok(()));
    assert_eq!(handle.admit(1, 1).err(), Some(Rejected::ShuttingDown));
}

#[test]
fn in_a_burst_each_request_is_answered_or_rejected() {
    let (handle, _thread, permits) = start_engine();
    let send = |first: u32| {
        let mut streams = Vec::new();
        for i in 0..25 {
            let prompt = [1000 * first + 10 * i];
            if let Ok(mut admission) = handle.admit(1, 1) {
                let stream = handle.submit(&mut admission, request(&prompt, 3)).unwrap();
                streams.push((prompt[0], stream));
            }
        }
        streams
    };
    let streams: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..9).map(|first| scope.spawn(move || send(first))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let num_answered = streams.len() as u64;
    // Four wait; at most two more have been scheduled meanwhile, since no step ends.
    assert!((4..=6).contains(&num_answered), "{num_answered} were let in");
    allow_steps(&permits, 100);
    for (prompt, stream) in streams {
        assert_eq!(tokens(&all_events(stream)), [prompt + 1, prompt + 2, prompt + 3]);
    }
    let stats = handle.stats();
    assert_eq!(
        (stats.finished_length, stats.rejected_queue_full),
        (num_answered, 200 - num_answered)
    );
    assert_eq!((stats.waiting, stats.waiting_tokens, stats.running), (0, 0, 0));
    assert_eq!(stats.blocks_free, stats.blocks_total);
}

#[test]
fn the_lanes_have_places_of_their_own() {
    let (handle, _thread, _permits) = start_engine();
    let background = handle.admit_for(Tenant::default(), Lane::Background, 4, 40).unwrap();
    let full = Rejected::QueueFull { waiting: 4, waiting_max: 4 };
    assert_eq!(
        handle.admit_for(Tenant::default(), Lane::Background, 1, 0).err(),
        Some(full.clone())
    );
    let interactive = handle.admit(4, 40).unwrap();
    assert_eq!(handle.admit(1, 0).err(), Some(full));
    assert_eq!((handle.stats().waiting, handle.stats().waiting_tokens), (8, 80));
    drop(background);
    assert!(handle.admit(1, 0).is_err(), "nor do places pass from one to the other");
    drop(interactive);
    assert_eq!((handle.stats().waiting, handle.stats().waiting_tokens), (0, 0));
}
