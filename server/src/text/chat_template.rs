//! Messages -> prompt string, with the special tokens that the template itself wrote.
//!
//! Text of a client must never become a special token, however the template joins, cuts or
//! changes it. So the special tokens in the source of the template are replaced by marks before it
//! is compiled, and only these marks become special tokens again: they contain characters that do
//! not occur in the client's strings.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use models::TokenId;

use super::chat_messages::{ChatPrompt, template_value};
use super::error::{TextError, TextStartError};
use super::python;
use super::special_tokens::{Piece, SpecialTokenSplitter};

/// The name of the only template; no extension, so that nothing is escaped.
const TEMPLATE_NAME: &str = "chat_template";
/// Nested loops, macros and conditions.
const RECURSION_MAX: usize = 200;
/// Noncharacters and then a private plane: where marks are taken from.
const MARK_CANDIDATES: [std::ops::RangeInclusive<char>; 2] =
    ['\u{fdd0}'..='\u{fdef}', '\u{100000}'..='\u{10fffd}'];

/// A compiled chat template.
pub struct ChatTemplate {
    /// The template with its special tokens found.
    source: Vec<SourcePiece>,
    /// Private characters in the template itself: no marks.
    own_private: BTreeSet<char>,
    /// Named special tokens, as `eos_token`, that the template may print.
    variables: Vec<(String, SourcePiece)>,
    limits: TemplateLimits,
    compiled: Compiled,
}

#[derive(Debug, Clone, Copy)]
pub struct TemplateLimits {
    /// Steps of the template, and one for each 64 bytes it creates.
    pub fuel_max: u64,
    pub time_max: Duration,
    pub rendered_bytes_max: usize,
}

/// A rendered chat and where in it the template wrote special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// In order; all other text is plain, whatever it looks like.
    pub special: Vec<(Range<usize>, TokenId)>,
}

enum SourcePiece {
    Text(String),
    Special(TokenId, String),
}

struct Compiled {
    environment: Environment<'static>,
    marks: Marks,
}

/// Characters that occur neither in the template nor in the client's strings.
#[derive(Debug, Clone, Copy)]
struct Marks {
    /// A special token is `open`, its id in decimal, `close`.
    open: char,
    close: char,
    /// Stands behind the content that shall be continued.
    end_of_content: char,
}

impl ChatTemplate {
    /// `named` are special tokens by the variable that holds them, as ("eos_token", "<|im_end|>").
    ///
    /// Errors: a template that does not compile.
    pub fn compile(
        template: &str,
        special: &SpecialTokenSplitter,
        named: &[(String, String)],
        limits: TemplateLimits,
    ) -> Result<Self, TextStartError> {
        let mut own_private = BTreeSet::new();
        add_private(&mut own_private, template);
        let piece = |piece: Piece<'_>| match piece {
            Piece::Text(text) => SourcePiece::Text(text.to_owned()),
            Piece::Special(id) => SourcePiece::Special(id, special.content(id).to_owned()),
        };
        let source: Vec<_> = special.pieces(template).into_iter().map(piece).collect();
        let variables = named.iter().filter_map(|(name, token)| {
            Some((name.clone(), special.pieces(token).into_iter().map(piece).next()?))
        });
        let marks = Marks::unused_in(&own_private).expect("a template is shorter than the planes");
        let compiled = Compiled::new(&source, marks, limits)
            .map_err(|e| TextStartError::Template { reason: e.to_string() })?;
        Ok(Self { own_private, variables: variables.collect(), limits, compiled, source })
    }

    /// Renders `prompt` as it is (see `ChatPrompt::normalize`). `now` is what `strftime_now` shows.
    ///
    /// Errors: `Template` with the message of raise_exception, or why the template cannot make
    /// sense of the messages; `NothingToContinue`; `TooDeep`; and the three limits.
    pub fn render(&self, prompt: ChatPrompt, now: SystemTime) -> Result<Rendered, TextError> {
        let mut private = self.own_private.clone();
        prompt.for_each_string(&mut |text| add_private(&mut private, text));
        if private.len() == self.own_private.len() {
            return self.render_compiled(&self.compiled, prompt, now);
        }
        let refuse = |message: String| TextError::Template { message };
        let marks = Marks::unused_in(&private)
            .ok_or_else(|| refuse("the messages contain all private characters".to_owned()))?;
        let compiled = Compiled::new(&self.source, marks, self.limits)
            .map_err(|error| refuse(error.to_string()))?;
        self.render_compiled(&compiled, prompt, now)
    }

    fn render_compiled(
        &self,
        compiled: &Compiled,
        mut prompt: ChatPrompt,
        now: SystemTime,
    ) -> Result<Rendered, TextError> {
        let marks = compiled.marks;
        let continues = prompt.continue_final_message;
        if continues {
            // The space shows whether the template trims contents: then so must we.
            prompt.append_to_final_content(&format!("{} ", marks.end_of_content))?;
            prompt.add_generation_prompt = false;
        }
        let context = self.context(prompt, marks, now)?;
        let mut writer = BoundedWriter::new(self.limits);
        let template = compiled.environment.get_template(TEMPLATE_NAME).expect("it was added");
        let result = template.render_captured_to(context, &mut writer).map(|_| ());
        result.map_err(|error| self.text_error(&writer, &error))?;
        let mut text = String::from_utf8(writer.bytes).expect("templates write characters");
        if continues {
            cut_behind_content(&mut text, marks)?;
        }
        self.find_marks(&text, marks)
    }

    fn context(
        &self,
        prompt: ChatPrompt,
        marks: Marks,
        now: SystemTime,
    ) -> Result<Value, TextError> {
        let mut context: Vec<(String, Value)> = Vec::new();
        for (name, piece) in &self.variables {
            context.push((name.clone(), Value::from(piece.marked(marks))));
        }
        context.push(("documents".to_owned(), Value::from(())));
        for (name, value) in prompt.template_kwargs {
            context.push((name, template_value(value)?));
        }
        let list = |items: Vec<serde_json::Value>| template_value(serde_json::Value::Array(items));
        let tools = prompt.tools.map(list).transpose()?;
        // Last, so that no variable of the client takes their places.
        context.push(("messages".to_owned(), list(prompt.messages)?));
        context.push(("tools".to_owned(), tools.unwrap_or(Value::from(()))));
        let add = Value::from(prompt.add_generation_prompt);
        context.push(("add_generation_prompt".to_owned(), add));
        let clock = move |format: &str| python::strftime(now, format);
        context.push(("strftime_now".to_owned(), Value::from_function(clock)));
        let raise = Value::from_function(raise_exception);
        context.push(("raise_exception".to_owned(), raise));
        Ok(Value::from_pairs(context))
    }

    fn text_error(&self, writer: &BoundedWriter, error: &Error) -> TextError {
        let TemplateLimits { fuel_max, time_max, rendered_bytes_max } = self.limits;
        match writer.breach {
            Some(Breach::Length) => TextError::RenderedTooLong { bytes_max: rendered_bytes_max },
            Some(Breach::Time) => TextError::TooSlow { time_max },
            None if error.kind() == ErrorKind::OutOfFuel => {
                TextError::TooManySteps { steps_max: fuel_max }
            }
            None => TextError::Template { message: message(error) },
        }
    }

    /// Turns marks into the tokens they stand for.
    fn find_marks(&self, text: &str, marks: Marks) -> Result<Rendered, TextError> {
        let mut rendered =
            Rendered { text: String::with_capacity(text.len()), special: Vec::new() };
        let mut parts = text.split(marks.open);
        rendered.text.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let (token, content, rest) = self.token_of_mark(part, marks).ok_or_else(|| {
                let message = "it cuts a special token into pieces".to_owned();
                TextError::Template { message }
            })?;
            let start = rendered.text.len();
            rendered.text.push_str(content);
            rendered.special.push((start..rendered.text.len(), token));
            rendered.text.push_str(rest);
        }
        Ok(rendered)
    }

    fn token_of_mark<'a>(
        &'a self,
        part: &'a str,
        marks: Marks,
    ) -> Option<(TokenId, &'a str, &'a str)> {
        let (digits, rest) = part.split_once(marks.close)?;
        let id = TokenId(digits.parse().ok()?);
        let named = self.variables.iter().map(|(_, piece)| piece);
        self.source.iter().chain(named).find_map(|piece| match piece {
            SourcePiece::Special(special, content) if *special == id => {
                Some((id, content.as_str(), rest))
            }
            _ => None,
        })
    }
}

impl SourcePiece {
    fn marked(&self, marks: Marks) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Special(id, _) => format!("{}{id}{}", marks.open, marks.close),
        }
    }
}

impl Compiled {
    fn new(source: &[SourcePiece], marks: Marks, limits: TemplateLimits) -> Result<Self, Error> {
        let source: String = source.iter().map(|piece| piece.marked(marks)).collect();
        let mut environment = Environment::new();
        environment.set_debug(false);
        environment
            .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_fuel(Some(limits.fuel_max));
        environment.set_recursion_limit(RECURSION_MAX);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", |value: &Value| python::to_json(value));
        environment.add_template_owned(TEMPLATE_NAME, source)?;
        Ok(Self { environment, marks })
    }
}

impl Marks {
    fn unused_in(used: &BTreeSet<char>) -> Option<Self> {
        let mut free = MARK_CANDIDATES.into_iter().flatten().filter(|c| !used.contains(c));
        Some(Self { open: free.next()?, close: free.next()?, end_of_content: free.next()? })
    }
}

fn add_private(private: &mut BTreeSet<char>, text: &str) {
    private.extend(text.chars().filter(|c| MARK_CANDIDATES.iter().any(|range| range.contains(c))));
}

/// Ends the text where the content of the last message ends.
fn cut_behind_content(text: &mut String, marks: Marks) -> Result<(), TextError> {
    let position = text.rfind(marks.end_of_content).ok_or(TextError::NothingToContinue)?;
    let kept = text[position + marks.end_of_content.len_utf8()..].starts_with(' ');
    text.truncate(position);
    if !kept {
        text.truncate(text.trim_end().len());
    }
    Ok(())
}

/// What a template says about messages it does not want.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

/// The message of raise_exception alone, or all that minijinja knows.
fn message(error: &Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return message.clone();
        }
        source = cause.source();
    }
    error.to_string()
}

enum Breach {
    Length,
    Time,
}

/// Takes what the template writes, up to the limits of length and time.
struct BoundedWriter {
    bytes: Vec<u8>,
    bytes_max: usize,
    deadline: Instant,
    breach: Option<Breach>,
}

impl BoundedWriter {
    fn new(limits: TemplateLimits) -> Self {
        let deadline = Instant::now() + limits.time_max;
        Self { bytes: Vec::new(), bytes_max: limits.rendered_bytes_max, deadline, breach: None }
    }
}

impl io::Write for BoundedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            self.breach = Some(Breach::Length);
        } else if Instant::now() > self.deadline {
            self.breach = Some(Breach::Time);
        }
        if self.breach.is_some() {
            return Err(io::Error::other("a limit of the chat template is reached"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
