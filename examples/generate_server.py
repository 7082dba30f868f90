"""An aiohttp server that generates text, each HTTP request one request of Hydrophone.

    python examples/generate_server.py [--model DIRECTORY] [--port N]
    curl -d '{"prompt": [5, 6, 7]}' http://127.0.0.1:8080/generate
    curl -d '{"request": "ID OF THE ANSWER", "labels": {"hallucinated": true}}' http://127.0.0.1:8080/outcome

Without a model a tiny one with random weights answers, so that the example runs anywhere; prompts are token ids.
"""

import argparse
import asyncio
import uuid
from typing import Any

import hydrophone
import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

TAP = web.AppKey("tap", hydrophone.Tap)
MODEL = web.AppKey("model", torch.nn.Module)


def load(folder: str | None) -> Any:
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ids)).eval()


async def generate(request: web.Request) -> web.Response:
    body = await request.json()
    prompt = torch.tensor([body["prompt"]])
    # The scope is a context variable: it holds in the thread that asyncio.to_thread runs, and only for this request.
    with request.app[TAP].request(id=uuid.uuid4().hex, client=request.remote or "") as scope:
        length = body.get("max_new_tokens", 16)
        answer = await asyncio.to_thread(
            request.app[MODEL].generate, prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=length
        )
    return web.json_response({"request": scope.id, "tokens": answer[0, prompt.shape[1] :].tolist()})


async def outcome(request: web.Request) -> web.Response:
    body = await request.json()
    request.app[TAP].outcome(body["request"], **body["labels"])
    return web.json_response({})


def application(model: Any, tap: hydrophone.Tap) -> web.Application:
    async def detach(_: web.Application) -> None:
        await asyncio.to_thread(tap.detach)

    app = web.Application()
    app[TAP], app[MODEL] = tap, model
    app.add_routes([web.post("/generate", generate), web.post("/outcome", outcome)])
    app.on_cleanup.append(detach)
    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="directory or hub name; default: a tiny model with random weights")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--daemon", help="address of a daemon; default: the one that listens, else one of our own")
    options = parser.parse_args()
    model = load(options.model)
    tap = hydrophone.attach(model, name="server", daemon=options.daemon)
    print("listening to", *tap.streams)
    web.run_app(application(model, tap), host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
