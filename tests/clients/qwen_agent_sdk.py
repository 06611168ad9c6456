"""Uses Qwen-Agent as it is on a running Monsoon: calls of functions by its own prompt, for which
the server must return the text untouched, and by the API ("raw API").

    python qwen_agent_sdk.py http://127.0.0.1:8000 http://127.0.0.1:8001

Ends with status 1 at the first answer that is not as promised. The second server says what its
prompt tells it to (script_server.rs), so that a tool is called for certain.
"""

import sys

import openai
from qwen_agent.agents import FnCallAgent
from qwen_agent.llm import get_chat_model
from qwen_agent.tools.base import BaseTool, register_tool

CALL = '#say:<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>#'
calls = []


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


@register_tool("add")
class Add(BaseTool):
    description = "Adds two numbers."
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }

    def call(self, params, **kwargs):
        params = self._verify_json_format_args(params)
        calls.append(params)
        return f"#say:It is {params['a'] + params['b']}.#"


def settings(url, **more):
    model = openai.OpenAI(base_url=url + "/v1", api_key="none").models.list().data[0].id
    # Its prompt for functions is in English or Chinese; the language is found in the messages.
    generate = {"max_retries": 0, **more}
    return {
        "model": model,
        "model_type": "oai",
        "model_server": url + "/v1",
        "api_key": "none",
        "generate_cfg": generate,
    }


def whole_and_streamed(real, _):
    llm = get_chat_model(settings(real, temperature=0, max_tokens=24, seed=7))
    messages = [{"role": "user", "content": "Name a colour."}]
    *_, last = llm.chat(messages=messages, stream=True)
    whole = llm.chat(messages=messages, stream=False)
    check(last[-1]["content"] and last == whole, f"streamed {last}, whole {whole}")


def agent_loop(scripted, **more):
    calls.clear()
    agent = FnCallAgent(llm=settings(scripted, **more), function_list=["add"])
    *_, answer = agent.run(messages=[{"role": "user", "content": "Add 2 and 3. " + CALL}])
    check(calls == [{"a": 2, "b": 3}], f"the tool was called once, not {calls}")
    roles = [message["role"] for message in answer]
    check(roles == ["assistant", "function", "assistant"], f"{roles}")
    check(answer[-1]["content"].strip() == "It is 5.", f"{answer[-1]}")


def prompt_mode(_, scripted):
    agent_loop(scripted, fncall_prompt_type="nous")


def raw_api(_, scripted):
    agent_loop(scripted, use_raw_api=True)


def main():
    for scenario in (whole_and_streamed, prompt_mode, raw_api):
        scenario(*sys.argv[1:3])
        print("ok:", scenario.__name__)


if __name__ == "__main__":
    main()
