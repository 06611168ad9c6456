//! An engine in which sequences decode, without a model: what the engine itself costs.

use models::TokenId;
use server::engine::{
    CacheSalt, ChunkOutput, Engine, EngineConfig, Event, Lane, Overlap, PLANS_UNDER_WAY_MAX, Plan,
    PolicyKind, PrefixCaching, Request, Runner, RunnerError, SampledToken, SamplingParams,
    SequenceId, StepOutput, Tenant, TenantId,
};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub const BLOCK_SIZE: usize = 16;
/// Steps between two fillings: each sequence takes 16 more blocks in them.
pub const ANSWER_LEN: usize = 256;
pub const BLOCKS_MAX: usize = 1 << 20;
/// 4,096 sequences of it, with their answers, hold nearly all of 1M blocks.
pub const CONTEXT: usize = 3_700;

/// Answers at once with made-up tokens.
struct Instantly {
    under_way: VecDeque<StepOutput>,
    spare: Vec<ChunkOutput>,
    spent: Duration,
}

impl Runner for Instantly {
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        let start = Instant::now();
        let output = |samples: bool| ChunkOutput {
            sampled: samples.then_some(SampledToken { token: TokenId(7), logprobs: None }),
            ..ChunkOutput::default()
        };
        let mut chunks = std::mem::take(&mut self.spare);
        chunks.extend(plan.chunks.iter().map(|chunk| output(chunk.sample.is_some())));
        self.under_way.push_back(StepOutput { chunks });
        self.spent += start.elapsed();
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        Ok(self.under_way.pop_front().expect("a plan is under way"))
    }

    fn take_back(&mut self, room: Vec<ChunkOutput>) {
        self.spare = room;
    }
}

/// How much an engine has to do.
#[derive(Clone, Copy)]
pub struct Load {
    pub running: usize,
    pub waiting: usize,
    pub context: usize,
    pub num_blocks: usize,
    pub tenants: u32,
    pub overlap: Overlap,
}

impl Load {
    pub fn of(running: usize) -> Load {
        Load {
            running,
            waiting: 0,
            context: CONTEXT,
            num_blocks: BLOCKS_MAX,
            tenants: 1,
            overlap: Overlap::Enabled,
        }
    }
}

/// An engine in which so many sequences decode.
pub struct Busy {
    load: Load,
    engine: Engine<Instantly>,
    now: Instant,
    first_id: u64,
    next_id: u64,
    steps_left: usize,
    events: Vec<(SequenceId, Event)>,
}

impl Busy {
    pub fn new(load: Load) -> Busy {
        let config = EngineConfig {
            block_size: BLOCK_SIZE,
            num_blocks: load.num_blocks,
            max_num_seqs: load.running,
            max_num_batched_tokens: 1 << 24,
            max_model_len: 1 << 20,
            double_cost_context: usize::MAX,
            waiting_requests_max: 1 << 20,
            waiting_tokens_max: 1 << 30,
            policy: PolicyKind::Fcfs,
            prefix_caching: PrefixCaching::Enabled,
            overlap: load.overlap,
        };
        let runner = Instantly {
            under_way: VecDeque::with_capacity(PLANS_UNDER_WAY_MAX),
            spare: Vec::new(),
            spent: Duration::ZERO,
        };
        let engine = Engine::new(config, runner);
        Busy {
            load,
            engine,
            now: Instant::now(),
            first_id: 0,
            next_id: 0,
            steps_left: 0,
            events: Vec::new(),
        }
    }

    /// Lets all end, and fills it anew.
    fn fill(&mut self) {
        for id in self.first_id..self.next_id {
            self.engine.abort(SequenceId(id));
        }
        while !self.engine.is_idle() {
            self.step();
        }
        self.first_id = self.next_id;
        for number in 0..self.load.running + self.load.waiting {
            // They fill their blocks in different steps, as those of clients do.
            let context = match number < self.load.running {
                true => self.load.context + number % BLOCK_SIZE,
                false => 64,
            };
            self.submit(number as u32, context);
        }
        // Prompts, and the steps until all of them are decoded from what the step before sampled.
        for _ in 0..4 {
            self.step();
        }
        assert_eq!(self.engine.stats().running, self.load.running);
        self.steps_left = ANSWER_LEN - 8;
    }

    fn submit(&mut self, number: u32, context: usize) {
        let tenant = Tenant { id: TenantId(number % self.load.tenants), weight: 1, weights: 1 };
        let prompt = (0..context as u32).map(|place| TokenId(place ^ (number << 8))).collect();
        let request = Request {
            prompt,
            sampling: SamplingParams { max_new_tokens: ANSWER_LEN, ..SamplingParams::default() },
            pooling: None,
            priority: 0,
            lane: Lane::Interactive,
            tenant,
            cache_salt: CacheSalt::default(),
            constraint: None,
        };
        self.engine.submit(SequenceId(self.next_id), request, self.now);
        self.next_id += 1;
    }

    fn step(&mut self) -> usize {
        self.engine.launch(self.now).expect("the runner never fails");
        self.events.clear();
        self.engine.collect_into(&mut self.events).expect("the runner never fails");
        self.events.len()
    }

    /// The time that so many steps take, without the runner's.
    pub fn run(&mut self, num_steps: u64) -> Duration {
        let mut total = Duration::ZERO;
        let mut left = num_steps as usize;
        while left > 0 {
            if self.steps_left == 0 {
                self.fill();
            }
            let count = left.min(self.steps_left);
            let spent = self.engine.runner().spent;
            let start = Instant::now();
            for _ in 0..count {
                assert_eq!(self.step(), self.load.running, "a token for each");
            }
            total += start.elapsed() - (self.engine.runner().spent - spent);
            self.steps_left -= count;
            left -= count;
        }
        total
    }
}
