"""The peer of examples/train_speed.rs: the same training step in PyTorch, eager, f32, one thread.

    torch_speed.py a|b STEPS

Prints `key value` lines: tokens_per_second, tokens_per_processor_second (steadier on a busy machine), peak_bytes. Attention is PyTorch's own
`scaled_dot_product_attention` where it has one; the optimiser is AdamW in its fastest CPU form. Only torch is needed.
"""

import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional

SHAPES = {
    # vocabulary, hidden, intermediate, layers, heads, context, batch
    "a": (4096, 384, 1024, 6, 6, 256, 8),
    "b": (512, 128, 352, 4, 4, 128, 16),
}
WARM_UP_STEPS = 3


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        if hasattr(functional, "rms_norm"):
            return functional.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Layer(nn.Module):
    def __init__(self, hidden, intermediate, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = Norm(hidden), Norm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x, cosines, sines):
        batch, sequence, hidden = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, sequence, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q, k = rotate(q, cosines, sines), rotate(k, cosines, sines)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, sequence, hidden))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


def rotate(x, cosines, sines):
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cosines - high * sines, high * cosines + low * sines), dim=-1)


class Model(nn.Module):
    def __init__(self, vocabulary, hidden, intermediate, layers, heads, context):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(Layer(hidden, intermediate, heads) for _ in range(layers))
        self.norm = Norm(hidden)
        size = hidden // heads
        frequencies = 1.0 / 10000.0 ** (torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(context).float(), frequencies)
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cosines, self.sines)
        return functional.linear(self.norm(x), self.embedding.weight)


def tokens_of(step, count, vocabulary):
    index = torch.arange(count)
    return (index * index + 7 * step + index * 3) % vocabulary


def optimizer_of(model):
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
    try:
        return torch.optim.AdamW(groups, fused=True, **settings)
    except (RuntimeError, TypeError):
        return torch.optim.AdamW(groups, **settings)


def main():
    name, steps = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(1)
    vocabulary, hidden, intermediate, layers, heads, context, batch = SHAPES[name]
    model = Model(vocabulary, hidden, intermediate, layers, heads, context)
    optimizer = optimizer_of(model)
    started, processor_started = time.perf_counter(), time.process_time()
    for step in range(WARM_UP_STEPS + steps):
        if step == WARM_UP_STEPS:
            started, processor_started = time.perf_counter(), time.process_time()
        rows = tokens_of(step, batch * (context + 1), vocabulary).view(batch, context + 1)
        logits = model(rows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        value = loss.item()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor_started
    print(f"model {name}")
    print(f"parameters {sum(p.numel() for p in model.parameters())}")
    print(f"torch {torch.__version__}")
    print(f"loss {value}")
    print(f"tokens_per_second {steps * batch * context / seconds:.1f}")
    print(f"tokens_per_processor_second {steps * batch * context / processor:.1f}")
    print(f"peak_bytes {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}")


if __name__ == "__main__":
    main()
