"""Weights, downloaded by the real client of the hub from a hub on this machine."""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_llm.config.model import Model
from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision import fetch
from supervisord_llm.provision.weights import Weights, hub_cache, read_told, with_hub_token
from tests.provision import hub as fake
from tests.provision.hub import FIRST, REPO, SECOND, Hub, serving
from tests.provision.wheels import Reports, environ, make_paths


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as served:
        yield served


@pytest.fixture
def weights(hub: Hub, tmp_path: Path) -> Weights:
    return Weights(make_paths(tmp_path), environ(**hub.environ))


def hub_model(revision: str | None = FIRST, name: str = "chat") -> Model:
    return Model(name=name, source=REPO, revision=revision, flags={}, env={})


SMALL = {"config.json", "tokenizer.json"}


def unfinished(root: Path) -> list[Path]:
    return [file for file in root.rglob("*.incomplete") if file.stat().st_size]


def resumed_at(asked: str) -> int:
    return int(asked.removeprefix("bytes=").removesuffix("-"))


async def test_a_pinned_download_is_recorded_and_trusted_without_the_hub(weights: Weights, hub: Hub) -> None:
    reports = Reports()
    assert weights.find(hub_model()) is None
    snapshot = await weights.fetch(hub_model(), reports)
    assert (snapshot / "model.safetensors").read_bytes() == hub.commits[FIRST]["model.safetensors"]
    assert any(phase.startswith("downloading") for phase in reports.phases)
    assert "verifying" in reports.phases
    hub.requests.clear()
    assert await weights.fetch(hub_model(), reports) == snapshot
    assert weights.find(hub_model()) == snapshot
    assert hub.requests == []


async def test_only_what_vllm_needs_is_downloaded(weights: Weights) -> None:
    snapshot = await weights.fetch(hub_model(), Reports())
    names = {file.name for file in snapshot.rglob("*") if file.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


async def test_an_unpinned_model_stays_at_its_first_commit_until_renewed(weights: Weights, hub: Hub) -> None:
    unpinned = hub_model(None)
    first = await weights.fetch(unpinned, Reports())
    assert weights.commit(unpinned) == FIRST
    hub.main = SECOND
    assert await weights.fetch(unpinned, Reports()) == first
    (first / "config.json").unlink()  # even to repair it
    assert (await weights.fetch(unpinned, Reports())).name == FIRST
    assert (await weights.fetch(unpinned, Reports(), renew=True)).name == SECOND
    assert weights.commit(unpinned) == SECOND


async def test_renewing_leaves_a_pinned_model_alone(weights: Weights, hub: Hub) -> None:
    await weights.fetch(hub_model(), Reports())
    hub.requests.clear()
    await weights.fetch(hub_model(), Reports(), renew=True)
    assert hub.requests == []


async def test_a_changed_revision_is_downloaded(weights: Weights) -> None:
    await weights.fetch(hub_model(FIRST), Reports())
    assert weights.find(hub_model(SECOND)) is None
    assert (await weights.fetch(hub_model(SECOND), Reports())).name == SECOND


async def test_a_broken_connection_is_resumed_where_it_broke(weights: Weights, hub: Hub) -> None:
    hub.faults = {"break"}
    snapshot = await weights.fetch(hub_model(), Reports())
    assert (snapshot / "model.safetensors").read_bytes() == hub.commits[FIRST]["model.safetensors"]
    assert [resumed_at(asked) > 0 for asked in hub.ranges] == [True]


async def test_cancelling_ends_the_download_and_the_next_one_fetches_the_rest(
    weights: Weights, hub: Hub, tmp_path: Path
) -> None:
    hub.faults = {"hang"}
    fetching = asyncio.create_task(weights.fetch(hub_model(), Reports()))
    snapshot = weights.hub / "models--acme--tiny" / "snapshots" / FIRST
    async with asyncio.timeout(30):
        while not (unfinished(tmp_path) and {file.name for file in snapshot.glob("*.json")} == SMALL):
            await asyncio.sleep(0.02)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert weights.find(hub_model()) is None
    assert not unfinished(tmp_path)
    hub.faults = set()
    hub.released.set()
    hub.requests.clear()
    assert await weights.fetch(hub_model(), Reports()) == snapshot
    got = [request for request in hub.requests if request.startswith("GET /acme/tiny/resolve/")]
    assert got == [f"GET /acme/tiny/resolve/{FIRST}/model.safetensors"]


async def test_what_a_killed_download_left_is_removed_after_a_while(weights: Weights, hub: Hub) -> None:
    await weights.fetch(hub_model(), Reports())
    blobs = weights.hub / "models--acme--tiny" / "blobs"
    old, live = blobs / "a.1.incomplete", blobs / "b.2.incomplete"
    for file in (old, live):
        file.touch()
    os.utime(old, (0, 0))
    await weights.fetch(hub_model(SECOND), Reports())
    assert not old.exists()
    assert live.exists()


async def test_bytes_that_are_not_the_promised_ones_are_not_served(weights: Weights, hub: Hub) -> None:
    hub.faults = {"lie"}
    with pytest.raises(
        ProvisionError, match=r"cannot use model\.safetensors of acme/tiny: its size or SHA-256"
    ):
        await weights.fetch(hub_model(), Reports())
    assert weights.find(hub_model()) is None
    hub.faults = set()
    snapshot = await weights.fetch(hub_model(), Reports())
    assert (snapshot / "model.safetensors").read_bytes() == hub.commits[FIRST]["model.safetensors"]


async def test_a_snapshot_without_a_record_or_with_a_changed_size_is_not_trusted(
    weights: Weights, tmp_path: Path
) -> None:
    snapshot = await weights.fetch(hub_model(), Reports())
    record = tmp_path / "state" / "weights" / "chat.json"
    assert json.loads(record.read_text())["commit"] == FIRST
    with (snapshot / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert weights.find(hub_model()) is None
    record.unlink()
    assert weights.find(hub_model()) is None


@pytest.mark.parametrize(
    ("fault", "said", "temporary"),
    [
        ("gated", r"it is gated; accept its licence at http://.*/acme/tiny and set HF_TOKEN", False),
        ("missing", r"no such repository at http://.*correct source, or set HF_TOKEN", False),
        ("down", r"check the network or HF_ENDPOINT and try again, or set source to a local directory", True),
    ],
)
async def test_what_the_hub_refuses_is_one_sentence_with_a_way_out(
    weights: Weights, hub: Hub, fault: str, said: str, temporary: bool
) -> None:
    hub.faults = {fault}
    with pytest.raises(ProvisionError, match=said) as problem:
        await weights.fetch(hub_model(), Reports())
    assert str(problem.value).startswith("cannot download acme/tiny")
    assert "\n" not in str(problem.value)
    assert problem.value.temporary is temporary


async def test_a_revision_that_is_not_there_is_named(weights: Weights) -> None:
    with pytest.raises(ProvisionError, match="at revision v9: no such revision; correct revision"):
        await weights.fetch(hub_model("v9"), Reports())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it, or set source to a local directory"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network or HF_ENDPOINT"),
    ],
)
async def test_no_way_to_the_hub_is_said(tmp_path: Path, variables: dict[str, str], said: str) -> None:
    weights = Weights(make_paths(tmp_path), environ(**variables))
    with pytest.raises(ProvisionError, match=said):
        await weights.fetch(hub_model(), Reports())


async def test_a_download_that_does_not_fit_is_refused_before_it_starts(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process instead of the child, to make the disk look small."""
    free = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(
        ProvisionError, match=r"needs 24\.0 MiB, 1\.0 MiB free on .*: free space or set"
    ) as problem:
        fetch._need_space("acme/tiny", fake.LARGE_BYTES, tmp_path)
    assert problem.value.temporary


async def test_two_that_want_the_same_model_download_it_once(hub: Hub, tmp_path: Path) -> None:
    both = [Weights(make_paths(tmp_path), environ(**hub.environ)) for _ in range(2)]
    await asyncio.gather(*(weights.fetch(hub_model(), Reports()) for weights in both))
    path = f"GET /acme/tiny/resolve/{FIRST}/model.safetensors"
    assert hub.requests.count(path) == 1


async def test_the_hub_sees_the_token_and_no_other_secret_reaches_the_child(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HF_TOKEN=hf_from_the_file\n")
    weights = Weights(make_paths(tmp_path), with_hub_token(tmp_path, environ(**hub.environ)))
    await weights.fetch(hub_model(), Reports())
    assert "Bearer hf_from_the_file" in hub.tokens


async def test_a_token_added_to_the_dotenv_file_is_seen_by_the_next_download(
    hub: Hub, tmp_path: Path
) -> None:
    weights = Weights(make_paths(tmp_path), environ(**hub.environ), tmp_path)
    (tmp_path / ".env").write_text("HF_TOKEN=hf_added_later\n")
    await weights.fetch(hub_model(), Reports())
    assert "Bearer hf_added_later" in hub.tokens


def test_verifying_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk takes minutes to read what a large model has."""
    monkeypatch.setattr(fetch, "SIGN_S", 0.0)
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 4)
    (tmp_path / "large").write_bytes(b"12345678")
    (tmp_path / "small").write_bytes(b"12")
    digests = {"small": None, "large": hashlib.sha256(b"12345678").hexdigest()}
    fetch._verify(REPO, tmp_path, {"small": 2, "large": 8}, digests)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told == [{"phase": "verifying", "fraction": fraction} for fraction in (0.0, 0.5, 1.0)]


async def test_a_local_directory_is_used_as_it_is(tmp_path: Path) -> None:
    weights = Weights(make_paths(tmp_path), environ())
    local = Model(name="chat", source=str(tmp_path / "model"), flags={}, env={})
    with pytest.raises(ProvisionError, match=r"cannot find the weights of chat: .*/model does not exist"):
        await weights.fetch(local, Reports())
    (tmp_path / "model").mkdir()
    assert await weights.fetch(local, Reports()) == tmp_path / "model"


def test_the_weights_tell_how_long_a_context_they_are_made_for(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/config.json").write_text('{"max_position_embeddings": 32768}')
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested/config.json").write_text('{"text_config": {"max_position_embeddings": 8192}}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("[]")
    found = [read_told(tmp_path / name) for name in ("flat", "nested", "broken", "missing")]
    assert [told and told.context_length for told in found] == [32768, 8192, None, None]


async def test_the_context_length_of_a_download_is_asked_of_the_disk_once(
    weights: Weights, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of models asks for each of them, on the event loop."""
    for commit, length in ((FIRST, 1000), (SECOND, 2000)):
        config = {"max_position_embeddings": length}
        hub.commits[commit]["config.json"] = json.dumps(config).encode()
    assert weights.context_length(hub_model()) is None
    await weights.fetch(hub_model(), Reports())
    assert weights.context_length(hub_model()) == 1000  # what was missing has come
    stats = []
    stat = Path.stat
    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", lambda *path, **how: stats.append(path) or stat(*path, **how))
        patched.setattr(Path, "read_bytes", None)
        assert weights.context_length(hub_model()) == 1000
    assert len(stats) == 1
    await weights.fetch(hub_model(SECOND), Reports())
    assert weights.context_length(hub_model(SECOND)) == 2000
    assert weights.context_length(hub_model()) is None


def test_the_context_length_of_a_local_directory_follows_its_config(tmp_path: Path) -> None:
    weights = Weights(make_paths(tmp_path), environ())
    local = Model(name="chat", source=str(tmp_path), flags={}, env={})
    config = tmp_path / "config.json"
    found = [weights.context_length(local)]
    for at, text in enumerate(("{", '{"max_position_embeddings": 1}', '{"max_position_embeddings": 2}')):
        config.write_text(text)
        os.utime(config, (at, at))
        found.append(weights.context_length(local))
    assert found == [None, None, 1, 2]


def test_the_environment_names_the_hubs_cache(tmp_path: Path) -> None:
    paths = make_paths(tmp_path)
    assert hub_cache(paths, {}) == paths.hub
    assert hub_cache(paths, {"HF_HOME": "/hf"}) == Path("/hf/hub")
    assert hub_cache(paths, {"HF_HOME": "/hf", "HF_HUB_CACHE": "/cache"}) == Path("/cache")
