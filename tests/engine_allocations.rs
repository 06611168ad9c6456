//! What the engine's steps ask of the allocator: nothing for a token.

use models::TokenId;
use server::engine::{
    CacheSalt, ChunkOutput, Engine, EngineConfig, Event, Lane, Overlap, Plan, PolicyKind,
    PrefixCaching, Request, Runner, RunnerError, SampledToken, SamplingParams, SequenceId,
    StepOutput, Tenant,
};
use std::collections::VecDeque;
use std::time::Instant;

const BLOCK_SIZE: usize = 16;

/// Samples one token over and over, and reuses the room of its outputs.
#[derive(Default)]
struct Sevens {
    under_way: VecDeque<StepOutput>,
    spare: Vec<Vec<ChunkOutput>>,
}

impl Runner for Sevens {
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        let output = |samples: bool| ChunkOutput {
            sampled: samples.then_some(SampledToken { token: TokenId(7), logprobs: None }),
            ..ChunkOutput::default()
        };
        let mut chunks = self.spare.pop().unwrap_or_default();
        chunks.extend(plan.chunks.iter().map(|chunk| output(chunk.sample.is_some())));
        self.under_way.push_back(StepOutput { chunks });
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        Ok(self.under_way.pop_front().expect("a plan is under way"))
    }

    fn take_back(&mut self, room: Vec<ChunkOutput>) {
        self.spare.push(room);
    }
}

fn request(number: u32) -> Request {
    Request {
        // The blocks that the prompt fills are full before the steps that count, and the next
        // one is not full after them.
        prompt: (0..2 * BLOCK_SIZE as u32 - 1).map(|place| TokenId(number << 8 | place)).collect(),
        sampling: SamplingParams { max_new_tokens: 1000, ..SamplingParams::default() },
        pooling: None,
        priority: 0,
        lane: Lane::Interactive,
        tenant: Tenant::default(),
        cache_salt: CacheSalt::default(),
        constraint: None,
    }
}

/// Allocations of so many steps in which so many sequences decode.
fn allocations(num_sequences: u32, num_steps: usize) -> u64 {
    let config = EngineConfig {
        block_size: BLOCK_SIZE,
        num_blocks: 4096,
        max_num_seqs: 256,
        max_num_batched_tokens: 1 << 16,
        max_model_len: 4096,
        double_cost_context: usize::MAX,
        waiting_requests_max: 256,
        waiting_tokens_max: 1 << 16,
        policy: PolicyKind::Fcfs,
        prefix_caching: PrefixCaching::Enabled,
        overlap: Overlap::Enabled,
    };
    let mut engine = Engine::new(config, Sevens::default());
    let now = Instant::now();
    for number in 0..num_sequences {
        engine.submit(SequenceId(number.into()), request(number), now);
    }
    let mut events = Vec::new();
    let mut run = |num_steps: usize| {
        for _ in 0..num_steps {
            engine.launch(now).expect("the runner never fails");
            events.clear();
            engine.collect_into(&mut events).expect("the runner never fails");
            assert!(events.len() >= num_sequences as usize, "an event for each");
        }
        assert!(events.iter().all(|(_, event)| matches!(event, Event::Token(_))));
    };
    // All rooms have their size after a while.
    run(2 * BLOCK_SIZE + 3);
    allocation_counter::measure(|| run(num_steps)).count_total
}

#[test]
fn a_step_allocates_no_more_for_more_sequences() {
    let num_steps = BLOCK_SIZE - 4;
    let few = allocations(2, num_steps);
    assert_eq!(allocations(200, num_steps), few);
    assert!(few <= 8 * num_steps as u64, "{few} in {num_steps} steps");
}
