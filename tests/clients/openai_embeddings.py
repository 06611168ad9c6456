"""Embeds texts with the published OpenAI SDK, with the tiny embedding model of the tests' data.

    python openai_embeddings.py http://127.0.0.1:8000 http://127.0.0.1:8001 http://127.0.0.1:8002

The addresses are of servers that generate, embed and rerank. Ends with status 1 at the first answer
that breaks the SDK's or our own promises.
"""

import json
import math
import pathlib
import struct
import sys

import openai

GOLDEN = pathlib.Path(__file__).parent.parent / "data/models/qwen3-embedding/golden.json"
# Of the CPU's arithmetic, as tests/pooling_parity.rs holds it for processors that round activations
# to BF16.
COSINE_TOLERANCE = 1e-2


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def as_f32(number):
    return struct.unpack("<f", struct.pack("<f", number))[0]


def embeddings_of_the_golden_texts(client, model):
    golden = json.loads(GOLDEN.read_text())
    texts = [entry["model_input"] for entry in golden["inputs"]]
    reply = client.embeddings.create(model=model, input=texts)
    check([entry.index for entry in reply.data] == list(range(len(texts))), "in order")
    vectors = [entry.embedding for entry in reply.data]
    check(all(abs(math.sqrt(dot(v, v)) - 1) < 1e-5 for v in vectors), "unit length")
    for i, row in enumerate(golden["cosine"]):
        for j, cosine in enumerate(row):
            found = dot(vectors[i], vectors[j])
            check(abs(found - cosine) < COSINE_TOLERANCE, f"cosine {i}, {j}: {found}, not {cosine}")
    tokens = sum(len(entry["ids"]) for entry in golden["inputs"])
    check(reply.usage.prompt_tokens == reply.usage.total_tokens == tokens, "usage")
    # The SDK asks for base64 unless told otherwise.
    floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
    rounded = [[as_f32(x) for x in entry.embedding] for entry in floats.data]
    check(rounded == vectors, "base64 and floats are the same 32-bit numbers")
    alone = client.embeddings.create(model=model, input=texts[-1]).data[0].embedding
    check(alone == vectors[-1], "the same bits alone and in a list")
    ids = client.embeddings.create(model=model, input=golden["inputs"][0]["ids"])
    check(ids.data[0].embedding == vectors[0], "token ids with the end token are the text")
    short = client.embeddings.create(model=model, input=texts[0], dimensions=64).data[0].embedding
    scale = math.sqrt(dot(vectors[0][:64], vectors[0][:64]))
    check(len(short) == 64, "as many values as were asked for")
    check(all(abs(x - y / scale) < 1e-5 for x, y in zip(short, vectors[0])), "cut, unit again")
    query = {"input_type": "query"}
    query = client.embeddings.create(model=model, input=golden["inputs"][0]["text"], extra_body=query)
    check(query.data[0].embedding == vectors[0], "a query gets its instruction")


def refusals(client, model):
    for request, word in [
        ({"input": "x " * 5000}, "tokens"),
        ({"input": []}, "input"),
        ({"input": "x", "dimensions": 100000}, "dimensions"),
    ]:
        try:
            client.embeddings.create(model=model, **request)
            sys.exit(f"FAILED: {word}: accepted")
        except openai.BadRequestError as error:
            check(word in str(error), f"{error} names {word}")
    try:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
        sys.exit("FAILED: an embedding model chats")
    except openai.BadRequestError as error:
        check("embeddings" in str(error), "the error says what the model is for")


def main():
    client = openai.OpenAI(base_url=sys.argv[2] + "/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    for scenario in [embeddings_of_the_golden_texts, refusals]:
        scenario(client, model)
        print("ok:", scenario.__name__)


if __name__ == "__main__":
    main()
