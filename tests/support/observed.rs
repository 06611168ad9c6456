//! A rank group that notes what the engine had it do, and runs of the engine on it.

use crate::random::Random;
use crate::serving::Outcome;
use server::engine::{
    ChunkInput, Engine, EngineConfig, EngineStats, Plan, Request, Runner, RunnerError, SequenceId,
    StepOutput,
};
use server::ranks::RankGroup;
use std::collections::BTreeMap;
use std::time::Instant;

/// What the plans of one run looked like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Observed {
    /// Steps with both a generated token and a part of a prompt of several tokens.
    pub mixed_steps: usize,
    /// Most sequences in one step.
    pub batch_len_max: usize,
    /// Chunks whose token was left to the step before.
    pub from_last_step: usize,
}

pub struct ObservedGroup {
    group: RankGroup,
    pub observed: Observed,
}

impl ObservedGroup {
    pub fn new(group: RankGroup) -> Self {
        Self { group, observed: Observed::default() }
    }
}

impl Runner for ObservedGroup {
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        let prompts = plan.chunks.iter().filter(|chunk| chunk.num_tokens() > 1).count();
        let seen = &mut self.observed;
        seen.mixed_steps += usize::from(0 < prompts && prompts < plan.chunks.len());
        seen.batch_len_max = seen.batch_len_max.max(plan.chunks.len());
        let inputs = plan.chunks.iter().map(|chunk| &chunk.input);
        seen.from_last_step += inputs.filter(|input| **input == ChunkInput::FromLastStep).count();
        self.group.launch(plan)
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        self.group.collect()
    }
}

/// When requests reach the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// Each when the one before it has ended.
    OneByOne,
    /// All before the first step.
    AtOnce,
    /// A few between any two steps, in random order; beside them as many that are aborted soon.
    Random,
}

/// Runs all requests to their ends and returns their outcomes in order.
pub fn run_engine(
    config: EngineConfig,
    group: RankGroup,
    requests: &[Request],
    arrivals: Arrivals,
    random: &mut Random,
) -> (Vec<Outcome>, EngineStats, Observed) {
    let now = Instant::now();
    let mut engine = Engine::new(config, ObservedGroup::new(group));
    let mut order: Vec<usize> = (0..requests.len()).collect();
    if arrivals == Arrivals::Random {
        random.shuffle(&mut order);
    }
    let mut outcomes: BTreeMap<SequenceId, Outcome> = BTreeMap::new();
    let mut doomed: Vec<SequenceId> = Vec::new();
    let mut waiting = order.into_iter().peekable();
    while waiting.peek().is_some() || !engine.is_idle() {
        let count = match arrivals {
            Arrivals::OneByOne => usize::from(engine.is_idle()),
            Arrivals::AtOnce => requests.len(),
            Arrivals::Random => random.below(4),
        };
        for index in waiting.by_ref().take(count) {
            engine.submit(SequenceId(index as u64), requests[index].clone(), now);
            if arrivals == Arrivals::Random && random.below(3) == 0 {
                let id = SequenceId((requests.len() + index) as u64);
                engine.submit(id, requests[index].clone(), now);
                doomed.push(id);
            }
        }
        for (id, event) in engine.step(now).unwrap() {
            outcomes.entry(id).or_default().push(event);
        }
        engine.assert_consistent();
        if random.below(3) == 0
            && let Some(id) = doomed.pop()
        {
            engine.abort(id);
        }
    }
    let done = |index: usize| outcomes.remove(&SequenceId(index as u64)).unwrap_or_default();
    ((0..requests.len()).map(done).collect(), engine.stats(), engine.runner().observed)
}
