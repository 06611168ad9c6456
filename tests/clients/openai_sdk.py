"""Talks to a running Monsoon with the published OpenAI SDK, as an application would.

    python openai_sdk.py http://127.0.0.1:8000

Ends with status 1 at the first answer that breaks the SDK's or our own promises.
"""

import json
import sys
import time

import openai

QUESTIONS = {
    "English": "Name three colours of the rainbow.",
    "Chinese": "请用一句话介绍北京。",
    "Arabic": "اكتب جملة قصيرة عن البحر.",
    "Hindi": "भारत की राजधानी क्या है? एक वाक्य में बताइए।",
    "Thai": "ช่วยแนะนำกรุงเทพมหานครในหนึ่งประโยค",
}


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def stream_text(client, model, **request):
    """The concatenated deltas of the only choice, its finish reason and the usage."""
    text, finish, usage, roles = "", None, None, 0
    stream = client.chat.completions.create(
        model=model, stream=True, stream_options={"include_usage": True}, **request
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            roles += choice.delta.role is not None
            check(finish is None, "no delta follows the finish reason")
            finish = choice.finish_reason or finish
            piece = choice.delta.content or ""
            check("\ufffd" not in piece, f"a broken character in {piece!r}")
            text += piece
    check(roles == 1, f"the role comes once, not {roles} times")
    return text, finish, usage


def chat_in_every_language(client, model):
    for language, question in QUESTIONS.items():
        request = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 48,
            "temperature": 0,
        }
        streamed, finish, usage = stream_text(client, model, **request)
        whole = client.chat.completions.create(model=model, **request)
        check(streamed.strip(), f"{language}: an answer with text")
        check(whole.choices[0].message.content == streamed, f"{language}: streamed = whole")
        check(whole.choices[0].finish_reason == finish, f"{language}: finish reason")
        check(usage.completion_tokens == whole.usage.completion_tokens, f"{language}: usage")
        print(f"{language}: {streamed!r}")


def seeds_and_choices(client, model):
    request = {"messages": [{"role": "user", "content": "Write one word."}], "max_tokens": 12}
    request |= {"temperature": 1.0, "seed": 7, "n": 3, "logprobs": True, "top_logprobs": 2}
    first = client.chat.completions.create(model=model, **request)
    again = client.chat.completions.create(model=model, **request)
    check([c.index for c in first.choices] == [0, 1, 2], "three choices in order")
    texts = [c.message.content for c in first.choices]
    check(texts == [c.message.content for c in again.choices], "same seed, same texts")
    entry = first.choices[0].logprobs.content[0]
    check(len(entry.top_logprobs) == 2 and entry.logprob <= 0, "two alternatives a token")


def completions(client, model):
    done = client.completions.create(
        model=model, prompt="def add(a, b):\n", max_tokens=16, temperature=0, echo=True
    )
    check(done.choices[0].text.startswith("def add(a, b):\n"), "echo starts with the prompt")
    stopped = client.completions.create(
        model=model, prompt="1, 2, 3, 4,", max_tokens=32, temperature=0, stop=["7"]
    )
    check("7" not in stopped.choices[0].text, "nothing of the stop string is sent")


def filling_in(client, model):
    done = client.completions.create(
        model=model,
        prompt="def add(a, b):\n    return ",
        suffix="\n\nprint(add(1, 2))\n",
        max_tokens=8,
        temperature=0,
    )
    check(done.choices[0].text.startswith("a + b"), f"filled in, not {done.choices[0].text!r}")


def responses(client, model):
    request = {"model": model, "input": "Say hello.", "max_output_tokens": 24, "temperature": 0}
    whole = client.responses.create(**request)
    check(whole.status in ("completed", "incomplete"), f"a status, not {whole.status}")
    check(whole.output_text.strip(), "an output with text")
    with client.responses.stream(**request) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    check("".join(pieces) == final.output_text == whole.output_text, "streamed = whole")
    check(client.responses.retrieve(whole.id).output_text == whole.output_text, "it is kept")
    more = client.responses.create(
        model=model,
        previous_response_id=whole.id,
        input="And goodbye.",
        max_output_tokens=8,
        temperature=0,
    )
    check(more.usage.input_tokens > whole.usage.total_tokens, "it goes on from what was said")
    client.responses.delete(whole.id)
    try:
        client.responses.retrieve(whole.id)
        sys.exit("FAILED: a deleted response is still there")
    except openai.NotFoundError:
        pass


def batches(client, model):
    """A job with one good and one bad row, from its file to its results."""
    body = {"model": model, "max_tokens": 8, "temperature": 0}
    good = {"messages": [{"role": "user", "content": "Say hello."}]}
    rows = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body | extra}
        for name, extra in [("good", good), ("bad", {"messages": []})]
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    check(file.bytes == len(text) and file.purpose == "batch", "the file as it was sent")
    check(client.files.content(file.id).text == text, "its bytes come back")
    check(file.id in [f.id for f in client.files.list(purpose="batch")], "it is listed")
    job = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"run": "sdk"},
    )
    for _ in range(1200):
        job = client.batches.retrieve(job.id)
        if job.status in ("completed", "failed", "expired", "cancelled"):
            break
        time.sleep(0.1)
    check(job.status == "completed", f"the job is completed, not {job.status}")
    check(job.metadata == {"run": "sdk"}, "its metadata")
    counts = job.request_counts
    check((counts.total, counts.completed, counts.failed) == (2, 1, 1), f"counts, not {counts}")
    answer = json.loads(client.files.content(job.output_file_id).text)
    check(answer["custom_id"] == "good", "the answered row")
    message = answer["response"]["body"]["choices"][0]["message"]
    alone = client.chat.completions.create(**body, **good)
    check(message["content"] == alone.choices[0].message.content, "as if it was asked alone")
    error = json.loads(client.files.content(job.error_file_id).text)
    check(error["custom_id"] == "bad", "the failed row")
    check(error["response"]["status_code"] == 400, "why it failed")
    check(job.id in [b.id for b in client.batches.list(limit=5)], "it is listed")
    try:
        client.batches.cancel(job.id)
        sys.exit("FAILED: a completed job was cancelled")
    except openai.ConflictError:
        pass
    for id in (file.id, job.output_file_id, job.error_file_id):
        check(client.files.delete(id).deleted, "it is deleted")
    try:
        client.files.retrieve(file.id)
        sys.exit("FAILED: a deleted file is still there")
    except openai.NotFoundError:
        pass


def refusals(client, model):
    messages = [{"role": "user", "content": "hi"}]
    try:
        client.chat.completions.create(model="no-such-model", messages=messages)
        sys.exit("FAILED: an unknown model was accepted")
    except openai.NotFoundError as error:
        check("no-such-model" in str(error), "the error names the model")
    try:
        client.chat.completions.create(model=model, messages=messages, temperature=-1)
        sys.exit("FAILED: a negative temperature was accepted")
    except openai.BadRequestError as error:
        check("temperature" in str(error), "the error names the field")


def main():
    client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    scenarios = [chat_in_every_language, seeds_and_choices, completions, filling_in, responses]
    for scenario in [*scenarios, batches, refusals]:
        scenario(client, model)
        print("ok:", scenario.__name__)


if __name__ == "__main__":
    main()
