"""Uses a gateway through OpenAI's own client, as a customer would.

    openai_client.py BASE_URL

Lists models, asks once, asks streaming, asks for what does not exist. The last line printed is JSON with what was seen.
"""

import json
import sys

import openai


def main():
    client = openai.OpenAI(base_url=sys.argv[1], api_key="not needed", timeout=60, max_retries=2)
    models = client.models.list().data
    assert models, "the gateway lists no model"
    model = models[0]
    print("models", [it.id for it in models])

    question = [{"role": "user", "content": "The state of the union is"}]
    answer = client.chat.completions.create(model=model.id, messages=question, max_tokens=24)
    text = answer.choices[0].message.content
    assert text.strip(), f"an empty answer: {answer}"
    assert 0 < answer.usage.completion_tokens <= 24, answer.usage
    print("answer", repr(text))

    pieces = []
    finish_reason = None
    for chunk in client.chat.completions.create(model=model.id, messages=question, max_tokens=24, stream=True):
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish_reason = choice.finish_reason or finish_reason
    streamed = "".join(pieces)
    assert streamed.strip(), "nothing was streamed"
    assert 1 < sum(1 for it in pieces if it), f"it came in one piece: {pieces}"
    assert finish_reason in ("stop", "length"), finish_reason
    print("streamed", repr(streamed))

    same = [
        client.completions.create(model=model.id, prompt="My fellow", max_tokens=12, temperature=0).choices[0].text
        for _ in range(2)
    ]
    # A newer checkpoint may have come between the two; then the second pair is asked.
    if same[0] != same[1]:
        same = [
            client.completions.create(model=model.id, prompt="My fellow", max_tokens=12, temperature=0).choices[0].text
            for _ in range(2)
        ]
    print("greedy", same)

    try:
        client.chat.completions.create(model="no-such-model", messages=question)
        raise AssertionError("a model that does not exist answered")
    except openai.NotFoundError as error:
        print("refused", error.code)

    extra = model.model_extra or {}
    print(json.dumps({"model": model.id, "round": extra.get("round"), "preview": extra.get("preview")}))


main()
