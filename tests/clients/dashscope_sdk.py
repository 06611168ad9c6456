"""Talks to running Monsoons with the published DashScope SDK, in its native protocol.

    python dashscope_sdk.py http://127.0.0.1:8000 http://127.0.0.1:8001 http://127.0.0.1:8002

The addresses are of servers that generate, embed and rerank. Ends with status 1 at the first answer
that breaks the SDK's or our own promises.
"""

import json
import pathlib
import sys
import urllib.request

import dashscope
import dashscope.v2.errors
import openai

DATA = pathlib.Path(__file__).parent.parent / "data/models"
# As in pooling_parity.rs, for processors that round activations to BF16.
SCORE_TOLERANCE = 2.5e-2


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def use(url):
    dashscope.base_http_api_url = url + "/api/v1"
    with urllib.request.urlopen(url + "/v1/models") as reply:
        return json.load(reply)["data"][0]["id"]


def request(model, **more):
    messages = [{"role": "user", "content": "Name three colours."}]
    return {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0.0} | more


def generation(model):
    whole = dashscope.Generation.call(**request(model, result_format="message"))
    check(whole.status_code == 200, f"a reply, not {whole}")
    text = whole.output.choices[0].message.content
    check(text and whole.output.choices[0].finish_reason in ("stop", "length"), f"text: {whole}")
    usage = whole.usage
    check(usage.total_tokens == usage.input_tokens + usage.output_tokens, "usage adds up")
    legacy = dashscope.Generation.call(**request(model, result_format="text"))
    check(legacy.output.text == text, "the text format has the same text")
    for incremental in (True, False):
        options = {"result_format": "message", "stream": True, "incremental_output": incremental}
        pieces, finish, tokens = [], [], 0
        for event in dashscope.Generation.call(**request(model, **options)):
            check(event.status_code == 200, f"an event, not {event}")
            pieces.append(event.output.choices[0].message.content)
            finish.append(event.output.choices[0].finish_reason)
            check("\ufffd" not in pieces[-1], f"whole characters, not {pieces[-1]!r}")
            tokens = event.usage.output_tokens
        check(len(pieces) > 2, "several events")
        streamed = "".join(pieces) if incremental else pieces[-1]
        check(streamed == text, f"incremental {incremental}: {streamed!r}, not {text!r}")
        check(tokens == usage.output_tokens, "the last event's usage is that of the whole")
        check(finish[-1] in ("stop", "length") and set(finish[:-1]) == {"null"}, f"{finish}")


def multimodal(model):
    messages = [{"role": "user", "content": [{"text": "Name three "}, {"text": "colours."}]}]
    options = {"model": model, "messages": messages, "max_tokens": 16, "temperature": 0.0}
    whole = dashscope.MultiModalConversation.call(**options)
    check(whole.status_code == 200, f"a reply, not {whole}")
    text = whole.output.choices[0].message.content[0]["text"]
    check(text, "text parts are answered")
    stream = dashscope.MultiModalConversation.call(stream=True, incremental_output=True, **options)
    parts = [event.output.choices[0].message.content for event in stream]
    check("".join(p["text"] for part in parts for p in part) == text, f"streamed = whole: {parts}")


def tokens(model):
    reply = dashscope.Tokenization.call(model=model, prompt="The quick brown fox")
    check(reply.status_code == 200, f"a reply, not {reply}")
    check(len(reply.output["token_ids"]) == reply.usage["input_tokens"], f"usage: {reply}")
    check("".join(reply.output["tokens"]) == "The quick brown fox", f"{reply.output}")


def tools(model):
    weather = {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    options = {"tools": [{"type": "function", "function": weather}], "result_format": "message"}
    options |= {"max_tokens": 48}
    reply = dashscope.Generation.call(**request(model, **options))
    check(reply.status_code == 200, f"tools are taken: {reply}")


def refusals(model):
    unknown = dashscope.Generation.call(**request("no-such-model"))
    check((unknown.status_code, unknown.code) == (404, "ModelNotFound"), f"{unknown}")
    check("no-such-model" in unknown.message and unknown.request_id, f"{unknown}")
    wrong = dashscope.Generation.call(**request(model, temperature=-1))
    check((wrong.status_code, wrong.code) == (400, "InvalidParameter"), f"{wrong}")
    for event in dashscope.Generation.call(**request(model, stream=True, n=0)):
        check((event.status_code, event.code) == (400, "InvalidParameter"), f"{event}")
    other = dashscope.TextEmbedding.call(model=model, input="x")
    check(other.status_code == 400 and "generates text" in other.message, f"{other}")


def error_in_mid_stream(model):
    word = dashscope.Tokenization.call(model=model, prompt="a").output["token_ids"]
    # After two tokens nothing is left that both allow.
    options = {"guided_regex": "aab", "allowed_token_ids": word, "result_format": "message"}
    stream = {"stream": True, "incremental_output": True}
    events = list(dashscope.Generation.call(**request(model, **options, **stream)))
    check([event.status_code for event in events] == [200, 200, 400], f"{events}")
    check(events[2].code == "InvalidParameter" and events[2].request_id, f"{events[2]}")
    whole = dashscope.Generation.call(**request(model, **options))
    check((whole.status_code, whole.message) == (400, events[2].message), f"{whole}")


def embeddings(model):
    texts = ["first", "second"]
    reply = dashscope.TextEmbedding.call(model=model, input=texts, dimension=64)
    check(reply.status_code == 200, f"a reply, not {reply}")
    entries = reply.output["embeddings"]
    check([entry["text_index"] for entry in entries] == [0, 1], "in order")
    check(all(len(entry["embedding"]) == 64 for entry in entries), "as many values as asked for")
    query = dashscope.TextEmbedding.call(model=model, input="first", text_type="query")
    check(query.usage["total_tokens"] > reply.usage["total_tokens"], "with an instruction")


def rerank(model):
    pairs = json.loads((DATA / "qwen3-reranker/golden.json").read_text())["pairs"]
    query = pairs[0]["query"]
    golden = {pair["document"]: pair["score"] for pair in pairs if pair["query"] == query}
    documents = list(golden)
    reply = dashscope.TextReRank.call(
        model=model, query=query, documents=documents, return_documents=True
    )
    check(reply.status_code == 200, f"a reply, not {reply}")
    results = reply.output.results
    check(len(results) == len(documents), "all documents")
    scores = [result.relevance_score for result in results]
    check(scores == sorted(scores, reverse=True), "best first")
    for result in results:
        # The SDK's own attribute for it is always None.
        text = result["document"]["text"]
        check(text == documents[result.index], "the document of its index")
        difference = abs(result.relevance_score - golden[text])
        check(difference < SCORE_TOLERANCE, f"{text!r} differs by {difference}")


def compatible_mode(url, model):
    client = openai.OpenAI(base_url=url + "/compatible-mode/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "Say hello."}]
    done = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
    check(done.choices[0].message.content, "the other protocol under Model Studio's prefix")


def newer_client(url, model):
    texts = set()
    for protocol, path in [
        ("native", "/api/v1"),
        ("openai", "/compatible-mode/v1"),
        ("anthropic", "/apps/anthropic"),
    ]:
        client = dashscope.Client(api_key="none", protocol=protocol, base_url=url + path)
        text = client.chat.completions.create(**request(model)).choices[0].message.content
        pieces = client.chat.completions.create(stream=True, **request(model))
        deltas = [event.choices[0].delta.content or "" for event in pieces if event.choices]
        check("".join(deltas) == text, f"{protocol}: streamed = whole, not {deltas}")
        texts.add(text)
        try:
            client.chat.completions.create(**request("no-such-model"))
            sys.exit(f"FAILED: {protocol}: an unknown model was accepted")
        except dashscope.v2.errors.NotFoundError as error:
            check("no-such-model" in str(error), f"{protocol}: the error names the model")
    check(len(texts) == 1, f"all protocols give one answer, not {texts}")


def main():
    dashscope.api_key = "none"
    generator, embedder, reranker = sys.argv[1:4]
    model = use(generator)
    for scenario in [generation, multimodal, tokens, tools, refusals, error_in_mid_stream]:
        scenario(model)
        print("ok:", scenario.__name__)
    compatible_mode(generator, model)
    print("ok: compatible_mode")
    newer_client(generator, model)
    print("ok: newer_client")
    embeddings(use(embedder))
    print("ok: embeddings")
    rerank(use(reranker))
    print("ok: rerank")


if __name__ == "__main__":
    main()
