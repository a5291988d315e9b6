"""How many tokens a prompt has, told from its size. Learnt per model from what its engine reports. Pure."""

import re
from dataclasses import dataclass, replace

PER_BYTE, PER_BYTE_SD = 0.25, 0.15
OVERHEAD, OVERHEAD_SD = 8.0, 400.0
"""Before anything is learnt: about right for English and for most of the world's vocabularies. A template, or
a system prompt of the engine's own, may add hundreds, which say nothing of a byte."""

PER_BYTE_DRIFT, OVERHEAD_DRIFT = 0.005, 15.0
"""How much they may have changed from one prompt to the next: what is learnt is of the last thirty or so."""

SPREAD, SPREAD_TOKENS = 0.15, 5.0
"""How far texts of one size differ: a share of what is usual for it, and some tokens."""

MOST_SURPRISE_SD = 3.0
"""A report that is further off counts as one that is off by this: it may be of something else."""

MOST_OVERHEAD, MOST_PER_BYTE = 1e5, 2.0

MOST_BYTES_OF_TOKEN = 16
"""On the average of any text: Thai and Hindi have some ten in the largest vocabularies, English five."""

TOKENS_OF_IMAGE = 1000
"""A guess: between some 250 and several thousand, as its model and size have it."""

_DATA = re.compile(rb'(?<=["/,])[A-Za-z0-9+/=_\\-]{1024,}')
"""Base64: no text goes on for so long without a space."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of one model's tokenizer and chat template: tokens = overhead + per_byte * size.

    A value: `learn` returns the next one, by a Kalman filter. It tells the two apart as far as sizes differ:
    short prompts teach the overhead, and leave what long ones have taught of a byte as it is.
    """

    overhead: float = OVERHEAD
    per_byte: float = PER_BYTE
    variances: tuple[float, float] = (OVERHEAD_SD**2, PER_BYTE_SD**2)
    covariance: float = 0.0

    def estimate(self, size: int, images: int = 0) -> int:
        """Tokens of a prompt of `size` bytes, as `size_of` counts them, and so many images."""
        return round(self.overhead + self.per_byte * size) + TOKENS_OF_IMAGE * images

    def learn(self, size: int, tokens: int) -> "Calibration":
        """After an engine reported that a prompt of `size` bytes, without images or sound, had `tokens`.

        Those that came from its prefix cache are to be among them.
        """
        if size <= 0 or tokens <= 0:
            return self
        overhead = min(self.variances[0] + OVERHEAD_DRIFT**2, OVERHEAD_SD**2)
        per_byte = min(self.variances[1] + PER_BYTE_DRIFT**2, PER_BYTE_SD**2)
        to_overhead = overhead + self.covariance * size
        to_per_byte = self.covariance + per_byte * size
        noise = (SPREAD * PER_BYTE * size + SPREAD_TOKENS) ** 2
        variance = to_overhead + to_per_byte * size + noise
        most = MOST_SURPRISE_SD * variance**0.5
        surprise = min(max(tokens - self.overhead - self.per_byte * size, -most), most) / variance
        return replace(
            self,
            overhead=min(max(self.overhead + to_overhead * surprise, 0.0), MOST_OVERHEAD),
            per_byte=min(max(self.per_byte + to_per_byte * surprise, 1 / MOST_BYTES_OF_TOKEN), MOST_PER_BYTE),
            variances=(overhead - to_overhead**2 / variance, per_byte - to_per_byte**2 / variance),
            covariance=self.covariance - to_overhead * to_per_byte / variance,
        )


def least_tokens(size: int) -> int:
    """As many as a text of `size` bytes has beyond doubt, whatever the vocabulary."""
    return size // MOST_BYTES_OF_TOKEN


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
