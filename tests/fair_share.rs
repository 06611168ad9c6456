//! What a busy tenant costs another, in a simulated time: the engine itself, on a device whose
//! steps take as long as a table says.

use models::TokenId;
use server::engine::{
    CacheSalt, ChunkOutput, Engine, EngineConfig, Event, Lane, LastStep, Overlap, Plan, PolicyKind,
    PrefixCaching, Request, Runner, RunnerError, SampledToken, SamplingParams, SequenceId,
    StepOutput, Tenant, TenantId,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use tests::fake_runner::scatter;

const QUIET: TenantId = TenantId(1);
const BUSY: TenantId = TenantId(2);
/// Requests of the quiet tenant, whose times are looked at.
const NUM_REQUESTS: usize = 300;
/// Prompt tokens of those.
const PROMPT_LENS: [u64; 2] = [400, 1000];
const OUTPUT_LEN: usize = 32;
/// The quiet tenant's clients wait up to so long before they ask again.
const PAUSE: Duration = Duration::from_secs(3);
/// A step of no tokens, and what each token adds: about that of two cores and half a billion
/// weights.
const STEP: Duration = Duration::from_millis(12);
const TOKEN: Duration = Duration::from_micros(1200);
/// A token that attends to so many others takes twice as long.
const DOUBLE_COST_CONTEXT: usize = 8000;

/// How much another tenant asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// Prompts of 100,000 tokens, one after the other.
    LongPrompts,
    /// A thousand requests at once.
    FullQueue,
}

fn config() -> EngineConfig {
    EngineConfig {
        block_size: 16,
        num_blocks: 16_384,
        max_num_seqs: 64,
        max_num_batched_tokens: 256,
        max_model_len: 131_072,
        double_cost_context: DOUBLE_COST_CONTEXT,
        waiting_requests_max: 4096,
        waiting_tokens_max: usize::MAX,
        policy: PolicyKind::Fcfs,
        prefix_caching: PrefixCaching::Enabled,
        overlap: Overlap::Enabled,
    }
}

/// Computes nothing, but knows how long each step would take.
#[derive(Default)]
struct Timed {
    under_way: VecDeque<(StepOutput, Duration)>,
    last_step: LastStep,
    /// Of all steps collected.
    elapsed: Duration,
}

impl Runner for Timed {
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        let mut time = STEP;
        for chunk in &plan.chunks {
            let context = chunk.start as f64 / DOUBLE_COST_CONTEXT as f64;
            time += TOKEN.mul_f64(chunk.num_tokens() as f64 * (1.0 + context));
        }
        let chunks = plan.chunks.iter().map(|chunk| ChunkOutput {
            sampled: chunk
                .sample
                .as_ref()
                .map(|_| SampledToken { token: TokenId(7), logprobs: None }),
            prompt_logprobs: Vec::new(),
            pooled: None,
        });
        let output = StepOutput { chunks: chunks.collect() };
        self.last_step.remember(plan, &output);
        self.under_way.push_back((output, time));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        let (output, time) = self.under_way.pop_front().expect("a step was launched");
        self.elapsed += time;
        Ok(output)
    }
}

struct Simulation {
    engine: Engine<Timed>,
    start: Instant,
    /// While nothing is computed, time goes on by itself.
    idle: Duration,
    num_submitted: u64,
    tenants: BTreeMap<SequenceId, (TenantId, Duration)>,
    random: u64,
}

impl Simulation {
    fn new() -> Self {
        Self {
            engine: Engine::new(config(), Timed::default()),
            start: Instant::now(),
            idle: Duration::ZERO,
            num_submitted: 0,
            tenants: BTreeMap::new(),
            random: 1,
        }
    }

    fn now(&self) -> Duration {
        self.idle + self.engine.runner().elapsed
    }

    fn between(&mut self, first: u64, last: u64) -> u64 {
        self.random += 1;
        first + scatter(self.random) % (last - first + 1)
    }

    fn submit(&mut self, tenant: TenantId, prompt_len: usize, output_len: usize) {
        let id = SequenceId(self.num_submitted);
        self.num_submitted += 1;
        // No two prompts begin alike.
        let first = id.0 as u32 * 131_072;
        let request = Request {
            prompt: (first..first + prompt_len as u32).map(TokenId).collect(),
            sampling: SamplingParams { max_new_tokens: output_len, ..SamplingParams::default() },
            pooling: None,
            priority: 0,
            lane: Lane::Interactive,
            tenant: Tenant { id: tenant, weight: 1, weights: 2 },
            cache_salt: CacheSalt::default(),
            constraint: None,
        };
        config().check(&request).expect("it fits");
        let now = self.now();
        self.tenants.insert(id, (tenant, now));
        self.engine.submit(id, request, self.start + now);
    }

    /// The times to the first token of the quiet tenant's requests, in order.
    fn run(mut self, beside: Beside, num_clients: usize) -> Vec<Duration> {
        let mut first_tokens = Vec::new();
        let mut has_begun: BTreeMap<SequenceId, ()> = BTreeMap::new();
        let mut due: Vec<Duration> = vec![Duration::ZERO; num_clients];
        if beside == Beside::FullQueue {
            (0..1000).for_each(|_| self.submit(BUSY, 256, 64));
        }
        let mut num_busy = if beside == Beside::FullQueue { 1000 } else { 0 };
        while first_tokens.len() < NUM_REQUESTS {
            let now = self.now();
            for _ in due.extract_if(.., |at| *at <= now).collect::<Vec<_>>() {
                let len = self.between(PROMPT_LENS[0], PROMPT_LENS[1]) as usize;
                self.submit(QUIET, len, OUTPUT_LEN);
            }
            match beside {
                Beside::LongPrompts if num_busy == 0 => {
                    self.submit(BUSY, 100_000, 16);
                    num_busy += 1;
                }
                Beside::FullQueue if num_busy < 1000 => {
                    self.submit(BUSY, 256, 64);
                    num_busy += 1;
                }
                _ => {}
            }
            self.engine.launch(self.start + self.now()).expect("the device works");
            if !self.engine.is_computing() {
                let next = due.iter().min().expect("whoever has no request pauses");
                self.idle += *next - self.now();
                continue;
            }
            let events = self.engine.collect().expect("the device works");
            for (id, event) in events {
                let (tenant, arrival) = self.tenants[&id];
                match event {
                    Event::Token(_) if tenant == QUIET && has_begun.insert(id, ()).is_none() => {
                        first_tokens.push(self.now() - arrival);
                    }
                    Event::Finished { .. } if tenant == QUIET => {
                        let pause = self.between(0, PAUSE.as_millis() as u64);
                        due.push(self.now() + Duration::from_millis(pause));
                    }
                    Event::Finished { .. } => num_busy -= 1,
                    _ => {}
                }
            }
        }
        first_tokens.sort();
        first_tokens
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[sorted.len() * percent / 100]
}

#[test]
fn a_busy_tenant_at_most_doubles_anothers_time_to_first_token() {
    for num_clients in [1, 4] {
        let alone = Simulation::new().run(Beside::Nothing, num_clients);
        for beside in [Beside::LongPrompts, Beside::FullQueue] {
            let times = Simulation::new().run(beside, num_clients);
            for percent in [50, 99] {
                let (without, with) = (percentile(&alone, percent), percentile(&times, percent));
                let ratio = with.as_secs_f64() / without.as_secs_f64();
                println!(
                    "{num_clients} clients beside {beside:?}: p{percent} {without:.0?} alone, \
                     {with:.0?} beside: {ratio:.2} times"
                );
                assert!(ratio <= 2.0, "beside {beside:?} the time is {ratio:.2} times that alone");
            }
        }
    }
}
