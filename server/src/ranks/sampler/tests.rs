use super::oracle::{Random, expected};
use super::*;
use crate::engine::TokenMask;
use kernels::device::cpu::CpuDevice;
use std::sync::Arc;

#[test]
fn every_draw_is_the_one_of_the_slow_sampler() {
    let mut random = Random(1);
    let (mut checked, mut close_calls) = (0, 0);
    for _ in 0..3000 {
        let (row, step) = random_case(&mut random);
        let expected = expected(&row, &step);
        match expected.token(&step) {
            Some(token) if !expected.is_close_call => {
                assert_eq!(sample(&row, &step).token.0, token, "{:?}", step.params);
                checked += 1;
            }
            _ => close_calls += 1,
        }
    }
    assert!(close_calls < 100, "{close_calls} of {} left out", checked + close_calls);
}

#[test]
fn draws_follow_the_distribution() {
    let mut random = Random(2);
    let row: Vec<f32> = (0..300).map(|_| random.normal(1.5)).collect();
    let base = SamplingParams { temperature: 0.9, seed: 77, ..Default::default() };
    let cases = [
        base.clone(),
        SamplingParams { top_k: 20, top_p: 0.8, ..base.clone() },
        SamplingParams { top_p: 0.9, ..base.clone() },
        SamplingParams { min_p: 0.05, ..base.clone() },
        SamplingParams { temperature: 2.5, min_p: 0.01, top_p: 0.95, ..base.clone() },
        SamplingParams { logit_bias: vec![(TokenId(3), 4.0), (TokenId(9), -100.0)], ..base },
    ];
    for params in cases {
        let num_draws = 20_000;
        let mut step = step_of(params);
        let mut counts = vec![0.0; row.len()];
        for position in 0..num_draws {
            step.position = position;
            counts[sample(&row, &step).token.0 as usize] += 1.0;
        }
        check_chi_square(&counts, &expected(&row, &step).probabilities, num_draws as f64);
    }
}

/// Rare tokens are put into one class, as the test asks for.
fn check_chi_square(counts: &[f64], probabilities: &[f64], num_draws: f64) {
    let (mut chi_square, mut classes) = (0.0, 0.0);
    let (mut rare_count, mut rare_mass) = (0.0, 0.0);
    for (&count, &probability) in counts.iter().zip(probabilities) {
        assert!(probability > 0.0 || count == 0.0, "a token without probability was drawn");
        let mass = probability * num_draws;
        if mass < 10.0 {
            (rare_count, rare_mass) = (rare_count + count, rare_mass + mass);
        } else {
            chi_square += (count - mass) * (count - mass) / mass;
            classes += 1.0;
        }
    }
    if rare_mass >= 10.0 {
        chi_square += (rare_count - rare_mass) * (rare_count - rare_mass) / rare_mass;
        classes += 1.0;
    }
    // Four standard deviations of the statistic about its mean; seeds are fixed, so this cannot
    // flake.
    let freedom: f64 = classes - 1.0;
    let distance = (chi_square - freedom) / (2.0 * freedom).sqrt();
    assert!(freedom >= 5.0 && distance.abs() < 4.0, "chi square {chi_square}, {freedom} classes");
}

#[test]
fn each_parameter_keeps_to_its_edges() {
    let row = [1.0, 3.0, 3.0, 2.0, -1.0];
    let hot = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams { temperature: 5.0, ..Default::default() };
        change(&mut params);
        params
    };
    let only = |params, id: u32| (params, vec![id]);
    let cases: Vec<(SamplingParams, Vec<u32>)> = vec![
        only(SamplingParams::default(), 1),
        only(hot(|p| p.temperature = 1e-6), 1),
        only(hot(|p| p.temperature = f32::MIN_POSITIVE), 1),
        only(hot(|p| p.top_k = 1), 1),
        only(hot(|p| p.min_p = 1.0), 1),
        only(hot(|p| p.top_p = 1e-9), 1),
        only(hot(|p| p.top_p = 0.0), 1),
        (hot(|p| p.top_k = 2), vec![1, 2]),
        (hot(|p| p.top_k = 3), vec![1, 2, 3]),
        (hot(|p| p.top_k = 5), vec![0, 1, 2, 3, 4]),
        (hot(|p| p.top_k = u32::MAX), vec![0, 1, 2, 3, 4]),
        (hot(|p| p.top_p = 0.9999999), vec![0, 1, 2, 3, 4]),
        (hot(|p| p.min_p = 1e-30), vec![0, 1, 2, 3, 4]),
        (hot(|p| p.min_p = 0.999), vec![1, 2]),
        (hot(|p| (p.min_p, p.top_k) = (0.999, 4)), vec![1, 2]),
        (hot(|p| (p.top_k, p.top_p) = (2, 0.6)), vec![1, 2]),
        (hot(|p| (p.top_k, p.top_p) = (2, 0.49)), vec![1]),
        only(hot(|p| p.logit_bias = vec![(TokenId(4), 100.0)]), 4),
        only(SamplingParams { logit_bias: vec![(TokenId(4), 4.5)], ..Default::default() }, 4),
        (hot(|p| p.logit_bias = vec![(TokenId(1), -100.0), (TokenId(3), -100.0)]), vec![0, 2, 4]),
        // Bans that leave nothing are void.
        (hot(|p| p.logit_bias = (0..5).map(|i| (TokenId(i), -100.0)).collect()), (0..5).collect()),
        (hot(|p| p.logit_bias = vec![(TokenId(900), 100.0)]), vec![0, 1, 2, 3, 4]),
    ];
    for (params, expected) in cases {
        let mut step = step_of(params);
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..400 {
            step.position = position;
            seen.insert(sample(&row, &step).token.0);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected, "{:?}", step.params);
    }
}

#[test]
fn a_mask_stays_where_bans_are_void_and_log_probabilities_are_those_of_the_raw_row() {
    let row = [1.0, 3.0, 3.0, 2.0, -1.0];
    let only = |ids: &[u32]| {
        let words = vec![ids.iter().map(|id| 1 << id).sum()];
        Some(Arc::new(TokenMask::new(words).unwrap()))
    };
    let bans = |ids: &[u32]| SamplingParams {
        logit_bias: ids.iter().map(|&id| (TokenId(id), -100.0)).collect(),
        logprobs: Some(2),
        ..Default::default()
    };
    let stops = SamplingParams {
        min_tokens: 9,
        eos_token_ids: vec![TokenId(4)],
        logprobs: Some(2),
        ..Default::default()
    };
    for (params, allowed, expected, rank) in [
        (bans(&[]), &[0, 3][..], 3, 3),
        (bans(&[3]), &[0, 3], 0, 4),
        (bans(&[0, 3]), &[0, 3], 3, 3),
        (stops.clone(), &[4, 0], 0, 4),
        (stops, &[4], 4, 5),
    ] {
        let step = SampleStep { mask: only(allowed), ..step_of(params) };
        let sampled = sample(&row, &step);
        assert_eq!(sampled.token.0, expected, "{:?} of {allowed:?}", step.params);
        let logprobs = sampled.logprobs.unwrap();
        assert_eq!(logprobs.rank, rank);
        let best = logprobs.top.iter().map(|(id, _)| id.0).collect::<Vec<_>>();
        assert_eq!(best, [1, 2]);
        let free = sample(&row, &step_of(bans(&[]))).logprobs.unwrap();
        let distance = row[1] - row[expected as usize];
        assert!((free.logprob - logprobs.logprob - distance).abs() < 1e-5);
    }
}

#[test]
fn end_tokens_wait_for_min_tokens() {
    let row = [1.0, 9.0, 8.0, 2.0];
    let params = SamplingParams {
        min_tokens: 3,
        eos_token_ids: vec![TokenId(1)],
        stop_token_ids: vec![TokenId(2), TokenId(7)],
        ..Default::default()
    };
    for (position, expected) in [(10, 3), (12, 3), (13, 1), (14, 1)] {
        let step = SampleStep { position, prompt_len: 10, ..step_of(params.clone()) };
        assert_eq!(sample(&row, &step).token.0, expected, "position {position}");
    }
}

#[test]
fn penalties_count_what_they_should() {
    // Token 0 is in the prompt only, 1 twice in the output, 2 in both, 3 nowhere.
    let history = [0, 2, 1, 2, 1, 6].map(TokenId).to_vec();
    let cases = [
        (SamplingParams { repetition_penalty: 2.0, ..Default::default() }, [2.0, 2.0, -8.0, 4.0]),
        (SamplingParams { presence_penalty: 1.5, ..Default::default() }, [4.0, 2.5, -5.5, 4.0]),
        (SamplingParams { frequency_penalty: 0.5, ..Default::default() }, [4.0, 3.0, -4.5, 4.0]),
    ];
    for (params, expected) in cases {
        let mut row = [4.0, 4.0, -4.0, 4.0];
        let step =
            SampleStep { position: 6, prompt_len: 2, history: history.clone(), ..step_of(params) };
        let mut edits = Edits::default();
        for _ in 0..2 {
            edits.apply(&mut row, &step);
            assert_eq!(row, expected, "{:?}", step.params);
            edits.undo(&mut row);
            assert_eq!(row, [4.0, 4.0, -4.0, 4.0], "{:?}", step.params);
        }
    }
}

#[test]
fn extreme_parameters_neither_panic_nor_leave_the_vocabulary() {
    let mut random = Random(5);
    let extremes = [f32::MIN_POSITIVE, 1e-30, 1.0, 1e30, f32::MAX];
    for _ in 0..2000 {
        let spread = random.pick(&[0.0, 1.0, 1e30]);
        let row: Vec<f32> = (0..40).map(|_| random.normal(spread)).collect();
        let params = SamplingParams {
            temperature: random.pick(&extremes),
            top_k: random.pick(&[0, 1, 2, 39, 40, 41, u32::MAX]),
            top_p: random.pick(&[0.0, f32::MIN_POSITIVE, 0.5, 1.0 - f32::EPSILON / 2.0, 1.0]),
            min_p: random.pick(&[0.0, f32::MIN_POSITIVE, 0.5, 1.0]),
            repetition_penalty: random.pick(&extremes),
            presence_penalty: random.pick(&[f32::MIN, 0.0, f32::MAX]),
            frequency_penalty: random.pick(&[f32::MIN, 0.0, f32::MAX]),
            logit_bias: vec![(TokenId(3), random.pick(&[f32::MIN, -99.0, 99.0, f32::MAX]))],
            seed: random.next(),
            logprobs: Some(3),
            ..Default::default()
        };
        let history = [3, 4, 3].map(TokenId).to_vec();
        let step = SampleStep { position: 3, prompt_len: 1, history, ..step_of(params) };
        assert!(sample(&row, &step).token.0 < 40);
    }
}

#[test]
fn padding_is_never_sampled_and_has_no_probability() {
    let mut random = Random(6);
    for temperature in [0.0, 1.0] {
        let values: Vec<f32> = (0..24).map(|i| if i % 8 < 5 { 1.0 } else { 50.0 }).collect();
        let mut logits = Tensor::from_f32(&[3, 8], &values);
        let seed = random.next();
        let params = SamplingParams { temperature, seed, logprobs: Some(8), ..Default::default() };
        let step = step_of(params);
        let tasks = [
            RowTask::Sample(&step),
            RowTask::Score { target: TokenId(6), top: 1 },
            RowTask::Score { target: TokenId(4), top: 0 },
        ];
        let results = Sampler::new(&Backend::Reference, 5).run(&mut logits, &tasks);
        let outputs: Vec<_> = results.into_iter().map(Result::unwrap).collect();
        let fifth = 0.2f32.ln();
        let RowOutput::Sampled(sampled) = &outputs[0] else { panic!("sampled") };
        let scored = sampled.logprobs.as_ref().unwrap();
        assert!(sampled.token.0 < 5 && scored.top.len() == 5 && scored.rank == sampled.token.0 + 1);
        assert!((scored.logprob - fifth).abs() < 1e-6);
        let score = |token, logprob, rank, top| {
            RowOutput::Scored(TokenLogprobs { token: TokenId(token), logprob, rank, top })
        };
        let top = vec![(TokenId(0), scored.logprob)];
        assert_eq!(outputs[1], score(6, f32::NEG_INFINITY, 6, top));
        assert_eq!(outputs[2], score(4, scored.logprob, 5, vec![]));
    }
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let mut random = Random(7);
    for _ in 0..500 {
        let (row, mut step) = random_case(&mut random);
        let top = random.below(21);
        Arc::make_mut(&mut step.params).logprobs = Some(top);
        let sampled = sample(&row, &step);
        let got = sampled.logprobs.unwrap();
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        let logprob = |id: usize| f64::from(row[id]) - sum.ln();
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap().then(a.cmp(&b)));
        let token = sampled.token.0 as usize;
        assert_eq!(order[got.rank as usize - 1], token);
        assert!((f64::from(got.logprob) - logprob(token)).abs() < 3e-6);
        assert_eq!(got.top.len(), top.min(row.len()));
        for (&(id, value), &expected) in got.top.iter().zip(&order) {
            assert_eq!(id.0 as usize, expected);
            assert!((f64::from(value) - logprob(expected)).abs() < 3e-6);
        }
    }
}

#[test]
fn values_that_are_not_finite_are_never_chosen() {
    let row = [f32::NAN, 1.0, f32::INFINITY, 0.5, f32::NEG_INFINITY];
    for params in [
        SamplingParams::default(),
        SamplingParams { temperature: 1.0, ..Default::default() },
        SamplingParams { temperature: 1.0, top_p: 0.99, logprobs: Some(5), ..Default::default() },
        SamplingParams { temperature: 1.0, top_k: 4, ..Default::default() },
    ] {
        let mut step = step_of(params);
        for position in 0..50 {
            step.position = position;
            let sampled = sample(&row, &step);
            assert!([1, 3].contains(&sampled.token.0));
            if let Some(logprobs) = sampled.logprobs {
                let mass: f32 = logprobs.top.iter().map(|(_, logprob)| logprob.exp()).sum();
                assert!((mass - 1.0).abs() < 1e-6 && logprobs.top.len() == 2);
            }
        }
    }
    let mut logits = Tensor::from_f32(&[2, 2], &[f32::NAN, f32::NEG_INFINITY, 1.0, 2.0]);
    let step = step_of(SamplingParams::default());
    let tasks = [RowTask::Sample(&step); 2];
    let results = Sampler::new(&Backend::Reference, 2).run(&mut logits, &tasks);
    assert_eq!(results[0], Err(SampleError::NoFiniteLogit { vocab: 2 }));
    assert!(results[1].is_ok());
}

#[test]
fn a_row_gets_the_same_alone_and_in_a_batch_on_any_number_of_threads() {
    let mut random = Random(8);
    let cases: Vec<_> = (0..64)
        .map(|_| {
            let (mut row, mut step) = random_case(&mut random);
            row.resize(3000, -2.0);
            Arc::make_mut(&mut step.params).logprobs = Some(5);
            (row, step)
        })
        .collect();
    let alone: Vec<_> = cases.iter().map(|(row, step)| sample(row, step)).collect();
    for num_threads in [1, 2, 3] {
        let backend = Backend::Cpu(CpuDevice::new(num_threads, None));
        let sampler = Sampler::new(&backend, 3000);
        for _ in 0..2 {
            let values: Vec<f32> = cases.iter().flat_map(|(row, _)| row.clone()).collect();
            let mut logits = Tensor::from_f32(&[64, 3000], &values);
            let tasks: Vec<_> = cases.iter().map(|(_, step)| RowTask::Sample(step)).collect();
            let results = sampler.run(&mut logits, &tasks);
            for (result, alone) in results.into_iter().zip(&alone) {
                assert_eq!(result, Ok(RowOutput::Sampled(alone.clone())));
            }
        }
    }
}

/// All parameters at random, often at values that switch them off; logits often with ties.
fn random_case(random: &mut Random) -> (Vec<f32>, SampleStep) {
    let vocab = random.pick(&[1, 2, 7, 100, 1024, 1500, 2999]);
    let spread = random.pick(&[0.1, 1.0, 3.0, 10.0]);
    let has_ties = random.below(3) == 0;
    let logit = |random: &mut Random| match has_ties {
        true => (random.normal(spread) * 2.0).round() / 2.0,
        false => random.normal(spread),
    };
    let row: Vec<f32> = (0..vocab).map(|_| logit(random)).collect();
    let token = |random: &mut Random| TokenId(random.below(vocab) as u32);
    let mut logit_bias: Vec<(TokenId, f32)> = (0..random.pick(&[0, 0, 3]))
        .map(|_| (token(random), random.pick(&[-100.0, -2.5, 1.0, 7.25, 100.0])))
        .collect();
    logit_bias.sort_by_key(|b| b.0);
    logit_bias.dedup_by_key(|b| b.0);
    if vocab <= 7 {
        logit_bias.retain(|&(_, bias)| bias != -100.0);
    }
    let can_end = vocab > 10;
    let params = SamplingParams {
        temperature: random.pick(&[0.0, 0.3, 0.7, 1.0, 1.7, 4.0]),
        top_k: random.pick(&[0, 0, 1, 2, 20, 100, 1400, 100_000]),
        top_p: random.pick(&[1.0, 1.0, 0.8, 0.95, 0.999, 0.3, 0.001]),
        min_p: random.pick(&[0.0, 0.0, 0.02, 0.3, 1.0]),
        repetition_penalty: random.pick(&[1.0, 1.0, 1.1, 0.8, 2.0]),
        presence_penalty: random.pick(&[0.0, 0.0, 1.5, -0.5]),
        frequency_penalty: random.pick(&[0.0, 0.0, 0.25, -1.0]),
        min_tokens: random.pick(&[0, 5]),
        eos_token_ids: if can_end { vec![token(random)] } else { vec![] },
        stop_token_ids: if can_end { vec![token(random)] } else { vec![] },
        logit_bias,
        seed: random.next(),
        ..Default::default()
    };
    let prompt_len = 1 + random.below(20);
    let position = prompt_len + random.below(20);
    let history = (0..position).map(|_| token(random)).collect();
    let mask = random.pick(&[false, false, true]).then(|| random_mask(random, vocab));
    (row, SampleStep { position, prompt_len, history, mask, ..step_of(params) })
}

/// At least one token may come.
fn random_mask(random: &mut Random, vocab: usize) -> Arc<TokenMask> {
    let spread = random.pick(&[u64::MAX, 0x8000_0000_0000_0001, 0x5555_0000_ffff_0000]);
    let len = 1 + random.below(vocab.div_ceil(32));
    let mut words: Vec<u32> = (0..len).map(|_| (random.next() & spread) as u32).collect();
    let id = random.below(vocab.min(32 * len));
    words[id / 32] |= 1 << (id % 32);
    Arc::new(TokenMask::new(words).unwrap())
}

fn step_of(params: SamplingParams) -> SampleStep {
    SampleStep { params: Arc::new(params), position: 0, prompt_len: 0, history: vec![], mask: None }
}

fn sample(row: &[f32], step: &SampleStep) -> SampledToken {
    let mut logits = Tensor::from_f32(&[1, row.len()], row);
    let sampler = Sampler::new(&Backend::Reference, row.len());
    match sampler.run(&mut logits, &[RowTask::Sample(step)]).remove(0) {
        Ok(RowOutput::Sampled(token)) => token,
        other => panic!("expected a token, got {other:?}"),
    }
}
