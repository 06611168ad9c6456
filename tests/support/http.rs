//! A server on a real socket with a real tokenizer and engine, on a runner whose answers stand in
//! the prompt; and a client that writes HTTP/1.1 by hand.

use crate::fake_runner::scatter;
use models::{ChatTemplateSource, GenerationDefaults, TokenId, TokenizerSource};
use server::engine::{
    Chunk, ChunkOutput, EngineConfig, EngineThread, LastStep, Overlap, Plan, PolicyKind, Pooled,
    Pooling, PrefixCaching, Runner, RunnerError, SampleStep, SampledToken, SamplingParams,
    StepOutput, TokenLogprobs,
};
use server::http::{
    AppState, Drained, HttpConfig, ServedModel, Serving, Task, ThinkingModel, listen, serve,
};
use server::jobs::{Jobs, JobsConfig};
use server::text::{SpecialTokens, TextConfig, TextStage};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

pub const EOS: TokenId = TokenId(1093);
/// "no" and "yes" in the tiny vocabulary.
pub const NO: TokenId = TokenId(263);
pub const YES: TokenId = TokenId(265);
pub const VOCAB_SIZE: usize = 1100;
pub const MAX_MODEL_LEN: usize = 512;
const BLOCK_SIZE: usize = 4;
const NUM_BLOCKS: usize = 4096;
/// A test that waits longer than this has hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// The tokenizer and chat template in `tests/data/qwen3-tied`.
pub fn tiny_text_stage() -> TextStage {
    text_stage_of("qwen3-tied")
}

fn text_stage_of(part: &str) -> TextStage {
    let dir = crate::data_dir().join(part);
    let config = std::fs::read_to_string(dir.join("tokenizer_config.json")).expect("config");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    let template = config["chat_template"].as_str().expect("a template").to_owned();
    let source = TokenizerSource::HuggingFace {
        tokenizer_json: dir.join("tokenizer.json"),
        tokenizer_config: Some(config),
    };
    let template = ChatTemplateSource { template };
    TextStage::new(&source, Some(&template), 1152, TextConfig::default()).expect("a text stage")
}

/// Says what the prompt tells it to: `#say:TEXT#` gives the bytes of TEXT, one token each,
/// `#ids:1,2#` these tokens, `#seed#` a letter for the seed, `#loop#` goes on for ever; then comes
/// the end of the sequence. Where a mask does not let that through, it says something else. It
/// reads the prompt back from the slots it was told to write, so that a wrong block shows.
pub struct ScriptRunner {
    text: TextStage,
    byte_tokens: Vec<TokenId>,
    slots: Vec<TokenId>,
    gate: Arc<Gate>,
    last_step: LastStep,
    under_way: VecDeque<StepOutput>,
}

/// Holds the runner's steps back while it is closed, and loses the device when told to.
#[derive(Default)]
pub struct Gate {
    state: Mutex<GateState>,
    opened: Condvar,
}

#[derive(Default)]
struct GateState {
    is_closed: bool,
    /// Until the device is lost.
    steps_left: Option<usize>,
}

impl Gate {
    pub fn close(&self) {
        self.lock().is_closed = true;
    }

    pub fn open(&self) {
        self.lock().is_closed = false;
        self.opened.notify_all();
    }

    /// After so many more steps the device is lost.
    pub fn lose_after(&self, num_steps: usize) {
        self.lock().steps_left = Some(num_steps);
    }

    fn is_lost(&self) -> bool {
        self.lock().steps_left == Some(0)
    }

    fn pass(&self) -> Result<(), RunnerError> {
        let state = self.lock();
        let mut state = self.opened.wait_while(state, |state| state.is_closed).expect("no panic");
        match &mut state.steps_left {
            Some(0) => Err(RunnerError::RankFailed { rank: 0, reason: "unplugged".into() }),
            Some(steps) => {
                *steps -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().expect("no panic")
    }
}

impl ScriptRunner {
    pub fn new(text: TextStage, gate: Arc<Gate>) -> Self {
        let find = |byte: u8| {
            let mut ids = (0..VOCAB_SIZE as u32).map(TokenId);
            ids.find(|id| text.token_bytes(*id) == [byte]).unwrap_or(TokenId(0))
        };
        let byte_tokens = (0..=255).map(find).collect();
        let slots = vec![TokenId(0); BLOCK_SIZE * NUM_BLOCKS];
        let (last_step, under_way) = (LastStep::default(), VecDeque::new());
        Self { text, byte_tokens, slots, gate, last_step, under_way }
    }

    fn compute(&mut self, chunk: &Chunk) -> ChunkOutput {
        let slot = |position: usize| {
            let block = chunk.block_table[position / BLOCK_SIZE].0 as usize;
            block * BLOCK_SIZE + position % BLOCK_SIZE
        };
        for (i, token) in self.last_step.token_ids(chunk).iter().enumerate() {
            self.slots[slot(chunk.start + i)] = *token;
        }
        let context_len = chunk.start + chunk.num_tokens();
        let context: Vec<_> = (0..context_len).map(|p| self.slots[slot(p)]).collect();
        let sampled = chunk.sample.as_ref().map(|sample| {
            let (prompt, generated) = context.split_at(sample.prompt_len);
            let wanted = self.next_token(prompt, generated.len(), &sample.params);
            let token = obey(sample, wanted);
            let logprobs = sample.params.logprobs.map(|top| logprobs_of(token, top));
            SampledToken { token, logprobs }
        });
        let prompt_logprobs = match &chunk.prompt_logprobs {
            Some(score) => score.targets.iter().map(|t| logprobs_of(*t, score.top)).collect(),
            None => Vec::new(),
        };
        let pooled = chunk.pooling.as_ref().map(|pooling| pool(&context, pooling));
        ChunkOutput { sampled, prompt_logprobs, pooled }
    }

    fn next_token(&self, prompt: &[TokenId], index: usize, params: &SamplingParams) -> TokenId {
        let mut decoder = self.text.decoder(SpecialTokens::Keep);
        let mut text: String = prompt.iter().filter_map(|t| decoder.push(*t)).collect();
        text.extend(decoder.finish());
        let script = |name: &str| {
            let rest = &text[text.rfind(name)? + name.len()..];
            Some(rest[..rest.find('#')?].to_owned())
        };
        let answer: Vec<TokenId> = if text.contains("#loop#") {
            return self.byte_tokens[usize::from(b'a')];
        } else if text.contains("#seed#") {
            vec![self.byte_tokens[usize::from(b'a' + (params.seed % 26) as u8)]]
        } else if let Some(ids) = script("#ids:") {
            ids.split(',').map(|id| TokenId(id.parse().expect("an id"))).collect()
        } else {
            let said = script("#say:").unwrap_or_default();
            said.bytes().map(|byte| self.byte_tokens[usize::from(byte)]).collect()
        };
        let may_end = !params.eos_token_ids.is_empty() && index >= params.min_tokens;
        match answer.get(index) {
            Some(token) => *token,
            None if may_end => EOS,
            None => self.byte_tokens[usize::from(b'.')],
        }
    }
}

/// What is wanted if it may come; else the end if that may, or some token that may.
fn obey(sample: &SampleStep, wanted: TokenId) -> TokenId {
    let Some(mask) = &sample.mask else { return wanted };
    if let Some(token) = [wanted, EOS].into_iter().find(|token| mask.contains(*token)) {
        return token;
    }
    let ids = (0..VOCAB_SIZE as u32).map(TokenId);
    let allowed: Vec<TokenId> = ids.filter(|token| mask.contains(*token)).collect();
    let place = scatter(sample.params.seed ^ sample.position as u64) % allowed.len() as u64;
    allowed[place as usize]
}

impl Runner for ScriptRunner {
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        let chunks = plan.chunks.iter().map(|chunk| self.compute(chunk)).collect();
        let output = StepOutput { chunks };
        self.last_step.remember(plan, &output);
        self.under_way.push_back(output);
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        self.gate.pass()?;
        Ok(self.under_way.pop_front().expect("a step was launched"))
    }
}

/// Values in the hidden state of the runner's model.
pub const HIDDEN_SIZE: usize = 4;

/// The last hidden state is [number of tokens, first, last, sum of all], and what was asked for is
/// as likely as `logprobs_of` says, except that `NO` is as likely as the prompt is long.
fn pool(context: &[TokenId], pooling: &Pooling) -> Pooled {
    let id = |token: Option<&TokenId>| token.map_or(0.0, |token| token.0 as f32);
    let sum = context.iter().map(|token| token.0 as f32).sum();
    let hidden = || vec![context.len() as f32, id(context.first()), id(context.last()), sum];
    match pooling {
        Pooling::Hidden => Pooled::Hidden(hidden()),
        Pooling::Logprobs(tokens) => Pooled::Logprobs(
            tokens
                .iter()
                .map(|token| match *token {
                    NO => {
                        TokenLogprobs { logprob: -1.0 / context.len() as f32, ..logprobs_of(NO, 0) }
                    }
                    other => logprobs_of(other, 0),
                })
                .collect(),
        ),
    }
}

/// A token has the log-probability -(id % 8) / 8 - 1/8, its alternatives are the ids after it, each
/// 1 less likely.
pub fn logprobs_of(token: TokenId, top: usize) -> TokenLogprobs {
    let logprob = -((token.0 % 8) as f32) / 8.0 - 0.125;
    let alternative = |i: usize| (TokenId(token.0 + i as u32), logprob - i as f32);
    TokenLogprobs { token, logprob, rank: 1, top: (0..top).map(alternative).collect() }
}

/// How a test wants its server.
pub struct Setup {
    pub http: HttpConfig,
    pub max_num_seqs: usize,
    pub waiting_requests_max: usize,
    pub waiting_tokens_max: usize,
    pub prefix_caching: PrefixCaching,
    pub overlap: Overlap,
    pub task: Task,
    pub max_model_len: usize,
    /// 0: any free one.
    pub port: u16,
    pub loaded: Loaded,
    /// `None`: no batch jobs.
    pub jobs: Option<JobsConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    Yes,
    /// The model never finishes loading.
    No,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            http: HttpConfig::default(),
            max_num_seqs: 8,
            waiting_requests_max: 64,
            waiting_tokens_max: 100_000,
            prefix_caching: PrefixCaching::Disabled,
            overlap: Overlap::Enabled,
            task: Task::Generate,
            max_model_len: MAX_MODEL_LEN,
            port: 0,
            loaded: Loaded::Yes,
            jobs: None,
        }
    }
}

/// A running server; dropping it drains it and waits for its end.
pub struct TestServer {
    pub address: SocketAddr,
    pub gate: Arc<Gate>,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Drained>>,
    engine: Option<EngineThread>,
}

impl TestServer {
    pub fn start(setup: Setup) -> Self {
        let state = AppState::new();
        let gate = Arc::new(Gate::default());
        if let Some(jobs) = &setup.jobs {
            state.set_jobs(Jobs::open(jobs).expect("a folder of its own"));
        }
        let engine = match setup.loaded {
            Loaded::Yes => Some(load(&state, &setup, &gate)),
            Loaded::No => None,
        };
        let (address_sender, address) = std::sync::mpsc::channel();
        let (shutdown, stop) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(2).enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = listen(([127, 0, 0, 1], setup.port).into()).expect("a port");
                address_sender.send(listener.local_addr().expect("bound")).expect("the test");
                let shutdown = async move { drop(stop.await) };
                serve(listener, setup.http, state, shutdown).await
            })
        });
        let address = address.recv().expect("the server listens");
        Self { address, gate, shutdown: Some(shutdown), thread: Some(thread), engine }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends raw bytes and reads one answer.
    pub fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(bytes).expect("the server reads");
        Answer::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.send(&post_bytes(path, body))
    }

    pub fn chat(&self, body: &str) -> Answer {
        self.post("/v1/chat/completions", body)
    }

    pub fn complete(&self, body: &str) -> Answer {
        self.post("/v1/completions", body)
    }

    /// The value of a metric with these labels, as they are written.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().expect("a number")
    }

    /// Waits until a metric has a value; only its coming is asserted, not how fast it comes.
    pub fn wait_for_metric(&self, name: &str, value: f64) {
        for _ in 0..6000 {
            if self.metric(name) == value {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{name} never became {value}");
    }

    /// Asks the server to end, without waiting for it.
    pub fn begin_drain(&mut self) {
        drop(self.shutdown.take());
    }

    /// Waits for the server's end.
    pub fn drained(mut self) -> Drained {
        self.begin_drain();
        self.thread.take().expect("asked once").join().expect("no panic")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.gate.open();
        self.begin_drain();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("the server does not panic");
            }
        }
        if let Some(engine) = self.engine.take() {
            let ended = engine.join();
            if !std::thread::panicking() {
                assert_eq!(ended.is_err(), self.gate.is_lost(), "how the engine ended: {ended:?}");
            }
        }
    }
}

fn load(state: &AppState, setup: &Setup, gate: &Arc<Gate>) -> EngineThread {
    let text = match setup.task {
        // Its tokenizer ends every text.
        Task::Embed(_) => text_stage_of("models/qwen3-embedding"),
        Task::Generate | Task::Rerank(_) => tiny_text_stage(),
    };
    let config = EngineConfig {
        block_size: BLOCK_SIZE,
        num_blocks: NUM_BLOCKS,
        max_num_seqs: setup.max_num_seqs,
        max_num_batched_tokens: 256,
        max_model_len: setup.max_model_len,
        double_cost_context: usize::MAX,
        waiting_requests_max: setup.waiting_requests_max,
        waiting_tokens_max: setup.waiting_tokens_max,
        policy: PolicyKind::Fcfs,
        prefix_caching: setup.prefix_caching,
        overlap: setup.overlap,
    };
    let runner = ScriptRunner::new(text.clone(), Arc::clone(gate));
    let (engine, thread) = server::engine::start(config, runner);
    let model = ServedModel {
        names: vec!["tiny".into(), "org/tiny".into()],
        created: 1,
        max_model_len: setup.max_model_len,
        vocab_size: VOCAB_SIZE,
        eos_token_ids: vec![EOS],
        generation: GenerationDefaults { top_k: Some(20), ..GenerationDefaults::default() },
        tool_format: text.tool_format(),
        thinking: ThinkingModel::of(&text),
        task: setup.task,
    };
    state.set_serving(Serving { text, engine, model });
    thread
}

/// A POST with a JSON body.
pub fn post_bytes(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// One HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn read(stream: &mut TcpStream) -> Answer {
        let mut answer = Self::read_head(stream);
        let mut body = Body::new(stream);
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = body.chunk() {
                answer.body.extend(chunk);
            }
        } else if answer.status != 304 {
            let length = answer.header("content-length").expect("a length").parse();
            answer.body = body.take(length.expect("a number"));
        }
        answer
    }

    /// Reads up to the end of the head.
    pub fn read_head(stream: &mut TcpStream) -> Answer {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            read_more(stream, &mut bytes, 1);
        }
        let head = String::from_utf8(bytes).expect("text");
        let head = head.trim_end();
        let mut lines = head.split("\r\n");
        let status = lines.next().expect("a status line")[9..12].parse().expect("a code");
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").expect("a header");
            (name.to_ascii_lowercase(), value.to_owned())
        });
        Answer { status, headers: headers.collect(), body: Vec::new() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The body with ids and times masked: what is left is the same on every run.
    pub fn masked(&self) -> String {
        mask(&mask(&self.text(), "cmpl-", char::is_alphanumeric), "\"created\":", |c: char| {
            c.is_ascii_digit()
        })
    }

    /// The data of each event of a stream, comments left out.
    pub fn events(&self) -> Vec<String> {
        let text = self.text();
        let events = text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
        events.map(|event| event.strip_prefix("data: ").expect("data").to_owned()).collect()
    }

    /// The events of a stream as JSON, the closing `[DONE]` checked and left out.
    pub fn chunks(&self) -> Vec<serde_json::Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.text());
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }
}

/// An error in OpenAI's shape, with a message that names all of `pieces`.
#[track_caller]
pub fn check_error(answer: &Answer, status: u16, code: &str, pieces: &[&str]) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    let error = body["error"].as_object().expect("an error object");
    let keys: Vec<&String> = error.keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    assert_eq!(error["code"], code, "{}", answer.text());
    let message = error["message"].as_str().expect("a message");
    assert!(message.len() < 1000);
    for piece in pieces {
        assert!(message.contains(piece), "no {piece:?} in {message:?}");
    }
}

fn mask(text: &str, before: &str, masked: impl Fn(char) -> bool) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(before);
        out.push('*');
        out.push_str(part.trim_start_matches(&masked));
    }
    out
}

/// Reads a body piece by piece.
pub struct Body<'a> {
    stream: &'a mut TcpStream,
    rest: Vec<u8>,
}

impl<'a> Body<'a> {
    pub fn new(stream: &'a mut TcpStream) -> Self {
        Self { stream, rest: Vec::new() }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        while self.rest.len() < length {
            let missing = length - self.rest.len();
            read_more(self.stream, &mut self.rest, missing);
        }
        self.rest.drain(..length).collect()
    }

    /// The next piece of a chunked body; None at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let end = loop {
            if let Some(end) = self.rest.windows(2).position(|w| w == b"\r\n") {
                break end;
            }
            read_more(self.stream, &mut self.rest, 1);
        };
        let line: Vec<u8> = self.rest.drain(..end + 2).collect();
        let line = std::str::from_utf8(&line[..end]).expect("text");
        let length = usize::from_str_radix(line, 16).expect("a length");
        let data = self.take(length);
        assert_eq!(self.take(2), b"\r\n");
        (length > 0).then_some(data)
    }
}

/// Reads at most so many bytes: what comes behind an answer belongs to the next one.
fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>, most: usize) {
    let mut buffer = [0; 4096];
    let most = most.min(buffer.len());
    let length = stream.read(&mut buffer[..most]).expect("the server answers");
    assert!(length > 0, "the answer broke off after {}", String::from_utf8_lossy(bytes));
    bytes.extend_from_slice(&buffer[..length]);
}
