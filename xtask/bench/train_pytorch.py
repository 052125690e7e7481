"""Trains the models A and B of `cargo xtask bench engine` with PyTorch, eager, f32, one thread.

Usage: train_pytorch.py A|B STEPS
Prints `tokens_per_s VALUE` over STEPS steps after three to warm up, `loss VALUE` and `peak_bytes VALUE` (peak resident memory).
The model is the engine's: RMSNorm, rotary positions, SwiGLU, tied embeddings; AdamW with clipping; random tokens.
"""

import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

MODELS = {
    # layers, width, heads, intermediate, context, vocabulary, batch
    "A": (6, 384, 6, 1024, 256, 4096, 8),
    "B": (4, 128, 4, 344, 128, 512, 16),
}
WARM_UP_STEPS = 3


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Layer(nn.Module):
    def __init__(self, width, heads, intermediate):
        super().__init__()
        self.heads = heads
        self.attention_norm = RmsNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = RmsNorm(width)
        self.gate_up = nn.Linear(width, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, width, bias=False)

    def forward(self, x, cosine, sine):
        batch, length, width = x.shape
        heads = self.query_key_value(self.attention_norm(x))
        heads = heads.view(batch, length, 3, self.heads, width // self.heads).transpose(1, 3)
        query, key, value = heads.unbind(2)
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, layers, width, heads, intermediate, context, vocabulary, _batch):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(width, heads, intermediate) for _ in range(layers))
        self.norm = RmsNorm(width)
        half = width // heads // 2
        frequency = 10000.0 ** (-torch.arange(half).float() / half)
        angle = torch.arange(context).float()[:, None] * frequency
        self.register_buffer("cosine", torch.cat([angle.cos()] * 2, -1))
        self.register_buffer("sine", torch.cat([angle.sin()] * 2, -1))

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cosine, self.sine)
        return F.linear(self.norm(x), self.embedding.weight)


def rotate(x, cosine, sine):
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


def main():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    shape = MODELS[sys.argv[1]]
    steps = int(sys.argv[2])
    *_, context, vocabulary, batch = shape
    model = Model(*shape)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(0, vocabulary, (steps + WARM_UP_STEPS, batch, context + 1))
    begin = 0.0
    for step in range(steps + WARM_UP_STEPS):
        if step == WARM_UP_STEPS:
            begin = time.perf_counter()
        logits = model(tokens[step, :, :-1])
        loss = F.cross_entropy(logits.reshape(-1, vocabulary), tokens[step, :, 1:].reshape(-1))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    seconds = time.perf_counter() - begin
    print(f"tokens_per_s {steps * batch * context / seconds:.1f}")
    print(f"loss {loss.item():.4f}")
    print(f"peak_bytes {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}")


main()
