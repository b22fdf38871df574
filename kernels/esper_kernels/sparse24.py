"""The format of 2:4 sparse weights of 16 bits, in the order in which `mma.sp` wants them.

Of every 4 inputs side by side an output keeps 2. The instruction m16n8k32 multiplies blocks of 16
outputs and 32 inputs, of which each of 32 lanes holds 8 kept entries, two in each of 4 registers
(PTX ISA 9.7.14.6.2.2): lane 4 g + t has in register r the entries 2 t + 8 (r div 2) and the next,
counted among the 16 that row g + 8 (r mod 2) keeps of the block.

Which entries those are is told by 2 bits each, the place within their 4 inputs, the first in the
low bits. A word of metadata holds 16 inputs of row g in its low half and of row g + 8 in its high
half. The first two lanes of a quad, t = 0 and 1, hold the 32 inputs of one block; the last two
those of the next block, for which the instruction is told to look there (its sparsity selector). So
blocks come in pairs, with 32 words of metadata for 64 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS, COLUMNS = 16, 32  # of a block: outputs, inputs
DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Sparse24:
    """A packed weight of (outputs, inputs).

    Attributes:
        values: (row blocks, column blocks, 32, 8) float16 or bfloat16, what each lane holds; the
            number of column blocks is even, and what lies outside of the weight is zero.
        metadata: (row blocks, column blocks / 2, 32) int32, a word for each lane and pair of
            blocks.
        outputs, inputs: sizes of the dense weight.
    """

    values: Tensor
    metadata: Tensor
    outputs: int
    inputs: int

    @classmethod
    def pack(cls, weight: Tensor) -> Sparse24:
        """Pack a matrix that has at most 2 entries other than zero in 4 inputs side by side.

        Raises:
            ValueError: for any other, or one that is not of 16 bits.
        """
        if weight.ndim != 2 or weight.numel() == 0 or weight.dtype not in DTYPES:
            raise ValueError(
                f"2:4 weights are matrices of float16 or bfloat16, this one is {weight.dtype} of "
                f"shape {tuple(weight.shape)}"
            )
        outputs, inputs = weight.shape
        padded = weight.new_zeros(_up(outputs, ROWS), _up(inputs, 2 * COLUMNS))
        padded[:outputs, :inputs] = weight.detach()
        fours = padded.view(len(padded), -1, 4)
        filled = fours != 0
        crowded = (filled.sum(-1) > 2).nonzero()
        if len(crowded):
            row, four = crowded[0].tolist()
            raise ValueError(
                f"the weight is not 2:4 sparse: row {row} has more than 2 entries in columns "
                f"{4 * four} to {4 * four + 3}"
            )
        # Filled places first, in order, then empty ones to make up two.
        order = filled.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
        place = order[..., :2].sort(-1).values
        kept = fours.gather(-1, place).flatten(1)
        values = kept.view(-1, ROWS, padded.shape[1] // COLUMNS, 16).transpose(1, 2)
        entry = _entries(weight.device)
        values = values.flatten(2)[..., entry].contiguous()
        return cls(values, _words(place), outputs, inputs)

    def unpack(self) -> Tensor:
        """The dense weight again; -0.0 counts as no entry and may come back as 0.0."""
        return unpack(self.values, self.metadata, self.outputs, self.inputs)


def unpack(values: Tensor, metadata: Tensor, outputs: int, inputs: int) -> Tensor:
    """The dense weight (outputs, inputs), see `Sparse24`."""
    dense = values.new_zeros(ROWS * values.shape[0], COLUMNS // 4 * values.shape[1], 4)
    dense.scatter_(2, places(metadata), _kept(values).view(len(dense), -1, 2))
    return dense.flatten(1)[:outputs, :inputs].contiguous()


def gather(dense: Tensor, metadata: Tensor) -> Tensor:
    """What (outputs, inputs) has where a packed weight keeps entries, in the order of `values`."""
    fours = places(metadata)  # (rows, columns / 4, 2)
    padded = dense.new_zeros(fours.shape[0], fours.shape[1] * 4)
    padded[: dense.shape[0], : dense.shape[1]] = dense
    kept = padded.view(*fours.shape[:2], 4).gather(2, fours).flatten(1)
    blocks = kept.view(metadata.shape[0], ROWS, 2 * metadata.shape[1], 16).transpose(1, 2)
    ordered: Tensor = blocks.flatten(2)[..., _entries(dense.device)]
    return ordered.contiguous()


def _kept(values: Tensor) -> Tensor:
    """The kept entries row by row, (rows, columns / 2)."""
    blocks = values.new_empty(*values.shape[:2], ROWS * 16)
    blocks[..., _entries(values.device)] = values
    rows, columns = values.shape[:2]
    by_row = blocks.view(rows, columns, ROWS, 16).transpose(1, 2)
    return by_row.reshape(rows * ROWS, columns * 16)


def _entries(device: torch.device) -> Tensor:
    """(32, 8): where in a block of 16 rows by 16 kept entries each of a lane's 8 is."""
    lane, element = torch.arange(32).unsqueeze(1), torch.arange(8)
    register, half = element // 2, element % 2
    row = lane // 4 + 8 * (register % 2)
    return (row * 16 + 2 * (lane % 4) + half + 8 * (register // 2)).to(device)


def _words(place: Tensor) -> Tensor:
    """Metadata words (row blocks, pairs, 32) of places (rows, columns / 4, 2) within 4 inputs."""
    nibbles = place[..., 0] + 4 * place[..., 1]
    # row blocks, high half, row g, pairs, block of the pair, half of the block, its 4 nibbles
    cut = nibbles.view(-1, 2, 8, nibbles.shape[1] // 16, 2, 2, 4)
    shift = 4 * torch.arange(4, device=place.device) + 16 * torch.arange(
        2, device=place.device
    ).view(2, 1, 1, 1, 1, 1)
    word = (cut << shift).sum((1, 6))  # row blocks, g, pairs, block, half
    word = word.permute(0, 2, 1, 3, 4).flatten(2)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32).contiguous()


def places(metadata: Tensor) -> Tensor:
    """Places within 4 inputs of the kept entries, (rows, columns / 4, 2), from metadata words."""
    blocks, pairs = metadata.shape[:2]
    shift = 4 * torch.arange(4, device=metadata.device) + 16 * torch.arange(
        2, device=metadata.device
    ).view(2, 1, 1, 1, 1, 1)
    word = metadata.long().view(blocks, pairs, 8, 2, 2).permute(0, 2, 1, 3, 4)
    nibbles = (word.unsqueeze(1).unsqueeze(-1) >> shift) & 15
    nibbles = nibbles.reshape(ROWS * blocks, 16 * pairs)
    return torch.stack([nibbles & 3, nibbles >> 2], -1)


def _up(size: int, block: int) -> int:
    return -(-size // block) * block
