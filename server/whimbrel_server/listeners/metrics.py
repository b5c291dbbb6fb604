"""What the server counts about itself, as Prometheus text and as one JSON document.

What belongs here: counters of bytes and answers by route, of messages by phase and verdict, the process's memory. What does
not: anything about a device or an update.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from whimbrel_server.listeners.bodies import RECEIVED
from whimbrel_server.listeners.problems import Handler


class Metrics:
    """Counters since the process began."""

    def __init__(self) -> None:
        self.bytes_up: Counter[str] = Counter()
        self.bytes_down: Counter[str] = Counter()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.messages: Counter[tuple[str, str]] = Counter()

    def note_answer(self, route: str, status: int, up: int, down: int) -> None:
        """Count one answer of `route` with the bytes of both bodies."""
        self.answers[route, status] += 1
        self.bytes_up[route] += up
        self.bytes_down[route] += down

    def note_message(self, phase: str, verdict: str) -> None:
        """Count a window's message: `accepted`, `rejected` (wrong) or `discarded` (right but late)."""
        self.messages[phase, verdict] += 1

    def document(self) -> dict[str, Any]:
        """Return the counters as plain values."""
        return {
            "bytes_up": self.bytes_up.total(),
            "bytes_down": self.bytes_down.total(),
            "bytes_up_by_route": dict(self.bytes_up),
            "bytes_down_by_route": dict(self.bytes_down),
            "answers": {f"{route} {status}": count for (route, status), count in sorted(self.answers.items())},
            "messages": {f"{phase} {verdict}": count for (phase, verdict), count in sorted(self.messages.items())},
            "server_peak_rss_mb": round(peak_rss_bytes() / 2**20, 1),
        }

    def text(self, gauges: Mapping[str, Mapping[str, float]]) -> str:
        """Return the counters in Prometheus' text format, with `gauges` (name -> label text -> value) behind them."""
        lines = ["# TYPE whimbrel_bytes_up_total counter"]
        lines += [_line("whimbrel_bytes_up_total", value, route=route) for route, value in self.bytes_up.items()]
        lines += ["# TYPE whimbrel_bytes_down_total counter"]
        lines += [_line("whimbrel_bytes_down_total", value, route=route) for route, value in self.bytes_down.items()]
        lines += ["# TYPE whimbrel_answers_total counter"]
        lines += [_line("whimbrel_answers_total", v, route=r, status=str(s)) for (r, s), v in self.answers.items()]
        lines += ["# TYPE whimbrel_messages_total counter"]
        lines += [_line("whimbrel_messages_total", v, phase=p, verdict=w) for (p, w), v in self.messages.items()]
        lines += ["# TYPE whimbrel_peak_rss_bytes gauge", _line("whimbrel_peak_rss_bytes", peak_rss_bytes())]
        for name, series in gauges.items():
            lines.append(f"# TYPE {name} gauge")
            lines += [_line(name, value, state=state) for state, value in series.items()]
        return "\n".join(lines) + "\n"


METRICS = web.AppKey("metrics", Metrics)


def _line(name: str, value: float, **labels: str) -> str:
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value:g}" if isinstance(value, float) else f"{name}{{{inner}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def peak_rss_bytes() -> int:
    """Return the process's greatest resident memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@web.middleware
async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count every answer under its route's pattern: addresses hold ids, which would make a series each."""
    response = await handler(request)
    resource_ = request.match_info.route.resource
    pattern = resource_.canonical if resource_ is not None else "other"
    down = 0 if request.method == "HEAD" else response.content_length or 0
    request.app[METRICS].note_answer(f"{request.method} {pattern}", response.status, request.get(RECEIVED, 0), down)
    return response
