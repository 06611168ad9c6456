//! Grammars: compiled off the engine's thread, once for all who ask for the same, within bounds.
//!
//! llguidance does the parsing: it walks the vocabulary's trie with a lexer of derivatives and an
//! Earley parser. All its bounds count work and none counts time, so that what is refused does not
//! depend on the machine; time is bounded here, for whoever waits. What its own bounds do not see
//! is refused before (`intersections.rs`).

use super::super::vocabulary::Vocabulary;
use super::intersections::{check_lark, check_schema};
use super::workers::{Manners, Workers};
use kernels::device::thread::Thread;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use models::TokenId;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Longest grammar, as JSON, regular expression or otherwise.
pub const SOURCE_BYTES_MAX: usize = 128 << 10;
/// Most strings to choose from.
pub const CHOICES_MAX: usize = 1024;
/// White space that JSON may have between its parts: enough to be pretty, not enough to go on for
/// ever.
pub const WHITESPACE: &str = r" |\n[ \t]{0,40}";
/// Whoever asked is refused after so long. What was begun goes on and is kept.
const COMPILE_TIME_MAX: Duration = Duration::from_millis(1200);
/// Grammars being compiled, or about to be; more are refused.
const COMPILING_MAX: usize = 16;
/// Threads that compile one grammar each. Beside a thread that computes all the time one of them
/// gets 4 % of a core, which is 50 ms within `COMPILE_TIME_MAX`, where an ordinary grammar needs
/// less than 10; one that needs more gives its place to the next, and gets 1.5 %.
const COMPILE_MANNERS: Manners = Manners {
    num_threads: 4,
    niceness: 14,
    patience: Duration::from_millis(60),
    niceness_late: 19,
    late_max: 8,
};
/// Threads that compute masks: each token of an answer waits for one, mostly for less than 0.2 ms.
/// A grammar with more states than anyone needs may take tens, beside which others compute.
const MASK_MANNERS: Manners = Manners {
    num_threads: 1,
    niceness: 0,
    patience: Duration::from_millis(2),
    niceness_late: 10,
    late_max: 2,
};
/// Compiled grammars and refusals that are kept, the ones used last.
const KEPT_MAX: usize = 128;
/// Brackets within each other in a regular expression or grammar. Those in strings and classes
/// count too, so it is more than anyone needs; the compiling thread's stack holds far more.
const NESTING_MAX: usize = 2000;
/// Characters of a parser's own explanation that are passed on.
pub(super) const REASON_CHARS_MAX: usize = 400;
/// Of the thread that makes what all grammars need, some 0.4 s of work.
const PREPARE_NICENESS: i32 = 10;
const CORES_PER_MASK_THREAD: usize = 8;

const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    initial_lexer_fuel: 500_000,
    step_lexer_fuel: 100_000,
    step_max_items: 25_000,
    max_lexer_states: 16_000,
    max_grammar_size: 100_000,
    precompute_large_lexemes: true,
    // They would hold what the client wrote.
    verbose_errors: false,
};

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSource {
    /// JSON that the schema accepts; `whitespace`: a regular expression for what may stand between
    /// its parts.
    Json {
        schema: Value,
        whitespace: String,
    },
    /// The whole answer matches.
    Regex(String),
    Choice(Vec<String>),
    /// In llguidance's dialect of Lark.
    Lark(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    #[error("{reason}")]
    Invalid { reason: String },
    #[error("has {bytes} bytes, the limit is {bytes_max}")]
    TooLong { bytes: usize, bytes_max: usize },
    #[error("nests deeper than {depth_max} brackets")]
    TooDeep { depth_max: usize },
    #[error("takes longer than {time_max:?} to compile")]
    TooSlow { time_max: Duration },
    #[error("{grammars} grammars are being compiled, the limit is {grammars_max}")]
    Busy { grammars: usize, grammars_max: usize },
}

/// A compiled grammar, from which each answer's own parser is made.
pub struct Grammar {
    start: Mutex<Matcher>,
}

/// The grammars of one tokenizer.
pub struct Grammars {
    shared: Arc<Shared>,
    compiling: Workers,
    /// Compute what may come next in answers.
    masks: Arc<Workers>,
}

struct Shared {
    vocabulary: Arc<Vocabulary>,
    factory: OnceLock<Result<ParserFactory, String>>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    grammars: HashMap<[u8; 32], Entry>,
    num_compiling: usize,
    /// Counts uses.
    clock: u64,
}

enum Entry {
    Compiling(Vec<oneshot::Sender<Compiled>>),
    Done { compiled: Compiled, used: u64 },
}

type Compiled = Result<Arc<Grammar>, GrammarError>;

/// What is known of a grammar that is asked for.
enum Found {
    Done(Compiled),
    /// The answer comes here.
    Waits(oneshot::Receiver<Compiled>),
    /// The same, and whoever asked has it compiled.
    New(oneshot::Receiver<Compiled>),
}

impl Grammars {
    /// Errors: the system has no thread.
    pub fn new(vocabulary: Arc<Vocabulary>) -> std::io::Result<Grammars> {
        let shared =
            Shared { vocabulary, factory: OnceLock::new(), kept: Mutex::new(Kept::default()) };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let num_threads = (cores / CORES_PER_MASK_THREAD).max(1);
        Ok(Grammars {
            shared: Arc::new(shared),
            compiling: Workers::start("grammar", COMPILE_MANNERS)?,
            masks: Arc::new(Workers::start("mask", Manners { num_threads, ..MASK_MANNERS })?),
        })
    }

    /// Makes what every grammar needs, which takes a while, so that the first to ask need not wait
    /// for it. The calling thread gives way to others from now on.
    pub fn prepare(&self) {
        Thread::current().set_niceness(PREPARE_NICENESS);
        self.shared.factory();
    }

    pub(in super::super) fn workers(&self) -> Arc<Workers> {
        Arc::clone(&self.masks)
    }

    /// Errors: a grammar that cannot be held, or not within the bounds; `Busy`: ask again.
    pub async fn compile(&self, source: GrammarSource) -> Result<Arc<Grammar>, GrammarError> {
        source.check()?;
        let key = source.key();
        let found = self.shared.lock().find(key)?;
        let answer = match found {
            Found::Done(compiled) => return compiled,
            Found::Waits(answer) => answer,
            Found::New(answer) => {
                let shared = Arc::clone(&self.shared);
                self.compiling.add(move || shared.compile(key, source));
                answer
            }
        };
        match tokio::time::timeout(COMPILE_TIME_MAX, answer).await {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(_)) => Err(GrammarError::Invalid { reason: "cannot be compiled".into() }),
            Err(_) => Err(GrammarError::TooSlow { time_max: COMPILE_TIME_MAX }),
        }
    }
}

impl Grammar {
    /// A parser at the grammar's beginning.
    pub(super) fn matcher(&self) -> Matcher {
        // A copy of all it has, so that what goes wrong in one request stays there.
        self.start.lock().unwrap_or_else(PoisonError::into_inner).deep_clone()
    }
}

impl GrammarSource {
    /// Any JSON object.
    pub fn json_object() -> GrammarSource {
        let schema = json!({"type": "object"});
        GrammarSource::Json { schema, whitespace: WHITESPACE.into() }
    }

    /// Whether it is within the bounds that can be seen.
    fn check(&self) -> Result<(), GrammarError> {
        let bytes = match self {
            GrammarSource::Json { schema, whitespace } => {
                schema.to_string().len() + whitespace.len()
            }
            GrammarSource::Regex(text) | GrammarSource::Lark(text) => text.len(),
            GrammarSource::Choice(choices) => choices.iter().map(String::len).sum(),
        };
        if bytes > SOURCE_BYTES_MAX {
            return Err(GrammarError::TooLong { bytes, bytes_max: SOURCE_BYTES_MAX });
        }
        match self {
            GrammarSource::Regex(text) | GrammarSource::Lark(text) => check_nesting(text),
            GrammarSource::Json { whitespace, .. } => check_nesting(whitespace),
            GrammarSource::Choice(_) => Ok(()),
        }
    }

    fn key(&self) -> [u8; 32] {
        let (kind, text) = match self {
            GrammarSource::Json { schema, whitespace } => {
                ("json", json!([schema, whitespace]).to_string())
            }
            GrammarSource::Regex(text) => ("regex", text.clone()),
            GrammarSource::Choice(choices) => ("choice", json!(choices).to_string()),
            GrammarSource::Lark(text) => ("lark", text.clone()),
        };
        Sha256::new().chain_update(kind).chain_update([0]).chain_update(text).finalize().into()
    }

    /// As a part of a rule of a Lark grammar.
    ///
    /// Errors: it is a Lark grammar itself.
    pub(super) fn as_lark_item(&self) -> Result<String, GrammarError> {
        match self {
            GrammarSource::Json { schema, whitespace } => {
                Ok(format!("%json {}", with_whitespace(schema.clone(), whitespace)))
            }
            GrammarSource::Regex(text) => Ok(format!("/{}/", llguidance::regex_to_lark(text, ""))),
            GrammarSource::Choice(choices) => Ok(lark_choice(choices)),
            GrammarSource::Lark(_) => {
                let reason = "cannot be combined with tools that may be called".to_owned();
                Err(GrammarError::Invalid { reason })
            }
        }
    }

    fn grammar(self) -> TopLevelGrammar {
        match self {
            GrammarSource::Json { schema, whitespace } => {
                TopLevelGrammar::from_json_schema(with_whitespace(schema, &whitespace))
            }
            GrammarSource::Regex(text) => TopLevelGrammar::from_regex(&text),
            GrammarSource::Choice(choices) => {
                TopLevelGrammar::from_lark(format!("start: {}", lark_choice(&choices)))
            }
            GrammarSource::Lark(text) => TopLevelGrammar::from_lark(text),
        }
    }
}

/// `schema` as llguidance wants it to be told of white space.
pub(super) fn with_whitespace(schema: Value, whitespace: &str) -> Value {
    match schema {
        Value::Object(mut map) => {
            map.insert("x-guidance".into(), json!({"whitespace_pattern": whitespace}));
            Value::Object(map)
        }
        other => other,
    }
}

/// `text` as a string of a Lark grammar.
pub(super) fn lark_literal(text: &str) -> String {
    Value::from(text).to_string()
}

fn lark_choice(choices: &[String]) -> String {
    let literals: Vec<String> = choices.iter().map(|choice| lark_literal(choice)).collect();
    format!("({})", literals.join(" | "))
}

/// Parsers recurse for each bracket and each prefix operator.
fn check_nesting(text: &str) -> Result<(), GrammarError> {
    let mut depth = 0usize;
    for c in text.chars() {
        match c {
            '(' | '[' | '{' | '~' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            return Err(GrammarError::TooDeep { depth_max: NESTING_MAX });
        }
    }
    Ok(())
}

impl Shared {
    fn compile(&self, key: [u8; 32], source: GrammarSource) {
        let compile = std::panic::AssertUnwindSafe(|| self.try_compile(source));
        let compiled = std::panic::catch_unwind(compile)
            .unwrap_or_else(|_| Err("the parser of grammars cannot make sense of it".into()))
            .map(Arc::new)
            .map_err(|reason| GrammarError::Invalid { reason });
        for waiter in self.lock().finish(key, &compiled) {
            // Whoever has gone needs no answer.
            let _ = waiter.send(compiled.clone());
        }
    }

    fn try_compile(&self, source: GrammarSource) -> Result<Grammar, String> {
        let factory = self.factory().as_ref().map_err(String::clone)?;
        match &source {
            GrammarSource::Json { schema, .. } => check_schema(schema)?,
            GrammarSource::Lark(text) => check_lark(text)?,
            GrammarSource::Regex(_) | GrammarSource::Choice(_) => {}
        }
        let matcher = Matcher::new(factory.create_parser(source.grammar()));
        let short = |reason: String| reason.chars().take(REASON_CHARS_MAX).collect::<String>();
        if let Some(reason) = matcher.get_error() {
            return Err(short(reason));
        }
        // Some can be read and not followed: that shows here, where it costs nobody else's time.
        matcher.deep_clone().compute_mask().map_err(|error| short(error.to_string()))?;
        Ok(Grammar { start: Mutex::new(matcher) })
    }

    fn factory(&self) -> &Result<ParserFactory, String> {
        self.factory.get_or_init(|| new_factory(&self.vocabulary))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, key: [u8; 32]) -> Result<Found, GrammarError> {
        self.clock += 1;
        match self.grammars.get_mut(&key) {
            Some(Entry::Done { compiled, used }) => {
                *used = self.clock;
                Ok(Found::Done(compiled.clone()))
            }
            Some(Entry::Compiling(waiters)) => {
                let (sender, answer) = oneshot::channel();
                waiters.retain(|waiter| !waiter.is_closed());
                waiters.push(sender);
                Ok(Found::Waits(answer))
            }
            None if self.num_compiling >= COMPILING_MAX => {
                let grammars = self.num_compiling;
                Err(GrammarError::Busy { grammars, grammars_max: COMPILING_MAX })
            }
            None => {
                let (sender, answer) = oneshot::channel();
                self.grammars.insert(key, Entry::Compiling(vec![sender]));
                self.num_compiling += 1;
                Ok(Found::New(answer))
            }
        }
    }

    /// Returns who waits for it.
    fn finish(&mut self, key: [u8; 32], compiled: &Compiled) -> Vec<oneshot::Sender<Compiled>> {
        self.clock += 1;
        self.num_compiling -= 1;
        let done = Entry::Done { compiled: compiled.clone(), used: self.clock };
        let waiters = match self.grammars.insert(key, done) {
            Some(Entry::Compiling(waiters)) => waiters,
            Some(Entry::Done { .. }) | None => Vec::new(),
        };
        if self.grammars.len() - self.num_compiling > KEPT_MAX {
            let done = self.grammars.iter().filter_map(|(key, entry)| match entry {
                Entry::Done { used, .. } => Some((*used, *key)),
                Entry::Compiling(_) => None,
            });
            if let Some((_, oldest)) = done.min() {
                self.grammars.remove(&oldest);
            }
        }
        waiters
    }
}

/// The vocabulary as llguidance wants it.
fn new_factory(vocabulary: &Vocabulary) -> Result<ParserFactory, String> {
    let num_ids = vocabulary.num_ids();
    let mut words: Vec<Vec<u8>> = (0..num_ids as u32)
        .map(|id| {
            let bytes = vocabulary.bytes(TokenId(id));
            // A grammar names special tokens by themselves: their text is no text.
            let marker: &[u8] = match vocabulary.is_special(TokenId(id)) && !bytes.is_empty() {
                true => &[TokTrie::SPECIAL_TOKEN_MARKER],
                false => &[],
            };
            [marker, bytes].concat()
        })
        .collect();
    // Its end of text is an id that no one samples; where it may come, the model's own ones may.
    words.push(Vec::new());
    let info = TokRxInfo::new(words.len() as u32, num_ids as u32);
    let env = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
    let slices = SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&(env as _), InferenceCapabilities::default(), &slices)
        .map_err(|error| error.to_string())?;
    factory.quiet();
    *factory.limits_mut() = LIMITS;
    Ok(factory)
}
