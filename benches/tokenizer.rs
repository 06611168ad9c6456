//! Text -> ids -> text with the published Qwen3 tokenizer, ours beside the tokenizers crate on one
//! thread: `cargo bench -p benches --bench tokenizer`. With `-- compare` the two take turns on the
//! reference's texts in one run, and what is printed are medians.

use criterion::{Criterion, Throughput, criterion_group};
use models::{ChatTemplateSource, TokenId, TokenizerSource};
use serde_json::{Value, json};
use server::text::tokenizer::Tokenizer;
use server::text::{ChatPrompt, SpecialTokens, TextConfig, TextStage};
use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NUM_ROUNDS: usize = 9;
/// Rows of the embedding of every Qwen3 up to 32B.
const EMBEDDING_ROWS: usize = 151_936;
const LONG_TEXT_BYTES: usize = 64 * 1024;
const LONG_PROMPT_TOKENS: usize = 100_000;

/// Reference data kept in this repository.
fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data")
}

/// Texts by language: of the whole reference if it lies beside the repository, else of a part.
fn texts() -> Vec<(String, String)> {
    let whole = data_dir().join("../../../shared/golden/tokenizer/languages.jsonl");
    let part = data_dir().join("text/languages.jsonl");
    let lines = fs::read_to_string(whole).or_else(|_| fs::read_to_string(part)).expect("the texts");
    let case = |line| -> Value { serde_json::from_str(line).expect("a case") };
    let string = |value: &Value| value.as_str().expect("a string").to_owned();
    lines.lines().map(case).map(|case| (string(&case["id"]), string(&case["text"]))).collect()
}

struct Both {
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
    stage: TextStage,
}

impl Both {
    fn load() -> Self {
        let packed = fs::File::open(data_dir().join("text/qwen3-tokenizer.json.xz"));
        let mut json = Vec::new();
        lzma_rs::xz_decompress(&mut BufReader::new(packed.expect("the tokenizer")), &mut json)
            .expect("a whole file");
        let folder = tempfile::tempdir().expect("a folder");
        let tokenizer_json = folder.path().join("tokenizer.json");
        fs::write(&tokenizer_json, &json).expect("room");
        let source = TokenizerSource::HuggingFace { tokenizer_json, tokenizer_config: None };
        let template = fs::read_to_string(data_dir().join("chat/qwen3.jinja")).expect("a template");
        let template = ChatTemplateSource { template };
        let config = TextConfig::default();
        Self {
            ours: Tokenizer::load(&source).expect("a tokenizer"),
            theirs: tokenizers::Tokenizer::from_bytes(&json).expect("a tokenizer"),
            stage: TextStage::new(&source, Some(&template), EMBEDDING_ROWS, config)
                .expect("a text stage"),
        }
    }

    fn ours(&self, text: &str) -> Vec<TokenId> {
        self.ours.encode(text).expect("its ids")
    }

    fn theirs(&self, text: &str) -> tokenizers::Encoding {
        self.theirs.encode_fast(text, false).expect("its ids")
    }

    fn chat(&self, messages: Vec<Value>, salt: Option<[u8; 32]>) -> Vec<TokenId> {
        let chat = ChatPrompt {
            messages,
            add_generation_prompt: true,
            cache_salt: salt,
            ..ChatPrompt::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(self.stage.encode_chat(chat)).expect("its ids").token_ids
    }

    fn decode(&self, ids: &[TokenId]) -> usize {
        let mut decoder = self.stage.decoder(SpecialTokens::Keep);
        ids.iter().filter_map(|&id| decoder.push(id)).map(|piece| piece.len()).sum()
    }
}

fn joined(texts: &[(String, String)]) -> String {
    texts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n")
}

fn benches(criterion: &mut Criterion) {
    let (both, texts) = (Both::load(), texts());
    let whole = joined(&texts);
    let ids = both.ours(&whole);
    let mut group = criterion.benchmark_group("tokenizer");
    group.throughput(Throughput::Bytes(whole.len() as u64));
    group.bench_function("short texts", |bencher| {
        bencher.iter(|| texts.iter().map(|(_, text)| both.ours(text).len()).sum::<usize>());
    });
    group.bench_function("one long text", |bencher| bencher.iter(|| both.ours(&whole)));
    group.bench_function("short texts, tokenizers", |bencher| {
        bencher.iter(|| texts.iter().map(|(_, text)| both.theirs(text).len()).sum::<usize>());
    });
    group.bench_function("one long text, tokenizers", |bencher| {
        bencher.iter(|| both.theirs(&whole));
    });
    group.throughput(Throughput::Elements(ids.len() as u64));
    group.bench_function("detokenize", |bencher| bencher.iter(|| both.decode(&ids)));
    group.finish();
}

criterion_group!(all, benches);

fn main() {
    if std::env::args().any(|arg| arg == "compare") {
        compare();
    } else {
        all();
        Criterion::default().configure_from_args().final_summary();
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Both in turns, a different list of texts in each round if `texts` gives one; prints megabytes a
/// second and returns how many times theirs ours is.
fn race(both: &Both, name: &str, texts: impl Fn(usize) -> Vec<String>) -> f64 {
    let mut times = [Vec::new(), Vec::new()];
    let mut bytes = 0;
    for round in 0..NUM_ROUNDS {
        let texts = texts(round);
        bytes = texts.iter().map(String::len).sum();
        times[0].push(timed(|| texts.iter().map(|text| both.ours(text).len()).sum::<usize>()));
        times[1].push(timed(|| texts.iter().map(|text| both.theirs(text).len()).sum::<usize>()));
        let same = |text: &String| {
            both.ours(text).iter().map(|id| id.0).eq(both.theirs(text).get_ids().iter().copied())
        };
        assert!(round > 0 || texts.iter().all(same), "{name}");
    }
    let [ours, theirs] = times.map(|times| median(times).as_secs_f64());
    let speed = |seconds: f64| bytes as f64 / seconds / 1e6;
    let ratio = theirs / ours;
    println!("{name:<44} {:8.1} {:8.2} {ratio:8.1}", speed(ours), speed(theirs));
    ratio
}

/// `text` with the characters of each word in another order, so that its words are new.
fn with_new_words(text: &str, round: usize) -> String {
    let mut random = round as u64 * 2 + 1;
    let word = |word: &str| {
        let mut characters: Vec<char> = word.chars().collect();
        for end in (2..=characters.len()).rev() {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            characters.swap(end - 1, (random >> 33) as usize % end);
        }
        characters.into_iter().collect::<String>()
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn compare() {
    let (both, texts) = (Both::load(), texts());
    println!("{:<44} {:>8} {:>8} {:>8}", "medians of 9 rounds in turns", "MB/s", "theirs", "times");
    let all = |_| texts.iter().map(|(_, text)| text.clone()).collect();
    race(&both, "short: each text by itself", all);
    race(&both, "long: all texts as one", |_| vec![joined(&texts)]);
    race(&both, "short, new words in each round", |round| {
        texts.iter().map(|(_, text)| with_new_words(text, round)).collect()
    });
    race(&both, "long, new words in each round", |round| {
        vec![with_new_words(&joined(&texts), round)]
    });
    let mut languages = BTreeMap::new();
    let some = texts.iter().filter(|(_, text)| text.len() >= 300).step_by(8);
    for (id, text) in some {
        let long = text.repeat(LONG_TEXT_BYTES.div_ceil(text.len()));
        let short = race(&both, &format!("{id}, once"), |_| vec![text.clone()]);
        languages
            .insert(id, [short, race(&both, &format!("{id}, 64 KiB"), |_| vec![long.clone()])]);
    }
    for (index, name) in ["once", "64 KiB"].into_iter().enumerate() {
        let mut ratios: Vec<f64> = languages.values().map(|ratios| ratios[index]).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, middle) = (ratios[0], ratios[ratios.len() / 2]);
        println!("{} texts, {name}: least {least:.1}, median {middle:.1} times", ratios.len());
    }
    long_prompt(&both, &texts);
}

/// The whole text stage for a prompt of 100,000 tokens, as a chat, and for the turn after it.
fn long_prompt(both: &Both, texts: &[(String, String)]) {
    let whole = joined(texts);
    let copies = LONG_PROMPT_TOKENS.div_ceil(both.ours(&whole).len());
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let (mut num_tokens, mut num_bytes) = (0, 0);
    for round in 0..NUM_ROUNDS as u8 {
        let copies: Vec<String> =
            (0..copies).map(|i| with_new_words(&whole, usize::from(round) * copies + i)).collect();
        let content = copies.concat();
        num_bytes = content.len();
        let first = json!({"role": "user", "content": content});
        let answer = json!({"role": "assistant", "content": "Yes."});
        let next = json!({"role": "user", "content": "And the next one?"});
        let salt = Some([round; 32]);
        times[0].push(timed(|| num_tokens = both.chat(vec![first.clone()], salt).len()));
        times[1].push(timed(|| both.chat(vec![first.clone(), answer.clone(), next.clone()], salt)));
        let ids = both.ours(&content);
        times[2].push(timed(|| both.decode(&ids)) / ids.len() as u32);
    }
    let [first, next, token] = times.map(median);
    println!("a chat of {num_tokens} tokens ({num_bytes} bytes), template to ids: {first:?}");
    println!("its next turn: {next:?}");
    println!("text of one token: {token:?}");
}
