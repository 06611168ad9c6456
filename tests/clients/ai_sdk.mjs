// Uses the published `ai` with `@ai-sdk/openai-compatible` as they are on a running Monsoon.
//
//     node ai_sdk.mjs http://127.0.0.1:8000 http://127.0.0.1:8001
//
// Ends with status 1 at the first answer that is not as promised. The second server says what its
// prompt tells it to (script_server.rs), so that a tool is called for certain.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const [real, scripted] = process.argv.slice(2);
const CALL = '#say:<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>#';

function check(condition, what) {
  if (!condition) throw new Error(`FAILED: ${what}`);
}

async function modelOf(url) {
  const { data } = await (await fetch(`${url}/v1/models`)).json();
  const options = { name: "monsoon", baseURL: `${url}/v1`, apiKey: "none", includeUsage: true };
  return createOpenAICompatible(options)(data[0].id);
}

async function wholeAndStreamed() {
  const request = {
    model: await modelOf(real), prompt: "اكتب جملة قصيرة عن البحر.",
    temperature: 0, maxOutputTokens: 24, maxRetries: 0,
  };
  const whole = await generateText(request);
  const stream = streamText(request);
  let text = "", pieces = 0;
  for await (const piece of stream.textStream) { text += piece; pieces++; }
  check(text && text === whole.text, `streamed ${text}, whole ${whole.text}`);
  check(pieces > 1, `it came in ${pieces} pieces`);
  const usage = await stream.usage;
  check(usage.outputTokens === whole.usage.outputTokens, `usage ${JSON.stringify(usage)}`);
}

async function anAgentCallsTheTool() {
  const number = { type: "integer" };
  const calls = [];
  const add = tool({
    description: "Adds two numbers.",
    inputSchema: jsonSchema({ type: "object", properties: { a: number, b: number } }),
    execute: async ({ a, b }) => { calls.push([a, b]); return `#say:It is ${a + b}.#`; },
  });
  const request = {
    model: await modelOf(scripted), tools: { add }, stopWhen: stepCountIs(3), maxRetries: 0,
    prompt: `Add 2 and 3. ${CALL}`,
  };
  const whole = await generateText(request);
  check(whole.text === "It is 5." && whole.steps.length === 2, `${whole.text}`);
  const stream = streamText(request);
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  check(text === "It is 5.", `streamed ${text}`);
  check(calls.join(" ") === "2,3 2,3", `called once each, not ${calls.join(" ")}`);
}

for (const scene of [wholeAndStreamed, anAgentCallsTheTool]) {
  await scene();
  console.log("ok:", scene.name);
}
