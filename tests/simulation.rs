//! The whole engine under seeded arrivals, aborts, short memory, shared prefixes and faults, on a
//! runner whose tokens depend on the slots it really read. Each request must get exactly what it
//! gets alone, and no block may be lost; by the plain loop or with overlap, as the seed decides.
//!
//! `MONSOON_SIMULATION_SEEDS` is the number of seeds; `MONSOON_SIMULATION_SEED` replays one.

use models::TokenId;
use server::engine::{
    ConstraintSource, Engine, EngineConfig, EngineError, Event, FinishReason, Lane, Overlap,
    PolicyKind, Pooling, PrefixCaching, Request, SamplingParams, SequenceId, Tenant, TenantId,
};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::fake_constraint::FakeConstraint;
use tests::fake_runner::{
    FakeRunner, Fault, FaultAt, NUM_SALTS, VOCAB_SIZE, events_alone, salt, scatter,
};

const SEEDS_DEFAULT: u64 = 10_000;
/// No scenario comes near it; one that reaches it goes round in circles.
const STEPS_MAX: u64 = 5_000;
const REQUESTS_MAX: u64 = 20;
/// The last step in which a request arrives.
const ARRIVAL_STEP_MAX: u64 = 24;
/// Some of which share prefixes, though a server's would not.
const TENANTS: [Tenant; 3] = [
    Tenant { id: TenantId(0), weight: 1, weights: 6 },
    Tenant { id: TenantId(1), weight: 1, weights: 6 },
    Tenant { id: TenantId(2), weight: 4, weights: 6 },
];
/// Requests begin alike, with a part of one of these.
const NUM_BASE_PROMPTS: u64 = 3;

#[test]
fn each_request_gets_what_it_gets_alone() {
    if let Some(seed) = number_from_env("MONSOON_SIMULATION_SEED") {
        simulate(seed);
        return;
    }
    let num_seeds = number_from_env("MONSOON_SIMULATION_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let next_seed = AtomicU64::new(0);
    let num_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let [plain, overlapped] = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads)
            .map(|_| scope.spawn(|| simulate_many(&next_seed, num_seeds)))
            .collect();
        let coverages = threads.into_iter().map(|t| t.join().expect("a seed failed, see above"));
        coverages.fold(Default::default(), |[plain, overlapped]: [Coverage; 2], [p, o]| {
            [plain.add(p), overlapped.add(o)]
        })
    });
    println!("{num_seeds} seeds\nplain: {plain:?}\noverlapped: {overlapped:?}");
    if num_seeds >= 1000 {
        plain.assert_all_happened(Overlap::Disabled);
        overlapped.assert_all_happened(Overlap::Enabled);
    }
}

/// How often the things happened that the simulation is for.
#[derive(Debug, Default)]
struct Coverage {
    steps: u64,
    finished: u64,
    aborted: u64,
    lost: u64,
    refused: u64,
    preemptions: u64,
    cached_tokens: u64,
    evicted_blocks: u64,
    prefix_waits: u64,
    /// Requests that their constraints ended.
    failed: u64,
    /// Steps in which all that was left awaited its constraint.
    constraint_waits: u64,
    /// The client left while a step computed its sequence.
    aborted_under_way: u64,
    /// Steps that were launched while another was under way.
    overlapped_steps: u64,
    /// Chunks whose token was not known when they were planned.
    from_last_step: u64,
    /// A sequence stopped by its token when the next one was being computed already.
    stopped_under_way: u64,
}

impl Coverage {
    fn counts(&self) -> [u64; 12] {
        [
            self.steps,
            self.finished,
            self.aborted,
            self.lost,
            self.refused,
            self.preemptions,
            self.cached_tokens,
            self.evicted_blocks,
            self.prefix_waits,
            self.failed,
            self.constraint_waits,
            self.aborted_under_way,
        ]
    }

    fn counts_of_overlap(&self) -> [u64; 3] {
        [self.overlapped_steps, self.from_last_step, self.stopped_under_way]
    }

    fn add(self, other: Coverage) -> Coverage {
        Coverage {
            steps: self.steps + other.steps,
            finished: self.finished + other.finished,
            aborted: self.aborted + other.aborted,
            lost: self.lost + other.lost,
            refused: self.refused + other.refused,
            preemptions: self.preemptions + other.preemptions,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            evicted_blocks: self.evicted_blocks + other.evicted_blocks,
            prefix_waits: self.prefix_waits + other.prefix_waits,
            failed: self.failed + other.failed,
            constraint_waits: self.constraint_waits + other.constraint_waits,
            aborted_under_way: self.aborted_under_way + other.aborted_under_way,
            overlapped_steps: self.overlapped_steps + other.overlapped_steps,
            from_last_step: self.from_last_step + other.from_last_step,
            stopped_under_way: self.stopped_under_way + other.stopped_under_way,
        }
    }

    /// A simulation in which nothing goes wrong would prove nothing.
    fn assert_all_happened(&self, overlap: Overlap) {
        assert!(self.counts().iter().all(|count| *count > 50), "something is too rare: {self:?}");
        let of_overlap = self.counts_of_overlap();
        match overlap {
            Overlap::Disabled => {
                assert_eq!(of_overlap, [0; 3], "the plain loop plans nothing ahead")
            }
            Overlap::Enabled => {
                assert!(of_overlap.iter().all(|count| *count > 50), "too rare: {self:?}");
            }
        }
    }
}

/// The loop that a seed is for.
fn overlap_of(seed: u64) -> Overlap {
    if seed.is_multiple_of(2) { Overlap::Disabled } else { Overlap::Enabled }
}

/// What happened by the plain loop, and with overlap.
fn simulate_many(next_seed: &AtomicU64, num_seeds: u64) -> [Coverage; 2] {
    let [mut plain, mut overlapped] = [Coverage::default(), Coverage::default()];
    loop {
        let seed = next_seed.fetch_add(1, Ordering::Relaxed);
        if seed >= num_seeds {
            return [plain, overlapped];
        }
        match catch_unwind(AssertUnwindSafe(|| simulate(seed))) {
            Ok(of_seed) => match overlap_of(seed) {
                Overlap::Disabled => plain = plain.add(of_seed),
                Overlap::Enabled => overlapped = overlapped.add(of_seed),
            },
            Err(panic) => {
                eprintln!(
                    "seed {seed} failed; replay it with \
                     MONSOON_SIMULATION_SEED={seed} cargo test -p tests --test simulation"
                );
                // The others need not go on.
                next_seed.store(num_seeds, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    }
}

fn simulate(seed: u64) -> Coverage {
    let mut random = Random(scatter(seed.wrapping_add(1)));
    let scenario = Scenario::random(&mut random, overlap_of(seed));
    let config = &scenario.config;
    let runner = FakeRunner::new(config.num_blocks, config.block_size, scenario.fault);
    let simulation = Simulation {
        engine: Engine::new(config.clone(), runner),
        clients: BTreeMap::new(),
        start: Instant::now(),
        step: 0,
        coverage: Coverage::default(),
        is_lost: false,
    };
    simulation.run(&scenario)
}

struct Simulation {
    engine: Engine<FakeRunner>,
    clients: BTreeMap<SequenceId, Client>,
    start: Instant,
    step: u64,
    coverage: Coverage,
    /// The device is.
    is_lost: bool,
}

/// What a client has received, and what it must receive.
struct Client {
    expected: Vec<Event>,
    received: Vec<Event>,
    prompt_len: usize,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Aborted,
    /// Its constraint could not be followed.
    Failed,
    Lost,
}

impl Simulation {
    fn run(mut self, scenario: &Scenario) -> Coverage {
        while self.step <= ARRIVAL_STEP_MAX || !self.engine.is_idle() {
            assert!(self.step < STEPS_MAX, "requests are left after {STEPS_MAX} steps");
            self.submit_due(scenario);
            self.abort_due(scenario, Moment::BeforeLaunch);
            if !self.run_step(scenario) {
                return self.finish_lost();
            }
        }
        self.probe_cache(scenario);
        self.finish()
    }

    fn submit_due(&mut self, scenario: &Scenario) {
        let step = self.step;
        let due = scenario.arrivals.iter().filter(|arrival| arrival.step == step);
        for arrival in due {
            self.submit(arrival.id, &arrival.request, &scenario.config);
        }
    }

    fn submit(&mut self, id: SequenceId, request: &Request, config: &EngineConfig) {
        match config.check(request) {
            Ok(()) => {}
            Err(EngineError::NeverFits { needed, total }) => {
                assert!(needed > total, "only what cannot fit is refused");
                self.coverage.refused += 1;
                return;
            }
            Err(error) => panic!("the scenario has no such request: {error}"),
        }
        let client = Client {
            expected: events_alone(request, config.max_model_len),
            received: Vec::new(),
            prompt_len: request.prompt.len(),
            end: None,
        };
        self.clients.insert(id, client);
        self.engine.submit(id, request.clone(), self.now());
    }

    fn abort_due(&mut self, scenario: &Scenario, moment: Moment) {
        let due = |abort: &&Abort| (abort.step, abort.moment) == (self.step, moment);
        let due: Vec<SequenceId> = scenario.aborts.iter().filter(due).map(|a| a.id).collect();
        for id in due {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            // Aborting what has ended must do nothing, so it is tried too.
            self.engine.abort(id);
            self.engine.assert_consistent();
            if client.end.is_none() {
                client.end = Some(End::Aborted);
                let is_under_way = self.engine.runner().is_under_way(id);
                self.coverage.aborted_under_way += u64::from(is_under_way);
            }
        }
    }

    /// Returns whether the device still works.
    fn run_step(&mut self, scenario: &Scenario) -> bool {
        let collected_before = self.engine.runner().num_collected();
        if self.engine.launch(self.now()).is_err() {
            return false;
        }
        self.engine.assert_consistent();
        for (id, _, error) in self.engine.take_failed() {
            self.receive(id, Event::Failed(error));
        }
        let is_computing = self.engine.is_computing();
        let is_idle = self.engine.is_idle();
        self.coverage.constraint_waits += u64::from(!is_computing && !is_idle);
        self.abort_due(scenario, Moment::BeforeCollect);
        let result = self.engine.collect();
        self.step += 1;
        let Ok(events) = result else { return false };
        let num_collected = self.engine.runner().num_collected() - collected_before;
        assert_eq!(num_collected, u64::from(is_computing), "each step gives results");
        self.engine.assert_consistent();
        self.coverage.prefix_waits += self.engine.stats().waiting_for_prefix as u64;
        for (id, event) in events {
            self.receive(id, event);
        }
        true
    }

    fn receive(&mut self, id: SequenceId, event: Event) {
        if let Event::Finished { reason } = &event
            && self.engine.runner().is_under_way(id)
        {
            assert_eq!(*reason, FinishReason::Stop, "an end by length is seen in advance");
            self.coverage.stopped_under_way += 1;
        }
        let client = self.clients.get_mut(&id).expect("events are for known requests");
        client.receive(event);
    }

    /// Whatever the cache holds after all that must be right.
    fn probe_cache(&mut self, scenario: &Scenario) {
        for (index, request) in scenario.probes.iter().enumerate() {
            let id = SequenceId((REQUESTS_MAX + index as u64 + 1) * NUM_SALTS + index as u64);
            self.submit(id, request, &scenario.config);
            while !self.engine.is_idle() {
                assert!(self.step < STEPS_MAX, "requests are left after {STEPS_MAX} steps");
                if !self.run_step(scenario) {
                    return self.lose_all();
                }
            }
        }
    }

    fn finish_lost(mut self) -> Coverage {
        self.lose_all();
        self.finish()
    }

    fn lose_all(&mut self) {
        self.is_lost = true;
        for client in self.clients.values_mut().filter(|client| client.end.is_none()) {
            client.end = Some(End::Lost);
        }
    }

    fn finish(mut self) -> Coverage {
        let stats = self.engine.stats();
        for (id, client) in &self.clients {
            let end = client.end.unwrap_or_else(|| panic!("{id:?} never ended"));
            if matches!(end, End::Finished | End::Failed) {
                assert_eq!(client.received.len(), client.expected.len(), "{id:?} got all events");
            }
            match end {
                End::Finished => self.coverage.finished += 1,
                End::Aborted => self.coverage.aborted += 1,
                End::Failed => self.coverage.failed += 1,
                End::Lost => self.coverage.lost += 1,
            }
        }
        if !self.is_lost {
            assert!(self.engine.is_idle(), "all requests have ended");
            assert_eq!(stats.blocks_free, stats.blocks_total, "all blocks are free at the end");
            assert_eq!((stats.running, stats.waiting_preempted), (0, 0));
            assert_eq!(stats.finished_stop + stats.finished_length, self.coverage.finished);
            assert_eq!(
                (stats.aborted, stats.failed),
                (self.coverage.aborted, self.coverage.failed)
            );
        }
        self.coverage.steps = stats.steps;
        self.coverage.preemptions = stats.preemptions;
        self.coverage.cached_tokens = stats.prefix_hit_tokens;
        self.coverage.evicted_blocks = stats.evicted_blocks;
        self.coverage.overlapped_steps = stats.overlapped_steps;
        self.coverage.from_last_step = self.engine.runner().num_from_last_step();
        self.coverage
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.step)
    }
}

impl Client {
    fn receive(&mut self, event: Event) {
        assert_eq!(self.end, None, "nothing comes after the end");
        let comparable = match event {
            Event::Started { cached_tokens } => {
                assert!(cached_tokens < self.prompt_len, "the last prompt token is computed");
                Event::Started { cached_tokens: 0 }
            }
            event => event,
        };
        let index = self.received.len();
        assert_eq!(Some(&comparable), self.expected.get(index), "event {index} is as it is alone");
        if matches!(comparable, Event::Finished { .. }) {
            self.end = Some(End::Finished);
        }
        if matches!(comparable, Event::Failed(_)) {
            self.end = Some(End::Failed);
        }
        self.received.push(comparable);
    }
}

struct Scenario {
    config: EngineConfig,
    arrivals: Vec<Arrival>,
    aborts: Vec<Abort>,
    fault: Option<Fault>,
    /// Run one by one at the end, one for each salt.
    probes: Vec<Request>,
}

struct Arrival {
    step: u64,
    id: SequenceId,
    request: Request,
}

/// The client leaves.
struct Abort {
    id: SequenceId,
    step: u64,
    moment: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeLaunch,
    BeforeCollect,
}

impl Scenario {
    fn random(random: &mut Random, overlap: Overlap) -> Scenario {
        let config = random_config(random, overlap);
        let num_requests = random.between(1, REQUESTS_MAX);
        // Some scenarios send all at once, so that identical prefixes meet.
        let arrival_step_max = if random.one_in(2) { 1 } else { ARRIVAL_STEP_MAX };
        let bases: Vec<Vec<TokenId>> = (0..NUM_BASE_PROMPTS)
            .map(|_| random_tokens(random, config.max_model_len as u64))
            .collect();
        let mut arrivals: Vec<Arrival> = Vec::new();
        let mut aborts = Vec::new();
        for number in 0..num_requests {
            let salt_index = random.below(NUM_SALTS);
            let id = SequenceId(number * NUM_SALTS + salt_index);
            let prompt = random_prompt(random, &bases, &arrivals, config.max_model_len);
            let request = random_request(random, prompt, salt_index, config.max_model_len);
            let step = random.between(0, arrival_step_max);
            if random.one_in(5) {
                let moment =
                    if random.one_in(2) { Moment::BeforeLaunch } else { Moment::BeforeCollect };
                aborts.push(Abort { id, step: step + random.below(20), moment });
            }
            arrivals.push(Arrival { step, id, request });
        }
        let fault = random.one_in(20).then(|| Fault {
            step: random.below(30),
            at: if random.one_in(2) { FaultAt::Launch } else { FaultAt::Collect },
        });
        let probes = (0..NUM_SALTS)
            .map(|index| {
                let prompt = bases[index as usize % bases.len()].clone();
                random_request(random, prompt, index, config.max_model_len)
            })
            .collect();
        Scenario { config, arrivals, aborts, fault, probes }
    }
}

fn random_config(random: &mut Random, overlap: Overlap) -> EngineConfig {
    let max_num_seqs = random.between(1, 6) as usize;
    let block_size = random.between(1, 6) as usize;
    let max_model_len = random.between(6, 40) as usize;
    // From too few for the longest request to enough for some of them.
    let num_blocks_full = max_model_len.div_ceil(block_size) as u64;
    let num_blocks = random.between(num_blocks_full * 3 / 4, num_blocks_full * 2) as usize;
    EngineConfig {
        block_size,
        num_blocks: num_blocks.max(1),
        max_num_seqs,
        max_num_batched_tokens: max_num_seqs + random.below(32) as usize,
        max_model_len,
        double_cost_context: if random.one_in(2) {
            usize::MAX
        } else {
            random.between(1, 40) as usize
        },
        waiting_requests_max: usize::MAX,
        waiting_tokens_max: usize::MAX,
        policy: if random.one_in(2) { PolicyKind::Fcfs } else { PolicyKind::Priority },
        prefix_caching: if random.one_in(8) {
            PrefixCaching::Disabled
        } else {
            PrefixCaching::Enabled
        },
        overlap,
    }
}

/// A part of a base prompt or of an earlier request with its answer, and some tokens of its own.
fn random_prompt(
    random: &mut Random,
    bases: &[Vec<TokenId>],
    earlier: &[Arrival],
    model_len_max: usize,
) -> Vec<TokenId> {
    let mut prompt = match earlier.get(random.below(1 + 2 * earlier.len() as u64) as usize) {
        Some(arrival) => conversation(&arrival.request, model_len_max),
        None => {
            let base = &bases[random.below(bases.len() as u64) as usize];
            base[..random.between(0, base.len() as u64 / 2) as usize].to_vec()
        }
    };
    let num_own = random.below(5);
    prompt.extend(random_tokens(random, num_own));
    prompt.truncate(model_len_max - 1);
    if prompt.is_empty() {
        prompt.push(TokenId(1));
    }
    prompt
}

fn conversation(request: &Request, model_len_max: usize) -> Vec<TokenId> {
    let mut token_ids = request.prompt.clone();
    for event in events_alone(request, model_len_max) {
        if let Event::Token(sampled) = event {
            token_ids.push(sampled.token);
        }
    }
    token_ids
}

fn random_request(
    random: &mut Random,
    prompt: Vec<TokenId>,
    salt_index: u64,
    model_len_max: usize,
) -> Request {
    let pooling = match (random.one_in(6), random.one_in(2)) {
        (false, _) => None,
        (true, false) => Some(Pooling::Hidden),
        (true, true) => Some(Pooling::logprobs(&[TokenId(2), TokenId(3)])),
    };
    let scores = random.one_in(6).then_some(0);
    let fewest = u64::from(scores.is_none());
    let room = (model_len_max - prompt.len()) as u64;
    // One in eight asks for more than the context holds: the engine ends it there.
    let most = if random.one_in(8) { room + 4 } else { room.min(20) };
    let sampling = SamplingParams {
        max_new_tokens: match pooling {
            Some(_) => 0,
            None => random.between(fewest, most.max(fewest)) as usize,
        },
        temperature: if random.one_in(2) { 0.0 } else { 1.0 },
        seed: random.next(),
        repetition_penalty: if random.one_in(4) { 1.5 } else { 1.0 },
        eos_token_ids: if random.one_in(3) { vec![TokenId(0), TokenId(1)] } else { Vec::new() },
        logprobs: random.one_in(4).then_some(0),
        prompt_logprobs: scores,
        ..SamplingParams::default()
    };
    let priority = random.below(3) as i32;
    let lane = if random.one_in(3) { Lane::Background } else { Lane::Interactive };
    let is_constrained = pooling.is_none() && random.one_in(3);
    let constraint = is_constrained.then(|| random_constraint(random));
    let cache_salt = salt(salt_index);
    let tenant = TENANTS[random.below(TENANTS.len() as u64) as usize];
    Request { prompt, sampling, pooling, priority, lane, tenant, cache_salt, constraint }
}

fn random_constraint(random: &mut Random) -> Arc<dyn ConstraintSource> {
    Arc::new(FakeConstraint {
        seed: random.next(),
        delay: random.below(4),
        is_constant: random.one_in(3),
        tokens_max: random.one_in(6).then(|| random.below(6) as usize),
    })
}

fn random_tokens(random: &mut Random, num_tokens: u64) -> Vec<TokenId> {
    (0..num_tokens).map(|_| TokenId(random.below(u64::from(VOCAB_SIZE)) as u32)).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scatter(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn number_from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}
