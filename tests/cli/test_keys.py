"""keys new: a key for the client, its hash for the configuration."""

import json
import tomllib
from hashlib import sha256

import pytest

from supervisord_llm.cli.keys import lines_for
from supervisord_llm.config.load import load
from tests.cli.conftest import Cli

NEW, OLD = "b" * 64, "a" * 64


async def test_a_new_key_is_printed_first_and_opens_what_its_lines_configure(cli: Cli) -> None:
    done = await cli("keys", "new", "web.ui")
    key, _, rest = done.out.partition("\n")
    assert (done.code, done.err) == (0, "")
    assert key.startswith("sk-")
    assert len(key) >= 3 + 43, "256 bits"
    assert key not in rest
    table = rest[rest.index("[clients.") : rest.index("\n\nThen")]
    cli.config.write_text(cli.config.read_text() + table)
    (client,) = load(cli.config).clients
    assert (client.name, client.key_digests) == ("web.ui", (sha256(key.encode()).digest(),))


async def test_each_key_is_another_and_json_tells_all_of_it(cli: Cli) -> None:
    told = [json.loads((await cli("keys", "new", "a", "--json")).out) for _ in range(2)]
    assert told[0]["key"] != told[1]["key"]
    for each in told:
        assert set(each) == {"name", "key", "key_sha256", "config"}
        assert each["key_sha256"] == sha256(each["key"].encode()).hexdigest()
        assert tomllib.loads(each["config"]) == {"clients": {"a": {"key_sha256": each["key_sha256"]}}}


async def test_a_client_that_has_a_key_gets_the_line_with_which_both_are_valid(cli: Cli) -> None:
    before = cli.config.read_text()
    cli.config.write_text(f'{before}[clients.a]\nkey_sha256 = "{OLD}"\n')
    told = json.loads((await cli("keys", "new", "a", "--json")).out)
    cli.config.write_text(f"{before}[clients.a]\n{told['config']}\n")
    (client,) = load(cli.config).clients
    assert client.key_digests == (bytes.fromhex(told["key_sha256"]), bytes.fromhex(OLD))


@pytest.mark.parametrize(
    ("configured", "line"),
    [
        ({"key_sha256": OLD}, f'key_sha256 = ["{NEW}", "{OLD}"]'),
        ({"key_sha256": [OLD, "c" * 64]}, f'key_sha256 = ["{NEW}", "{OLD}", "{"c" * 64}"]'),
        ({"key_env": "A", "key_file": ["f"]}, f'key_sha256 = "{NEW}"'),
        ({"key_sha256": 1}, f'key_sha256 = "{NEW}"'),
    ],
)
def test_the_line_stands_beside_what_is_there(configured: dict[str, object], line: str) -> None:
    assert lines_for("a", NEW, configured).config == line


async def test_a_name_that_no_client_can_have_is_wrong_usage(cli: Cli) -> None:
    for name in ("a b", ".", "a" * 65, "anonymous"):
        done = await cli("keys", "new", name)
        assert (done.code, done.out) == (2, "")
        assert f"cannot name a client {name!r}" in done.err


async def test_a_configuration_that_cannot_be_read_is_no_hindrance(cli: Cli) -> None:
    cli.config.write_text("[broken")
    done = await cli("keys", "new", "a")
    assert done.code == 0
    assert done.err.startswith("cannot tell whether a has a key already")
    assert done.out.startswith("sk-")
    cli.config.unlink()
    assert (await cli("keys", "new", "a")).err == ""
