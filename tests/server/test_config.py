"""Configuration, bearer tokens and the data directory: what an operator sets, and what the server makes for itself."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server import config
from whimbrel_server.datadir import DataDir
from whimbrel_server.listeners.tokens import Tokens

ROOT = bytes(range(32))
DEVICE, FLEET = b"d" * 16, b"f" * 16


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "whimbrel.toml"
    path.write_text(text)
    return path


def test_the_file_that_init_writes_loads_and_states_the_defaults(tmp_path: Path) -> None:
    loaded = config.load(written(tmp_path, config.initial(ROOT, "http://127.0.0.1:7443")), {})
    assert loaded == config.Config(authority=config.Authority(root=ROOT.hex(), url="http://127.0.0.1:7443"))


def test_what_check_prints_is_a_configuration_with_the_same_values(tmp_path: Path) -> None:
    loaded = config.load(
        written(tmp_path, config.initial(ROOT, "")), {"WHIMBREL_LIMITS_POLLS": "7", "WHIMBREL_LOG_LEVEL": "debug"}
    )
    assert (loaded.limits.polls, loaded.log.level) == (7, "debug")
    assert config.load(written(tmp_path, config.render(loaded)), {}) == loaded


def test_a_secret_is_not_printed(tmp_path: Path) -> None:
    loaded = config.load(written(tmp_path, config.initial(ROOT, "")), {"WHIMBREL_ADMIN_TOKEN": "very-secret"})
    assert loaded.admin.token == "very-secret"
    assert "very-secret" not in config.render(loaded)
    assert "(hidden)" in config.render(loaded)


@pytest.mark.parametrize(
    ("text", "environ", "named"),
    [
        (f'[authority]\nroot = "{ROOT.hex()}"\n[limits]\nstaging_byte = 1\n', {}, "staging_byte"),
        (f'[authority]\nroot = "{ROOT.hex()}"\n[limit]\n', {}, "limit"),
        (f'[authority]\nroot = "{ROOT.hex()}"\n', {"WHIMBREL_LISTEN_PROT": "1"}, "prot"),
        (f'[authority]\nroot = "{ROOT.hex()}"\n', {"WHIMBREL_LISTEN_PORT": "many"}, "$.listen.port"),
        (f'[authority]\nroot = "{ROOT.hex()}"\n[listen]\nport = "80"\n', {}, "$.listen.port"),
        (f'[authority]\nroot = "{ROOT.hex()}"\n[limits]\npoll_s = 26.0\n', {}, "$.limits.poll_s"),
        ('[authority]\nroot = "abc"\n', {}, "$.authority.root"),
        ("", {}, "authority"),
        ("authority = 3\n", {}, "authority"),
        ("[authority\n", {}, "line 1"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused_by_name(
    tmp_path: Path, text: str, environ: dict[str, str], named: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        config.load(written(tmp_path, text), environ)
    assert caught.value.code is Code.CONFIGURATION
    assert named in caught.value.detail


def test_a_missing_file_is_a_numbered_error(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match=r"whimbrel\.toml"):
        config.load(tmp_path / "whimbrel.toml", {})


@given(key=st.binary(min_size=32, max_size=32), device=st.binary(min_size=16, max_size=16), now=st.integers(0, 2**40))
def test_a_token_names_its_device_until_it_expires(key: bytes, device: bytes, now: int) -> None:
    tokens = Tokens(key, FLEET)
    token = tokens.issue(device, now + 60)
    assert tokens.device(token, now + 60) == device
    with pytest.raises(ProtocolError) as caught:
        tokens.device(token, now + 61)
    assert caught.value.code is Code.TOKEN_EXPIRED


@given(st.integers(0, 56 * 8 - 1))
def test_no_bit_of_a_token_can_be_changed(bit: int) -> None:
    tokens = Tokens(bytes(32), FLEET)
    raw = bytearray(base64.urlsafe_b64decode(tokens.issue(DEVICE, 2**32) + "=="[: -(56 * 4 // 3) % 4]))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError) as caught:
        tokens.device(base64.urlsafe_b64encode(raw).decode(), 0)
    assert caught.value.code is Code.TOKEN_INVALID


@given(st.text(max_size=100))
def test_any_other_text_is_no_token(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Tokens(bytes(32), FLEET).device(text, 0)
    assert caught.value.code is Code.TOKEN_INVALID


def test_another_fleets_or_servers_token_is_refused() -> None:
    for other in (Tokens(bytes(32), b"g" * 16), Tokens(b"k" * 32, FLEET)):
        with pytest.raises(ProtocolError):
            Tokens(bytes(32), FLEET).device(other.issue(DEVICE, 100), 0)


def test_two_servers_cannot_hold_one_directory(tmp_path: Path) -> None:
    folder = DataDir(tmp_path)
    with folder.locked(), pytest.raises(ProtocolError, match="another server"), folder.locked():
        pass
    with folder.locked():
        pass


def test_secrets_are_private_and_made_once(tmp_path: Path) -> None:
    folder = DataDir(tmp_path)
    folder.make_secrets()
    before = [path.read_bytes() for path in (folder.admin_token, folder.token_key)]
    folder.make_secrets()
    assert [path.read_bytes() for path in (folder.admin_token, folder.token_key)] == before
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (folder.admin_token, folder.token_key))
