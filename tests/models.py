"""The test zoo: small models of the usual families, with random weights and example inputs.

Every builder is deterministic and returns `(module, args, kwargs)` with the module in eval mode.
Batches hold `BATCH` items, so that a dynamic batch dimension can be exported. Vectors (biases,
norm scales, batch-norm statistics) are moved away from their neutral initial values, since an
edit that loses a zero bias would go unnoticed.

    module, args, kwargs = MODELS["bert"](dtype=torch.float64)

Transformers are the `transformers` implementations at tiny sizes; convolutional networks come
from `tests.vision_models`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tests.vision_models import (
    BasicBlock,
    Bottleneck,
    ConvNeXt,
    EfficientNet,
    ResNet,
    UNet,
)

BATCH = 3
SEQUENCE = 7
IMAGE = 16
VOCABULARY = 37
CLASSES = 5

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


class Builder(Protocol):
    """Builds one model of the zoo in `dtype`, on the CPU, in eval mode."""

    def __call__(self, dtype: torch.dtype = ...) -> Built: ...


class TextModel(nn.Module):
    """A Hugging Face text model whose structured output is narrowed to the `fields` named.

    Takes `input_ids` and optionally `attention_mask`, both int64 [batch, sequence].
    """

    def __init__(self, model: nn.Module, *fields: str) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        return pick(self.model(input_ids=input_ids, attention_mask=attention_mask), self.fields)


class ImageModel(nn.Module):
    """The same for a vision model; takes `pixel_values` [batch, channels, height, width]."""

    def __init__(self, model: nn.Module, *fields: str) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        return pick(self.model(pixel_values=pixel_values), self.fields)


class RMSNorm(nn.Module):
    """Root-mean-square norm computed in the dtype of its input (Zhang and Sennrich 2019).

    The `transformers` one goes through float32, which hides float64 differences below 1e-7.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def pick(output: Any, fields: tuple[str, ...]) -> Tensor | tuple[Tensor, ...]:
    """The fields of a structured output, one or several."""
    picked = tuple(getattr(output, field) for field in fields)
    return picked[0] if len(picked) == 1 else picked


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator of our own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def finish(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Move vectors off their neutral values, drawing from the generator in force; set dtype."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module.to(dtype).eval()


def _tokens(padded: bool = True) -> dict[str, Any]:
    """Token ids and a mask; the last two rows are padded on the right when `padded`."""
    mask = torch.ones(BATCH, SEQUENCE, dtype=torch.int64)
    if padded:
        mask[-2, 5:] = 0
        mask[-1, 3:] = 0
    return {
        "input_ids": torch.randint(1, VOCABULARY, (BATCH, SEQUENCE)),
        "attention_mask": mask,
    }


def _config(kind: Callable[..., Any], **options: Any) -> Any:
    # Their type stubs leave out the options every configuration inherits.
    return kind(**options)


def _bert_config(attention: str) -> Any:
    from transformers import BertConfig

    return _config(
        BertConfig,
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=11,
        num_labels=CLASSES,
        attn_implementation=attention,
    )


def _bert_classifier(attention: str, dtype: torch.dtype) -> Built:
    from transformers import BertForSequenceClassification

    with seeded(0):
        model = BertForSequenceClassification(_bert_config(attention))
        return finish(TextModel(model, "logits"), dtype), (), _tokens()


def bert(dtype: torch.dtype = torch.float32) -> Built:
    """BERT classifier, sdpa attention, padded batch: hidden 24, 4 heads of 6, 2 layers."""
    return _bert_classifier("sdpa", dtype)


def bert_eager(dtype: torch.dtype = torch.float32) -> Built:
    """The same with attention written out: matmul, scale, mask, softmax, matmul."""
    return _bert_classifier("eager", dtype)


def bert_encoder(dtype: torch.dtype = torch.float32) -> Built:
    """Bare BERT: returns (last hidden state, pooled output), so the hidden axis is an output."""
    from transformers import BertModel

    with seeded(1):
        model = BertModel(_bert_config("sdpa"))
        module = TextModel(model, "last_hidden_state", "pooler_output")
        return finish(module, dtype), (), _tokens()


def gpt2(dtype: torch.dtype = torch.float32) -> Built:
    """GPT-2: fused q|k|v in one Conv1D, learned positions, head tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with seeded(2):
        config = _config(
            GPT2Config,
            vocab_size=VOCABULARY,
            n_positions=11,
            n_embd=24,
            n_layer=2,
            n_head=3,
            n_inner=44,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
            attn_implementation="sdpa",
        )
        model = GPT2LMHeadModel(config)
        return finish(TextModel(model, "logits"), dtype), (), _tokens(padded=False)


def _llama(dtype: torch.dtype, native_norm: bool) -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    with seeded(3):
        config = _config(
            LlamaConfig,
            vocab_size=VOCABULARY,
            hidden_size=36,
            intermediate_size=44,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=6,
            max_position_embeddings=11,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
            attn_implementation="sdpa",
        )
        model: nn.Module = LlamaForCausalLM(config)
        if native_norm:
            for name, module in list(model.named_modules()):
                if type(module).__name__ == "LlamaRMSNorm":
                    parent, _, leaf = name.rpartition(".")
                    norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
                    setattr(model.get_submodule(parent), leaf, norm)
        return finish(TextModel(model, "logits"), dtype), (), _tokens(padded=False)


def llama(dtype: torch.dtype = torch.float32) -> Built:
    """Llama: rotary positions, 6 query heads on 2 key/value heads, RMS norm, gated SiLU."""
    return _llama(dtype, native_norm=False)


def llama_native_norm(dtype: torch.dtype = torch.float32) -> Built:
    """`llama` with norms that stay in the input's dtype, for comparisons in float64."""
    return _llama(dtype, native_norm=True)


def vit(dtype: torch.dtype = torch.float32) -> Built:
    """Vision transformer: 16 patches of 4x4 and a class token, hidden 24, 3 heads of 8."""
    from transformers import ViTConfig, ViTForImageClassification

    with seeded(4):
        config = _config(
            ViTConfig,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            image_size=IMAGE,
            patch_size=4,
            num_labels=CLASSES,
            attn_implementation="sdpa",
        )
        model = ViTForImageClassification(config)
        module = finish(ImageModel(model, "logits"), dtype)
        return (
            module,
            (),
            {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE, dtype=dtype)},
        )


def _vision(build: Callable[[], nn.Module], seed: int, dtype: torch.dtype) -> Built:
    with seeded(seed):
        module = finish(build(), dtype)
        return module, (torch.randn(BATCH, 3, IMAGE, IMAGE, dtype=dtype),), {}


def resnet_basic(dtype: torch.dtype = torch.float32) -> Built:
    """ResNet with basic blocks, batch norm, strided projection shortcuts."""
    return _vision(lambda: ResNet(BasicBlock), 5, dtype)


def resnet_bottleneck(dtype: torch.dtype = torch.float32) -> Built:
    """ResNet with bottleneck blocks; ReLU and the residual sum work in place."""
    return _vision(lambda: ResNet(Bottleneck), 6, dtype)


def efficientnet(dtype: torch.dtype = torch.float32) -> Built:
    """EfficientNet-like: MBConv with depthwise convolution, squeeze-excite, SiLU, batch norm."""
    return _vision(EfficientNet, 7, dtype)


def convnext(dtype: torch.dtype = torch.float32) -> Built:
    """ConvNeXt-like: depthwise 7x7, channels-last layer norm and linears, layer scale."""
    return _vision(ConvNeXt, 8, dtype)


def unet(dtype: torch.dtype = torch.float32) -> Built:
    """U-Net with transposed convolutions and skip concatenation."""
    return _vision(lambda: UNet(transposed=True), 9, dtype)


def unet_interpolate(dtype: torch.dtype = torch.float32) -> Built:
    """U-Net whose decoder doubles the resolution by bilinear interpolation."""
    return _vision(lambda: UNet(transposed=False), 10, dtype)


MODELS: dict[str, Builder] = {
    builder.__name__: builder
    for builder in (
        bert,
        bert_eager,
        bert_encoder,
        gpt2,
        llama,
        llama_native_norm,
        vit,
        resnet_basic,
        resnet_bottleneck,
        efficientnet,
        convnext,
        unet,
        unet_interpolate,
    )
}
