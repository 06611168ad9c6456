"""Uses AgentScope's OpenAIChatModel and DashScopeChatModel as they are on a running Monsoon: a chat,
an agent with one tool, and structured output.

    python agentscope_sdk.py http://127.0.0.1:8000 http://127.0.0.1:8001

Ends with status 1 at the first answer that is not as promised. The second server says what its
prompt tells it to (script_server.rs), so that a tool is called for certain.
"""

import asyncio
import json
import sys
from typing import Literal

import openai
from agentscope.agent import Agent
from agentscope.credential import DashScopeCredential, OpenAICredential
from agentscope.message import UserMsg
from agentscope.model import DashScopeChatModel, OpenAIChatModel
from agentscope.permission import PermissionBehavior, PermissionDecision
from agentscope.tool import FunctionTool, ToolChoice, Toolkit
from pydantic import BaseModel, Field

# Each model with its credential and the path it asks for; the second is of Model Studio.
MODELS = [
    (OpenAIChatModel, OpenAICredential, "/v1"),
    (DashScopeChatModel, DashScopeCredential, "/compatible-mode/v1"),
]
ALLOWED = PermissionDecision(behavior=PermissionBehavior.ALLOW, message="harmless")
# AgentScope's own name of the tool whose arguments are the output.
OUTPUT_TOOL = "generate_structured_output"
calls = []


class Fruit(BaseModel):
    """What is on sale."""

    name: Literal["apple", "fig", "plum"]
    price: int = Field(ge=0, le=99)
    is_ripe: bool


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


def said_call(tool, **arguments):
    call = json.dumps({"name": tool, "arguments": arguments})
    return f"#say:<tool_call>\n{call}\n</tool_call>#"


def model(kind, url, stream, **parameters):
    model_class, credential, path = kind
    name = openai.OpenAI(base_url=url + path, api_key="none").models.list().data[0].id
    return model_class(
        credential=credential(api_key="none", base_url=url + path),
        model=name,
        stream=stream,
        max_retries=0,
        parameters=model_class.Parameters(**parameters),
    )


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


async def a_chat(kind, real, _):
    texts = []
    for stream in (False, True):
        agent = Agent("a", "Be short.", model(kind, real, stream, temperature=0, max_tokens=24))
        texts.append(text_of(await agent.reply(UserMsg("user", "Name a colour."))))
    check(texts[0] and texts[0] == texts[1], f"streamed = whole: {texts}")


async def an_agent_with_one_tool(kind, _, scripted):
    for stream in (False, True):
        calls.clear()
        toolkit = Toolkit(tools=[FunctionTool(add, permission=ALLOWED)])
        agent = Agent("a", "You add.", model(kind, scripted, stream), toolkit=toolkit)
        answer = await agent.reply(UserMsg("user", "Add 2 and 3. " + said_call("add", a=2, b=3)))
        check(calls == [(2, 3)], f"the tool was called once, not {calls}")
        check(text_of(answer) == "It is 5.", f"{answer}")


async def structured_output(kind, real, scripted):
    fruit = {"name": "fig", "price": 7, "is_ripe": True}
    asked = UserMsg("user", "Sell me a fruit. " + said_call(OUTPUT_TOOL, **fruit))
    # The tool is forced, so that what comes back fits whatever the model would have said; a choice
    # of our own keeps AgentScope from trying other ways when this one fails.
    forced = ToolChoice(mode=OUTPUT_TOOL)
    for stream in (False, True):
        writer = model(kind, scripted, stream)
        done = await writer.generate_structured_output([asked], Fruit)
        check(done.content == fruit, f"what was said: {done}")
        writer = model(kind, real, stream, temperature=0, max_tokens=200)
        for schema in (Fruit, Fruit.model_json_schema()):
            done = await writer.generate_structured_output(
                [UserMsg("user", "Tell a long story.")], schema, tool_choice=forced
            )
            Fruit.model_validate(done.content)
            check(done.usage.output_tokens > 0, f"usage: {done}")


async def an_agent_that_ends_with_structured_output(kind, _, scripted):
    fruit = {"name": "plum", "price": 12, "is_ripe": False}

    def pick() -> str:
        """Picks a fruit."""
        return said_call("GenerateStructuredOutput", **fruit)

    for stream in (False, True):
        toolkit = Toolkit(tools=[FunctionTool(pick, permission=ALLOWED)])
        agent = Agent("a", "You sell.", model(kind, scripted, stream), toolkit=toolkit)
        asked = UserMsg("user", "Pick a fruit. " + said_call("pick"))
        answer = await agent.reply(asked, structured_schema=Fruit)
        check(answer.structured_output == fruit, f"{answer}")


SCENARIOS = [
    a_chat,
    an_agent_with_one_tool,
    structured_output,
    an_agent_that_ends_with_structured_output,
]


async def main():
    for kind in MODELS:
        for scenario in SCENARIOS:
            await scenario(kind, *sys.argv[1:3])
            print("ok:", kind[0].__name__, scenario.__name__)


if __name__ == "__main__":
    asyncio.run(main())
