//! One sequence on its way back: tokens to text, with stop strings and logprobs kept in step.

use super::error::ApiError;
use super::sampling::Common;
use super::state::Serving;
use crate::engine::{
    Event, FinishReason, SampledToken, SamplingParams, TokenLogprobs, TokenStream,
};
use crate::metrics::SequenceTimer;
use crate::text::{
    AnswerFormat, AnswerParser, Part, SpecialTokens, StopMatcher, StopOutput, TextDecoder,
};
use futures_util::stream::Stream;
use models::TokenId;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// What a choice has to tell, in this order: its prompt's logprobs if asked for, text, the finish.
#[derive(Debug)]
pub enum Output {
    Prompt { index: usize, logprobs: Vec<TokenLogprobs> },
    Delta(Delta),
}

impl Output {
    /// Prompt number x n + choice number.
    pub fn index(&self) -> usize {
        match self {
            Output::Prompt { index, .. } => *index,
            Output::Delta(delta) => delta.index,
        }
    }

    /// The text, where it is all that is told.
    pub fn plain_text(&self) -> Option<PlainText<'_>> {
        let Output::Delta(delta) = self else { return None };
        let is_plain =
            delta.finish.is_none() && delta.logprobs.is_empty() && delta.token_ids.is_empty();
        let (kind, text) = match &delta.parts[..] {
            [Part::Content(text)] if is_plain => (TextKind::Content, text),
            [Part::Reasoning(text)] if is_plain => (TextKind::Reasoning, text),
            _ => return None,
        };
        Some(PlainText { index: delta.index, kind, text })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    Content,
    Reasoning,
}

/// An output that is nothing but text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainText<'a> {
    pub index: usize,
    pub kind: TextKind,
    pub text: &'a str,
}

impl PlainText<'_> {
    pub fn to_output(self) -> Output {
        let text = self.text.to_owned();
        let part = match self.kind {
            TextKind::Content => Part::Content(text),
            TextKind::Reasoning => Part::Reasoning(text),
        };
        Output::Delta(Delta { index: self.index, parts: vec![part], ..Delta::default() })
    }
}

/// A piece of one choice's answer. The pieces join to the whole answer.
#[derive(Debug, Default)]
pub struct Delta {
    /// Prompt number x n + choice number.
    pub index: usize,
    pub parts: Vec<Part>,
    /// Of the tokens whose text ends in this piece or a former one.
    pub logprobs: Vec<TextToken>,
    /// All tokens since the last piece, where the client wants them.
    pub token_ids: Vec<TokenId>,
    /// Tokens of this choice so far, and those of them that are reasoning.
    pub completion_tokens: usize,
    pub reasoning_tokens: usize,
    /// In the last piece.
    pub finish: Option<Finish>,
}

impl Delta {
    /// The text of an answer that is not taken apart.
    pub fn text(&self) -> String {
        let content = self.parts.iter().filter_map(|part| match part {
            Part::Content(text) => Some(text.as_str()),
            Part::Reasoning(_) | Part::Call { .. } | Part::Arguments { .. } => None,
        });
        content.collect()
    }
}

/// A generated token and where its text begins.
#[derive(Debug, Clone)]
pub struct TextToken {
    pub logprobs: TokenLogprobs,
    /// Characters of the choice's text before it.
    pub text_offset: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    pub reason: FinishReason,
    pub cause: Option<StopCause>,
    /// The answer calls tools.
    pub has_calls: bool,
}

/// Which of the client's own stops ended the text.
#[derive(Debug, Clone, PartialEq)]
pub enum StopCause {
    String(String),
    Token(TokenId),
}

/// One thing that happened to a choice.
pub enum Step {
    Started { index: usize, cached_tokens: usize },
    Output(Output),
    Failed(ApiError),
}

/// One sequence on its way back to text.
pub struct Choice {
    index: usize,
    /// None once the text has ended: dropping the stream aborts what the engine still does.
    stream: Option<TokenStream>,
    timer: SequenceTimer,
    params: SamplingParams,
    keeps_special_tokens: bool,
    includes_stop: bool,
    /// Tokens that no piece has told of yet, where the client wants them.
    token_ids: Option<Vec<TokenId>>,
    decoder: TextDecoder,
    matcher: Option<StopMatcher>,
    parser: AnswerParser,
    /// Logprobs of tokens whose text is sent, but not as a part yet.
    ready: Vec<TextToken>,
    reasoning_tokens: usize,
    /// Tokens whose text is not sent yet.
    held: VecDeque<Held>,
    /// Bytes and characters that the decoder has given, and bytes that were sent.
    decoded_bytes: usize,
    decoded_chars: usize,
    sent_bytes: usize,
    completion_tokens: usize,
    last_token: Option<TokenId>,
    steps: VecDeque<Step>,
}

/// Ends after the finish or a failure; dropping it aborts the sequence.
impl Stream for Choice {
    type Item = Step;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        let choice = &mut *self;
        loop {
            if let Some(step) = choice.steps.pop_front() {
                return Poll::Ready(Some(step));
            }
            let Some(stream) = &mut choice.stream else { return Poll::Ready(None) };
            match ready!(Pin::new(stream).poll_next(cx)) {
                Some(event) => choice.take_event(event),
                None => choice.fail(ApiError::EngineStopped),
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Sent {
    GoesOn,
    Ended,
}

struct Held {
    token: TextToken,
    start_bytes: usize,
    end_bytes: usize,
}

impl Choice {
    pub fn new(
        index: usize,
        stream: TokenStream,
        serving: &Serving,
        common: &Common,
        answer: &AnswerFormat,
        params: SamplingParams,
        timer: SequenceTimer,
    ) -> Self {
        let special =
            if common.skip_special_tokens { SpecialTokens::Skip } else { SpecialTokens::Keep };
        Self {
            index,
            stream: Some(stream),
            timer,
            params,
            keeps_special_tokens: special == SpecialTokens::Keep,
            includes_stop: common.includes_stop,
            token_ids: common.returns_token_ids.then(Vec::new),
            decoder: serving.text.decoder(special),
            matcher: (!common.stop.is_empty()).then(|| StopMatcher::new(&common.stop)),
            parser: AnswerParser::new(answer),
            ready: Vec::new(),
            reasoning_tokens: 0,
            held: VecDeque::new(),
            decoded_bytes: 0,
            decoded_chars: 0,
            sent_bytes: 0,
            completion_tokens: 0,
            last_token: None,
            steps: VecDeque::new(),
        }
    }

    fn take_event(&mut self, event: Event) {
        let index = self.index;
        match event {
            Event::Started { cached_tokens } => {
                self.timer.started();
                self.steps.push_back(Step::Started { index, cached_tokens });
            }
            Event::PromptLogprobs(logprobs) => {
                self.steps.push_back(Step::Output(Output::Prompt { index, logprobs }));
            }
            // Nothing is pooled of a sequence that generates.
            Event::Pooled(_) => {}
            Event::Token(sampled) => self.take_token(sampled),
            Event::Finished { reason } => self.take_finish(reason),
            Event::Failed(error) => self.fail(error.into()),
        }
    }

    fn take_token(&mut self, sampled: SampledToken) {
        self.timer.token();
        self.completion_tokens += 1;
        self.last_token = Some(sampled.token);
        if let Some(token_ids) = &mut self.token_ids {
            token_ids.push(sampled.token);
        }
        let start_bytes = self.decoded_bytes;
        let text_offset = self.decoded_chars;
        let text = match self.has_text(sampled.token) {
            true => self.decoder.push(sampled.token).unwrap_or_default(),
            false => String::new(),
        };
        self.decoded_bytes += text.len();
        self.decoded_chars += text.chars().count();
        if let Some(logprobs) = sampled.logprobs {
            let token = TextToken { logprobs, text_offset };
            self.held.push_back(Held { token, start_bytes, end_bytes: self.decoded_bytes });
        }
        let output = self.match_stops(text);
        self.send(output);
    }

    /// What ends a sequence is not part of its text, but for an end-of-sequence token where the
    /// client wants special tokens kept, and its own stop tokens where it wants these.
    fn has_text(&self, token: TokenId) -> bool {
        if !self.params.stops_at(token) {
            return true;
        }
        match self.params.eos_token_ids.contains(&token) {
            true => self.keeps_special_tokens,
            false => self.includes_stop,
        }
    }

    /// Text on its way through the stop strings.
    fn match_stops(&mut self, text: String) -> StopOutput {
        match &mut self.matcher {
            // As in vLLM, a stop string does not end the text before `min_tokens`.
            Some(matcher) if self.completion_tokens > self.params.min_tokens => matcher.push(&text),
            _ => StopOutput { emit: text, matched: None },
        }
    }

    fn with_stop(&self, mut output: StopOutput) -> StopOutput {
        if let Some(stop) = output.matched.as_ref().filter(|_| self.includes_stop) {
            output.emit.push_str(stop);
        }
        output
    }

    /// Sends what is sure, and the end if a stop string brought it; says whether it did.
    fn send(&mut self, output: StopOutput) -> Sent {
        let output = self.with_stop(output);
        self.sent_bytes += output.emit.len();
        let Some(stop) = output.matched else {
            if !output.emit.is_empty() {
                let logprobs = self.release();
                self.push_text(&output.emit, logprobs);
            }
            return Sent::GoesOn;
        };
        // Tokens that lie wholly behind the end of the text are cut with it.
        let end = self.sent_bytes;
        let kept = self.held.drain(..).filter(|held| held.start_bytes < end);
        let logprobs = kept.map(|held| held.token).collect();
        self.push_text(&output.emit, logprobs);
        self.end(FinishReason::Stop, Some(StopCause::String(stop)));
        Sent::Ended
    }

    /// Tokens whose text has been sent.
    fn release(&mut self) -> Vec<TextToken> {
        let sent = self.held.iter().take_while(|held| held.end_bytes <= self.sent_bytes).count();
        self.held.drain(..sent).map(|held| held.token).collect()
    }

    fn take_finish(&mut self, reason: FinishReason) {
        let tail = self.decoder.finish().unwrap_or_default();
        self.decoded_bytes += tail.len();
        let output = self.match_stops(tail);
        if self.send(output) == Sent::Ended {
            return;
        }
        let rest = self.matcher.as_mut().map(StopMatcher::finish).unwrap_or_default();
        if self.send(rest) == Sent::Ended {
            return;
        }
        let logprobs = self.held.drain(..).map(|held| held.token).collect();
        self.push_text("", logprobs);
        let own = |token: &TokenId| self.params.stop_token_ids.contains(token);
        let cause = match reason {
            FinishReason::Length => None,
            FinishReason::Stop => self.last_token.filter(own).map(StopCause::Token),
        };
        self.end(reason, cause);
    }

    fn end(&mut self, reason: FinishReason, cause: Option<StopCause>) {
        self.stream = None;
        self.timer.ended(match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        });
        let parts = self.parser.finish();
        self.push_parts(parts);
        let has_calls = self.parser.num_calls() > 0;
        self.push_delta(Vec::new(), Some(Finish { reason, cause, has_calls }));
    }

    fn fail(&mut self, error: ApiError) {
        self.stream = None;
        self.timer.ended("error");
        self.steps.push_back(Step::Failed(error));
    }

    fn push_text(&mut self, text: &str, logprobs: Vec<TextToken>) {
        let was_reasoning = self.parser.is_reasoning();
        let parts = self.parser.push(text);
        // The token that ends the reasoning belongs to it.
        if was_reasoning || self.parser.is_reasoning() {
            self.reasoning_tokens = self.completion_tokens;
        }
        self.ready.extend(logprobs);
        self.push_parts(parts);
    }

    fn push_parts(&mut self, parts: Vec<Part>) {
        if !parts.is_empty() {
            self.push_delta(parts, None);
        }
    }

    fn push_delta(&mut self, parts: Vec<Part>, finish: Option<Finish>) {
        self.steps.push_back(Step::Output(Output::Delta(Delta {
            index: self.index,
            parts,
            logprobs: std::mem::take(&mut self.ready),
            token_ids: self.token_ids.as_mut().map(std::mem::take).unwrap_or_default(),
            completion_tokens: self.completion_tokens,
            reasoning_tokens: self.reasoning_tokens,
            finish,
        })));
    }
}
