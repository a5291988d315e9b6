"""Estimates of tokens: how far off they are on real prompts, and what does not throw them."""

import base64
import json
import random
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.core.routes.tokens import Calibration, least_tokens, size_of
from tests.core.prompts import PROMPTS

Prompts = Iterable[tuple[int, int]]


def learnt(prompts: Prompts, known: Calibration | None = None) -> Calibration:
    known = known or Calibration()
    for size, tokens in prompts:
        known = known.learn(size, tokens)
    return known


def errors(known: Calibration, prompts: Prompts) -> list[float]:
    return sorted(abs(known.estimate(size) - tokens) / tokens for size, tokens in prompts)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("kind", "limit"), [("english", 0.08), ("code", 0.08), ("tools", 0.03), ("chinese", 0.08)]
)
def test_twenty_prompts_teach_what_others_of_their_kind_have(kind: str, limit: float) -> None:
    first, rest = PROMPTS[kind][:20], PROMPTS[kind][20:]
    assert mean(errors(learnt(first), rest)) < limit


def test_before_anything_is_learnt_it_is_about_right() -> None:
    everything = [prompt for prompts in PROMPTS.values() for prompt in prompts]
    assert mean(errors(Calibration(), everything)) < 0.2


def test_of_a_mix_of_languages_nine_of_ten_estimates_are_within_a_quarter() -> None:
    everything = [prompt for prompts in PROMPTS.values() for prompt in prompts]
    random.Random(1).shuffle(everything)
    found = errors(learnt(everything[:100]), everything[100:])
    assert found[len(found) * 9 // 10] < 0.25
    assert mean(found) < 0.15


def test_another_vocabulary_is_learnt_from_a_few_prompts() -> None:
    """A token a byte is the worst that there is."""
    prompts = [(size, size + 20) for size in (100, 400, 2000, 5000)]
    assert learnt(prompts * 3).estimate(4000) == pytest.approx(4020, rel=0.15)
    assert learnt(prompts * 10).estimate(4000) == pytest.approx(4020, rel=0.03)


def test_short_prompts_do_not_mislead_about_long_ones() -> None:
    """Most of a short one may be the template's."""
    known = learnt([(200, 85)] * 50)
    assert known.estimate(200) == pytest.approx(85, rel=0.1)
    assert known.estimate(40_000) == pytest.approx(10_000, rel=0.35)


def test_a_share_that_all_prompts_have_is_not_taken_for_their_texts() -> None:
    """A system prompt in the template: thirty short chats, then a long one."""
    sizes = random.Random(3)
    chats = [(size, round(500 + 0.27 * size)) for size in (sizes.randrange(40, 160) for _ in range(30))]
    known = learnt(chats)
    assert known.estimate(100) == pytest.approx(527, rel=0.05)
    assert known.estimate(20_000) == pytest.approx(5900, rel=0.1)


def test_short_prompts_leave_what_long_ones_have_taught() -> None:
    known = learnt([(size, size + 20) for size in (100, 400, 2000, 5000)] * 10)
    assert learnt([(100, 120)] * 200, known).estimate(4000) == pytest.approx(4020, rel=0.03)


def test_another_template_is_learnt_anew() -> None:
    known = learnt(PROMPTS["english"])
    assert learnt([(100, 527)] * 30, known).estimate(20_000) == pytest.approx(5900, rel=0.1)


@pytest.mark.parametrize("outlier", [1, 10**6], ids=["of the cache alone", "with images"])
def test_a_report_of_something_else_does_not_throw_it(outlier: int) -> None:
    known = learnt(PROMPTS["english"])
    before = known.estimate(10_000)
    assert known.learn(8000, outlier).estimate(10_000) == pytest.approx(before, rel=0.15)
    assert learnt(PROMPTS["english"][:10], known.learn(8000, outlier)).estimate(10_000) == pytest.approx(
        before, rel=0.1
    )


@given(st.lists(st.tuples(st.integers(-5, 10**8), st.integers(-5, 10**8)), max_size=60))
def test_whatever_is_reported_the_line_goes_up_and_stays_finite(prompts: list[tuple[int, int]]) -> None:
    known = learnt(prompts)
    estimates = [known.estimate(size) for size in (0, 1, 1000, 10**6, 10**8)]
    assert estimates == sorted(estimates)
    assert estimates[0] >= 0
    assert estimates[3] >= least_tokens(10**6)
    assert min(known.variances) > 0


def test_images_are_guessed() -> None:
    assert Calibration().estimate(0, images=2) == Calibration().estimate(0) + 2000


# --- sizes ------------------------------------------------------------------------------------------

TEXTS = ("plain words", 'quotes " and \\ and\nlines', "Grüße aus Köln", "你好,世界", "📎 clip")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_escapes_count_as_what_they_stand_for(text: str, *, ensure_ascii: bool) -> None:
    raw = json.dumps(text * 20, ensure_ascii=ensure_ascii).encode()
    assert size_of(raw) == pytest.approx(len(text.encode()) * 20 + 2, rel=0.25)


def test_images_and_sound_count_nothing() -> None:
    data = base64.b64encode(random.Random(1).randbytes(50_000)).decode()
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
    ]
    assert size_of(json.dumps(content).encode()) < 400
    for part in content:
        tight = json.dumps([part], separators=(",", ":"))
        assert size_of(tight.encode()) < 150
        assert size_of(tight.replace("/", "\\/").encode()) < 150, "as PHP writes it"


def test_a_long_text_is_measured_at_once() -> None:
    raw = json.dumps('Some words, a path/like/this and "more".\n' * 25_000).encode()
    began = time.perf_counter()
    size = size_of(raw)
    assert time.perf_counter() - began < 0.03
    assert size == pytest.approx(len(raw), rel=0.1)
