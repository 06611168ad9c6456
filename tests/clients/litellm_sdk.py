"""Uses litellm as it is on a running Monsoon, as an OpenAI-compatible server and by its name.

    python litellm_sdk.py http://127.0.0.1:8000 http://127.0.0.1:8001

Ends with status 1 at the first answer that is not as promised. The second server says what its
prompt tells it to (script_server.rs), so that a tool is called for certain.
"""

import json
import os
import sys

# Its list of prices comes from another host otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

litellm.suppress_debug_info = True

CALL = '#say:<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>#'
NUMBER = {"type": "integer"}
ADD = {
    "name": "add",
    "description": "Adds two numbers.",
    "parameters": {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}},
}


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def ask(url, messages, provider="openai", **options):
    import openai

    model = openai.OpenAI(base_url=url + "/v1", api_key="none").models.list().data[0].id
    return litellm.completion(
        model=f"{provider}/{model}",
        api_base=url + "/v1",
        api_key="none",
        messages=messages,
        num_retries=0,
        **options,
    )


def whole_and_streamed(real, _):
    messages = [{"role": "user", "content": "Name a colour."}]
    options = {"temperature": 0, "max_tokens": 24}
    for provider in ("openai", "hosted_vllm"):
        whole = ask(real, messages, provider, **options)
        stream = ask(
            real, messages, provider, stream=True, stream_options={"include_usage": True}, **options
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        check(text and text == whole.choices[0].message.content, f"{provider}: streamed = whole")
        used = [c.usage for c in chunks if getattr(c, "usage", None)]
        check(used[-1].total_tokens == whole.usage.total_tokens, f"{provider}: usage")


def a_tool_is_called_and_its_result_used(_, scripted):
    messages = [{"role": "user", "content": "Add 2 and 3. " + CALL}]
    tools = [{"type": "function", "function": ADD}]
    answer = ask(scripted, messages, tools=tools, tool_choice="auto").choices[0]
    check(answer.finish_reason == "tool_calls", answer.finish_reason)
    chunks = list(ask(scripted, messages, tools=tools, stream=True))
    streamed = litellm.stream_chunk_builder(chunks, messages=messages).choices[0]
    for message in (answer.message, streamed.message):
        [call] = message.tool_calls
        check(call.function.name == "add", f"{call}")
        check(json.loads(call.function.arguments) == {"a": 2, "b": 3}, f"{call}")
    result = {"role": "tool", "tool_call_id": call.id, "content": "#say:It is 5.#"}
    last = ask(scripted, [*messages, answer.message.model_dump(), result], tools=tools)
    check(last.choices[0].message.content == "It is 5.", "the result is in the answer")


def refusals(real, _):
    try:
        ask(real, [{"role": "user", "content": "hi"}], temperature=-1)
        sys.exit("FAILED: a negative temperature was accepted")
    except litellm.BadRequestError as error:
        check("temperature" in str(error), "the error names the field")


def main():
    for scenario in (whole_and_streamed, a_tool_is_called_and_its_result_used, refusals):
        scenario(*sys.argv[1:3])
        print("ok:", scenario.__name__)


if __name__ == "__main__":
    main()
