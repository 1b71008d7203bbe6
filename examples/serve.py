"""A server's inner loop: continuous batching over a cache of pages, with shared prefixes and preemption.

One call of foveal.append and one of foveal.attention_varlen a layer serve whatever a step holds, chunks of prompts and
single tokens alike. A small Llama with random weights answers 64 requests; its greedy tokens must be those that
transformers finds with its eager attention, one request at a time.
"""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import foveal
import torch
import transformers

PAGE_SIZE, PAGES, MAX_RUNNING, CHUNK = 8, 64, 12, 24


class Pages:
    """Which pages are in use, by how many sequences, and what the full ones hold."""

    def __init__(self, count: int) -> None:
        self.free = deque(range(count))  # the first is taken next; what it holds may be shared until then
        self.users = [0] * count
        self.holder: dict[tuple[int, ...], int] = {}  # all tokens up to the page's end: the page
        self.held: dict[int, tuple[int, ...]] = {}

    def take(self) -> int | None:
        if not self.free:
            return None
        page = self.free.popleft()
        if page in self.held:
            del self.holder[self.held.pop(page)]
        self.users[page] = 1
        return page

    def share(self, tokens: tuple[int, ...]) -> int | None:
        page = self.holder.get(tokens)
        if page is None:
            return None
        if self.users[page] == 0:
            self.free.remove(page)
        self.users[page] += 1
        return page

    def publish(self, tokens: tuple[int, ...], page: int) -> None:
        if tokens not in self.holder and page not in self.held:
            self.holder[tokens], self.held[page] = page, tokens

    def release(self, pages: list[int]) -> None:
        for page in pages:
            self.users[page] -= 1
            if self.users[page] == 0:
                self.free.append(page)


@dataclass(eq=False)
class Request:
    tokens: list[int]  # the prompt, and behind it the answer
    until: int  # so many tokens in all
    cached: int = 0  # tokens whose keys and values are in the pages
    pages: list[int] = field(default_factory=list)


class Server:
    def __init__(self, model: Any) -> None:
        self.model, config = model, model.config
        shape = (PAGES, PAGE_SIZE, config.num_key_value_heads, config.head_dim)
        self.caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in model.model.layers]
        positions = torch.arange(config.max_position_embeddings)[None]
        cos, sin = model.model.rotary_emb(torch.zeros(1), positions)  # both halves alike
        half = config.head_dim // 2
        self.cos, self.sin = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        self.pages = Pages(PAGES)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = self.shared_pages = 0

    def admit(self) -> None:
        while self.waiting and len(self.running) < MAX_RUNNING:
            request = self.waiting.popleft()
            self.running.append(request)
            # The last token is computed in any case: its logits are wanted.
            for end in range(PAGE_SIZE, len(request.tokens), PAGE_SIZE):
                page = self.pages.share(tuple(request.tokens[:end]))
                if page is None:
                    break
                request.pages.append(page)
                request.cached = end
                self.shared_pages += 1

    def preempt(self) -> None:
        """The last to come gives its pages back and starts again later, behind nobody."""
        request = self.running.pop()
        self.pages.release(request.pages)
        request.pages, request.cached = [], 0
        self.waiting.appendleft(request)
        self.preemptions += 1

    def rows_of(self, request: Request) -> int:
        """How many tokens of the request this step computes; it has pages for them. 0: it was preempted."""
        rows = min(len(request.tokens) - request.cached, CHUNK)
        while len(request.pages) * PAGE_SIZE < request.cached + rows:
            page = self.pages.take()
            if page is not None:
                request.pages.append(page)
                continue
            victim = self.running[-1]
            self.preempt()
            if victim is request:
                return 0
        return rows

    def step(self) -> None:
        self.admit()
        batch = []
        for request in list(self.running):
            if request in self.running and (rows := self.rows_of(request)) > 0:
                batch.append((request, rows))
        batch = [
            (request, rows) for request, rows in batch if request in self.running
        ]  # a later one may have needed room
        for (request, rows), logits in zip(batch, self.forward(batch), strict=True):
            request.cached += rows
            for n in range(request.cached // PAGE_SIZE):
                self.pages.publish(tuple(request.tokens[: (n + 1) * PAGE_SIZE]), request.pages[n])
            if request.cached < len(request.tokens):
                continue  # there is more of its prompt
            request.tokens.append(int(logits.argmax()))
            if len(request.tokens) == request.until:
                self.running.remove(request)
                self.pages.release(request.pages)

    def forward(self, batch: list[tuple[Request, int]]) -> torch.Tensor:
        """Logits behind the last row of each request."""
        ids, positions, slots, ends, used = [], [], [], [0], []
        for request, rows in batch:
            for i in range(request.cached, request.cached + rows):
                ids.append(request.tokens[i])
                positions.append(i)
                slots.append(request.pages[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE)
            ends.append(len(ids))
            used.append(request.cached + rows)
        table = torch.full((len(batch), max(len(request.pages) for request, _ in batch)), -1, dtype=torch.int32)
        for row, (request, _) in zip(table, batch, strict=True):
            row[: len(request.pages)] = torch.tensor(request.pages, dtype=torch.int32)
        where: dict[str, Any] = {"slot_mapping": torch.tensor(slots), "positions": torch.tensor(positions)}
        cu_seqlens, lengths = torch.tensor(ends, dtype=torch.int32), torch.tensor(used, dtype=torch.int32)

        x = self.model.model.embed_tokens(torch.tensor(ids))
        for layer, (k_cache, v_cache) in zip(self.model.model.layers, self.caches, strict=True):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            q, k, v = (projection(h).unflatten(-1, (-1, attention.head_dim)) for projection in projections)
            q = foveal.append(k, v, k_cache, v_cache, q=q, cos=self.cos, sin=self.sin, **where)
            out = foveal.attention_varlen(
                q, k_cache, v_cache, cu_seqlens, None, causal=True, seqused_k=lengths, block_table=table
            )
            x = x + attention.o_proj(out.flatten(1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        logits: torch.Tensor = self.model.lm_head(self.model.model.norm(x[cu_seqlens[1:].long() - 1]))
        return logits


def small_model() -> Any:
    torch.manual_seed(1)
    new_config: Any = transformers.LlamaConfig  # transformers' own types do not cover these
    new_model: Any = transformers.LlamaForCausalLM
    config = new_config(
        vocab_size=199, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, max_position_embeddings=256, attn_implementation="eager", initializer_range=0.2,
    )  # fmt: skip
    return new_model(config).eval()


def requests(count: int) -> list[Request]:
    """Half of them begin with a common prompt, as a system's prompt is."""
    draw = random.Random(1)
    common = [draw.randrange(199) for _ in range(37)]
    made = []
    for i in range(count):
        prompt = common * (i % 2) + [draw.randrange(199) for _ in range(draw.choice([1, 3, 8, 20, 50]))]
        made.append(Request(prompt, len(prompt) + draw.choice([1, 5, 12, 30])))
    return made


def main() -> None:
    model = small_model()
    server, all_requests = Server(model), requests(64)
    prompts = [list(request.tokens) for request in all_requests]
    server.waiting.extend(all_requests)
    steps = 0
    with torch.inference_mode():
        while server.waiting or server.running:
            server.step()
            steps += 1
        for request, prompt in zip(all_requests, prompts, strict=True):
            ids = torch.tensor([prompt])
            options = {"attention_mask": torch.ones_like(ids), "max_length": request.until, "pad_token_id": 0}
            expected = model.generate(ids, do_sample=False, eos_token_id=None, **options)
            assert request.tokens == expected[0].tolist(), (prompt, request.tokens, expected)
    assert server.preemptions > 0 and server.shared_pages > 0 and not any(server.pages.users)
    print(
        f"64 requests in {steps} steps: the tokens of transformers' eager attention; {server.preemptions} preemptions, "
        f"{server.shared_pages} pages shared"
    )


if __name__ == "__main__":
    main()
