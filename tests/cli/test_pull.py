"""`pull` with environments and weights that are there, and with some that cannot be had."""

from pathlib import Path

from tests.cli.conftest import Cli


def write(cli: Cli, *models: str) -> None:
    """Each model has a venv and weights of its own unless its name begins with "no"."""
    text = '[auth]\nrequired = false\n[paths]\nstate = "state"\ncache = "cache"\nruntime = "run"\n'
    for model in models:
        text += f'[models.{model}]\nsource = "./weights-{model}"\nvenv = {{ path = "venv" }}\n'
        if not model.startswith("no"):
            (cli.folder / f"weights-{model}").mkdir()
    vllm = cli.folder / "venv" / "bin" / "vllm"
    vllm.parent.mkdir(parents=True)
    vllm.touch(mode=0o755)
    cli.config.write_text(text)


async def test_what_is_there_is_said_to_be(cli: Cli) -> None:
    write(cli, "one", "two")
    done = await cli("pull", "--all")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()] == ["one", "two"]
    assert done.out.count("venv and weights are here") == 2


async def test_one_that_fails_does_not_keep_the_others_from_it(cli: Cli) -> None:
    write(cli, "nothing", "two")
    done = await cli("pull", "nothing", "two", "two")
    assert done.code == 1
    assert done.out.splitlines()[-2:] == ["nothing  failed", "two  venv and weights are here"]
    assert str(Path("weights-nothing")) in done.err
    assert done.err.startswith("cannot ")


async def test_keys_that_only_the_daemon_can_read_are_not_asked_for(cli: Cli) -> None:
    write(cli, "one")
    cli.config.write_text(cli.config.read_text() + '[clients.webui]\nkey_credential = "webui"\n')
    assert (await cli("check")).code == 78, "without the credential the daemon cannot let anybody in"
    assert (await cli("pull", "one")).code == 0


async def test_of_a_model_with_replicas_all_are_pulled_and_of_an_adapter_its_weights(cli: Cli) -> None:
    write(cli, "one", "two")
    replicas = "replicas = 2\ngpus = []\n"
    adapter = '[models.sql]\nadapter_of = "two"\nsource = "./weights-one"\n'
    text = cli.config.read_text().replace("[models.two]", f"{replicas}[models.two]")
    cli.config.write_text(text + adapter)
    done = await cli("pull", "one", "sql")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "one_0  venv and weights are here",
        "one_1  venv and weights are here",
        "sql  weights are here",
    ]


async def test_of_models_elsewhere_nothing_is_fetched(cli: Cli) -> None:
    write(cli, "one")
    far = '[models.far]\nengine = "remote"\nurl = "http://10.0.0.9/v1"\n'
    peer = '[peers.other]\nurl = "http://10.0.0.8:8000"\n[routes.r]\nmembers = ["one"]\n'
    cli.config.write_text(cli.config.read_text() + far + peer)
    done = await cli("pull", "far", "other/px")
    assert (done.code, done.err) == (0, "")
    nothing = "its engine has nothing to fetch"
    assert done.out.splitlines() == [f"far  {nothing}", f"other/px  {nothing}"]
    unknown = await cli("pull", "zzz")
    assert unknown.code == 1
    assert unknown.err.endswith("the configuration has one, far and r\n")
