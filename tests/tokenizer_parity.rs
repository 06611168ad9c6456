//! Token ids, streamed text and rendered chats against Hugging Face's tokenizers and transformers,
//! with the published Qwen3 tokenizer. Formats: tests/data/text and tests/data/chat hold a part of
//! the reference data in its own format; where the whole lies beside the repository, all is used.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use models::weights::Checkpoint;
use models::{ChatTemplateSource, TokenId, TokenizerSource};
use serde_json::Value;
use server::text::chunks::chunks;
use server::text::tokenizer::Tokenizer;
use server::text::{ChatPrompt, SpecialTokens, TextConfig, TextStage};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tests::random::Random;

/// Rows of the embedding of every Qwen3 up to 32B.
const EMBEDDING_ROWS: usize = 151_936;

static QWEN3: LazyLock<TextStage> = LazyLock::new(|| stage("qwen3.jinja"));

fn stage(template: &str) -> TextStage {
    let path = tests::data_dir().join("chat").join(template);
    stage_with_template(&fs::read_to_string(path).unwrap())
}

fn stage_with_template(template: &str) -> TextStage {
    let (_folder, source) = qwen3_source();
    let template = ChatTemplateSource { template: template.to_owned() };
    TextStage::new(&source, Some(&template), EMBEDDING_ROWS, TextConfig::default()).unwrap()
}

/// The published tokenizer, unpacked in a folder that goes when the first part is dropped.
fn qwen3_source() -> (TempDir, TokenizerSource) {
    let dir = tests::data_dir().join("text");
    let mut json = Vec::new();
    let packed = fs::File::open(dir.join("qwen3-tokenizer.json.xz")).unwrap();
    lzma_rs::xz_decompress(&mut BufReader::new(packed), &mut json).unwrap();
    let unpacked = tempfile::tempdir().unwrap();
    let tokenizer_json = unpacked.path().join("tokenizer.json");
    fs::write(&tokenizer_json, json).unwrap();
    let config = fs::read_to_string(dir.join("qwen3-tokenizer_config.json")).unwrap();
    let tokenizer_config = Some(serde_json::from_str(&config).unwrap());
    (unpacked, TokenizerSource::HuggingFace { tokenizer_json, tokenizer_config })
}

/// The whole reference file if it is there, else the part in this repository.
fn golden(folder: &str, part: &str, file: &str) -> PathBuf {
    let whole = tests::golden_dir().map(|dir| dir.join(folder).join(file));
    whole.filter(|path| path.is_file()).unwrap_or_else(|| tests::data_dir().join(part).join(file))
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn encode(text: &str) -> Vec<TokenId> {
    block_on(QWEN3.encode_text(text.to_owned())).unwrap().token_ids
}

/// What is sent after each token, and at the end.
fn stream(token_ids: &[TokenId], special: SpecialTokens) -> (Vec<String>, String) {
    let mut decoder = QWEN3.decoder(special);
    let pieces = token_ids.iter().map(|&id| decoder.push(id).unwrap_or_default()).collect();
    (pieces, decoder.finish().unwrap_or_default())
}

fn check_text(case: &Value) {
    let (Some(text), id) = (case["text"].as_str(), &case["id"]) else { return };
    let token_ids = encode(text);
    assert_eq!(token_ids, ids(&case["ids"]), "{id}");
    let (pieces, tail) = stream(&token_ids, SpecialTokens::Keep);
    let expected: Vec<&str> =
        case["stream"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!(pieces, expected, "{id}");
    assert_eq!(tail, case["stream_tail"].as_str().unwrap_or(""), "{id}");
    let decoded = case["decoded"].as_str().unwrap_or(text);
    assert_eq!(pieces.concat() + &tail, decoded, "{id}");
    let (skipped, tail) = stream(&token_ids, SpecialTokens::Skip);
    let skipped_expected = case["decoded_skip_special"].as_str().unwrap_or(decoded);
    assert_eq!(skipped.concat() + &tail, skipped_expected, "{id}");
    let bytes: Vec<u8> =
        token_ids.iter().flat_map(|&token| QWEN3.token_bytes(token).to_vec()).collect();
    assert_eq!(bytes, decoded.as_bytes(), "{id}");
}

#[test]
fn every_language_gets_the_reference_ids_and_streams_whole_characters() {
    let cases = lines(&golden("tokenizer", "text", "languages.jsonl"));
    assert!(cases.len() >= 60, "{} cases", cases.len());
    cases.iter().for_each(check_text);
}

#[test]
fn nasty_texts_get_the_reference_ids() {
    let cases = lines(&golden("tokenizer", "text", "nasty.jsonl"));
    assert!(cases.len() >= 200, "{} cases", cases.len());
    cases.iter().for_each(check_text);
}

/// "big" cases are a rule: `"text" * count`, with a digest of the ids.
#[test]
fn long_repeats_get_the_reference_ids() {
    let cases = lines(&golden("tokenizer", "text", "nasty.jsonl"));
    let big: Vec<_> = cases.iter().filter(|case| case["rule"].is_string()).collect();
    assert!(!big.is_empty());
    for case in big {
        let (text, count) = case["rule"].as_str().unwrap().split_once(" * ").unwrap();
        let text: String = serde_json::from_str(text).unwrap();
        let token_ids = encode(&text.repeat(count.parse().unwrap()));
        assert_eq!(token_ids.len() as u64, case["n"].as_u64().unwrap(), "{}", case["id"]);
        let bytes: Vec<u8> = token_ids.iter().flat_map(|id| id.0.to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, case["ids_sha256"].as_str().unwrap(), "{}", case["id"]);
    }
}

/// Sequences that no text gives: mostly broken characters.
#[test]
fn arbitrary_ids_stream_as_the_reference_does() {
    let cases = lines(&golden("tokenizer", "text", "arbitrary_ids.jsonl"));
    assert!(cases.len() >= 100, "{} cases", cases.len());
    for case in &cases {
        let (id, token_ids) = (&case["id"], ids(&case["ids"]));
        let (pieces, tail) = stream(&token_ids, SpecialTokens::Keep);
        let expected: Vec<&str> =
            case["stream"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
        assert_eq!(pieces, expected, "{id}");
        assert_eq!(tail, case["stream_tail"].as_str().unwrap_or(""), "{id}");
        let decoded = case["decoded"].as_str().unwrap();
        assert_eq!(block_on(QWEN3.decode(token_ids.clone(), SpecialTokens::Keep)), decoded, "{id}");
        let skipped = case["decoded_skip_special"].as_str().unwrap_or(decoded);
        assert_eq!(block_on(QWEN3.decode(token_ids, SpecialTokens::Skip)), skipped, "{id}");
    }
}

#[test]
fn escapes_in_json_are_the_characters_they_name() {
    let path = golden("tokenizer", "text", "json_escapes.json");
    let golden: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut num_texts = 0;
    for case in golden["cases"].as_array().unwrap() {
        let parsed =
            serde_json::from_str::<String>(&format!("\"{}\"", case["escaped"].as_str().unwrap()));
        let Ok(text) = parsed else {
            assert_eq!(case["lone_surrogate"], true, "{case}");
            continue;
        };
        assert_eq!(text, case["text"].as_str().unwrap());
        assert_eq!(encode(&text), ids(&case["ids"]), "{case}");
        num_texts += 1;
    }
    assert!(num_texts >= 5);
}

/// In a chat, the text of a special token is text; other added tokens are tokens everywhere.
#[test]
fn special_tokens_in_messages_are_encoded_as_text() {
    let stage = stage_with_template("{{ messages[0].content }}");
    let cases = lines(&golden("tokenizer", "text", "nasty.jsonl"));
    let mut num_special = 0;
    for case in cases.iter().filter(|case| case["text"].is_string()) {
        let expected = case.get("ids_special_as_text").inspect(|_| num_special += 1);
        let message = serde_json::json!({"role": "user", "content": case["text"]});
        let chat = ChatPrompt { messages: vec![message], ..ChatPrompt::default() };
        let encoded = block_on(stage.encode_chat(chat)).unwrap();
        assert_eq!(encoded.text, case["text"].as_str().unwrap());
        assert_eq!(encoded.token_ids, ids(expected.unwrap_or(&case["ids"])), "{}", case["id"]);
    }
    assert!(num_special >= 5);
}

#[test]
fn the_qwen3_template_renders_and_encodes_as_the_reference_does() {
    check_template(&QWEN3, "qwen3.json");
}

#[test]
fn the_qwen25_template_renders_as_the_reference_does() {
    check_template(&stage("qwen2.5-coder.jinja"), "qwen2.5-coder.json");
}

fn check_template(stage: &TextStage, file: &str) {
    let text = fs::read_to_string(golden("chat", "chat", file)).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 30);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let encoded = block_on(stage.encode_chat(chat_of(case))).unwrap();
        // The reference renders arguments that come as a string as they are; here, as OpenAI's
        // interface wants it, they are parsed and written again by the template.
        let compact = if file == "qwen3.json" {
            r#"{"city":"Zürich"}"#
        } else {
            r#""{\"city\":\"Zürich\"}""#
        };
        let mut rendered = case["rendered"].as_str().unwrap().to_owned();
        if name == "tool_call_string_args" {
            rendered = rendered.replace(compact, r#"{"city": "Zürich"}"#);
        }
        assert_eq!(encoded.text, rendered, "{name}");
        // Here the special tokens of the messages become tokens, as in the reference.
        let as_prompt = block_on(stage.encode_text(rendered)).unwrap();
        if name == "special_in_user" {
            assert_ne!(encoded.token_ids, as_prompt.token_ids);
        } else if name == "tool_call_string_args" || case["ids"].is_null() {
            assert_eq!(encoded.token_ids, as_prompt.token_ids, "{name}");
        } else {
            assert_eq!(encoded.token_ids, ids(&case["ids"]), "{name}");
        }
    }
}

fn chat_of(case: &Value) -> ChatPrompt {
    let messages = case.get("flattened_messages").unwrap_or(&case["messages"]);
    let mut template_kwargs = serde_json::Map::new();
    if let Some(thinking) = case.get("enable_thinking").filter(|thinking| !thinking.is_null()) {
        template_kwargs.insert("enable_thinking".to_owned(), thinking.clone());
    }
    ChatPrompt {
        messages: messages.as_array().unwrap().clone(),
        tools: case["tools"].as_array().cloned(),
        template_kwargs,
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        ..ChatPrompt::default()
    }
}

/// The tokenizer of the default model is built from a GGUF file's metadata: it must agree with
/// the published tokenizer.json wherever both know the tokens.
#[test]
fn the_tokenizer_of_the_gguf_file_agrees_with_the_published_one() {
    let Some(path) = tests::real_model() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let template = checkpoint.chat_template.as_ref();
    let gguf =
        TextStage::new(&checkpoint.tokenizer, template, EMBEDDING_ROWS, TextConfig::default())
            .unwrap();
    assert_eq!(gguf.vocab_size(), 151_665);
    assert_eq!(gguf.eos_token_ids(), [TokenId(151_645)]);
    let known =
        |token_ids: &[TokenId]| token_ids.iter().all(|id| (id.0 as usize) < gguf.vocab_size());
    let mut num_compared = 0;
    for file in ["languages.jsonl", "nasty.jsonl"] {
        for case in lines(&golden("tokenizer", "text", file)) {
            let Some(text) = case["text"].as_str() else { continue };
            let expected = ids(&case["ids"]);
            if known(&expected) {
                let encoded = block_on(gguf.encode_text(text.to_owned())).unwrap();
                assert_eq!(encoded.token_ids, expected, "{}", case["id"]);
                let decoded = block_on(gguf.decode(expected, SpecialTokens::Keep));
                assert_eq!(decoded, case["decoded"].as_str().unwrap_or(text), "{}", case["id"]);
                num_compared += 1;
            }
        }
    }
    assert!(num_compared >= 250, "{num_compared}");
    check_template(&gguf, "qwen2.5-coder.json");
    for id in (0..gguf.vocab_size() as u32).map(TokenId) {
        assert_eq!(gguf.token_bytes(id), QWEN3.token_bytes(id), "{id}");
    }
}

/// The prompts of the real model's reference run, and the chats of the tiny models'.
#[test]
fn prompts_of_the_model_references_get_their_ids() {
    let Some(golden) = tests::golden_dir() else { return println!("skipped: no reference data") };
    let read =
        |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let real = read(golden.join("real/qwen2.5-coder-0.5b-q4_k_m.json"));
    for prompt in real["prompts"].as_array().unwrap() {
        assert_eq!(encode(prompt["text"].as_str().unwrap()), ids(&prompt["prompt_ids"]));
    }
    for model in ["qwen2-tied", "qwen3-tied", "qwen3_5", "qwen3-moe"] {
        let folder = golden.join("models").join(model);
        let tokenizer_json = folder.join("tokenizer.json");
        let config = read(folder.join("tokenizer_config.json"));
        let template = config["chat_template"].as_str().unwrap().to_owned();
        let source =
            TokenizerSource::HuggingFace { tokenizer_json, tokenizer_config: Some(config) };
        let template = ChatTemplateSource { template };
        let stage = TextStage::new(&source, Some(&template), 1152, TextConfig::default()).unwrap();
        let cases = read(folder.join("golden.json"))["text_cases"].as_array().unwrap().clone();
        assert!(!cases.is_empty());
        for case in cases {
            let kwargs = serde_json::json!({"enable_thinking": false});
            let chat = ChatPrompt {
                messages: case["messages"].as_array().unwrap().clone(),
                template_kwargs: kwargs.as_object().unwrap().clone(),
                add_generation_prompt: true,
                ..ChatPrompt::default()
            };
            let encoded = block_on(stage.encode_chat(chat)).unwrap();
            assert_eq!(encoded.token_ids, ids(&case["ids"]), "{model}");
        }
    }
}

/// Long texts are encoded in pieces. Whatever the place from which a cut is looked for, the pieces
/// give the ids of the whole.
#[test]
fn cutting_text_into_pieces_keeps_the_reference_ids() {
    let (_folder, source) = qwen3_source();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let mut num_cuts = 0;
    for file in ["languages.jsonl", "nasty.jsonl"] {
        for case in lines(&golden("tokenizer", "text", file)) {
            let Some(text) = case["text"].as_str() else { continue };
            for bytes_min in [1, 7, 64] {
                let pieces: Vec<_> = chunks(text, bytes_min).collect();
                assert_eq!(pieces.concat(), text);
                let encoded = pieces.iter().flat_map(|piece| tokenizer.encode(piece).unwrap());
                assert_eq!(encoded.collect::<Vec<_>>(), ids(&case["ids"]), "{}", case["id"]);
                num_cuts += pieces.len();
            }
        }
    }
    assert!(num_cuts > 10_000, "{num_cuts}");
}

/// Makes texts of all scripts: pieces of the reference's texts, characters of them in any order,
/// any character at all, long runs, and added tokens.
struct RandomTexts {
    random: Random,
    texts: Vec<Vec<char>>,
    characters: Vec<char>,
    added: [&'static str; 6],
}

impl RandomTexts {
    fn new(seed: u64) -> Self {
        let files = ["languages.jsonl", "nasty.jsonl"];
        let cases = files.iter().flat_map(|file| lines(&golden("tokenizer", "text", file)));
        let texts = cases.filter_map(|case| Some(case["text"].as_str()?.chars().collect()));
        let texts: Vec<Vec<char>> = texts.filter(|text: &Vec<char>| !text.is_empty()).collect();
        let mut characters: Vec<char> = texts.iter().flatten().copied().collect();
        characters.sort_unstable();
        characters.dedup();
        assert!(characters.len() > 1000, "{} characters", characters.len());
        let added =
            ["<|im_start|>", "<|im_end|>", "<think>", "<tool_response> ", "</tool_call>", "<"];
        Self { random: Random(seed), texts, characters, added }
    }

    fn next(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..self.random.below(6) + 1 {
            let length = self.random.below(20) + 1;
            match self.random.below(12) {
                0 => text.push_str(self.random.pick(&self.added)),
                1 => {
                    let c = self.random.pick(&self.characters);
                    text.extend(std::iter::repeat_n(c, self.random.below(100)));
                }
                2 | 3 => text.extend((0..length).filter_map(|_| {
                    let any = [0x300, 0x3000, 0x11_0000][self.random.below(3)];
                    char::from_u32(self.random.below(any) as u32)
                })),
                4..8 => text.extend((0..length).map(|_| self.random.pick(&self.characters))),
                _ => {
                    let whole = &self.texts[self.random.below(self.texts.len())];
                    let start = self.random.below(whole.len());
                    text.extend(&whole[start..whole.len().min(start + 2 * length)]);
                }
            }
        }
        text
    }
}

/// The tokenizers crate itself on the same file. `Keep`: special tokens in a text are tokens.
fn crate_encoder(json: &str) -> impl Fn(&str, SpecialTokens) -> Vec<TokenId> {
    let plain = tokenizers::Tokenizer::from_bytes(json).unwrap();
    let mut as_text = plain.clone();
    as_text.set_encode_special_tokens(true);
    move |text, special| {
        let tokenizer = if special == SpecialTokens::Keep { &plain } else { &as_text };
        let encoding = tokenizer.encode_fast(text, false).unwrap();
        encoding.get_ids().iter().copied().map(TokenId).collect()
    }
}

/// `tokenizer` is of `json`.
fn check_random_texts(tokenizer: &Tokenizer, json: &str, seed: u64, num_texts: usize) {
    let (reference, mut texts) = (crate_encoder(json), RandomTexts::new(seed));
    for _ in 0..num_texts {
        let text = texts.next();
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(ids, reference(&text, SpecialTokens::Keep), "{text:?}");
        if text.contains('<') {
            let mut ids = Vec::new();
            tokenizer.encode_as_text(&text, &mut ids).unwrap();
            assert_eq!(ids, reference(&text, SpecialTokens::Skip), "{text:?}");
        }
    }
}

fn qwen3_json() -> (TempDir, TokenizerSource, String) {
    let (folder, source) = qwen3_source();
    let TokenizerSource::HuggingFace { tokenizer_json, .. } = &source else { unreachable!() };
    let json = fs::read_to_string(tokenizer_json).unwrap();
    (folder, source, json)
}

/// Our own encoder against the crate that made the reference ids.
#[test]
fn random_texts_get_the_ids_of_the_tokenizers_crate() {
    let (_folder, source, json) = qwen3_json();
    let tokenizer = Tokenizer::load(&source).unwrap();
    std::thread::scope(|scope| {
        for seed in [5, 6] {
            let (tokenizer, json) = (&tokenizer, &json);
            scope.spawn(move || check_random_texts(tokenizer, json, seed, 100_000));
        }
    });
}

/// What our own encoder does not know is left to the crate; what it knows, in either spelling, is
/// not changed by it.
#[test]
fn tokenizers_of_other_forms_get_the_ids_of_the_tokenizers_crate() {
    let (folder, _, json) = qwen3_json();
    let qwen3: Value = serde_json::from_str(&json).unwrap();
    let qwen35 = r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let qwen35 = [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|", qwen35];
    let changes: [(&str, Value); 7] = [
        ("/model/ignore_merges", true.into()),
        ("/model/merges", old_merges(&qwen3["model"]["merges"])),
        ("/normalizer", serde_json::json!({"type": "NFKC"})),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", qwen35.concat().into()),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", r"\p{L}+|[^\p{L}]".into()),
        ("/pre_tokenizer/pretokenizers/0/behavior", "MergedWithPrevious".into()),
        ("/added_tokens/22/rstrip", true.into()),
    ];
    for (seed, (place, value)) in (7..).zip(changes) {
        let mut changed = qwen3.clone();
        *changed.pointer_mut(place).unwrap() = value;
        let json = changed.to_string();
        let tokenizer_json = folder.path().join("changed.json");
        fs::write(&tokenizer_json, &json).unwrap();
        let source = TokenizerSource::HuggingFace { tokenizer_json, tokenizer_config: None };
        check_random_texts(&Tokenizer::load(&source).unwrap(), &json, seed, 3000);
    }
}

/// "left right" in place of ["left", "right"].
fn old_merges(merges: &Value) -> Value {
    let merges = merges.as_array().unwrap().iter();
    merges
        .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect()
}

/// Runs without a place to cut, up to what is allowed; their work grows with their length only,
/// or this would not end.
#[test]
fn endless_words_get_the_ids_of_the_tokenizers_crate() {
    let (_folder, source, json) = qwen3_json();
    let (tokenizer, reference) = (Tokenizer::load(&source).unwrap(), crate_encoder(&json));
    let mut random = Random(8);
    let letters: String = (0..1 << 20).map(|_| (b'a' + random.below(26) as u8) as char).collect();
    let han: String =
        (0..300_000).map(|_| char::from_u32(0x4e00 + random.below(3000) as u32).unwrap()).collect();
    let marks = ["e", &"\u{301}".repeat(200_000)].concat();
    let runs =
        ["a".repeat(1 << 20), letters, "好".repeat(300_000), han, " ".repeat(1 << 20), marks];
    for text in runs.iter().chain([&"\n \n".repeat(300_000)]) {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids == reference(text, SpecialTokens::Keep), "{:?}", text.chars().next());
    }
}

/// A chat that grows is encoded from what is known of its turns: with the ids of a new chat, and
/// of nobody else's.
#[test]
fn the_next_turn_of_a_chat_gets_the_ids_of_a_new_chat() {
    let mut texts = RandomTexts::new(9);
    let mut messages = Vec::new();
    for turn in 0..12 {
        // From a few words to several pieces, which grow where the last turn ended.
        let length = [3, 40, 4000][turn % 3];
        let content: String = (0..length).map(|_| texts.next()).collect();
        let role = ["user", "assistant"][turn % 2];
        messages.push(serde_json::json!({"role": role, "content": content}));
        let chat = |cache_salt| ChatPrompt {
            messages: messages.clone(),
            add_generation_prompt: true,
            cache_salt,
            ..ChatPrompt::default()
        };
        let fresh = block_on(QWEN3.encode_chat(chat(None))).unwrap();
        for salt in [1, 1, 2] {
            let known = block_on(QWEN3.encode_chat(chat(Some([salt; 32])))).unwrap();
            assert!(known == fresh, "turn {turn}");
        }
    }
}
