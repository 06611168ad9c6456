// Uses the published `openai` package as it is on a running Monsoon.
//
//     node openai_sdk.mjs http://127.0.0.1:8000 http://127.0.0.1:8001
//
// Ends with status 1 at the first answer that is not as promised. The second server says what its
// prompt tells it to (script_server.rs), so that a tool is called for certain.

import OpenAI from "openai";

const [real, scripted] = process.argv.slice(2);
const CALL = '#say:<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>#';

function check(condition, what) {
  if (!condition) throw new Error(`FAILED: ${what}`);
}

const client = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const modelOf = async (of) => (await of.models.list()).data[0].id;

async function wholeAndStreamed() {
  const openai = client(real);
  const request = {
    model: await modelOf(openai), temperature: 0, max_tokens: 24,
    messages: [{ role: "user", content: "请用一句话介绍北京。" }],
  };
  const whole = await openai.chat.completions.create(request);
  let text = "", usage = null;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await openai.chat.completions.create({ ...request, ...options })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  check(text && text === whole.choices[0].message.content, `streamed ${text}`);
  check(usage.total_tokens === whole.usage.total_tokens, "usage");
  const response = await openai.responses.create({
    model: request.model, input: "Say hello.", max_output_tokens: 16, temperature: 0,
  });
  check(response.output_text.trim(), "a response with text");
}

async function leavingEndsTheAnswer() {
  const openai = client(real);
  const stream = await openai.chat.completions.create({
    model: await modelOf(openai), stream: true, ignore_eos: true, max_tokens: 20000,
    messages: [{ role: "user", content: "Count." }],
  });
  for await (const _ of stream) break;
  stream.controller.abort();
  for (let i = 0; ; i++) {
    const metrics = await (await fetch(`${real}/metrics`)).text();
    if (/^monsoon_num_requests_running 0$/m.test(metrics)) break;
    check(i < 600, "the answer goes on without its client");
    await new Promise((wake) => setTimeout(wake, 100));
  }
}

async function aRunnerCallsTheTool() {
  const openai = client(scripted);
  const calls = [];
  const number = { type: "integer" };
  const tool = {
    type: "function",
    function: {
      name: "add", description: "Adds two numbers.", parse: JSON.parse,
      parameters: { type: "object", properties: { a: number, b: number } },
      function: ({ a, b }) => { calls.push([a, b]); return `#say:It is ${a + b}.#`; },
    },
  };
  for (const stream of [false, true]) {
    const runner = openai.chat.completions.runTools({
      model: await modelOf(openai), stream, tools: [tool],
      messages: [{ role: "user", content: `Add 2 and 3. ${CALL}` }],
    });
    check(await runner.finalContent() === "It is 5.", "the result is in the answer");
  }
  check(calls.join(" ") === "2,3 2,3", `called once each, not ${calls.join(" ")}`);
}

async function refusals() {
  const openai = client(real);
  const model = await modelOf(openai);
  const request = { model, messages: [{ role: "user", content: "hi" }], temperature: -1 };
  const error = await openai.chat.completions.create(request).catch((error) => error);
  check(error instanceof OpenAI.BadRequestError && error.param === "temperature", `${error}`);
}

for (const scene of [wholeAndStreamed, leavingEndsTheAnswer, aRunnerCallsTheTool, refusals]) {
  await scene();
  console.log("ok:", scene.name);
}
