"""Talks to a running Monsoon with the published Anthropic SDK, as an application would.

    python anthropic_sdk.py http://127.0.0.1:8000

Ends with status 1 at the first answer that breaks the SDK's or our own promises.
"""

import sys

import anthropic

# The SDK has no word for it; the API has.
GREEDY = {"temperature": 0}


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def messages(client, model):
    request = {
        "model": model,
        "max_tokens": 24,
        "extra_body": GREEDY,
        "system": "You answer in one short sentence.",
        "messages": [{"role": "user", "content": "请用一句话介绍北京。"}],
    }
    whole = client.messages.create(**request)
    check(whole.stop_reason in ("end_turn", "max_tokens"), f"a stop, not {whole.stop_reason}")
    with client.messages.stream(**request) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    check(text and "\ufffd" not in text, f"whole characters in {text!r}")
    check(text == final.content[0].text == whole.content[0].text, "streamed = whole")
    check(final.usage.output_tokens == whole.usage.output_tokens, "usage")
    tokens = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    del request["max_tokens"], request["extra_body"]
    counted = client.messages.count_tokens(**request)
    check(counted.input_tokens == tokens, f"{counted.input_tokens} counted, {tokens} used")


def stop_sequences(client, model):
    stopped = client.messages.create(
        model=model,
        max_tokens=32,
        extra_body=GREEDY,
        stop_sequences=["3"],
        messages=[{"role": "user", "content": "Count from 1 to 9, like this: 1, 2, 3, 4"}],
    )
    check(stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == "3", f"{stopped}")


def conversations_with_tools(client, model):
    tool = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
    use = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 2, "b": 3}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "5"}
    answer = client.messages.create(
        model=model,
        max_tokens=16,
        extra_body=GREEDY,
        tools=[tool],
        messages=[
            {"role": "user", "content": "What is 2 + 3?"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        ],
    )
    check(any("5" in block.text for block in answer.content if block.type == "text"), f"{answer}")


def refusals(client, model):
    messages = [{"role": "user", "content": "hi"}]
    try:
        client.messages.create(model="no-such-model", max_tokens=1, messages=messages)
        sys.exit("FAILED: an unknown model was accepted")
    except anthropic.NotFoundError as error:
        check("no-such-model" in str(error), "the error names the model")
    try:
        wrong = {"top_k": -2}
        client.messages.create(model=model, max_tokens=1, messages=messages, extra_body=wrong)
        sys.exit("FAILED: a negative temperature was accepted")
    except anthropic.BadRequestError as error:
        check(error.body["error"]["type"] == "invalid_request_error", f"{error.body}")


def main():
    client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    for scenario in (messages, stop_sequences, conversations_with_tools, refusals):
        scenario(client, model)
        print("ok:", scenario.__name__)


if __name__ == "__main__":
    main()
