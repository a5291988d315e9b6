"""From files on disk to a Config."""

import hashlib
import os
from pathlib import Path

import pytest

from supervisord_llm.config import credentials
from supervisord_llm.config import load as loading
from supervisord_llm.config.checks.checks import warnings
from supervisord_llm.config.load import config_file, load
from supervisord_llm.config.model import Address, Host, Limits, Model, Paths, Queue, Restart, Share, Venv
from supervisord_llm.errors import ConfigError
from tests.config.conftest import Load, Problems

MODEL = '[models.chat]\nsource = "org/chat"\n'


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def test_an_empty_file_is_a_configuration(loaded: Load) -> None:
    config = loaded("")
    assert config.server.listen == (Address("0.0.0.0", 8000),)
    assert config.auth_required
    assert config.models == {}


def test_a_model_with_every_key(loaded: Load) -> None:
    config = loaded("""
[models."qwen2.5"]
source = "org/chat"
revision = "main"
engine = "vllm"
path = false
aliases = ["org/Chat-7B"]
gpus = [0, "GPU-00aa"]
tensor_parallel = 2
vram = "40%"
flags.max_model_len = 8192
flags.enforce-eager = true
flags."compilation-config.my_key" = 1
flags.hf-overrides = { a_b = [1] }
env = { A = "", B = "2" }
start_timeout = 60
stall_timeout = "1.5m"
max_concurrent = 8
queue = { size = 5 }
idle = { stop_after = "0s", sleep_after = "5m", sleep_level = 2 }
keep = true
min_residency = "500ms"
restart = { backoff = "1s..1m" }
limits = { memory = "32GiB", cpu = 1.5, pids = 4096 }
[models."qwen2.5".venv]
requirements = ["vllm"]
python = "3.12"
index_url = "https://a"
extra_index_urls = ["https://b"]
find_links = ["./wheels", "https://c"]
""")
    folder = config.files[0].parent
    assert config.models == {
        "qwen2.5": Model(
            name="qwen2.5",
            source="org/chat",
            revision="main",
            path=None,
            aliases=("org/Chat-7B",),
            gpus=(0, "GPU-00aa"),
            tensor_parallel=2,
            vram=Share(0.4),
            venv=Venv(
                requirements=("vllm",),
                python="3.12",
                index_url="https://a",
                extra_index_urls=("https://b",),
                find_links=(f"{folder}/wheels", "https://c"),
            ),
            flags={
                "max-model-len": 8192,
                "enforce-eager": True,
                "compilation-config.my_key": 1,
                "hf-overrides": {"a_b": [1]},
            },
            env={"A": "", "B": "2"},
            start_timeout_s=60,
            stall_timeout_s=90,
            max_concurrent=8,
            queue=Queue(size=5),
            idle_stop_after_s=None,
            idle_sleep_after_s=300,
            sleep_level=2,
            keep=True,
            min_residency_s=0.5,
            restart=Restart(backoff_s=(1, 60)),
            limits=Limits(memory_bytes=32 * 2**30, cpu=1.5, pids=4096),
        )
    }


def test_the_rest_of_the_configuration(loaded: Load) -> None:
    config = loaded(
        """
[server]
listen = ["[::1]:80", "unix:/run/x.sock", "localhost:1"]
default_model = "c"
unknown_model = "default"
preload = ["c", "chat"]
max_body = 10
heartbeat = "0s"
[vram]
budget = "20GB"
reserve = "1GiB"
enforce = "observe"
tolerance = "8%"
[host]
ram_budget = "64GiB"
[gpus.0]
budget = "50%"
[gpus.GPU-00aa]
[metrics]
public = true
enabled = false
[log]
format = "json"
[auth]
required = false
"""
        + MODEL
        + 'aliases = ["c"]\n'
    )
    assert [str(address) for address in config.server.listen] == [
        "[::1]:80",
        "unix:/run/x.sock",
        "localhost:1",
    ]
    assert config.server.default_model == "chat", "an alias is resolved to its model"
    assert config.server.preload == ("chat",)
    assert (config.server.max_body_bytes, config.server.heartbeat_s) == (10, 0)
    assert (config.vram.budget, config.vram.reserve_bytes) == (20 * 10**9, 2**30)
    assert (config.vram.enforce, config.vram.tolerance) == ("observe", Share(0.08))
    assert config.host == Host(ram_budget=64 * 2**30)
    assert config.gpu_budgets == {"0": Share(0.5)}
    assert (config.metrics_public, config.metrics_enabled, config.log_format) == (True, False, "json")
    assert not config.auth_required


def test_defaults_stand_under_every_model_and_tables_merge(loaded: Load) -> None:
    config = loaded("""
[defaults]
venv = "v"
keep = true
flags = { a = 1, max-model-len = 1 }
env = { A = "1", B = "1" }
queue = { size = 7, timeout = "1m" }
restart = { tries = 9 }
limits = { memory = "1GiB", cpu = 4 }
idle = { stop_after = "1h" }
gpus = [0, 1]
tensor_parallel = 2
[venvs.v]
requirements = ["x"]
[models.a]
source = "a"
[models.b]
source = "b"
venv = { path = "venv" }
keep = false
flags = { max_model_len = 2 }
env = { B = "2" }
queue = { size = 8 }
restart = { window = "1m" }
limits = { cpu = 2 }
gpus = "auto"
""")
    a, b = config.models["a"], config.models["b"]
    assert a.venv == Venv(requirements=("x",))
    assert b.venv == Venv(path=config.files[0].parent / "venv")
    assert (a.keep, b.keep) == (True, False)
    assert b.flags == {"a": 1, "max-model-len": 2}
    assert b.env == {"A": "1", "B": "2"}
    assert b.queue == Queue(size=8, timeout_s=60)
    assert b.restart == Restart(tries=9, window_s=60)
    assert (a.limits, b.limits) == (Limits(memory_bytes=2**30, cpu=4), Limits(memory_bytes=2**30, cpu=2))
    assert a.idle_stop_after_s == b.idle_stop_after_s == 3600
    assert (a.gpus, b.gpus) == ((0, 1), "auto")


@pytest.mark.parametrize("source", ["./chat", "../chat", "/srv/chat"])
def test_a_directory_as_source_begins_in_the_folder_of_the_file(source: str, loaded: Load) -> None:
    config = loaded(f'[models.a]\nsource = "{source}"\nflags = {{ trust-remote-code = true }}')
    assert Path(config.models["a"].source) == config.files[0].parent / source


def test_remote_code_of_a_commit_is_trusted(loaded: Load) -> None:
    loaded(MODEL + f'revision = "{"0" * 40}"\nflags = {{ trust-remote-code = true }}')


def test_pipeline_ranks_take_gpus_too(loaded: Load) -> None:
    loaded(MODEL + "gpus = [0, 1, 2, 3]\ntensor_parallel = 2\nflags = { pipeline-parallel-size = 2 }")


@pytest.mark.parametrize(
    ("idle", "after_s", "level"),
    [
        ("{}", None, 0),
        ('{ sleep_after = "5m" }', 300, 1),
        ('{ sleep_after = "0s" }', None, 0),
        ("{ sleep_level = 2 }", None, 2),
    ],
)
def test_a_model_can_sleep_where_it_is_to(idle: str, after_s: float | None, level: int, loaded: Load) -> None:
    model = loaded(MODEL + f"idle = {idle}").models["chat"]
    assert (model.idle_sleep_after_s, model.sleep_level) == (after_s, level)


@pytest.mark.parametrize("gpus", ["[]", '"auto"'])
def test_what_sizes_memory_is_allowed_where_it_may_be_the_hosts(gpus: str, loaded: Load) -> None:
    flags = loaded(MODEL + f'gpus = {gpus}\nflags.kv-cache-memory-bytes = "1G"').models["chat"].flags
    assert flags == {"kv-cache-memory-bytes": "1G"}


def test_a_model_named_chat_has_its_path(loaded: Load) -> None:
    """`/chat/completions` is answered at the top, yet `/chat/v1/…` is free for a model."""
    assert loaded(MODEL).models["chat"].path == "/chat"


@pytest.mark.parametrize("text", ["[log]\r\nformat = 'json'\r\n", "\ufeff[log]\nformat = 'json'\n"])
def test_files_of_windows_editors_are_read(text: str, loaded: Load) -> None:
    assert loaded(text).log_format == "json"


def test_windows_line_ends_do_not_shift_lines(problems: Problems) -> None:
    (found,) = problems('\ufeff[server]\r\n\r\nheartbeat = "x"\r\n')
    assert found.line == 3


# --- drop-ins ----------------------------------------------------------


def test_drop_ins_merge_in_the_order_of_their_names_and_win(loaded: Load) -> None:
    config = loaded(
        MODEL + 'aliases = ["a", "b"]\nflags = { x = 1 }\n',
        b='[models.chat]\naliases = ["d"]\nflags.y = 2\n[models.new]\nsource = "new"',
        a='[models.chat]\naliases = ["c"]\nflags = { x = 3 }\nkeep = true',
    )
    chat = config.models["chat"]
    assert chat.aliases == ("d",)
    assert chat.flags == {"x": 3, "y": 2}
    assert chat.keep
    assert list(config.models) == ["chat", "new"]
    assert [file.name for file in config.files] == ["config.toml", "a.toml", "b.toml"]


def test_a_problem_is_told_of_the_file_that_set_the_value(problems: Problems, tmp_path: Path) -> None:
    found = problems(
        MODEL + '\n\naliases = ["a b", "c", "d e"]\nvram = "x"\nkeep = 1',
        a='\n[models.chat]\naliases = [\n  "ok",\n  "not ok",\n]\nvram = "y"\nvenv = "ghost"',
    )
    drop_in = tmp_path / "conf.d" / "a.toml"
    assert [(problem.file, problem.line, problem.path) for problem in found] == [
        (tmp_path / "config.toml", 7, "models.chat.keep"),
        (drop_in, 5, "models.chat.aliases[1]"),
        (drop_in, 7, "models.chat.vram"),
        (drop_in, 8, "models.chat.venv"),
    ]


# --- files that cannot be read ----------------------------------------------------------


def test_a_missing_file_is_told_with_the_ways_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "no.toml", {})
    hint = "make it, or name another with --config or $LLM_SUPERVISOR_CONFIG"
    assert str(raised.value) == f"{tmp_path}/no.toml: cannot find it; {hint}"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a = 1\nb = nope\n", 2),
        (b"a = 1\n\nb = [\n", 3),
        (b"a = 1\na = 2\n", 2),
        (b"a = 1\nb = '\xff'\n", 2),
    ],
)
def test_a_file_that_is_not_toml_is_told_with_its_line(data: bytes, line: int, problems: Problems) -> None:
    (found,) = problems(data)
    assert found.line == line
    assert found.found.startswith("cannot read it")
    assert found.hint


def test_every_broken_file_is_told_and_nothing_is_guessed_from_the_others(problems: Problems) -> None:
    found = problems('[server]\ndefault_model = "x"', a="a = ", b="= 1", c=MODEL)
    assert [problem.file and problem.file.name for problem in found] == ["a.toml", "b.toml"]


def test_a_directory_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read it: Is a directory"):
        load(tmp_path, {})


def test_which_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"LLM_SUPERVISOR_CONFIG": "/a/b.toml"}
    assert config_file(Path("x.toml"), environ) == tmp_path / "x.toml"
    assert config_file(None, environ) == Path("/a/b.toml")
    assert config_file(None, {}) == Path("/etc/llm-supervisor/config.toml")


# --- keys ----------------------------------------------------------


def test_keys_come_from_the_environment_before_the_files_and_the_near_file_first(
    loaded: Load, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("B=dot\nexport A='dot'\n")
    (tmp_path / "llm-supervisor.env").write_text("B=named\nC='na$A med'  # a comment\n")
    credentials.SYSTEM_FILE.parent.mkdir()
    credentials.SYSTEM_FILE.write_text("C=system\nD=system\n")
    text = "".join(f'[clients.{name.lower()}]\nkey_env = "{name}"\n' for name in "ABCD")
    config = loaded(text, {"A": "env"})
    assert {client.name: client.key_digests for client in config.clients} == {
        "a": (digest("env"),),
        "b": (digest("dot"),),
        "c": (digest("na$A med"),),
        "d": (digest("system"),),
    }


def test_keys_from_files_credentials_and_hashes(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    (tmp_path / "cred").mkdir()
    (tmp_path / "cred" / "name").write_text("from-credential")
    config = loaded(
        f"""
[clients.a]
key_file = "key"
models = ["chat*"]
priority = -5
admin = true
[clients.b]
key_credential = "name"
[clients.c]
key_sha256 = "{digest("c").hex()}"
""",
        {"CREDENTIALS_DIRECTORY": str(tmp_path / "cred")},
    )
    assert [client.key_digests for client in config.clients] == [
        (digest("from-file"),),
        (digest("from-credential"),),
        (digest("c"),),
    ]
    first = config.clients[0]
    assert (first.models, first.priority, first.admin) == (("chat*",), -5, True)


def test_a_key_that_is_nowhere_is_told_with_every_place_looked_at(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTHER=1\n")
    (tmp_path / "llm-supervisor.env").write_bytes(b"A=\xff\n")
    (found,) = problems('[clients.a]\nkey_env = "A"')
    assert found.found == (
        f"cannot find the key: the variable A is set in none of the environment, {tmp_path}/.env, "
        f"{tmp_path}/llm-supervisor.env (not utf-8), {credentials.SYSTEM_FILE} (no such file); "
        "set it in one of them"
    )


def test_an_empty_key_opens_nothing(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    text = '[clients.a]\nkey_env = "A"\n[clients.b]\nkey_file = "key"'
    assert [problem.found for problem in problems(text, {"A": ""})] == [
        "cannot find the key: the variable A in the environment is empty; write the key there",
        f"cannot find the key: the file {tmp_path}/key is empty; write the key there",
    ]


def test_two_keys_in_one_file_are_told_apart_from_none(problems: Problems, tmp_path: Path) -> None:
    """No request could carry both, so neither would open anything."""
    (tmp_path / "key").write_text("sk-old\nsk-new\n")
    (found,) = problems('[clients.a]\nkey_file = "key"')
    assert "has more than one line; write one key alone, and others in places of their own" in found.found


# --- places ----------------------------------------------------------


def test_paths_of_the_config_win_over_those_of_systemd(loaded: Load, tmp_path: Path) -> None:
    environ = {"STATE_DIRECTORY": "/a/state:/b", "CACHE_DIRECTORY": "/a/cache", "RUNTIME_DIRECTORY": "/a/run"}
    config = loaded('[paths]\ncache = "/c"\nruntime = "run"', environ)
    assert config.paths == Paths(state=Path("/a/state"), cache=Path("/c"), runtime=tmp_path / "run")


def test_root_has_var_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert loading.default_paths({"HOME": "/h", "XDG_RUNTIME_DIR": "/x"}) == Paths(
        state=Path("/var/lib/llm-supervisor"),
        cache=Path("/var/cache/llm-supervisor"),
        runtime=Path("/run/llm-supervisor"),
    )


def test_others_have_xdg_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    environ = {"HOME": "/h", "XDG_RUNTIME_DIR": "/x", "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "relative"}
    assert loading.default_paths(environ) == Paths(
        state=Path("/s/llm-supervisor"),
        cache=Path("/h/.cache/llm-supervisor"),
        runtime=Path("/x/llm-supervisor"),
    )


def test_the_services_user_has_the_services_directories(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else `sudo -u llm-supervisor llm-supervisor pull` would fill what the service never looks at."""
    theirs = Paths(state=tmp_path, cache=Path("/c"), runtime=Path("/r"))
    monkeypatch.setattr(loading, "SYSTEM", theirs)
    if os.geteuid() == 0:
        os.chown(tmp_path, 1000, -1)
    uid = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert loading.default_paths({"HOME": "/h", "XDG_RUNTIME_DIR": "/x"}) == theirs


@pytest.fixture
def shared_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The runtime directory of a user who has no $XDG_RUNTIME_DIR."""
    runtime = tmp_path / "llm-supervisor-0"
    monkeypatch.setattr(loading, "_shared_runtime", lambda: runtime)
    monkeypatch.setattr(
        loading, "default_paths", lambda _: Paths(state=tmp_path, cache=tmp_path, runtime=runtime)
    )
    (tmp_path / "config.toml").write_text("")
    return runtime


def test_a_runtime_directory_under_tmp_is_private(shared_runtime: Path, tmp_path: Path) -> None:
    assert load(tmp_path / "config.toml", {}).paths.runtime == shared_runtime
    assert shared_runtime.stat().st_mode & 0o777 == 0o700


def test_a_runtime_directory_under_tmp_that_others_may_enter_is_refused(
    shared_runtime: Path, tmp_path: Path
) -> None:
    shared_runtime.mkdir()
    shared_runtime.chmod(0o777)
    with pytest.raises(ConfigError, match="it belongs to others too; set \\$XDG_RUNTIME_DIR"):
        load(tmp_path / "config.toml", {})


# --- warnings ----------------------------------------------------------


def test_what_is_allowed_and_probably_not_meant(loaded: Load) -> None:
    key = digest("x").hex()
    no_models, no_clients = warnings(loaded(""))
    assert no_models == "no models are configured: every request gets 404; add a [models.NAME] table"
    assert no_clients.startswith(
        "no clients are configured: every request gets 401; add a [clients.NAME] table"
    )
    assert warnings(loaded(MODEL + "[auth]\nrequired = false")) == (
        "anyone who reaches 0.0.0.0:8000 may use every model: [auth] required is false",
    )
    assert warnings(loaded(MODEL + f'[clients.a]\nkey_sha256 = "{key}"\nmodels = ["chat", "qwen*"]')) == (
        'clients.a.models: "qwen*" matches no model',
    )
    local = (
        '[auth]\nrequired = false\n[server]\nlisten = ["127.0.0.2:1", "[::1]:1", "unix:/a", "localhost:1"]\n'
    )
    assert warnings(loaded(MODEL + local)) == ()


def test_pages_of_everybody_without_keys_are_told(loaded: Load) -> None:
    local = MODEL + '[server]\nlisten = ["localhost:1"]\n[cors]\nallow_origins = ["*"]\n[auth]\nrequired = '
    (told,) = warnings(loaded(local + "false"))
    assert told.startswith("any web page that a browser here opens may use every model")


def test_a_sleep_that_never_comes_is_told(loaded: Load) -> None:
    local = MODEL + '[server]\nlisten = ["localhost:1"]\n[auth]\nrequired = false\n[defaults.idle]\n'
    why = "it never sleeps, since stop_after comes before sleep_after; make stop_after the longer one"
    assert warnings(loaded(local + 'sleep_after = "30m"')) == (f"models.chat.idle: {why}",)
    assert warnings(loaded(local + 'sleep_after = "29m"')) == ()
    assert warnings(loaded(local + 'sleep_after = "1h"\nstop_after = "0s"')) == ()


@pytest.mark.parametrize("uuid", ["GPU-00aa", "GPU-z9-Stub-0", "GPU-1b2c3d4e-0000-1111-2222-333344445555"])
def test_any_uuid_of_a_gpu_is_taken(loaded: Load, uuid: str) -> None:
    config = loaded(f'[gpus.{uuid}]\nbudget = "1GiB"\n[models.m]\nsource = "org/m"\ngpus = ["{uuid}"]')
    assert config.gpu_budgets == {uuid: 1024**3}
    assert config.models["m"].gpus == (uuid,)
