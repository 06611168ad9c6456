//! Strings <-> token ids, in any language. Knows neither HTTP nor the engine.

pub mod error;
pub mod chat_messages;
pub mod chat_template;
pub mod python;
pub mod special_tokens;
pub mod tokenizer;
pub mod tokenizer_parts;
mod merge_list;
pub mod chunks;
mod known_texts;
pub mod encoder;
pub mod vocabulary;
mod hashing;
pub mod pool;
pub mod framed;
pub mod detokenizer;
pub mod stop;
pub mod tags;
pub mod answer;
pub mod reasoning;
pub mod tools;
pub mod constraint;
#[cfg(test)]
mod testing;

pub use answer::{AnswerFormat, AnswerParser, AnswerTools, Part, ReasoningMarkup, ToolMarkup};
pub use chat_messages::ChatPrompt;
pub use constraint::{
    BadWords, CallsWanted, Constraint, ConstraintParts, GrammarError, GrammarSource,
    SequenceConstraint, tool_calls_grammar,
};
pub use detokenizer::{SpecialTokens, TextDecoder};
pub use error::{TextError, TextStartError};
pub use framed::{Frame, FramedText};
pub use reasoning::ReasoningStart;
pub use stop::{StopMatcher, StopOutput};
pub use tools::{Tool, ToolFormat};

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use models::{ChatTemplateSource, TokenId, TokenizerSource};

use chat_template::{ChatTemplate, TemplateLimits};
use constraint::{BUDGET_SPENT, Grammar, Grammars, Thinking, ThinkingBudget};
use pool::{Pool, PoolLimits};
use tokenizer::Tokenizer;

/// The variable by which templates are told how much to think.
pub const REASONING_EFFORT: &str = "reasoning_effort";
/// Tokens decoded at once before other tasks get a turn.
const DECODE_TOKENS_MAX: usize = 4096;

/// How much text may be in the works, and how long a template may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextConfig {
    /// At least two run, whatever this says.
    pub tokenizer_threads: usize,
    /// More are refused with `TextError::Busy`, as are more bytes.
    pub waiting_jobs_max: usize,
    pub waiting_bytes_max: usize,
    /// Of one text, or of all strings of one chat.
    pub input_bytes_max: usize,
    /// Steps of the chat template, and one for each 64 bytes it creates.
    pub template_fuel_max: u64,
    pub template_time_max: Duration,
    pub rendered_bytes_max: usize,
    pub tools: ToolMarkup,
    pub reasoning: ReasoningMarkup,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            tokenizer_threads: 2,
            waiting_jobs_max: 1024,
            waiting_bytes_max: 64 * 1024 * 1024,
            input_bytes_max: 8 * 1024 * 1024,
            template_fuel_max: 20_000_000,
            template_time_max: Duration::from_secs(5),
            rendered_bytes_max: 32 * 1024 * 1024,
            tools: ToolMarkup::default(),
            reasoning: ReasoningMarkup::default(),
        }
    }
}

/// A prompt as the engine takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    pub token_ids: Vec<TokenId>,
    /// The text that was encoded: of a chat, the rendered one.
    pub text: String,
}

/// The tokenizer and chat template of the served model, and the threads that use them. Clones
/// share them.
#[derive(Clone)]
pub struct TextStage {
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    pool: Arc<Pool>,
    input_bytes_max: usize,
    tool_format: Option<ToolFormat>,
    has_reasoning: bool,
    takes_reasoning_effort: bool,
    grammars: Arc<Grammars>,
}

impl TextStage {
    /// `embedding_rows`: of the model; the tokenizer must not have more ids.
    ///
    /// Errors: a tokenizer or template that cannot be served; see `TextStartError`.
    pub fn new(
        source: &TokenizerSource,
        chat_template: Option<&ChatTemplateSource>,
        embedding_rows: usize,
        config: TextConfig,
    ) -> Result<Self, TextStartError> {
        let tokenizer = Tokenizer::load(source)?;
        let vocab_size = tokenizer.vocabulary().num_ids();
        if vocab_size > embedding_rows {
            return Err(TextStartError::TooManyIds { vocab_size, embedding_rows });
        }
        let limits = TemplateLimits {
            fuel_max: config.template_fuel_max,
            time_max: config.template_time_max,
            rendered_bytes_max: config.rendered_bytes_max,
        };
        let source = chat_template.map(|source| source.template.as_str());
        let tool_format = source.and_then(|template| config.tools.format(template));
        let has_reasoning = source.is_some_and(|template| config.reasoning.is_used(template));
        let takes_reasoning_effort = source.is_some_and(|text| text.contains(REASONING_EFFORT));
        let template = chat_template
            .map(|source| compile_template(&source.template, &tokenizer, limits))
            .transpose()?;
        let pool_limits = PoolLimits {
            waiting_jobs_max: config.waiting_jobs_max,
            waiting_bytes_max: config.waiting_bytes_max,
        };
        Ok(Self {
            grammars: Arc::new(Grammars::new(tokenizer.vocabulary().clone()).map_err(no_thread)?),
            tokenizer: Arc::new(tokenizer),
            template: template.map(Arc::new),
            pool: Arc::new(Pool::start(config.tokenizer_threads, pool_limits)?),
            input_bytes_max: config.input_bytes_max,
            tool_format,
            has_reasoning,
            takes_reasoning_effort,
        })
    }

    /// How the model calls tools in a chat; `None`: not at all.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        self.tool_format
    }

    /// Where an answer to `prompt` begins; `None`: the model does not tell reasoning apart.
    pub fn reasoning_start(&self, prompt: &EncodedPrompt) -> Option<ReasoningStart> {
        self.has_reasoning.then(|| ReasoningStart::of_prompt(&prompt.text))
    }

    /// Whether the model tells its reasoning apart.
    pub fn has_reasoning(&self) -> bool {
        self.has_reasoning
    }

    /// Whether the chat template has a variable of this name.
    pub fn takes_reasoning_effort(&self) -> bool {
        self.takes_reasoning_effort
    }

    /// Begins to make what every grammar needs, behind everything else.
    pub fn prepare_grammars(&self) {
        let grammars = Arc::clone(&self.grammars);
        let thread = std::thread::Builder::new().name("grammar-tables".into());
        // Without a thread the first grammar makes it.
        let _ = thread.spawn(move || grammars.prepare());
    }

    /// Errors: a grammar that cannot be held, or not within the bounds; `Busy`: ask again.
    pub async fn compile_grammar(
        &self,
        source: GrammarSource,
    ) -> Result<Arc<Grammar>, GrammarError> {
        self.grammars.compile(source).await
    }

    /// Finds the tokens that make up `words`, none of which is empty.
    pub async fn find_bad_words(&self, words: Vec<String>) -> Result<Arc<BadWords>, TextError> {
        let vocabulary = self.tokenizer.vocabulary().clone();
        let bytes = words.iter().map(String::len).sum();
        self.pool.run(bytes, move || Arc::new(BadWords::new(&words, &vocabulary))).await
    }

    /// What an answer to `prompt` may be, where `parts` asks for something; `eos` may come where
    /// the grammar is complete. Without a prompt the answer does not think.
    pub fn constraint(
        &self,
        prompt: Option<&EncodedPrompt>,
        parts: ConstraintParts,
        eos: Vec<TokenId>,
    ) -> Option<Arc<Constraint>> {
        if parts.is_empty() {
            return None;
        }
        let prompt = prompt.filter(|_| self.has_reasoning);
        let thinking = match prompt.map(|prompt| ReasoningStart::of_prompt(&prompt.text)) {
            None => Thinking::None,
            Some(ReasoningStart::Inside) => Thinking::Open,
            Some(ReasoningStart::Outside) if prompt.is_some_and(has_thought) => Thinking::None,
            Some(ReasoningStart::Outside) => Thinking::MayOpen,
        };
        let vocabulary = self.tokenizer.vocabulary().clone();
        let budget = parts.thinking_budget.map(|tokens_max| ThinkingBudget {
            tokens_max,
            close: self.tokenizer.encode(BUDGET_SPENT).unwrap_or_default(),
        });
        Some(Arc::new(Constraint {
            workers: self.grammars.workers(),
            eos,
            thinking,
            open_tag: self.tokenizer.token_id(reasoning::OPEN),
            call_tag: self.tokenizer.token_id(tools::OPEN),
            budget: budget.filter(|budget| !budget.close.is_empty()),
            grammar: parts.grammar,
            allowed: parts.allowed_token_ids.map(|ids| constraint::bits(ids, vocabulary.num_ids())),
            bad_words: parts.bad_words,
            vocabulary,
        }))
    }

    /// Number of ids that the tokenizer knows: only these may be sampled. Rows of the embedding
    /// from here on are padding.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocabulary().num_ids()
    }

    /// The end-of-sequence tokens that the tokenizer itself names.
    pub fn eos_token_ids(&self) -> &[TokenId] {
        self.tokenizer.eos()
    }

    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.tokenizer.token_id(token)
    }

    /// The token as text; broken characters as U+FFFD.
    pub fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(token)).into_owned()
    }

    /// The token's bytes, which need not be whole characters; none for an unknown id.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.tokenizer.vocabulary().bytes(token)
    }

    /// Renders and encodes a chat. Only the template's own special tokens become special tokens.
    pub async fn encode_chat(&self, chat: ChatPrompt) -> Result<EncodedPrompt, TextError> {
        let template = self.template.clone().ok_or(TextError::NoTemplate)?;
        let bytes = self.checked_size(chat.text_bytes())?;
        let tokenizer = self.tokenizer.clone();
        self.pool.run(bytes, move || encode_chat(&tokenizer, &template, chat)).await?
    }

    /// Encodes text without a template. Special tokens named in it become special tokens: filling
    /// in the middle needs them.
    pub async fn encode_text(&self, text: String) -> Result<EncodedPrompt, TextError> {
        let bytes = self.checked_size(text.len())?;
        let tokenizer = self.tokenizer.clone();
        let encode = move || Ok(EncodedPrompt { token_ids: tokenizer.encode(&text)?, text });
        self.pool.run(bytes, encode).await?
    }

    pub fn decoder(&self, special: SpecialTokens) -> TextDecoder {
        TextDecoder::new(self.tokenizer.vocabulary().clone(), special)
    }

    pub async fn decode(&self, token_ids: Vec<TokenId>, special: SpecialTokens) -> String {
        let mut decoder = self.decoder(special);
        let mut text = String::new();
        for chunk in token_ids.chunks(DECODE_TOKENS_MAX) {
            text.extend(chunk.iter().filter_map(|&token| decoder.push(token)));
            tokio::task::yield_now().await;
        }
        text.extend(decoder.finish());
        text
    }

    fn checked_size(&self, bytes: usize) -> Result<usize, TextError> {
        let bytes_max = self.input_bytes_max;
        if bytes > bytes_max {
            Err(TextError::InputTooLong { bytes, bytes_max })
        } else {
            Ok(bytes)
        }
    }
}

fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    mut chat: ChatPrompt,
) -> Result<EncodedPrompt, TextError> {
    chat.normalize();
    let salt = chat.cache_salt;
    let rendered = template.render(chat, SystemTime::now())?;
    let token_ids = tokenizer.encode_rendered(&rendered, salt.as_ref())?;
    Ok(EncodedPrompt { token_ids, text: rendered.text })
}

fn no_thread(source: std::io::Error) -> TextStartError {
    TextStartError::Thread { source }
}

/// Whether the prompt's last turn has thought already, or says that there is nothing to think.
fn has_thought(prompt: &EncodedPrompt) -> bool {
    ReasoningStart::has_thought(&prompt.text)
}

/// Compiles the template and sees whether its special tokens are found.
fn compile_template(
    template: &str,
    tokenizer: &Tokenizer,
    limits: TemplateLimits,
) -> Result<ChatTemplate, TextStartError> {
    let compiled =
        ChatTemplate::compile(template, tokenizer.special(), tokenizer.named_special(), limits)?;
    let message = serde_json::json!({"role": "user", "content": "x"});
    let probe = ChatPrompt {
        messages: vec![message],
        add_generation_prompt: true,
        ..ChatPrompt::default()
    };
    let Ok(rendered) = compiled.render(probe, SystemTime::UNIX_EPOCH) else { return Ok(compiled) };
    let encoded = tokenizer.encode_rendered(&rendered, None);
    if tokenizer.encode(&rendered.text).ok() != encoded.ok() {
        let reason = "it writes special tokens that are not in its source as a whole".to_owned();
        return Err(TextStartError::Template { reason });
    }
    Ok(compiled)
}
