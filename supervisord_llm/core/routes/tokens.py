"""How many tokens a prompt has, told from its size. Learnt per model from what its engine reports. Pure."""

import re
from dataclasses import dataclass, replace

PER_BYTE = 0.25
OVERHEAD = 8.0
"""Before anything is learnt: about right for English and for most of the world's vocabularies."""

MOST_OVERHEAD = 100.0
"""Chat templates add no more; a longer prompt explains the rest."""

LEAST_PER_BYTE, MOST_PER_BYTE = 0.02, 2.0
KEPT = 0.97
"""How much of what was learnt stays with each further prompt: it is of the last thirty or so."""

MOST_SURPRISE = 3.0
"""A report that is off by a larger factor counts as one that is off by this: it may be of something else."""

ANCHORS, ANCHORED = (256, 65536), 0.02
"""Sizes at which the line stays where it is, and how firmly, since all prompts seen may be of one size."""

TOKENS_OF_IMAGE = 1000
"""A guess: between some 250 and several thousand, as its model and size have it."""

_DATA = re.compile(rb'(?<=["/,])[A-Za-z0-9+/=_\\-]{1024,}')
"""Base64: no text goes on for so long without a space."""

_Sums = tuple[float, float, float, float, float]
"""Of 1, x, x², y and xy, each weighted: least squares of the error as a share of the size, about."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of one model's tokenizer and chat template: tokens = overhead + per_byte * size.

    A value: `learn` returns the next one.
    """

    overhead: float = OVERHEAD
    per_byte: float = PER_BYTE
    sums: _Sums | None = None
    """None: nothing was learnt yet."""

    def estimate(self, size: int, images: int = 0) -> int:
        """Tokens of a prompt of `size` bytes, as `size_of` counts them, and so many images."""
        return round(self.overhead + self.per_byte * size) + TOKENS_OF_IMAGE * images

    def learn(self, size: int, tokens: int) -> "Calibration":
        """After an engine reported that a prompt of `size` bytes, without images or sound, had `tokens`.

        Those that came from its prefix cache are to be among them.
        """
        if size <= 0 or tokens <= 0:
            return self
        expected = self.overhead + self.per_byte * size
        told = min(max(tokens, expected / MOST_SURPRISE), expected * MOST_SURPRISE)
        anchored = self._anchored()
        parts = zip(self.sums or anchored, anchored, _point(size, told), strict=True)
        sums = tuple(KEPT * old + ANCHORED * anchor + new for old, anchor, new in parts)
        return _fitted(replace(self, sums=sums))  # type: ignore[arg-type]

    def _anchored(self) -> _Sums:
        """The line itself, as points."""
        near, far = (_point(size, self.overhead + self.per_byte * size) for size in ANCHORS)
        return tuple(one + other for one, other in zip(near, far, strict=True))  # type: ignore[return-value]


def size_of(raw: bytes) -> int:
    """Bytes of text in JSON: of `messages`, `prompt`, `input`, `tools` … as they came, undecoded.

    Escapes count as what they stand for, and images and sound in base64 not at all.
    """
    if len(raw) > 1024 and (b"base64" in raw or b'"data"' in raw):  # the search itself takes its time
        raw = _DATA.sub(b"", raw)
    escapes = raw.count(b"\\")
    size = len(raw) - escapes  # \n is one byte
    if escapes and b"\\u" in raw:  # a \u.... of the first pages is two bytes, any other three, in UTF-8
        size -= 2 * raw.count(b"\\u") + raw.count(b"\\u0")
    return size


def _point(x: float, y: float) -> _Sums:
    weight = 1 / (x + ANCHORS[0]) ** 2
    return weight, weight * x, weight * x * x, weight * y, weight * x * y


def _fitted(known: Calibration) -> Calibration:
    """The line with the least error, within reason."""
    assert known.sums is not None
    ones, x, xx, y, xy = known.sums
    spread = ones * xx - x * x
    overhead = (y * xx - x * xy) / spread if spread > 1e-9 * ones * xx else known.overhead
    overhead = min(max(overhead, 0.0), MOST_OVERHEAD)
    per_byte = min(max((xy - overhead * x) / xx, LEAST_PER_BYTE), MOST_PER_BYTE)
    return replace(known, overhead=overhead, per_byte=per_byte)
