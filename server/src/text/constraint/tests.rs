//! Constraints followed on the tokenizer of the tiny models: any text that obeys is let through
//! token by token, and nothing else is.

use super::super::tools::{Tool, ToolFormat};
use super::super::vocabulary::{Entry, TokenKind, Vocabulary};
use super::*;
use serde_json::json;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::task::Poll;

/// All bytes, some words, and the tags of thinking and calls; the last is the end.
struct Words {
    vocabulary: Arc<Vocabulary>,
    tokens: Vec<String>,
}

const WORDS: [&str; 12] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "{\"",
    "\":",
    "true",
    "bad",
    "ba",
    "ad",
    "abc",
    "\n\n",
    "<end>",
];

fn words() -> Words {
    let alphabet = super::super::vocabulary::byte_of_char();
    let mut of_byte = vec![String::new(); 256];
    for (code, byte) in alphabet.iter().enumerate() {
        if let Some(byte) = byte {
            of_byte[*byte as usize] = char::from_u32(code as u32).unwrap().into();
        }
    }
    let spell = |text: &str| text.bytes().map(|b| of_byte[b as usize].as_str()).collect();
    let tokens: Vec<String> = of_byte.iter().cloned().chain(WORDS.map(spell)).collect();
    let last = tokens.len() - 1;
    let entries = tokens.iter().enumerate().map(|(id, token)| Entry {
        token: Some(token),
        kind: if id == last { TokenKind::Special } else { TokenKind::Text },
    });
    let vocabulary = Arc::new(Vocabulary::new(entries));
    Words { vocabulary, tokens }
}

impl Words {
    fn word(&self, word: &str) -> TokenId {
        TokenId(256 + WORDS.iter().position(|w| *w == word).unwrap() as u32)
    }

    fn end(&self) -> TokenId {
        TokenId(self.tokens.len() as u32 - 1)
    }

    /// Greedily, the longest word first.
    fn encode(&self, text: &str) -> Vec<TokenId> {
        let (mut ids, mut rest) = (Vec::new(), text.as_bytes());
        while let Some(first) = rest.first() {
            let longest = WORDS.iter().filter(|w| rest.starts_with(w.as_bytes()));
            match longest.max_by_key(|w| w.len()) {
                Some(word) => {
                    ids.push(self.word(word));
                    rest = &rest[word.len()..];
                }
                None => {
                    ids.push(TokenId(u32::from(*first)));
                    rest = &rest[1..];
                }
            }
        }
        ids
    }
}

struct Bench {
    words: Words,
    grammars: Grammars,
}

impl Bench {
    fn new() -> Bench {
        let words = words();
        let grammars = Grammars::new(words.vocabulary.clone()).unwrap();
        Bench { words, grammars }
    }

    fn compile(&self, source: GrammarSource) -> Result<Arc<Grammar>, GrammarError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(self.grammars.compile(source))
    }

    fn constraint(&self, thinking: Thinking, parts: ConstraintParts) -> Constraint {
        let close = self.words.encode("!</think>\n\n");
        Constraint {
            vocabulary: self.words.vocabulary.clone(),
            workers: self.grammars.workers(),
            eos: vec![self.words.end()],
            thinking,
            open_tag: Some(self.words.word("<think>")),
            call_tag: Some(self.words.word("<tool_call>")),
            budget: parts.thinking_budget.map(|tokens_max| ThinkingBudget { tokens_max, close }),
            grammar: parts.grammar,
            allowed: parts.allowed_token_ids.map(|ids| bits(ids, self.words.vocabulary.num_ids())),
            bad_words: parts.bad_words,
        }
    }

    fn follow(&self, thinking: Thinking, parts: ConstraintParts) -> Follower {
        let (sender, woken) = channel();
        let sender = Mutex::new(sender);
        let wake = Arc::new(move || {
            let _ = sender.lock().unwrap().send(());
        });
        let constraint = SequenceConstraint::new(Arc::new(self.constraint(thinking, parts)), wake);
        Follower { constraint, woken }
    }

    fn grammar(&self, source: GrammarSource) -> ConstraintParts {
        let grammar = self.compile(source).unwrap();
        ConstraintParts { grammar: Some(grammar), ..ConstraintParts::default() }
    }

    /// Whether the whole text is let through, token by token, and may end there.
    fn accepts(&self, parts: &ConstraintParts, text: &str) -> bool {
        let parts = ConstraintParts {
            grammar: parts.grammar.clone(),
            bad_words: parts.bad_words.clone(),
            ..ConstraintParts::default()
        };
        let mut follower = self.follow(Thinking::None, parts);
        let ids = self.words.encode(text);
        ids.into_iter().all(|id| follower.take(id)) && follower.allows(self.words.end())
    }
}

struct Follower {
    constraint: SequenceConstraint,
    woken: Receiver<()>,
}

impl Follower {
    fn allowed(&mut self) -> Result<Allowed, String> {
        loop {
            match self.constraint.allowed(0) {
                Poll::Ready(allowed) => return allowed,
                Poll::Pending => self.woken.recv().unwrap(),
            }
        }
    }

    fn allows(&mut self, id: TokenId) -> bool {
        match self.allowed().unwrap() {
            Allowed::Any => true,
            Allowed::Only(words) => words[id.0 as usize / 32] >> (id.0 % 32) & 1 == 1,
        }
    }

    /// Takes the token if it is allowed.
    fn take(&mut self, id: TokenId) -> bool {
        let allows = self.allows(id);
        if allows {
            self.constraint.advance(id);
        }
        allows
    }

    fn take_all(&mut self, ids: &[TokenId]) {
        for (place, id) in ids.iter().enumerate() {
            assert!(self.take(*id), "token {place} of {ids:?}");
        }
    }
}

fn json_source(schema: serde_json::Value) -> GrammarSource {
    GrammarSource::Json { schema, whitespace: WHITESPACE.into() }
}

#[test]
fn each_kind_of_grammar_lets_its_texts_through_and_no_others() {
    let bench = Bench::new();
    let person = json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    let gbnf = "# sums\nroot ::= sum (\"=\" [0-9]{1,2})?\nsum ::= digit\n  | digit \"+\" sum\n\
                digit ::= [0-9]\n";
    let cases: [(GrammarSource, &[&str], &[&str]); 6] = [
        (
            json_source(person),
            &["{\"name\":\"\",\"age\":0}", "{\"name\": \"a\u{e9}\",\n  \"age\": 31}"],
            &[
                "{\"age\":3}",
                "{\"name\":\"\",\"age\":-1}",
                "{\"name\":\"\",\"age\":0} x",
                "[]",
                "{\"name\":  \"\",\"age\":0}",
            ],
        ),
        (GrammarSource::json_object(), &["{}", "{\"a\": [1, {\"true\":true}]}"], &["", "[1]", "{"]),
        (GrammarSource::Regex("a+b?|c/d".into()), &["a", "aab", "c/d"], &["", "b", "aabb", "c"]),
        (
            GrammarSource::Choice(vec!["abc".into(), "ab".into(), "\"\\\n".into()]),
            &["ab", "abc", "\"\\\n"],
            &["", "a", "abcd", "b"],
        ),
        (GrammarSource::Lark("start: \"x\" start? \"y\"".into()), &["xy", "xxyy"], &["xxy", ""]),
        (
            GrammarSource::Lark(gbnf_to_lark(gbnf).unwrap()),
            &["1", "1+2+3", "7+8=15"],
            &["", "+", "1+", "1=123", "a"],
        ),
    ];
    for (source, good, bad) in cases {
        let parts = bench.grammar(source.clone());
        for text in good {
            assert!(bench.accepts(&parts, text), "{source:?}: {text:?}");
        }
        for text in bad {
            assert!(!bench.accepts(&parts, text), "{source:?}: {text:?}");
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused_with_its_reason() {
    let bench = Bench::new();
    let deep = "(".repeat(5000);
    let long = "a".repeat(SOURCE_BYTES_MAX + 1);
    for source in [
        json_source(json!({"type": "objekt"})),
        json_source(json!({"type": "string", "pattern": "("})),
        json_source(json!({"$ref": "#/$defs/none"})),
        json_source(json!({"type": "object", "unevaluatedProperties": false})),
        GrammarSource::Regex("(".into()),
        GrammarSource::Regex("(?<=a)b".into()),
        GrammarSource::Regex(deep.clone()),
        GrammarSource::Regex("~".repeat(5000)),
        GrammarSource::Lark("start: other".into()),
        GrammarSource::Lark(format!("start: {deep}")),
        GrammarSource::Lark(format!("start: {}", "(\n".repeat(5000))),
        GrammarSource::Lark("root ::= x".into()),
        GrammarSource::Regex(long),
    ] {
        let shown = format!("{source:?}").chars().take(60).collect::<String>();
        let error = bench.compile(source).err().unwrap_or_else(|| panic!("{shown} is held"));
        assert!(!error.to_string().is_empty() && error.to_string().len() < 600, "{shown}: {error}");
        // What was refused is known to be wrong.
        assert!(!matches!(error, GrammarError::Busy { .. }), "{shown}: {error}");
    }
    let error = |text| gbnf_to_lark(text).unwrap_err().to_string();
    assert_eq!(error("root ::= x"), "rule 'x' is not there");
    assert_eq!(error("x ::= \"a\""), "rule 'root' is not there");
    assert_eq!(error("root = x"), "'::=' is missing after 'root'");
    assert_eq!(error("root ::= \"a"), "rule 'root': a string has no end");
    assert_eq!(error("root ::= \"a\"\nroot ::= \"b\""), "rule 'root' is there twice");
}

#[test]
fn the_same_grammar_is_compiled_once() {
    let bench = Bench::new();
    let source = || GrammarSource::Regex("ab*".into());
    let first = bench.compile(source()).unwrap();
    assert!(Arc::ptr_eq(&first, &bench.compile(source()).unwrap()));
    let other = GrammarSource::Choice(vec!["ab*".into()]);
    assert!(!Arc::ptr_eq(&first, &bench.compile(other).unwrap()));
}

#[test]
fn calls_that_must_come_have_arguments_that_their_schemas_accept() {
    let bench = Bench::new();
    let weather = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city"],
        "additionalProperties": false,
    });
    let tools = [
        Tool { name: "weather".into(), parameters: weather },
        Tool { name: "stop".into(), parameters: serde_json::Value::Null },
    ];
    let parts = |format, name, calls_max, or| {
        let wanted = CallsWanted { name, calls_max, or };
        bench.grammar(tool_calls_grammar(format, &tools, wanted).unwrap())
    };
    let hermes = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let (city, none) = (hermes("weather", "{\"city\": \"Oslo\"}"), hermes("stop", "{}"));
    let any = parts(ToolFormat::Hermes, None, 9, None);
    let both = format!("{city}\n{none}");
    for good in [&city, &none, &both] {
        assert!(bench.accepts(&any, good), "{good}");
    }
    for bad in ["", "hi", &hermes("weather", "{}"), &hermes("other", "{}"), &format!("{both}\n")] {
        assert!(!bench.accepts(&any, bad), "{bad}");
    }
    let one = parts(ToolFormat::Hermes, Some("weather"), 1, None);
    assert!(bench.accepts(&one, &city));
    assert!(!bench.accepts(&one, &none) && !bench.accepts(&one, &both));
    let or_json = parts(ToolFormat::Hermes, None, 1, Some(GrammarSource::json_object()));
    assert!(bench.accepts(&or_json, &city) && bench.accepts(&or_json, "{}"));
    assert!(!bench.accepts(&or_json, "hi") && !bench.accepts(&or_json, &format!("{{}}\n{city}")));

    let xml = parts(ToolFormat::Xml, None, 1, None);
    let call = |name: &str, parameters: &[(&str, &str)]| {
        let write =
            |(name, value): &(&str, &str)| format!("<parameter={name}>\n{value}\n</parameter>\n");
        let parameters: String = parameters.iter().map(write).collect();
        format!("<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>")
    };
    let two_lines = call("weather", &[("city", "two\nlines <b>"), ("unit", "F")]);
    for good in [&two_lines, &call("weather", &[("city", ""), ("days", "3")]), &call("stop", &[])] {
        assert!(bench.accepts(&xml, good), "{good}");
    }
    let no_number = call("weather", &[("city", "a"), ("days", "x")]);
    for bad in
        [&no_number, &call("weather", &[]), &call("weather", &[("city", "a"), ("unit", "K")])]
    {
        assert!(!bench.accepts(&xml, bad), "{bad}");
    }
    let strict = json!({"properties": {"a": {"type": "string", "pattern": "x"}}});
    let tools = [Tool { name: "t".into(), parameters: strict }];
    let wanted = CallsWanted { name: None, calls_max: 1, or: None };
    let error = tool_calls_grammar(ToolFormat::Xml, &tools, wanted).unwrap_err().to_string();
    assert!(error.contains("'a' of 't' has 'pattern'"), "{error}");
}

#[test]
fn the_grammar_holds_only_what_follows_the_thinking() {
    let bench = Bench::new();
    let words = &bench.words;
    let source = || GrammarSource::Regex("abc".into());
    let (open, end) = (words.word("<think>"), words.end());

    let mut follower = bench.follow(Thinking::MayOpen, bench.grammar(source()));
    assert!(!follower.allows(words.word("bad")) && follower.allows(words.word("abc")));
    follower.take_all(&[open]);
    follower.take_all(&words.encode("any {\"thing</think>"));
    assert!(!follower.allows(words.word("bad")) && !follower.allows(open));
    follower.take_all(&words.encode("abc"));
    assert!(follower.allows(end) && !follower.allows(words.word("abc")));

    // It may as well answer at once, and then thinks no more.
    let mut follower = bench.follow(Thinking::MayOpen, bench.grammar(source()));
    follower.take_all(&words.encode("a"));
    assert!(!follower.allows(open) && follower.allows(TokenId(u32::from(b'b'))));

    // A closing tag that is cut into bytes counts too.
    let mut follower = bench.follow(Thinking::Open, bench.grammar(source()));
    let cut: Vec<TokenId> = "x</think>".bytes().map(|b| TokenId(u32::from(b))).collect();
    follower.take_all(&cut);
    assert!(!follower.allows(words.word("bad")) && follower.allows(words.word("abc")));

    // A call ends the thinking, and is held to its grammar.
    let tools = [Tool { name: "t".into(), parameters: serde_json::Value::Null }];
    let wanted = CallsWanted { name: None, calls_max: 1, or: None };
    let calls = tool_calls_grammar(ToolFormat::Hermes, &tools, wanted).unwrap();
    let mut follower = bench.follow(Thinking::Open, bench.grammar(calls));
    follower.take_all(&words.encode("hm <tool_call>"));
    assert!(!follower.allows(words.word("abc")) && follower.allows(TokenId(u32::from(b'\n'))));
}

#[test]
fn a_spent_budget_closes_the_thinking() {
    let bench = Bench::new();
    let words = &bench.words;
    let close = words.encode("!</think>\n\n");
    let a = TokenId(u32::from(b'a'));
    for tokens_max in [0, 1, 3] {
        for thinking in [Thinking::Open, Thinking::MayOpen] {
            let regex = Some(bench.compile(GrammarSource::Regex("b".into())).unwrap());
            for grammar in [None, regex] {
                let has_grammar = grammar.is_some();
                let thinking_budget = Some(tokens_max);
                let parts = ConstraintParts { grammar, thinking_budget, ..Default::default() };
                let mut follower = bench.follow(thinking, parts);
                if thinking == Thinking::MayOpen {
                    follower.take_all(&[words.word("<think>")]);
                }
                for left in (1..=tokens_max).rev() {
                    // With a token that nobody knows, it is known as long as the budget lasts.
                    let later = follower.constraint.allowed(1);
                    let is_known = left > 1 && !has_grammar;
                    assert_eq!(later == Poll::Ready(Ok(Allowed::Any)), is_known, "{left} left");
                    assert_eq!(follower.allowed(), Ok(Allowed::Any));
                    follower.constraint.advance(a);
                }
                for (place, id) in close.iter().enumerate() {
                    let only = Allowed::Only(bits([*id], words.vocabulary.num_ids()));
                    assert_eq!(follower.allowed(), Ok(only));
                    let next = close.get(place + 1);
                    assert!(next.is_none() || follower.constraint.allowed(1).is_ready());
                    follower.constraint.advance(*id);
                }
                assert_eq!(follower.allows(a), !has_grammar, "budget {tokens_max}");
                assert!(follower.allows(TokenId(u32::from(b'b'))));
            }
        }
    }
    // Thinking that ends by itself in time is left alone.
    let parts = ConstraintParts { thinking_budget: Some(5), ..Default::default() };
    let mut follower = bench.follow(Thinking::Open, parts);
    follower.take_all(&words.encode("a</think>"));
    for _ in 0..20 {
        assert_eq!(follower.allowed(), Ok(Allowed::Any));
        follower.constraint.advance(a);
    }
}

#[test]
fn bad_words_never_appear_however_they_are_cut() {
    let bench = Bench::new();
    let words = &bench.words;
    let bad = BadWords::new(&["bad".into(), "\u{e9}x".into()], &words.vocabulary);
    let parts = ConstraintParts { bad_words: Some(Arc::new(bad)), ..Default::default() };
    for good in ["ba", "b ad", "BAD", "abcd", "e\u{301}x", "\u{e9} x"] {
        assert!(bench.accepts(&parts, good), "{good}");
    }
    for cut in [&["bad"][..], &["ba", "d"], &["b", "ad"], &["b", "a", "d"], &["abc", "ba", "d"]] {
        let mut follower = bench.follow(
            Thinking::None,
            ConstraintParts { bad_words: parts.bad_words.clone(), ..Default::default() },
        );
        let (last, before) = cut.split_last().unwrap();
        before.iter().for_each(|text| follower.take_all(&words.encode(text)));
        assert!(!follower.allows(words.encode(last)[0]), "{cut:?}");
        assert_eq!(follower.constraint.allowed(1), Poll::Pending, "it depends on the next token");
    }
    assert!(!bench.accepts(&parts, "\u{e9}x"));
    // Where the grammar leaves nothing else, the ban is void.
    let grammar = bench.compile(GrammarSource::Regex("bad".into())).unwrap();
    let parts = ConstraintParts { grammar: Some(grammar), ..parts };
    let mut follower = bench.follow(Thinking::None, parts);
    assert!(!follower.allows(words.word("bad")));
    follower.take_all(&[words.word("ba"), TokenId(u32::from(b'd')), words.end()]);
}

#[test]
fn only_the_allowed_tokens_come_and_they_must_fit_the_grammar() {
    let bench = Bench::new();
    let ids = || Some(vec![TokenId(97), TokenId(98)]);
    let parts = ConstraintParts { allowed_token_ids: ids(), ..Default::default() };
    let mut follower = bench.follow(Thinking::None, parts);
    assert!(follower.allows(TokenId(97)) && !follower.allows(TokenId(99)));
    assert!(!follower.allows(bench.words.end()));
    assert!(follower.constraint.allowed(1).is_ready(), "it is the same at each place");
    let grammar = bench.grammar(GrammarSource::Regex("ac".into()));
    let parts = ConstraintParts { allowed_token_ids: ids(), ..grammar };
    let mut follower = bench.follow(Thinking::None, parts);
    follower.take_all(&[TokenId(97)]);
    let error = follower.allowed().unwrap_err();
    assert!(error.contains("allowed_token_ids"), "{error}");
}
