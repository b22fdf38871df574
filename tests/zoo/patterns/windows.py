"""Windows and places: Swin, relative bias, patch merging, axial attention, class tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.zoo.entry import Entry
from tests.zoo.patterns.make import image, pattern, tokens

WIDTH, HEADS, HEAD, SIDE, WINDOW = 8, 2, 4, 4, 2


class Window(nn.Module):
    """Swin block: shifted windows, relative position bias, an attention mask from a buffer."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.patch = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.bias_table = nn.Parameter(0.2 * torch.randn((2 * WINDOW - 1) ** 2, HEADS))
        steps = torch.stack(torch.meshgrid(*[torch.arange(WINDOW)] * 2, indexing="ij")).flatten(1)
        apart = steps[:, :, None] - steps[:, None] + WINDOW - 1
        self.register_buffer("places", apart[0] * (2 * WINDOW - 1) + apart[1])
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.merge_norm = nn.LayerNorm(4 * WIDTH)
        self.merge = nn.Linear(4 * WIDTH, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * HEAD**-0.5) @ k.transpose(-2, -1)
        bias = self.bias_table[self.places.view(-1)].view(n, n, -1).permute(2, 0, 1)
        scores = scores + bias.contiguous().unsqueeze(0)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm(x)
        y = y.view(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, c)
        y = self.attend(y).view(-1, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)
        parts = [x[:, i::2, j::2, :] for j in range(2) for i in range(2)]
        return self.head(self.merge(self.merge_norm(torch.cat(parts, -1))).mean((1, 2)))


class ClassToken(nn.Module):
    """ViT: a class token, a table of positions, patches by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x)[:, 0])


class Axial(nn.Module):
    """Attention along rows, then along columns, batch dims merged by symbolic views."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.rows, self.columns = (nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)

    @staticmethod
    def attend(layer: nn.Linear, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        q, k, v = layer(x.reshape(b * h, w, c)).split(c, dim=-1)
        q, k, v = (t.view(b * h, w, HEADS, c // HEADS).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).reshape(b, h, w, c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.attend(self.rows, x)
        y = self.attend(self.columns, x.transpose(1, 2)).transpose(1, 2)
        return self.head((x + y).mean((1, 2)))


class RelativeBias(nn.Module):
    """T5: distances fall into buckets, each head has a bias per bucket."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, WIDTH, bias=False) for _ in range(3))
        self.bias = nn.Embedding(4, HEADS)
        self.o = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        apart = torch.arange(n)[None] - torch.arange(n)[:, None]
        buckets = torch.clamp(apart.abs(), max=3)
        bias = self.bias(buckets).permute(2, 0, 1)[None]
        q, k, v = (p(x).view(b, -1, HEADS, HEAD).transpose(1, 2) for p in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(out.transpose(1, 2).contiguous().view(b, -1, WIDTH))


class Slopes(nn.Module):
    """ALiBi: a fixed slope per head, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 3 * WIDTH)
        self.o = nn.Linear(WIDTH, 8)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, HEADS + 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            t.reshape(b, n, HEADS, HEAD).transpose(1, 2) for t in self.qkv(x).tensor_split(3, -1)
        )
        apart = torch.arange(n)[None, :] - torch.arange(n)[:, None]
        scores = q @ k.mT * HEAD**-0.5 + self.slopes[:, None, None] * apart
        scores = scores + torch.full((n, n), -1e4, dtype=x.dtype).triu(1)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class LocalConvolution(nn.Module):
    """Light convolution: kernels predicted per head, softmax over the window (ConvBERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(8, WIDTH)
        self.kernel = nn.Linear(8, HEADS * 3)
        self.o = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        windows = F.pad(self.value(x), (0, 0, 1, 1)).unfold(1, 3, 1)
        windows = windows.reshape(b, n, HEADS, HEAD, 3)
        kernel = self.kernel(x).view(b, n, HEADS, 1, 3).softmax(-1)
        return self.o((windows * kernel).sum(-1).flatten(2))


_FUSED = {"heads": 1, "head-size": 1}
TABLE: tuple[Entry, ...] = (
    pattern("window_attention", lambda: Window(0), image(), reach={"embedding": 1, "neurons": 1, **_FUSED}),
    pattern("shifted_windows", lambda: Window(1), image(), reach={"embedding": 1, "neurons": 1, **_FUSED}),
    pattern("class_token", ClassToken, image(), reach={"embedding": 1, "heads": 1, "head-size": 1}),
    pattern("axial_attention", Axial, image(), reach={"heads": 1, "head-size": 3}),
    pattern("relative_bias", RelativeBias, tokens(), reach={"heads": 1, "head-size": 2}),
    pattern("slopes", Slopes, tokens(), reach={"heads": 1, "head-size": 2}),
    pattern("local_convolution", LocalConvolution, tokens(), reach={"neurons": 2}),
)
