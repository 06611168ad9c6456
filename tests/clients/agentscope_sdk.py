"""Uses AgentScope's OpenAIChatModel as it is on a running Monsoon, in an agent with one tool.

    python agentscope_sdk.py http://127.0.0.1:8000 http://127.0.0.1:8001

Ends with status 1 at the first answer that is not as promised. The second server says what its
prompt tells it to (script_server.rs), so that a tool is called for certain.
"""

import asyncio
import sys

import openai
from agentscope.agent import Agent
from agentscope.credential import OpenAICredential
from agentscope.message import UserMsg
from agentscope.model import OpenAIChatModel
from agentscope.permission import PermissionBehavior, PermissionDecision
from agentscope.tool import FunctionTool, Toolkit

CALL = '#say:<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>#'
calls = []


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def add(a: int, b: int) -> str:
    """Adds two numbers.

    Args:
        a (int): One.
        b (int): The other.
    """
    calls.append((a, b))
    return f"#say:It is {a + b}.#"


def model(url, stream, **parameters):
    name = openai.OpenAI(base_url=url + "/v1", api_key="none").models.list().data[0].id
    return OpenAIChatModel(
        credential=OpenAICredential(api_key="none", base_url=url + "/v1"),
        model=name,
        stream=stream,
        max_retries=0,
        parameters=OpenAIChatModel.Parameters(**parameters),
    )


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


async def a_chat(real, _):
    texts = []
    for stream in (False, True):
        agent = Agent("a", "Be short.", model(real, stream, temperature=0, max_tokens=24))
        texts.append(text_of(await agent.reply(UserMsg("user", "Name a colour."))))
    check(texts[0] and texts[0] == texts[1], f"streamed = whole: {texts}")


async def an_agent_with_one_tool(_, scripted):
    allow = PermissionDecision(behavior=PermissionBehavior.ALLOW, message="harmless")
    for stream in (False, True):
        calls.clear()
        toolkit = Toolkit(tools=[FunctionTool(add, permission=allow)])
        agent = Agent("a", "You add.", model(scripted, stream), toolkit=toolkit)
        answer = await agent.reply(UserMsg("user", "Add 2 and 3. " + CALL))
        check(calls == [(2, 3)], f"the tool was called once, not {calls}")
        check(text_of(answer) == "It is 5.", f"{answer}")


async def main():
    for scenario in (a_chat, an_agent_with_one_tool):
        await scenario(*sys.argv[1:3])
        print("ok:", scenario.__name__)


if __name__ == "__main__":
    asyncio.run(main())
