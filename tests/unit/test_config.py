"""Configuration: precedence of the sources, and one clear line for whatever is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fabric import config
from fabric.config_keys import AGENT_KEYS, API_KEYS, example
from fabric.config_values import ConfigError, Number
from fabric.resources import Resources
from fabric.roles.settings import Settings

KEY = "0123456789abcdef" * 4
HERE = "127.0.0.1:0"
LEAST = {"rack": "r1", "layer": "compute", "zk": "127.0.0.1:2181", "listen": HERE, "data_listen": HERE}


def toml(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def key_file(folder: Path, content: str = KEY, mode: int = 0o600) -> Path:
    path = folder / "cluster.key"
    path.write_text(content)
    path.chmod(mode)
    return path


def refused(*, file: Path | None = None, environment: dict[str, str] | None = None, **flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.agent_config(file, environment, {**LEAST, **flags})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_then_file_then_environment_then_flags(tmp_path: Path) -> None:
    file = toml(tmp_path, 'node = "from-file"\ndriver = "null"\nsession_timeout_s = 7\n[limits]\noffer_wait_s = 3.0\n')
    environment = {"FABRIC_NODE": "from-variable", "FABRIC_SESSION_TIMEOUT_S": "8.5"}
    made = config.agent_config(file, environment, {**LEAST, "node": "from-flag"})
    assert made.node == "from-flag"
    assert made.settings == Settings(session_timeout_s=8.5, offer_wait_s=3.0)
    assert made.driver == "null"
    assert made.log_level == "info"
    assert config.agent_config(file, environment, LEAST).node == "from-variable"
    assert config.agent_config(file, {"FABRIC_NODE": ""}, LEAST).node == "from-file", "an empty variable counts as none"


def test_every_default_is_a_value_of_its_kind() -> None:
    for key in (*AGENT_KEYS, *API_KEYS):
        if key.default is not None:
            key.kind.read(key.default, False)
            key.kind.read(str(key.default), True)


def test_limits_default_to_those_of_the_roles() -> None:
    assert config.agent_config(flags=LEAST).settings == Settings()
    assert config.api_config(flags={"zk": "127.0.0.1:2181"}).settings == Settings()


def test_what_a_process_takes(tmp_path: Path) -> None:
    made = config.agent_config(
        flags={
            **LEAST,
            "state_dir": str(tmp_path),
            "cluster_key_file": str(key_file(tmp_path)),
            "listen": "[::1]:7000",
            "cache_size": "5 GiB",
            "store_size": "1048576",
            "scrub_mib_s": "5.5",
            "scrub_every_s": "3600",
            "lifeline_fd": "9",
        }
    )
    assert (made.listen, made.data_listen, made.advertise) == ("[::1]:7000", "127.0.0.1:0", None)
    assert made.cluster_key == bytes.fromhex(KEY)
    assert KEY not in repr(made)
    assert (made.cache_bytes, made.store_bytes, made.lifeline_fd) == (5 << 30, 1 << 20, 9)
    assert (made.scrub_mib_s, made.scrub_every_s) == (5.5, 3600.0)


def test_api_configuration(tmp_path: Path) -> None:
    flavors = tmp_path / "flavors.toml"
    flavors.write_text("[Odd]\nvcpus = 3\nmemory_mib = 5\ndisk_mib = 7\n")
    made = config.api_config(
        environment={"FABRIC_ZK": "zk1:2181,zk2:2181/site", "FABRIC_RACK": "not the API's, but no stranger"},
        flags={"listen": "0.0.0.0:80", "flavors_file": str(flavors), "zookeeper_wait_s": "3"},
    )
    assert (made.zookeeper, made.host, made.port) == ("zk1:2181,zk2:2181/site", "0.0.0.0", 80)
    assert made.flavors["Odd"].resources == Resources(3, 5, 7)
    assert made.limits.connect_wait_s == 3.0
    flavors.write_text("[Odd]\nvcpus = 3\n")
    with pytest.raises(ConfigError, match=r"flag --flavors-file.*memory_mib.*expected"):
        config.api_config(flags={"zk": "127.0.0.1:2181", "flavors_file": str(flavors)})


# --- capacity --------------------------------------------------------------------------------------------------------


def total(tmp_path: Path, text: str) -> Resources:
    flags = {**LEAST, "state_dir": str(tmp_path / "not" / "there")}
    return config.agent_config(toml(tmp_path, text), None, flags).total


def test_declared_capacity_is_offered_as_it_is(tmp_path: Path) -> None:
    declared = "[capacity]\nvcpus = 64\nmemory_mib = 1000\ndisk_mib = 5\n"
    assert total(tmp_path, declared + "[host_reserve]\nvcpus = 63\n[overcommit]\nvcpus = 9\n") == Resources(64, 1000, 5)


def test_capacity_of_the_host_less_its_own_times_overcommit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_host_memory_mib", lambda: 10_000)
    monkeypatch.setattr(config, "_disk_mib", lambda path: 50_000)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(10)))
    assert total(tmp_path, "") == Resources(10, 10_000 - 1024, 50_000 - 10_240)
    text = "[host_reserve]\nvcpus = 3\nmemory_mib = 1000\ndisk_mib = 0\n[overcommit]\nvcpus = 1.5\nmemory_mib = 0.5\n"
    assert total(tmp_path, text) == Resources(10, 4_500, 50_000)


def test_this_host_has_something(tmp_path: Path) -> None:
    found = total(tmp_path, "[host_reserve]\nmemory_mib = 0\ndisk_mib = 0\n")
    assert found.vcpus >= 1
    assert 64 <= found.memory_mib < 1 << 30
    assert found.disk_mib > 0


def test_a_host_that_keeps_everything() -> None:
    message = refused(**{"host_reserve.memory_mib": "900000000"})
    assert "flag --host-reserve-memory-mib: host_reserve.memory_mib: expected less than the" in message


# --- what is wrong, and where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('rak = "r1"', "expected only known keys, found 'rak'; did you mean rack?"),
        ("[capacity]\nvcpu = 1", "found 'capacity.vcpu'; did you mean capacity.vcpus?"),
        ("[capcity]\nvcpus = 1", "found 'capcity'"),
        ("capacity = 5", "capacity: expected a table [capacity], found 5"),
        ("[node]\nname = 1", "node: expected a name of at most 64"),
        ('[capacity]\nvcpus = "8"', "capacity.vcpus: expected a whole number from 1 to 65536 or \"auto\", found '8'"),
        ("[capacity]\nvcpus = 1.5", "found 1.5"),
        ("[capacity]\nvcpus = true", "found true"),
        ("[capacity]\nvcpus = 0", "found 0"),
        ("[capacity]\nvcpus = [1]", "found a list"),
        ("session_timeout_s = nan", "session_timeout_s: expected a number of seconds from 0.5 to 300, found nan"),
        ("session_timeout_s = 1e9", "found 1000000000.0"),
        ('driver = "docker"', 'driver: expected "process" or "null", found \'docker\''),
        ("listen = 8421", 'listen: expected an address "host:port", found 8421'),
        ('cache_size = "20 gigabytes"', "cache_size: expected a size such as"),
        ("state_dir = 5", "state_dir: expected a path, found 5"),
        ("lifeline_fd = 5", "expected only known keys, found 'lifeline_fd'"),
        ("[limits]\nmax_rounds = 0", "limits.max_rounds: expected a whole number from 1 to 1000000, found 0"),
        ("[limits]\nanswer_linger_s = 1.8", "answer_linger_s: expected less than a rack leader waits for it"),
        ("[limits]\nsilent_after_s = 0.5", "silent_after_s: expected more than limits.heartbeat_interval_s (30)"),
        ("rack = ", "expected TOML, found: Invalid value"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, expected: str) -> None:
    file = toml(tmp_path, text)
    flags = {key: value for key, value in LEAST.items() if key != "listen"} | {"listen": "127.0.0.1:0"}
    if text.startswith("listen"):
        del flags["listen"]
    with pytest.raises(ConfigError) as caught:
        config.agent_config(file, None, flags)
    assert str(file) in str(caught.value) or "limits" in text
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    missing = tmp_path / "no"
    assert f"file {missing}: expected a readable TOML file, found: No such file" in refused(file=missing)
    assert "Is a directory" in refused(file=tmp_path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert "expected TOML, found:" in refused(file=binary)
    binary.write_bytes(b"#" * 300_000)
    assert "expected at most 262144 bytes" in refused(file=binary)


def test_a_wrong_variable() -> None:
    message = refused(environment={"FABRIC_CAPACITY_VCPUS": "many"})
    assert message == (
        "environment variable FABRIC_CAPACITY_VCPUS: capacity.vcpus: expected a whole number from 1 to 65536 "
        "or \"auto\", found 'many'"
    )
    message = refused(environment={"FABRIC_RAK": "r1"})
    assert message == (
        "environment variable FABRIC_RAK: expected only known names with FABRIC_; did you mean FABRIC_RACK?"
    )


def test_a_wrong_flag() -> None:
    assert refused(listen="localhost") == "flag --listen: listen: expected an address \"host:port\", found 'localhost'"
    assert refused(zk="a:b").startswith("flag --zk: zk: connect string 'a:b': expected servers as host:port")
    assert refused(listen="127.0.0.1:65536").endswith("found '127.0.0.1:65536'")


def test_what_must_be_given() -> None:
    with pytest.raises(ConfigError) as caught:
        config.agent_config(flags={key: value for key, value in LEAST.items() if key != "rack"})
    assert str(caught.value).startswith("rack: expected a name")
    assert str(caught.value).endswith("found nothing; set it in the TOML file, by FABRIC_RACK, or by --rack")


# --- the cluster key -------------------------------------------------------------------------------------------------


def test_who_listens_beyond_this_machine_needs_a_key(tmp_path: Path) -> None:
    message = refused(listen="0.0.0.0:0")
    assert "cluster_key_file: expected a file with the cluster's key, since this process listens at 0.0.0.0" in message
    made = config.agent_config(flags={**LEAST, "listen": "0.0.0.0:0", "cluster_key_file": str(key_file(tmp_path))})
    assert made.advertise == "127.0.0.1", "the address of this host towards its ZooKeeper"


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        (KEY, 0o640, "that only its owner may read"),
        (KEY, 0o604, "found mode 0604; chmod 600 it"),
        (KEY[:-1], 0o600, "expected 64 hex digits in"),
        (KEY[:-1] + "x", 0o600, "found 63 in 64 characters"),
        ("", 0o600, "found 0 in 0 characters"),
    ],
)
def test_a_wrong_key_file(tmp_path: Path, content: str, mode: int, expected: str) -> None:
    message = refused(cluster_key_file=str(key_file(tmp_path, content, mode)))
    assert expected in message
    assert "flag --cluster-key-file: cluster_key_file" in message
    assert KEY[:16] not in message


def test_a_key_in_place_of_its_file_is_not_shown() -> None:
    message = refused(cluster_key_file=KEY)
    assert KEY not in message
    assert "may be a secret" in message
    message = refused(node=KEY + KEY)
    assert KEY not in message


# --- the example -----------------------------------------------------------------------------------------------------


def test_the_example_is_complete_and_right(tmp_path: Path) -> None:
    for keys, read in ((AGENT_KEYS, config.agent_config), (API_KEYS, config.api_config)):
        text = example(keys, "An example")
        lines = [line.removeprefix("# ") for line in text.splitlines()]
        everything = tomllib.loads("\n".join(line for line in lines if " = " in line[:40] or line.startswith("[")))
        flat = {
            f"{name}.{inner}" if isinstance(value, dict) else name
            for name, value in everything.items()
            for inner in (value if isinstance(value, dict) else [""])
        }
        assert flat == {key.path for key in keys if not key.hidden}
        file = toml(tmp_path, text.replace("/etc/fabric/cluster.key", str(key_file(tmp_path))))
        read(file, None, {"advertise": "192.0.2.1"} if keys is AGENT_KEYS else None)


def test_a_share_is_a_part_of_the_whole() -> None:
    share = next(key for key in AGENT_KEYS if key.path == "limits.brake_rack_share")
    assert share.kind == Number(0.0, 1.0)
