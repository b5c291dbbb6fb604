"""Window after window with members that vanish, lie and send garbage: a short soak, and proof that the soak would notice."""

from __future__ import annotations

import json

import pytest

from whimbrel_lab import soak, soak_window
from whimbrel_lab.soak import Options, Soak
from whimbrel_lab.soak_window import Broken
from whimbrel_protocol import unmask
from whimbrel_protocol.reed_solomon import Decoded
from whimbrel_protocol.spent import Verdict


def test_twenty_windows_keep_their_promises(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "LARGEST", 40)
    assert soak.main(["--windows", "12", "--seed", "2", "--garbage", "0.2"]) == 0
    usual = json.loads(capsys.readouterr().out)
    assert soak.main(["--windows", "8", "--dropout", "0.5", "--liars", "0.1", "--garbage", "0.5", "--seed", "4"]) == 0
    stormy = json.loads(capsys.readouterr().out)
    assert usual["summed"] + usual["spoiled"] >= 10
    assert usual["spoiled"] and usual["blamed_vector"] and usual["blamed_shares"] and usual["bad_shares_then_more"]
    assert stormy["aborted"] and stormy["short"] and stormy["updates_freed"] and stormy["updates_lost"]
    assert usual["freed_updates_counted_later"]


def broken(options: Options, promise: str) -> None:
    with pytest.raises(Broken, match=promise):
        Soak(options).run()


def test_the_soak_notices_a_wrong_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_window, "verify_certificate", lambda record, certificate: Verdict.FREED)
    broken(Options(windows=1, dropout=0), "an update is spent where it may be in a sum")


def test_the_soak_notices_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    true = soak_window.pack
    monkeypatch.setattr(soak_window, "pack", lambda spec, update, weight: true(spec, abs(update), weight))
    broken(Options(windows=1, dropout=0, garbage=0), "a completed window's sum is exact")


def test_the_soak_notices_who_is_blamed_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    true = unmask.decode

    def decode(points: list[int], shares: list[bytes], t: int) -> Decoded | None:
        found = true(points, shares, t)
        return found and Decoded(found.secret, tuple((at + 1) % len(points) for at in found.wrong))

    monkeypatch.setattr(unmask, "decode", decode)
    broken(Options(windows=3, dropout=0, liars=0.1, garbage=0), "no honest member is blamed")
