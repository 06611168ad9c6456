"""Uses langchain-openai as it is on a running Monsoon.

    python langchain_sdk.py http://127.0.0.1:8000 http://127.0.0.1:8001

Ends with status 1 at the first answer that is not as promised. The second server says what its
prompt tells it to (script_server.rs), so that a tool is called for certain.
"""

import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

CALL = '#say:<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>#'


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


@tool
def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return f"#say:It is {a + b}.#"


def chat(url, **options):
    return ChatOpenAI(
        base_url=url + "/v1", api_key="none", model=model_of(url), max_retries=0, **options
    )


def model_of(url):
    import openai

    return openai.OpenAI(base_url=url + "/v1", api_key="none").models.list().data[0].id


def whole_and_streamed(real, _):
    llm = chat(real, temperature=0, max_tokens=24, stream_usage=True)
    whole = llm.invoke([("system", "Be short."), ("user", "Name a colour.")])
    chunks = list(llm.stream([("system", "Be short."), ("user", "Name a colour.")]))
    text = "".join(chunk.content for chunk in chunks)
    check(whole.content and text == whole.content, f"streamed {text!r}, whole {whole.content!r}")
    check(whole.usage_metadata["output_tokens"] > 0, "usage")
    used = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    check(used[-1]["total_tokens"] == whole.usage_metadata["total_tokens"], f"usage {used}")
    check(whole.response_metadata["finish_reason"] in ("stop", "length"), "finish reason")
    batch = llm.batch(["Name a fruit.", "Name a city."])
    check(all(answer.content for answer in batch), "two at once")


def completions(real, _):
    llm = OpenAI(
        base_url=real + "/v1", api_key="none", model=model_of(real), temperature=0, max_tokens=8
    )
    check("3" in llm.invoke("1, 2,"), "the old API counts on")


def a_tool_is_called_and_its_result_used(_, scripted):
    llm = chat(scripted, temperature=0).bind_tools([add])
    messages = [HumanMessage("Add 2 and 3. " + CALL)]
    for ask in (llm.invoke, lambda m: sum_of(llm.stream(m))):
        answer = ask(messages)
        calls = answer.tool_calls
        check([(c["name"], c["args"]) for c in calls] == [("add", {"a": 2, "b": 3})], f"{calls}")
    messages += [answer, ToolMessage(add.invoke(calls[0]["args"]), tool_call_id=calls[0]["id"])]
    check(llm.invoke(messages).content == "It is 5.", "the result is in the answer")


def sum_of(chunks):
    total = next(chunks)
    for chunk in chunks:
        total += chunk
    return total


def main():
    scenarios = [whole_and_streamed, completions, a_tool_is_called_and_its_result_used]
    for scenario in scenarios:
        scenario(*sys.argv[1:3])
        print("ok:", scenario.__name__)


if __name__ == "__main__":
    main()
