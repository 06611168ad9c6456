//! The engine's own step: schedule, commit and events, without a model and without a clock:
//! `cargo bench -p benches --bench scheduler`. The runner's time is taken out.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use models::TokenId;
use server::engine::{
    CacheSalt, ChunkOutput, Engine, EngineConfig, Event, Lane, Overlap, PLANS_UNDER_WAY_MAX, Plan,
    PolicyKind, PrefixCaching, Request, Runner, RunnerError, SampledToken, SamplingParams,
    SequenceId, StepOutput, Tenant, TenantId,
};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const BLOCK_SIZE: usize = 16;
/// Steps between two fillings: each sequence takes 16 more blocks in them.
const ANSWER_LEN: usize = 256;
const BLOCKS_MAX: usize = 1 << 20;
/// 4,096 sequences of it, with their answers, hold nearly all of 1M blocks.
const CONTEXT: usize = 3_700;

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

#[derive(Clone, Copy)]
struct Load {
    running: usize,
    waiting: usize,
    context: usize,
    num_blocks: usize,
    tenants: u32,
    overlap: Overlap,
}

impl Load {
    fn of(running: usize) -> Load {
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
struct Busy {
    load: Load,
    engine: Engine<Instantly>,
    now: Instant,
    first_id: u64,
    next_id: u64,
    steps_left: usize,
    events: Vec<(SequenceId, Event)>,
}

impl Busy {
    fn new(load: Load) -> Busy {
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
    fn run(&mut self, num_steps: u64) -> Duration {
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

fn bench(criterion: &mut Criterion, group: &str, cases: &[(String, Load)]) {
    let mut group = criterion.benchmark_group(group);
    group.sample_size(20).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    for (name, load) in cases {
        let mut busy = Busy::new(*load);
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|num_steps| busy.run(num_steps));
        });
    }
    group.finish();
}

fn running(criterion: &mut Criterion) {
    let of = |running: usize| (running.to_string(), Load::of(running));
    bench(criterion, "step/running", &[1, 16, 64, 256, 1024, 4096].map(of));
    let plain = |running: usize| {
        (running.to_string(), Load { overlap: Overlap::Disabled, ..Load::of(running) })
    };
    bench(criterion, "step/running, no overlap", &[256, 4096].map(plain));
}

fn blocks(criterion: &mut Criterion) {
    let of = |num_blocks: usize| {
        let context = num_blocks / 256 * BLOCK_SIZE - ANSWER_LEN - BLOCK_SIZE;
        (num_blocks.to_string(), Load { num_blocks, context, ..Load::of(256) })
    };
    bench(criterion, "step/blocks held by 256", &[1 << 14, 1 << 17, BLOCKS_MAX].map(of));
}

fn waiting(criterion: &mut Criterion) {
    let of = |waiting: usize| (waiting.to_string(), Load { waiting, ..Load::of(256) });
    bench(criterion, "step/waiting behind 256", &[0, 1000, 10_000].map(of));
}

fn tenants(criterion: &mut Criterion) {
    let of = |tenants: u32| (tenants.to_string(), Load { tenants, ..Load::of(256) });
    bench(criterion, "step/tenants of 256", &[1, 16, 64].map(of));
}

criterion_group!(benches, running, blocks, waiting, tenants);
criterion_main!(benches);
