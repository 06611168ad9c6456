//! What the scheduler decides, step by step: order, fairness, sharing and preemption.

use super::*;
use crate::engine::plan::{Chunk, ChunkInput, ChunkOutput, LastStep};
use crate::engine::pooling::{Pooled, Pooling};
use crate::engine::request::{CacheSalt, SampledToken, SamplingParams, TokenLogprobs};
use models::TokenId;
use std::time::Duration;

mod tenants;

/// Blocks of 4 tokens; steps of 16 tokens and 4 sequences.
fn config() -> EngineConfig {
    EngineConfig {
        block_size: 4,
        num_blocks: 64,
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_model_len: 256,
        double_cost_context: usize::MAX,
        waiting_requests_max: 100,
        waiting_tokens_max: 10_000,
        policy: PolicyKind::Fcfs,
        prefix_caching: PrefixCaching::Enabled,
        overlap: Overlap::Disabled,
    }
}

fn request(prompt: std::ops::Range<u32>, max_new_tokens: usize) -> Request {
    Request {
        prompt: prompt.map(TokenId).collect(),
        sampling: SamplingParams { max_new_tokens, ..SamplingParams::default() },
        pooling: None,
        priority: 0,
        lane: Lane::Interactive,
        tenant: Default::default(),
        cache_salt: CacheSalt::default(),
        constraint: None,
    }
}

/// A scheduler, and a device on which every sampled token is 7.
struct Bench {
    scheduler: Scheduler,
    start: Instant,
    num_submitted: u64,
    events: Vec<(u64, Event)>,
}

impl Bench {
    fn new(config: EngineConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config, std::sync::Arc::new(|| ())),
            start: Instant::now(),
            num_submitted: 0,
            events: Vec::new(),
        }
    }

    /// Returns the number of the request; each arrives a second after the one before.
    fn add(&mut self, request: Request) -> u64 {
        let number = self.num_submitted;
        self.num_submitted += 1;
        let arrival = self.start + Duration::from_secs(number);
        self.scheduler.add(SequenceId(number), request, arrival);
        number
    }

    /// Returns who computed how many tokens, in the plan's order.
    fn step(&mut self) -> Vec<(u64, usize)> {
        let plan = self.schedule().expect("there is work");
        let chunks = chunks_of(&plan);
        self.commit(plan);
        chunks
    }

    fn schedule(&mut self) -> Option<Plan> {
        let plan = self.scheduler.schedule(self.start + Duration::from_secs(1000));
        self.scheduler.assert_consistent();
        plan
    }

    /// Returns how many events came of it.
    fn commit(&mut self, plan: Plan) -> usize {
        let output = compute_plan(&plan);
        let events = self.scheduler.commit(plan, output);
        self.scheduler.assert_consistent();
        let num_events = events.len();
        self.events.extend(events.into_iter().map(|(id, event)| (id.0, event)));
        num_events
    }

    fn run_to_end(&mut self) -> Vec<Vec<(u64, usize)>> {
        let mut steps = Vec::new();
        while !self.scheduler.is_idle() {
            assert!(steps.len() < 1000, "it goes round in circles");
            steps.push(self.step());
        }
        steps
    }

    fn num_tokens(&self, number: u64) -> usize {
        let is_token =
            |(id, event): &&(u64, Event)| *id == number && matches!(event, Event::Token(_));
        self.events.iter().filter(is_token).count()
    }

    fn cached_tokens(&self, number: u64) -> usize {
        let started = self.events.iter().find_map(|(id, event)| match event {
            Event::Started { cached_tokens } if *id == number => Some(*cached_tokens),
            _ => None,
        });
        started.expect("it has started")
    }
}

fn chunks_of(plan: &Plan) -> Vec<(u64, usize)> {
    plan.chunks.iter().map(|chunk| (chunk.sequence.0, chunk.num_tokens())).collect()
}

fn compute_plan(plan: &Plan) -> StepOutput {
    StepOutput { chunks: plan.chunks.iter().map(compute).collect() }
}

fn compute(chunk: &Chunk) -> ChunkOutput {
    let score =
        |target: &TokenId| TokenLogprobs { token: *target, logprob: 0.0, rank: 1, top: Vec::new() };
    let sampled = SampledToken { token: TokenId(7), logprobs: None };
    ChunkOutput {
        sampled: chunk.sample.as_ref().map(|_| sampled),
        prompt_logprobs: chunk
            .prompt_logprobs
            .iter()
            .flat_map(|score_of| score_of.targets.iter().map(score))
            .collect(),
        pooled: chunk.pooling.as_ref().map(|_| Pooled::Hidden(vec![1.0])),
    }
}

#[test]
fn a_cached_prompt_is_pooled_at_its_last_token() {
    let mut bench = Bench::new(config());
    let pooled = || Request { pooling: Some(Pooling::Hidden), ..request(0..20, 0) };
    bench.add(pooled());
    assert_eq!(bench.step(), [(0, 16)]);
    assert_eq!(bench.step(), [(0, 4)]);
    // All of its blocks are in the cache now, and yet its last token is computed.
    bench.add(pooled());
    assert_eq!(bench.step(), [(1, 4)]);
    let ended = bench.scheduler.stats();
    assert_eq!((ended.finished_stop, ended.generated_tokens, ended.prefix_hit_tokens), (2, 0, 16));
    assert!(bench.scheduler.is_idle());
}

#[test]
fn a_long_prompt_is_computed_in_chunks_beside_all_decodes() {
    let mut bench = Bench::new(config());
    bench.add(request(0..3, 6));
    bench.add(request(10..13, 6));
    bench.step();
    bench.add(request(100..140, 1));
    // Both decode in every step; the long prompt gets what is left of the 16 tokens.
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 14)]);
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 14)]);
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 12)]);
    assert_eq!(bench.num_tokens(0), 4);
    assert_eq!(bench.num_tokens(2), 1);
}

#[test]
fn fcfs_starts_requests_in_the_order_of_arrival_whatever_their_size() {
    let small = EngineConfig { num_blocks: 12, ..config() };
    let mut bench = Bench::new(small);
    bench.add(request(0..20, 4));
    // It needs 11 of 12 blocks; the short ones behind it would fit beside the first.
    bench.add(request(100..144, 1));
    for i in 0..6 {
        bench.add(request(200 + 10 * i..202 + 10 * i, 2));
    }
    bench.run_to_end();
    let started = bench.events.iter().filter(|(_, e)| matches!(e, Event::Started { .. }));
    let order: Vec<u64> = started.map(|(id, _)| *id).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn under_fcfs_the_longest_wait_is_the_work_before_it() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 1, ..config() });
    let first = bench.add(request(0..8, 3));
    let last = bench.add(request(50..58, 1));
    // New requests keep coming, one each step; none may pass.
    let mut num_steps = 0;
    while bench.num_tokens(last) == 0 {
        bench.add(request(60..62, 1));
        bench.step();
        num_steps += 1;
        assert!(num_steps <= 4, "three steps for the first, one for itself");
    }
    assert_eq!(bench.num_tokens(first), 3);
}

#[test]
fn the_smallest_priority_number_is_admitted_first() {
    let mut bench =
        Bench::new(EngineConfig { max_num_seqs: 1, policy: PolicyKind::Priority, ..config() });
    for (first, priority) in [(0, 2), (10, -1), (20, 2), (30, 0), (40, -1)] {
        bench.add(Request { priority, ..request(first..first + 3, 1) });
    }
    let order: Vec<u64> = bench.run_to_end().iter().map(|step| step[0].0).collect();
    assert_eq!(order, [1, 4, 3, 0, 2]);
}

#[test]
fn the_last_by_policy_is_preempted_and_sends_no_token_twice() {
    // Two of three sequences fit at their full length of 5 blocks.
    let mut bench = Bench::new(EngineConfig { num_blocks: 10, ..config() });
    for first in [0, 20, 40] {
        bench.add(request(first..first + 4, 16));
    }
    let mut preempted_at = None;
    let mut num_steps = 0;
    while !bench.scheduler.is_idle() {
        let preemptions = bench.scheduler.stats().preemptions;
        let chunks = bench.step();
        num_steps += 1;
        if bench.scheduler.stats().preemptions > preemptions {
            assert_eq!(chunks, [(0, 1), (1, 1)], "the third makes room for the others");
            preempted_at.get_or_insert(num_steps);
        }
        assert!(num_steps < 100);
    }
    assert!(preempted_at.is_some());
    assert_eq!([0, 1, 2].map(|id| bench.num_tokens(id)), [16, 16, 16]);
    let is_start = |(_, event): &&(u64, Event)| matches!(event, Event::Started { .. });
    assert_eq!(bench.events.iter().filter(is_start).count(), 3, "each starts once");
}

#[test]
fn priority_decides_who_is_preempted() {
    let mut bench =
        Bench::new(EngineConfig { num_blocks: 10, policy: PolicyKind::Priority, ..config() });
    for (first, priority) in [(0, 5), (20, 0), (40, 0)] {
        bench.add(Request { priority, ..request(first..first + 4, 16) });
    }
    while bench.scheduler.stats().preemptions == 0 {
        bench.step();
    }
    assert!(bench.step().iter().all(|(id, _)| *id != 0), "the least urgent, though the oldest");
    bench.run_to_end();
    assert_eq!([0, 1, 2].map(|id| bench.num_tokens(id)), [16, 16, 16]);
}

#[test]
fn a_second_turn_computes_only_what_is_new() {
    let mut bench = Bench::new(config());
    bench.add(request(0..10, 7));
    bench.run_to_end();
    let mut second = request(0..10, 1);
    second.prompt.extend([TokenId(7); 7]);
    second.prompt.extend([TokenId(50), TokenId(51)]);
    let id = bench.add(second);
    // 16 of the first turn's 17 tokens were computed: four full blocks.
    assert_eq!(bench.step(), [(id, 3)]);
    assert_eq!(bench.cached_tokens(id), 16);
    let stats = bench.scheduler.stats();
    assert_eq!((stats.prefix_query_tokens, stats.prefix_hit_tokens), (10 + 19, 16));
}

#[test]
fn fully_cached_prompt_still_computes_its_last_token() {
    let mut bench = Bench::new(config());
    bench.add(request(0..8, 1));
    bench.run_to_end();
    let id = bench.add(request(0..8, 1));
    // The block of the last token is recomputed whole.
    assert_eq!(bench.step(), [(id, 4)]);
    assert_eq!(bench.cached_tokens(id), 4);
}

#[test]
fn a_prefix_is_shared_only_under_its_salt() {
    let mut bench = Bench::new(config());
    bench.add(request(0..12, 1));
    bench.run_to_end();
    let other = CacheSalt([1; 32]);
    let id = bench.add(Request { cache_salt: other, ..request(0..12, 1) });
    assert_eq!(bench.step(), [(id, 12)]);
}

#[test]
fn identical_prompts_at_once_compute_their_prefix_once() {
    let mut bench = Bench::new(config());
    for _ in 0..4 {
        bench.add(request(0..30, 1));
    }
    assert_eq!(bench.step(), [(0, 16)]);
    assert_eq!(bench.step(), [(0, 14)], "two tokens are left, but the others wait");
    assert_eq!(bench.scheduler.stats().waiting_for_prefix, 3);
    // Seven blocks of four are shared; two tokens are left for each.
    assert_eq!(bench.step(), [(1, 2), (2, 2), (3, 2)]);
    assert_eq!(bench.scheduler.stats().computed_tokens, 30 + 3 * 2);
}

#[test]
fn who_awaits_a_prefix_is_passed_by_others_for_one_step() {
    let mut bench = Bench::new(config());
    bench.add(request(0..9, 1));
    bench.add(request(0..9, 1));
    bench.add(request(50..53, 1));
    assert_eq!(bench.step(), [(0, 9), (2, 3)]);
    assert_eq!(bench.step(), [(1, 1)]);
}

#[test]
fn a_shared_part_is_awaited_no_longer_than_it_takes() {
    let mut bench = Bench::new(config());
    bench.add(request(0..28, 1));
    let mut branch = request(0..8, 1);
    branch.prompt.extend((90..95).map(TokenId));
    let id = bench.add(branch);
    assert_eq!(bench.step(), [(0, 16)]);
    // The common blocks are there; that the other still computes the rest does not matter.
    assert_eq!(bench.step(), [(0, 12), (id, 4)]);
    assert_eq!(bench.cached_tokens(id), 8);
}

#[test]
fn who_awaits_a_prefix_computes_it_when_the_other_leaves() {
    let mut bench = Bench::new(config());
    bench.add(request(0..40, 1));
    bench.add(request(0..40, 1));
    assert_eq!(bench.step(), [(0, 16)]);
    bench.scheduler.abort(SequenceId(0));
    assert_eq!(bench.step(), [(1, 16)], "from the four blocks that were computed");
    assert_eq!(bench.cached_tokens(1), 16);
    assert_eq!(bench.step(), [(1, 8)]);
}

#[test]
fn scoring_a_prompt_needs_all_its_logits_but_fills_the_cache() {
    let mut bench = Bench::new(config());
    let mut scored = request(0..12, 0);
    scored.sampling.prompt_logprobs = Some(0);
    bench.add(scored.clone());
    assert_eq!(bench.step(), [(0, 12)]);
    let expected_end = Event::Finished { reason: FinishReason::Length };
    assert_eq!(bench.events.last(), Some(&(0, expected_end)));
    bench.add(scored);
    assert_eq!(bench.step(), [(1, 12)], "cached blocks have no logits");
    bench.add(request(0..12, 1));
    assert_eq!(bench.step(), [(2, 4)]);
    let scores = bench.events.iter().filter_map(|(_, event)| match event {
        Event::PromptLogprobs(scores) => Some(scores.len()),
        _ => None,
    });
    assert_eq!(scores.collect::<Vec<_>>(), [11, 11]);
}

#[test]
fn the_least_recently_used_prefix_is_evicted() {
    let mut bench = Bench::new(EngineConfig { num_blocks: 9, ..config() });
    bench.add(request(0..12, 1));
    bench.run_to_end();
    bench.add(request(20..32, 1));
    bench.run_to_end();
    bench.add(request(0..13, 1));
    bench.run_to_end();
    // It takes five blocks: the free ones and the end of the prefix used least recently.
    bench.add(request(40..60, 1));
    bench.run_to_end();
    let kept = bench.add(request(0..13, 1));
    bench.run_to_end();
    let shortened = bench.add(request(20..33, 1));
    bench.run_to_end();
    assert_eq!(bench.cached_tokens(kept), 12);
    assert!(bench.cached_tokens(shortened) < 12);
    assert!(bench.scheduler.stats().evicted_blocks > 0);
}

#[test]
fn an_aborted_sequence_is_left_out_of_the_results() {
    let mut bench = Bench::new(config());
    bench.add(request(0..4, 3));
    bench.add(request(10..14, 3));
    let plan = bench.schedule().unwrap();
    assert_eq!(bench.scheduler.abort(SequenceId(0)), Aborted::Started);
    assert_eq!(bench.scheduler.abort(SequenceId(0)), Aborted::Unknown);
    bench.commit(plan);
    assert!(bench.events.iter().all(|(id, _)| *id == 1));
    assert_eq!(bench.scheduler.stats().wasted_tokens, 4);
    bench.run_to_end();
}

#[test]
fn history_travels_only_when_sampling_needs_it() {
    let mut scheduler = Scheduler::new(config(), std::sync::Arc::new(|| ()));
    let mut penalised = request(0..3, 2);
    penalised.sampling.repetition_penalty = 1.2;
    scheduler.add(SequenceId(0), request(10..13, 2), Instant::now());
    scheduler.add(SequenceId(1), penalised, Instant::now());
    let plan = scheduler.schedule(Instant::now()).unwrap();
    let history = |index: usize| &plan.chunks[index].sample.as_ref().unwrap().history;
    assert!(history(0).is_empty());
    assert_eq!(*history(1), [0, 1, 2].map(TokenId));
}

/// As `request`, ended by the first token.
fn stopping(prompt: std::ops::Range<u32>, max_new_tokens: usize) -> Request {
    let mut request = request(prompt, max_new_tokens);
    request.sampling.eos_token_ids = vec![TokenId(7)];
    request
}

#[test]
fn a_plan_made_ahead_leaves_the_unknown_token_to_the_runner() {
    let mut bench = Bench::new(config());
    let mut penalised = request(0..3, 4);
    penalised.sampling.repetition_penalty = 1.2;
    bench.add(penalised);
    let first = bench.schedule().unwrap();
    let ahead = bench.schedule().unwrap();
    let chunk = &ahead.chunks[0];
    let step = chunk.sample.as_ref().unwrap();
    assert_eq!((&chunk.input, chunk.start), (&ChunkInput::FromLastStep, 3));
    assert_eq!((step.position, &step.history[..]), (4, &[0, 1, 2].map(TokenId)[..]));
    let mut last_step = LastStep::default();
    last_step.remember(&first, &compute_plan(&first));
    assert_eq!(last_step.token_ids(chunk), [TokenId(7)]);
    let whole = last_step.sample_step(chunk).unwrap();
    assert_eq!(whole.history, [0, 1, 2, 7].map(TokenId));
    bench.commit(first);
    let third = bench.schedule().unwrap();
    assert_eq!((&third.chunks[0].input, third.chunks[0].start), (&ChunkInput::FromLastStep, 4));
    bench.commit(ahead);
    bench.commit(third);
    // With nothing under way the token is known.
    let last = bench.schedule().unwrap();
    assert_eq!(last.chunks[0].input, ChunkInput::Known(vec![TokenId(7)]));
    bench.commit(last);
    assert_eq!(bench.num_tokens(0), 4);
    assert_eq!((bench.scheduler.stats().overlapped_steps, bench.scheduler.is_idle()), (2, true));
}

#[test]
fn a_prompt_goes_on_in_the_plan_ahead() {
    let mut bench = Bench::new(config());
    bench.add(request(0..37, 1));
    let plans = [bench.schedule().unwrap(), bench.schedule().unwrap()];
    assert_eq!(plans.each_ref().map(chunks_of), [[(0, 16)], [(0, 16)]]);
    assert_eq!(plans[1].chunks[0].start, 16);
    for plan in plans {
        bench.commit(plan);
    }
    assert_eq!(bench.step(), [(0, 5)]);
}

#[test]
fn what_is_certain_to_end_gives_up_its_place_in_the_plan_ahead() {
    let one_at_a_time = EngineConfig { max_num_seqs: 1, max_model_len: 6, ..config() };
    let scored = SamplingParams { prompt_logprobs: Some(0), ..request(0..1, 0).sampling };
    for last in
        [request(0..3, 1), request(0..5, 9), Request { sampling: scored, ..request(0..3, 0) }]
    {
        let mut bench = Bench::new(one_at_a_time.clone());
        bench.add(last);
        bench.add(request(50..53, 2));
        let first = bench.schedule().unwrap();
        let ahead = bench.schedule().unwrap();
        assert_eq!(chunks_of(&ahead), [(1, 3)]);
        bench.commit(first);
        bench.commit(ahead);
        bench.run_to_end();
        assert_eq!(bench.scheduler.stats().wasted_tokens, 0);
    }
}

#[test]
fn nothing_is_planned_ahead_of_the_last_token() {
    let mut bench = Bench::new(config());
    bench.add(request(0..3, 1));
    let last = bench.schedule().unwrap();
    assert!(bench.schedule().is_none());
    bench.commit(last);
    assert!(bench.schedule().is_none() && bench.scheduler.is_idle());
    assert_eq!(bench.scheduler.stats().steps, 1);
}

#[test]
fn after_a_stop_the_step_ahead_gives_no_token_and_its_block_is_not_cached() {
    let mut bench = Bench::new(config());
    bench.add(stopping(0..7, 9));
    let first = bench.schedule().unwrap();
    // It fills the second block, with the token that ends the sequence.
    let ahead = bench.schedule().unwrap();
    assert_eq!(ahead.chunks[0].start, 7);
    bench.commit(first);
    assert_eq!(bench.events.last(), Some(&(0, Event::Finished { reason: FinishReason::Stop })));
    let stats = bench.scheduler.stats();
    assert_eq!((stats.blocks_free, stats.blocks_cached), (64, 1), "free at once");
    // Another may have the blocks from the next plan on.
    bench.add(request(30..46, 1));
    let next = bench.schedule().unwrap();
    assert_eq!(bench.commit(ahead), 0);
    bench.commit(next);
    let stats = bench.scheduler.stats();
    assert_eq!((stats.generated_tokens, stats.wasted_tokens), (2, 1));
    assert_eq!((stats.blocks_free, stats.blocks_cached), (64, 1 + 4));
    assert!(bench.scheduler.is_idle());
}

#[test]
fn an_abort_drops_its_results_in_both_steps_under_way() {
    let mut bench = Bench::new(config());
    bench.add(request(0..4, 9));
    bench.add(request(10..14, 9));
    let plans = [bench.schedule().unwrap(), bench.schedule().unwrap()];
    bench.scheduler.abort(SequenceId(0));
    assert_eq!(bench.scheduler.stats().blocks_free, 62, "free at once");
    for plan in plans {
        bench.commit(plan);
    }
    assert!(bench.events.iter().all(|(id, _)| *id == 1));
    assert_eq!((bench.num_tokens(1), bench.scheduler.stats().wasted_tokens), (2, 5));
}

#[test]
fn no_plan_ahead_preempts() {
    // Each needs three blocks in the end, and there are five.
    let mut bench = Bench::new(EngineConfig { num_blocks: 5, ..config() });
    bench.add(request(0..7, 5));
    bench.add(request(20..27, 5));
    let first = bench.schedule().unwrap();
    let second = bench.schedule().unwrap();
    bench.commit(first);
    // Both want their third block now, but the first might have ended.
    assert!(bench.schedule().is_none());
    assert_eq!(bench.scheduler.stats().preemptions, 0);
    bench.commit(second);
    let third = bench.schedule().unwrap();
    assert_eq!(chunks_of(&third), [(0, 1)]);
    assert_eq!(bench.scheduler.stats().preemptions, 1);
    bench.commit(third);
    bench.run_to_end();
    assert_eq!([0, 1].map(|id| bench.num_tokens(id)), [5, 5]);
}

#[test]
fn who_awaits_a_prefix_waits_until_it_is_committed() {
    let mut bench = Bench::new(config());
    bench.add(request(0..9, 4));
    bench.add(request(0..9, 1));
    let first = bench.schedule().unwrap();
    let ahead = bench.schedule().unwrap();
    assert_eq!(chunks_of(&ahead), [(0, 1)]);
    bench.commit(first);
    let next = bench.schedule().unwrap();
    assert_eq!(chunks_of(&next), [(0, 1), (1, 1)]);
    bench.commit(ahead);
    bench.commit(next);
    assert_eq!(bench.cached_tokens(1), 8);
}

fn in_background(request: Request) -> Request {
    Request { lane: Lane::Background, ..request }
}

#[test]
fn whoever_waits_goes_before_the_background_under_every_policy() {
    for policy in [PolicyKind::Fcfs, PolicyKind::Priority] {
        let mut bench = Bench::new(EngineConfig { max_num_seqs: 1, policy, ..config() });
        bench.add(Request { priority: -5, ..in_background(request(0..1, 1)) });
        bench.add(in_background(request(10..11, 1)));
        bench.add(Request { priority: 5, ..request(20..21, 1) });
        bench.add(Request { priority: 5, ..request(30..31, 1) });
        let order: Vec<u64> = bench.run_to_end().iter().map(|step| step[0].0).collect();
        assert_eq!(order, [2, 3, 0, 1], "{policy:?}");
    }
}

#[test]
fn the_background_gives_its_place_and_blocks_to_whoever_waits() {
    // One place, or so few blocks that the two do not fit beside each other.
    for small in [
        EngineConfig { max_num_seqs: 1, ..config() },
        EngineConfig { num_blocks: 5, prefix_caching: PrefixCaching::Disabled, ..config() },
    ] {
        let mut bench = Bench::new(small);
        let background = bench.add(in_background(request(0..8, 8)));
        bench.step();
        bench.step();
        let waiting = bench.add(request(50..58, 3));
        for (step, num_tokens) in [8, 1, 1].into_iter().enumerate() {
            assert_eq!(bench.step(), [(waiting, num_tokens)], "step {step}");
        }
        assert_eq!(bench.scheduler.stats().preemptions, 1);
        bench.run_to_end();
        assert_eq!((bench.num_tokens(background), bench.num_tokens(waiting)), (8, 3));
    }
}

#[test]
fn the_background_makes_way_with_a_plan_under_way_too() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 1, ..config() });
    let background = bench.add(in_background(request(0..4, 6)));
    let first = bench.schedule().expect("a plan");
    let waiting = bench.add(request(50..54, 2));
    assert!(bench.schedule().is_none(), "nothing is preempted for a plan made ahead");
    bench.commit(first);
    assert_eq!(bench.step(), [(waiting, 4)]);
    bench.run_to_end();
    assert_eq!((bench.num_tokens(background), bench.num_tokens(waiting)), (6, 2));
}

#[test]
fn beside_whoever_waits_the_background_has_a_part_of_one_step_in_many() {
    let mut bench = Bench::new(EngineConfig { num_blocks: 256, max_model_len: 900, ..config() });
    let waiting = bench.add(request(0..2, 600));
    let background = bench.add(in_background(request(50..58, 4)));
    let mut steps_with = Vec::new();
    for step in 1..=400 {
        let chunks = bench.step();
        assert_eq!(chunks[0].0, waiting);
        match &chunks[1..] {
            [] => {}
            [(id, num_tokens)] => {
                let most = config().max_num_batched_tokens / background::BACKGROUND_PARTS;
                assert!(*id == background && *num_tokens <= most);
                steps_with.push(step);
            }
            more => panic!("{more:?}"),
        }
    }
    let interval = background::BACKGROUND_INTERVAL;
    assert_eq!(steps_with, [interval, 2 * interval, 3 * interval]);
}

#[test]
fn the_background_has_whole_steps_when_it_is_alone_and_small_ones_after_others() {
    let mut bench = Bench::new(config());
    bench.add(in_background(request(0..40, 1)));
    assert_eq!(bench.step(), [(0, 16)]);
    bench.add(request(50..52, 1));
    assert_eq!(bench.step(), [(1, 2)]);
    assert_eq!(bench.step(), [(0, 1)], "somebody waited a moment ago");
    let later = bench.start + Duration::from_secs(1000) + background::QUIET;
    let plan = bench.scheduler.schedule(later).expect("work");
    assert_eq!(chunks_of(&plan), [(0, 16)]);
}

#[test]
fn no_step_of_the_background_is_planned_ahead_shortly_after_others() {
    let mut bench = Bench::new(config());
    bench.add(request(50..52, 1));
    bench.step();
    bench.add(in_background(request(0..40, 1)));
    let first = bench.schedule().expect("work");
    assert!(bench.schedule().is_none());
    bench.commit(first);
    let now = bench.start + Duration::from_secs(1000) + background::QUIET;
    let plans = [(); 2].map(|()| bench.scheduler.schedule(now).expect("it is quiet"));
    for plan in plans {
        bench.commit(plan);
    }
}

#[test]
fn a_prefix_that_the_background_computes_is_computed_at_the_pace_of_who_awaits_it() {
    let mut bench = Bench::new(config());
    bench.add(in_background(request(0..40, 1)));
    assert_eq!(bench.step(), [(0, 16)]);
    let waiting = bench.add(request(0..40, 1));
    // First it is seen that it awaits; its blocks then come at full steps.
    assert_eq!(bench.step(), [(0, 1)]);
    assert_eq!(bench.step(), [(0, 16)]);
    assert_eq!(bench.step(), [(0, 7)]);
    assert_eq!(bench.step()[0].0, waiting);
    assert_eq!(bench.cached_tokens(waiting), 36);
}
