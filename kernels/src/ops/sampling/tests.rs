use super::*;
use crate::device::cuda::{CudaDevice, DeviceBuffer};
use crate::ops::testing::{cuda_devices, on_device};
use crate::{DType, Tensor};

/// SplitMix64 (Steele et al., 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// About normal, with standard deviation `spread`.
    fn normal(&mut self, spread: f32) -> f32 {
        let unit = |bits: u64| (bits >> 40) as f32 / (1u64 << 24) as f32;
        ((0..12).map(|_| unit(self.next())).sum::<f32>() - 6.0) * spread
    }
}

/// A task with lists of its own.
#[derive(Debug, Clone)]
struct Case {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    penalties: [f32; 3],
    logit_bias: Vec<(u32, f32)>,
    mask: Option<Vec<u32>>,
    bans: Vec<u32>,
    seed: u64,
    position: u64,
    history: Vec<u32>,
    prompt_len: usize,
    /// A token id that only the device knows.
    pending: Option<u32>,
    logprobs: Option<usize>,
}

impl Default for Case {
    /// Greedy, nothing else.
    fn default() -> Case {
        Case {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            penalties: [1.0, 0.0, 0.0],
            logit_bias: Vec::new(),
            mask: None,
            bans: Vec::new(),
            seed: 0,
            position: 0,
            history: Vec::new(),
            prompt_len: 0,
            pending: None,
            logprobs: None,
        }
    }
}

impl Case {
    fn task(&self, pending: Option<u32>) -> SampleTask<'_> {
        SampleTask {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.penalties[0],
            presence_penalty: self.penalties[1],
            frequency_penalty: self.penalties[2],
            logit_bias: &self.logit_bias,
            mask: self.mask.as_deref(),
            bans: &self.bans,
            seed: self.seed,
            position: self.position,
            history: &self.history,
            prompt_len: self.prompt_len,
            pending,
            logprobs: self.logprobs,
        }
    }

    /// The token, unless rounding decides.
    fn expected(&self, row: &[f32]) -> Option<u32> {
        let distribution = reference::distribution(row, &self.task(None), self.pending)?;
        let uniform = reference::uniform(self.seed, self.position);
        distribution.token(uniform).filter(|_| !distribution.is_close_call)
    }
}

enum Row {
    Sample(Case),
    Score { target: u32, top: usize },
    None,
}

/// Runs all rows, each of `vocab` logits in `stride`, as one launch; results and the array of
/// sampled tokens, where rows of padding leave 77.
fn run(
    device: &CudaDevice,
    logits: &[f32],
    [vocab, stride]: [usize; 2],
    rows: &[Row],
) -> (Vec<Option<SampleResult>>, Vec<u32>) {
    let mut batch = SampleBatch::default();
    // Tokens that only the device knows lie at odd places of an array.
    let mut token_ids = Vec::new();
    for row in rows {
        match row {
            Row::None => batch.push_none(),
            Row::Score { target, top } => batch.push_score(*target, *top),
            Row::Sample(case) => {
                let pending = case.pending.map(|token| {
                    token_ids.extend([u32::MAX, token]);
                    token_ids.len() as u32 - 1
                });
                batch.push_sample(&case.task(pending));
            }
        }
    }
    let upload = |words: &[u32]| {
        let bytes: Vec<u8> = words.iter().chain(&[0; 4]).flat_map(|x| x.to_le_bytes()).collect();
        DeviceBuffer::from_bytes(device, &bytes).expect("small")
    };
    let (sampled, results) =
        (upload(&vec![77; rows.len()]), upload(&vec![0; rows.len() * RESULT_WORDS]));
    let buffers = [upload(batch.rows()), upload(batch.lists()), upload(&token_ids)];
    let logits = on_device(device, DType::F32, &[rows.len(), stride], logits);
    let scratch = SampleScratch::new(device, rows.len(), vocab).expect("small");
    let [row_buffer, lists, tokens] = &buffers;
    let arrays = SampleArrays {
        sampled: sampled.ptr(),
        results: results.ptr(),
        rows: row_buffer.ptr(),
        lists: lists.ptr(),
        token_ids: tokens.ptr(),
    };
    sample(device, &scratch, &logits, &arrays).expect("launched");
    let read = |buffer: &DeviceBuffer, len: usize| {
        let mut bytes = vec![0; len * 4];
        buffer.read(0, &mut bytes).expect("read");
        let words = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        words.collect::<Vec<u32>>()
    };
    let words = read(&results, rows.len() * RESULT_WORDS);
    let results = words.chunks_exact(RESULT_WORDS).map(SampleResult::from_words).collect();
    (results, read(&sampled, rows.len()))
}

/// One row by itself.
fn run_one(device: &CudaDevice, logits: &[f32], row: Row) -> Option<SampleResult> {
    run(device, logits, [logits.len(), logits.len()], &[row]).0.remove(0)
}

fn device() -> Option<CudaDevice> {
    cuda_devices().into_iter().next()
}

fn check_logprobs(got: &SampleResult, row: &[f32], top: usize, case: &str) {
    let expected = reference::score(row, got.token, top).expect("finite logits");
    let reference::Score { logprob, rank, top: best } = expected;
    let logprobs = got.logprobs.as_ref().expect("asked for");
    assert_eq!(logprobs.rank, rank, "{case}");
    let is_close = |a: f32, b: f64| f64::from(a) == b || (f64::from(a) - b).abs() < 3e-6;
    assert!(is_close(logprobs.logprob, logprob), "{case}: {} not {logprob}", logprobs.logprob);
    assert_eq!(logprobs.top.len(), best.len(), "{case}");
    for (&(id, value), &(expected_id, expected)) in logprobs.top.iter().zip(&best) {
        assert!(id == expected_id && is_close(value, expected), "{case}: {id} {value}");
    }
}

#[test]
fn tokens_and_logprobs_are_those_of_the_reference() {
    let Some(device) = device() else { return };
    let mut random = Random(1);
    let (mut checked, mut close_calls) = (0, 0);
    for batch in 0..12 {
        let vocab = [1, 2, 7, 100, 1024, 1500, 2999, 4096, 4100, 9001, 300, 40][batch];
        let stride = vocab + [0, 3, 1][batch % 3];
        let cases: Vec<_> = (0..8).map(|_| random_case(&mut random, vocab)).collect();
        let mut logits = Vec::new();
        for (row, _) in &cases {
            logits.extend_from_slice(row);
            // Padding of the vocabulary would win if it were looked at.
            logits.resize(logits.len() + stride - vocab, 1000.0);
        }
        let rows: Vec<Row> = cases.iter().map(|(_, case)| Row::Sample(case.clone())).collect();
        let (results, sampled) = run(&device, &logits, [vocab, stride], &rows);
        for (((row, case), result), &token) in cases.iter().zip(&results).zip(&sampled) {
            let result = result.as_ref().expect("finite logits");
            assert_eq!(result.token, token);
            match case.expected(row) {
                Some(expected) => assert_eq!(token, expected, "{vocab}: {case:?}"),
                None => close_calls += 1,
            }
            checked += 1;
            match case.logprobs {
                Some(top) => check_logprobs(result, row, top, &format!("{vocab}: {case:?}")),
                None => assert_eq!(result.logprobs, None),
            }
        }
    }
    assert!(close_calls < 10, "{close_calls} of {checked} left out");
}

/// At least one token may come, sometimes the only one; the last words may be missing.
fn random_mask(random: &mut Random, vocab: usize) -> Vec<u32> {
    let spread = random.pick(&[0u64, u64::MAX, 0x8000_0000_0000_0001, 0x5555_0000_ffff_0000]);
    let len = 1 + random.below(vocab.div_ceil(32));
    let mut mask: Vec<u32> = (0..len).map(|_| (random.next() & spread) as u32).collect();
    let id = random.below(vocab.min(32 * len));
    mask[id / 32] |= 1 << (id % 32);
    mask
}

/// All parameters at random, often at values that switch them off; logits often with ties.
fn random_case(random: &mut Random, vocab: usize) -> (Vec<f32>, Case) {
    let spread = random.pick(&[0.1, 1.0, 3.0, 10.0]);
    let has_ties = random.below(3) == 0;
    let logit = |random: &mut Random| match has_ties {
        true => (random.normal(spread) * 2.0).round() / 2.0,
        false => random.normal(spread),
    };
    let row: Vec<f32> = (0..vocab).map(|_| logit(random)).collect();
    let token = |random: &mut Random| random.below(vocab) as u32;
    let mut logit_bias: Vec<(u32, f32)> = (0..random.pick(&[0, 0, 3]))
        .map(|_| (token(random), random.pick(&[-100.0, -2.5, 1.0, 7.25, 100.0])))
        .collect();
    logit_bias.sort_by_key(|b| b.0);
    logit_bias.dedup_by_key(|b| b.0);
    let prompt_len = 1 + random.below(20);
    let position = prompt_len + random.below(20);
    let history: Vec<u32> = (0..position).map(|_| token(random)).collect();
    let mask = random.pick(&[false, false, true]).then(|| random_mask(random, vocab));
    let case = Case {
        mask,
        temperature: random.pick(&[0.0, 0.3, 0.7, 1.0, 1.7, 4.0]),
        top_k: random.pick(&[0, 0, 1, 2, 20, 100, 1400, 100_000]),
        top_p: random.pick(&[1.0, 1.0, 0.8, 0.95, 0.999, 0.3, 0.001]),
        min_p: random.pick(&[0.0, 0.0, 0.02, 0.3, 1.0]),
        penalties: [
            random.pick(&[1.0, 1.0, 1.1, 0.8, 2.0]),
            random.pick(&[0.0, 0.0, 1.5, -0.5]),
            random.pick(&[0.0, 0.0, 0.25, -1.0]),
        ],
        logit_bias,
        bans: (0..random.pick(&[0, 0, 3])).map(|_| token(random)).collect(),
        seed: random.next(),
        position: position as u64,
        prompt_len,
        logprobs: random.pick(&[None, Some(0), Some(1), Some(5), Some(20)]),
        pending: random.pick(&[true, false]).then(|| token(random)),
        history,
    };
    // Without penalties nobody looks at the history, and the reference takes all that is given.
    let has_penalties = case.penalties != [1.0, 0.0, 0.0];
    let pending = case.pending.filter(|_| has_penalties);
    (row, Case { pending, ..case })
}

#[test]
fn a_large_vocabulary_is_cut_like_a_small_one() {
    let Some(device) = device() else { return };
    let mut random = Random(2);
    let vocab = 151_936;
    let row: Vec<f32> = (0..vocab).map(|_| random.normal(2.5)).collect();
    let hot = Case { temperature: 0.8, seed: 5, logprobs: Some(20), ..Case::default() };
    let cases = [
        hot.clone(),
        Case { top_k: 50, top_p: 0.9, ..hot.clone() },
        Case { top_p: 0.95, ..hot.clone() },
        Case { min_p: 0.05, ..hot.clone() },
        Case { top_k: 3000, position: 3, ..hot.clone() },
        Case { temperature: 0.0, logit_bias: vec![(151_935, 100.0)], ..hot },
    ];
    let logits: Vec<f32> = cases.iter().flat_map(|_| row.clone()).collect();
    let rows: Vec<Row> = cases.iter().cloned().map(Row::Sample).collect();
    let (results, _) = run(&device, &logits, [vocab, vocab], &rows);
    for (case, result) in cases.iter().zip(&results) {
        let result = result.as_ref().expect("finite logits");
        if let Some(expected) = case.expected(&row) {
            assert_eq!(result.token, expected, "{case:?}");
        }
        check_logprobs(result, &row, 20, &format!("{case:?}"));
    }
}

#[test]
fn each_parameter_keeps_to_its_edges() {
    let Some(device) = device() else { return };
    let row = [1.0, 3.0, 3.0, 2.0, -1.0];
    let hot = Case { temperature: 5.0, ..Case::default() };
    let bias = |list: &[(u32, f32)]| Case { logit_bias: list.to_vec(), ..hot.clone() };
    let all = vec![0, 1, 2, 3, 4];
    let cases: Vec<(Case, Vec<u32>)> = vec![
        (Case::default(), vec![1]),
        (Case { temperature: 1e-6, ..hot.clone() }, vec![1]),
        (Case { top_k: 1, ..hot.clone() }, vec![1]),
        (Case { min_p: 1.0, ..hot.clone() }, vec![1]),
        (Case { top_p: 1e-9, ..hot.clone() }, vec![1]),
        (Case { top_p: 0.0, ..hot.clone() }, vec![1]),
        (Case { top_k: 2, ..hot.clone() }, vec![1, 2]),
        (Case { top_k: 3, ..hot.clone() }, vec![1, 2, 3]),
        (Case { top_k: 5, ..hot.clone() }, all.clone()),
        (Case { top_k: u32::MAX, ..hot.clone() }, all.clone()),
        (Case { top_p: 0.999_999_9, ..hot.clone() }, all.clone()),
        (Case { min_p: 1e-30, ..hot.clone() }, all.clone()),
        (Case { min_p: 0.999, ..hot.clone() }, vec![1, 2]),
        (Case { min_p: 0.999, top_k: 4, ..hot.clone() }, vec![1, 2]),
        (Case { top_k: 2, top_p: 0.6, ..hot.clone() }, vec![1, 2]),
        (Case { top_k: 2, top_p: 0.49, ..hot.clone() }, vec![1]),
        (bias(&[(4, 100.0)]), vec![4]),
        (Case { temperature: 0.0, ..bias(&[(4, 4.5)]) }, vec![4]),
        (bias(&[(1, -100.0), (3, -100.0)]), vec![0, 2, 4]),
        // Bans that leave nothing are void, what else was asked for is not.
        (bias(&[(0, -100.0), (1, -100.0), (2, -100.0), (3, -100.0), (4, -100.0)]), all.clone()),
        (Case { bans: vec![4, 3, 2, 1, 0, 1], top_k: 2, ..bias(&[(0, 9.0)]) }, vec![0, 1]),
        // A mask stays, also where bans are void.
        (Case { mask: Some(vec![0b01101]), ..hot.clone() }, vec![0, 2, 3]),
        (Case { mask: Some(vec![0b01000]), ..bias(&[(1, 100.0), (3, -50.0)]) }, vec![3]),
        (Case { mask: Some(vec![0b01001]), bans: vec![0, 3], ..hot.clone() }, vec![0, 3]),
        (Case { mask: Some(vec![0b10001]), bans: vec![4], ..hot.clone() }, vec![0]),
        (bias(&[(900, 100.0)]), all),
    ];
    for (case, expected) in cases {
        let rows: Vec<Row> =
            (0..40).map(|position| Row::Sample(Case { position, ..case.clone() })).collect();
        let logits: Vec<f32> = rows.iter().flat_map(|_| row).collect();
        let (_, sampled) = run(&device, &logits, [5, 5], &rows);
        let seen: std::collections::BTreeSet<u32> = sampled.into_iter().collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected, "{case:?}");
    }
}

#[test]
fn extreme_parameters_stay_in_the_vocabulary() {
    let Some(device) = device() else { return };
    let mut random = Random(5);
    let extremes = [f32::MIN_POSITIVE, 1e-30, 1.0, 1e30, f32::MAX];
    let mut logits = Vec::new();
    let mut rows = Vec::new();
    for _ in 0..80 {
        let spread = random.pick(&[0.0, 1.0, 1e30]);
        logits.extend((0..40).map(|_| random.normal(spread)));
        rows.push(Row::Sample(Case {
            temperature: random.pick(&extremes),
            top_k: random.pick(&[0, 1, 2, 39, 40, 41, u32::MAX]),
            top_p: random.pick(&[0.0, f32::MIN_POSITIVE, 0.5, 1.0 - f32::EPSILON / 2.0, 1.0]),
            min_p: random.pick(&[0.0, f32::MIN_POSITIVE, 0.5, 1.0]),
            penalties: [
                random.pick(&extremes),
                random.pick(&[f32::MIN, 0.0, f32::MAX]),
                random.pick(&[f32::MIN, 0.0, f32::MAX]),
            ],
            logit_bias: vec![(3, random.pick(&[f32::MIN, -99.0, 99.0, f32::MAX]))],
            seed: random.next(),
            position: 3,
            history: vec![3, 4, 3],
            prompt_len: 1,
            logprobs: Some(3),
            ..Case::default()
        }));
    }
    let (results, _) = run(&device, &logits, [40, 40], &rows);
    for (result, row) in results.iter().zip(&rows) {
        let Row::Sample(case) = row else { unreachable!("all are sampled") };
        let result = result.as_ref().expect("finite logits");
        assert!(result.token < 40, "{case:?}");
        assert_eq!(result.logprobs.as_ref().map(|l| l.top.len()), Some(3), "{case:?}");
    }
}

#[test]
fn values_that_are_not_finite_are_never_chosen() {
    let Some(device) = device() else { return };
    let row = [f32::NAN, 1.0, f32::INFINITY, 0.5, f32::NEG_INFINITY];
    let warm = Case { temperature: 1.0, logprobs: Some(5), ..Case::default() };
    for case in [
        Case { logprobs: Some(5), ..Case::default() },
        warm.clone(),
        Case { top_p: 0.99, ..warm.clone() },
        Case { top_k: 4, ..warm.clone() },
        Case { logit_bias: vec![(0, 100.0), (2, 100.0), (4, 50.0)], ..warm },
    ] {
        let result = run_one(&device, &row, Row::Sample(case.clone())).expect("some are finite");
        assert!([1, 3].contains(&result.token), "{case:?}");
        check_logprobs(&result, &row, 5, &format!("{case:?}"));
    }
    for row in [[f32::NAN, f32::NEG_INFINITY], [f32::INFINITY, f32::NAN]] {
        assert_eq!(run_one(&device, &row, Row::Sample(Case::default())), None);
        assert_eq!(run_one(&device, &row, Row::Score { target: 0, top: 2 }), None);
    }
}

#[test]
fn targets_are_scored_and_padding_is_left_alone() {
    let Some(device) = device() else { return };
    let mut random = Random(6);
    let vocab = 5000;
    let mut row: Vec<f32> = (0..vocab).map(|_| (random.normal(1.0) * 4.0).round()).collect();
    row[17] = f32::NEG_INFINITY;
    let rows = [
        Row::Score { target: 3, top: 0 },
        Row::None,
        Row::Score { target: 4999, top: 20 },
        // No token has it, or it has no probability.
        Row::Score { target: 6000, top: 1 },
        Row::Score { target: 17, top: 3 },
    ];
    let logits: Vec<f32> = rows.iter().flat_map(|_| row.clone()).collect();
    let (results, sampled) = run(&device, &logits, [vocab, vocab], &rows);
    assert_eq!(sampled, [3, 77, 4999, 6000, 17]);
    for (row_task, result) in rows.iter().zip(&results) {
        if let Row::Score { target, top } = row_task {
            let result = result.as_ref().expect("finite logits");
            check_logprobs(result, &row, *top, &format!("target {target}"));
        }
    }
}

#[test]
fn a_row_gets_the_same_alone_and_in_a_batch() {
    let Some(device) = device() else { return };
    let mut random = Random(8);
    let cases: Vec<_> = (0..6).map(|_| random_case(&mut random, 4200)).collect();
    let logits: Vec<f32> = cases.iter().flat_map(|(row, _)| row.clone()).collect();
    let rows: Vec<Row> = cases.iter().map(|(_, case)| Row::Sample(case.clone())).collect();
    let (batch, _) = run(&device, &logits, [4200, 4200], &rows);
    for ((row, case), in_batch) in cases.iter().zip(&batch) {
        assert_eq!(&run_one(&device, row, Row::Sample(case.clone())), in_batch, "{case:?}");
    }
}

#[test]
fn draws_follow_the_distribution() {
    let Some(device) = device() else { return };
    let mut random = Random(9);
    let row: Vec<f32> = (0..40).map(|_| random.normal(1.0)).collect();
    let case = Case { temperature: 0.9, seed: 77, top_p: 0.9, ..Case::default() };
    let num_draws = 384;
    let rows: Vec<Row> =
        (0..num_draws).map(|position| Row::Sample(Case { position, ..case.clone() })).collect();
    let logits: Vec<f32> = rows.iter().flat_map(|_| row.clone()).collect();
    let (_, sampled) = run(&device, &logits, [40, 40], &rows);
    let expected = reference::distribution(&row, &case.task(None), None).expect("finite");
    let (mut chi_square, mut classes) = (0.0, 0.0);
    for (id, &probability) in expected.probabilities.iter().enumerate() {
        let (mass, count) = (
            probability * num_draws as f64,
            sampled.iter().filter(|&&t| t as usize == id).count() as f64,
        );
        assert!(mass > 0.0 || count == 0.0, "a token without probability was drawn");
        if mass >= 10.0 {
            chi_square += (count - mass) * (count - mass) / mass;
            classes += 1.0;
        }
    }
    // Four standard deviations about the mean; the seed is fixed, so this cannot flake.
    let distance: f64 = (chi_square - classes) / (2.0f64 * classes).sqrt();
    assert!(classes >= 5.0 && distance.abs() < 4.0, "chi square {chi_square}, {classes} classes");
}

#[test]
fn tokens_are_fed_where_they_come_from_the_last_step() {
    let Some(device) = device() else { return };
    let buffer = |words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|x| x.to_le_bytes()).collect();
        DeviceBuffer::from_bytes(&device, &bytes).expect("small")
    };
    let from: Vec<u32> = (0..600).map(|i| if i % 3 == 0 { u32::MAX } else { i % 7 }).collect();
    let (token_ids, sampled) = (buffer(&[5; 600]), buffer(&[10, 11, 12, 13, 14, 15, 16]));
    let from_buffer = buffer(&from);
    feed_tokens(&device, token_ids.ptr(), sampled.ptr(), from_buffer.ptr(), 600).expect("launched");
    let mut bytes = vec![0; 2400];
    token_ids.read(0, &mut bytes).expect("read");
    for (word, &from) in bytes.as_chunks().0.iter().zip(&from) {
        let expected = if from == u32::MAX { 5 } else { 10 + from };
        assert_eq!(u32::from_le_bytes(*word), expected);
    }
}

#[test]
fn vocabularies_beyond_the_limit_are_refused() {
    let Some(device) = device() else { return };
    let error = SampleScratch::new(&device, 1, VOCAB_MAX + 1).expect_err("too large");
    assert!(matches!(error, crate::KernelError::Shape { .. }), "{error}");
    let scratch = SampleScratch::new(&device, 1, 8).expect("small");
    let logits = Tensor::from_f32_on(&crate::Backend::Cuda(device.clone()), &[2, 8], &[0.0; 16]);
    let arrays = SampleArrays { sampled: 0, results: 0, rows: 0, lists: 0, token_ids: 0 };
    let error = sample(&device, &scratch, &logits.expect("small"), &arrays);
    assert!(matches!(error, Err(crate::KernelError::Shape { .. })), "{error:?}");
}

/// Known answers published with the Random123 library (kat_vectors), through the whole path.
#[test]
fn uniform_numbers_come_from_the_published_generator() {
    let bits = 0x6627_e8d5_e169_c58du64;
    assert_eq!(reference::uniform(0, 0), (bits >> 11) as f64 / (1u64 << 53) as f64);
}

#[test]
fn fifty_schedules_give_the_same_tokens() {
    let Some(device) = device() else { return };
    let mut random = Random(10);
    let (mut logits, mut case) = random_case(&mut random, 300);
    (case.temperature, case.top_p, case.logprobs) = (0.9, 0.8, Some(3));
    logits.extend_from_within(..);
    let run = || {
        let rows = [Row::Sample(case.clone()), Row::Score { target: 17, top: 3 }];
        run(&device, &logits, [300, 300], &rows)
    };
    let first = run();
    for schedule in 1..50 {
        assert_eq!(run(), first, "schedule {schedule}");
    }
    let [from, sampled] = [[1, u32::MAX], [10, 11]].map(|words: [u32; 2]| {
        DeviceBuffer::from_bytes(&device, &words.map(u32::to_le_bytes).concat()).expect("small")
    });
    for schedule in 0..50 {
        let ids = DeviceBuffer::from_bytes(&device, &[5; 8]).expect("small");
        feed_tokens(&device, ids.ptr(), sampled.ptr(), from.ptr(), 2).expect("launched");
        let mut bytes = [0; 8];
        ids.read(0, &mut bytes).expect("read");
        assert_eq!(bytes, [11, 0, 0, 0, 5, 5, 5, 5], "schedule {schedule}");
    }
}
