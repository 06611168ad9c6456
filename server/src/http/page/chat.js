
// The conversation: what is asked, the answer as it comes, and how it is stopped.

const MESSAGES_MAX = 1000;
const ANSWER_CHARS_MAX = 2_000_000;
const EVENT_CHARS_MAX = 4_000_000;
const RETRY_MS = 2000;
const ANNOUNCE_MS = 2500;

const $ = (id) => document.getElementById(id);
const log = $("log"), message = $("message"), key = $("key"), model = $("model");
let messages = [];
let answering = null;

/** Calls this server's API. Throws what can be shown to a person. */
async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key.value.trim()) headers.authorization = `Bearer ${key.value.trim()}`;
  let response;
  try {
    const fixed = { headers, credentials: "omit", cache: "no-store", redirect: "error" };
    response = await fetch(path, { ...options, ...fixed });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error("The server cannot be reached."), { status: 0 });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const text = body?.error?.message ?? `The server answered ${response.status}.`;
  throw Object.assign(new Error(String(text)), { status: response.status });
}

/** Asks for the models until there is an answer; a key that is missing or wrong is asked for. */
let connecting = 0;
async function connect() {
  const turn = ++connecting;
  for (;;) {
    try {
      const { data } = await (await call("v1/models")).json();
      if (turn !== connecting) return;
      const chosen = model.value;
      model.replaceChildren(...data.map(({ id }) => new Option(id, id)));
      if (data.some(({ id }) => id === chosen)) model.value = chosen;
      model.disabled = false;
      $("state").textContent = "";
      key.removeAttribute("aria-invalid");
      watch();
      return;
    } catch (error) {
      if (turn !== connecting) return;
      model.disabled = true;
      $("state").textContent = error.message;
      if (error.status === 401) {
        $("settings").open = true;
        key.setAttribute("aria-invalid", "true");
        const [unknown, missing] = ["The API key is not known.", "This server wants an API key."];
        $("state").textContent = key.value ? unknown : missing;
        return;
      }
    }
    await new Promise((wake) => setTimeout(wake, RETRY_MS));
    if (turn !== connecting) return;
  }
}

/** The settings as fields of a request; throws at the first that is out of its range. */
function options() {
  const fields = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const input = $(name);
    if (!input.checkValidity()) {
      $("settings").open = true;
      input.focus();
      const label = input.labels[0].firstChild.textContent.trim();
      throw new Error(`${label}: ${input.validationMessage}`);
    }
    if (input.value !== "") fields[name] = Number(input.value);
  }
  const thinking = $("thinking").value;
  if (thinking) fields.chat_template_kwargs = { enable_thinking: thinking === "on" };
  return fields;
}

/** The data of each server-sent event of a body. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    if (rest.length > EVENT_CHARS_MAX) throw new Error("The server sent an event without an end.");
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

/** Adds a message to the log and gives its parts. */
function addMessage(role) {
  const article = make("article", role === "user" ? "own" : "");
  article.append(make("h2", "", role === "user" ? "You" : "Model"));
  const reasoning = make("details", "reasoning"), thoughts = make("div");
  reasoning.append(make("summary", "", "Thinking"), thoughts);
  reasoning.hidden = true;
  const text = make("div", "text"), foot = make("div", "foot");
  if (role === "assistant") article.append(reasoning);
  article.append(text, foot);
  log.append(article);
  return { article, reasoning, thoughts, text, foot };
}

function addError(parts, error) {
  const box = make("p", "error", error.message);
  box.dir = "auto";
  box.setAttribute("role", "alert");
  parts.foot.before(box);
}

const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;
const toEnd = () => { log.scrollTop = log.scrollHeight; };

/** Reads an answer aloud by sentences, for those who cannot see it grow. */
function announcer() {
  let said = 0, last = performance.now();
  return (text, isEnd) => {
    const now = performance.now();
    if (!isEnd && now - last < ANNOUNCE_MS) return;
    const fresh = text.slice(said);
    const end = isEnd ? fresh.length : fresh.search(/[.!?。！？؟।\n][^.!?。！？؟।\n]*$/u) + 1;
    if (end <= 0) return;
    $("said").textContent = fresh.slice(0, end);
    [said, last] = [said + end, now];
  };
}

async function answer() {
  const parts = addMessage("assistant");
  const told = { role: "assistant", content: "", reasoning: "" };
  const abort = new AbortController();
  const chat = messages;
  const begun = performance.now();
  const announce = announcer();
  let first = 0, thought = 0, usage = null, finish = null, due = false;
  setAnswering(abort);
  parts.article.classList.add("busy");
  const draw = () => {
    due = false;
    const follow = isAtEnd();
    show(parts.thoughts, told.reasoning);
    show(parts.text, told.content);
    parts.reasoning.hidden = !told.reasoning;
    if (follow) toEnd();
    announce(told.content, false);
  };
  const take = (delta) => {
    const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
    const content = delta.content ?? "";
    if (!reasoning && !content) return;
    first ||= performance.now();
    if (reasoning && !told.reasoning) parts.reasoning.open = true;
    if (content && told.reasoning && !thought) {
      thought = performance.now();
      parts.reasoning.open = false;
      parts.reasoning.firstChild.textContent = `Thought for ${seconds(thought - begun)}`;
    }
    told.reasoning += reasoning;
    told.content += content;
    if (told.content.length + told.reasoning.length > ANSWER_CHARS_MAX) abort.abort();
    // Frames stop in a hidden tab; a timer goes on.
    if (!due) { due = true; setTimeout(draw, 30); }
  };
  try {
    const system = $("system").value.trim();
    const body = {
      model: model.value || undefined, stream: true, stream_options: { include_usage: true },
      messages: [...(system ? [{ role: "system", content: system }] : []),
        ...chat.map(({ role, content }) => ({ role, content }))],
      ...options(),
    };
    const headers = { "content-type": "application/json" };
    const request = { method: "POST", headers, body: JSON.stringify(body), signal: abort.signal };
    const response = await call("v1/chat/completions", request);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(String(chunk.error.message));
      usage = chunk.usage ?? usage;
      finish = chunk.choices[0]?.finish_reason ?? finish;
      take(chunk.choices[0]?.delta ?? {});
    }
    if (!finish) throw new Error("The answer broke off.");
  } catch (error) {
    if (error.name === "AbortError") finish = "abort";
    else addError(parts, error);
    if (error.status === 401) connect();
  }
  draw();
  parts.article.classList.remove("busy");
  if (told.content || told.reasoning) chat.push(told);
  // What was not answered at all can be changed and sent again.
  else message.value ||= chat.pop().content;
  foot(parts, told, { finish, usage, ttft: first - begun, time: performance.now() - first });
  announce(told.content, true);
  setAnswering(null);
  toEnd();
}

const ENDS = { length: "cut at the limit", abort: "stopped", tool_calls: "calls a tool" };

/** What stands below an answer: how it ended, its numbers, what can be done with it. */
function foot(parts, told, { finish, usage, ttft, time }) {
  const words = [];
  if (ENDS[finish]) words.push(ENDS[finish]);
  if (usage) {
    const { completion_tokens: tokens, prompt_tokens: prompt } = usage;
    words.push(`${tokens} tokens after ${prompt}`, `first after ${seconds(ttft)}`);
    if (tokens > 1 && time > 0) words.push(`${((tokens - 1) * 1000 / time).toFixed(1)} tokens/s`);
  }
  parts.foot.append(make("span", "", words.join(" · ")));
  if (!told.content) return;
  const copy = make("button", "", "Copy");
  copy.type = "button";
  copy.onclick = async () => {
    const done = await navigator.clipboard.writeText(told.content).then(() => true, () => false);
    copy.textContent = done ? "Copied" : "Not allowed";
  };
  parts.foot.append(copy);
}

function setAnswering(abort) {
  answering = abort;
  $("send").hidden = Boolean(abort);
  $("stop").hidden = !abort;
  log.setAttribute("aria-busy", String(Boolean(abort)));
  if (abort) $("said").textContent = "The model is answering.";
  else if (document.activeElement === document.body) message.focus();
}

function send() {
  const content = message.value;
  if (answering || !content.trim()) return;
  if (messages.length >= MESSAGES_MAX) {
    $("state").textContent = `A chat has at most ${MESSAGES_MAX} messages: begin a new one.`;
    return;
  }
  messages.push({ role: "user", content });
  show(addMessage("user").text, content);
  message.value = "";
  fit();
  toEnd();
  answer();
}

/** Where CSS cannot size a field by its content. */
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  message.style.blockSize = "auto";
  message.style.blockSize = `${message.scrollHeight + 2}px`;
}

function stop() {
  answering?.abort();
  message.focus();
}

const seconds = (ms) =>
  ms < 1000 ? `${Math.max(ms, 0).toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`;

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("options").addEventListener("submit", (event) => { event.preventDefault(); message.focus(); });
message.addEventListener("input", fit);
message.addEventListener("keydown", (event) => {
  // While an input method composes a word, Enter ends the word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && answering && !event.isComposing) stop();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => {
  stop();
  messages = [];
  log.replaceChildren();
  message.focus();
});
key.value = sessionStorage.getItem("monsoon-key") ?? "";
key.addEventListener("change", () => {
  sessionStorage.setItem("monsoon-key", key.value);
  connect();
});
for (const id of ["live", "settings"]) $(id).open = matchMedia("(min-width: 56.01rem)").matches;
connect();
