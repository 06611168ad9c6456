use super::*;
use crate::engine::{
    BlockId, ChunkInput, Engine, EngineConfig, Event, FinishReason, Overlap, PolicyKind,
    PrefixCaching, Request, SamplingParams, SequenceId, Tenant,
};
use std::sync::Arc;

const TIMES: &str = "
    name = 'a GPU'
    decode = [[1, 1000], [3, 3000]]
    prompt = [[0, 0], [10, 20000]]
    context = 10
    answer-tokens = 5
";

fn runner(times: GpuTimes) -> TimingRunner {
    TimingRunner::new(times, (10..50).map(TokenId).collect())
}

fn chunk(start: usize, num_tokens: usize) -> Chunk {
    Chunk {
        sequence: SequenceId(1),
        input: ChunkInput::Known(vec![TokenId(1); num_tokens]),
        start,
        block_table: Arc::new(vec![BlockId(0)]),
        sample: None,
        prompt_logprobs: None,
        pooling: None,
    }
}

fn sample(position: usize, params: SamplingParams) -> SampleStep {
    let params = Arc::new(params);
    SampleStep { params, position, prompt_len: 4, history: Vec::new(), mask: None }
}

#[test]
fn a_step_takes_what_its_decodes_its_prompts_and_their_context_take() {
    let times = GpuTimes::parse(TIMES).expect("a table");
    let micros = |chunks: &[(usize, usize)]| {
        let chunks = chunks.iter().map(|&(start, num_tokens)| chunk(start, num_tokens)).collect();
        times.of_plan(&Plan { step: 0, chunks }).as_micros()
    };
    assert_eq!(micros(&[(0, 10)]), 20_000);
    assert_eq!(micros(&[(99, 1)]), 1000 + 1000);
    assert_eq!(micros(&[(99, 1), (49, 1), (5, 5)]), 2000 + 1500 + 10_000);
    assert_eq!(
        GpuTimes::zero().of_plan(&Plan { step: 0, chunks: vec![chunk(0, 9)] }).as_nanos(),
        0
    );
}

#[test]
fn steps_are_done_one_after_the_other() {
    let mut runner = runner(GpuTimes::parse(TIMES).expect("a table"));
    let plan = Plan { step: 0, chunks: vec![chunk(0, 2)] };
    let before = Instant::now();
    runner.launch(&plan).expect("room");
    runner.launch(&plan).expect("room for a second");
    for num_steps in [1, 2] {
        runner.collect().expect("an output");
        assert!(before.elapsed() >= num_steps * Duration::from_millis(4));
    }
}

#[test]
fn tokens_depend_on_seed_and_position_alone_and_are_never_stops() {
    let runner = runner(GpuTimes::zero());
    let params = |seed| SamplingParams {
        seed,
        stop_token_ids: (10..30).map(TokenId).collect(),
        ..SamplingParams::default()
    };
    let answer = |seed| -> Vec<TokenId> {
        (4..104).map(|position| runner.token(&sample(position, params(seed)))).collect()
    };
    assert_eq!(answer(7), answer(7));
    assert_ne!(answer(7), answer(8));
    assert!(answer(7).iter().all(|token| (30..50).contains(&token.0)));
}

#[test]
fn an_answer_ends_after_as_many_tokens_as_the_table_says_if_it_may() {
    let runner = runner(GpuTimes::parse(TIMES).expect("a table"));
    let end_of = |params: &SamplingParams| {
        (1..20).find(|len| runner.token(&sample(3 + len, params.clone())) == TokenId(2))
    };
    let params = SamplingParams { eos_token_ids: vec![TokenId(2)], ..SamplingParams::default() };
    assert_eq!(end_of(&params), Some(5));
    assert_eq!(end_of(&SamplingParams { min_tokens: 8, ..params.clone() }), Some(9));
    assert_eq!(end_of(&SamplingParams { eos_token_ids: Vec::new(), ..params }), None);
}

#[test]
fn a_mask_is_held_to() {
    let runner = runner(GpuTimes::zero());
    let mask = TokenMask::new(vec![0, 0b1000, 0]).expect("a token");
    for position in 4..40 {
        let step = SampleStep {
            mask: Some(Arc::new(mask.clone())),
            ..sample(position, SamplingParams::default())
        };
        assert_eq!(runner.token(&step), TokenId(35));
    }
}

#[test]
fn it_serves_an_engine_with_all_that_is_asked_for() {
    for overlap in [Overlap::Enabled, Overlap::Disabled] {
        let config = EngineConfig {
            block_size: 4,
            num_blocks: 16,
            max_num_seqs: 4,
            max_num_batched_tokens: 8,
            max_model_len: 64,
            double_cost_context: 1 << 20,
            waiting_requests_max: 4,
            waiting_tokens_max: 64,
            policy: PolicyKind::Fcfs,
            prefix_caching: PrefixCaching::Enabled,
            overlap,
        };
        let mut engine = Engine::new(config, runner(GpuTimes::zero()));
        let sampling = SamplingParams {
            max_new_tokens: 3,
            logprobs: Some(2),
            prompt_logprobs: Some(1),
            ..SamplingParams::default()
        };
        let request = Request {
            prompt: (1..=10).map(TokenId).collect(),
            sampling,
            pooling: None,
            priority: 0,
            lane: Default::default(),
            tenant: Tenant::default(),
            cache_salt: Default::default(),
            constraint: None,
        };
        let now = Instant::now();
        engine.submit(SequenceId(0), request, now);
        let mut events = Vec::new();
        while !engine.is_idle() {
            events.extend(engine.step(now).expect("it never fails").into_iter().map(|(_, e)| e));
        }
        let [Event::Started { .. }, Event::PromptLogprobs(scores), rest @ ..] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(
            scores.iter().map(|score| score.token.0).collect::<Vec<_>>(),
            (2..=10).collect::<Vec<_>>()
        );
        assert_eq!(rest.len(), 4);
        for event in &rest[..3] {
            let Event::Token(SampledToken { token, logprobs: Some(logprobs) }) = event else {
                panic!("{event:?}")
            };
            assert_eq!(
                (logprobs.token, logprobs.top[0].0, logprobs.top.len()),
                (*token, *token, 2)
            );
        }
        assert_eq!(rest[3], Event::Finished { reason: FinishReason::Length });
    }
}
