"""Alerts as bodies of requests: to an Alertmanager (its API v2), and to a webhook. Pure.

A webhook gets what Alertmanager's own webhooks get (version 4), so that what receives those receives these, and a
member `text` besides, which is all that Slack's and Mattermost's incoming webhooks show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple, Optional

from gateway.alerts.rules import Labels
from gateway.alerts.states import RESOLVED, Shown

RESEND_S = 60.0
LASTS_S = 4 * RESEND_S
"""A firing alert is told to end so long from now, and is sent again before: as Prometheus does it."""
TEXT_LINES = 20
NEVER = "0001-01-01T00:00:00Z"


class Notice(NamedTuple):
    """One alert as it is sent."""

    labels: Labels
    annotations: Labels
    starts_unix_s: float
    ends_unix_s: Optional[float]
    """None: it is firing."""

    @property
    def name(self) -> str:
        return dict(self.labels)["alertname"]


def notice_of(alert: Shown, instance: str) -> Notice:
    """A firing or resolved alert as it is sent, with the gateway's own label `instance`."""
    labels = dict(alert.identity)
    labels.setdefault("instance", instance)
    rule = alert.rule
    annotations = {name: rule.filled(text, alert.series, alert.value) for name, text in rule.annotations}
    annotations.setdefault("summary", alert.summary)
    ends_unix_s = alert.since_unix_s if alert.state == RESOLVED else None
    return Notice(_pairs(labels), _pairs(annotations), alert.started_unix_s, ends_unix_s)


def _pairs(members: dict[str, str]) -> Labels:
    return tuple(sorted((name, value) for name, value in members.items() if value))


def rfc3339(unix_s: float) -> str:
    """A time in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def alertmanager_body(notices: Iterable[Notice], now_unix_s: float, own_url: str) -> bytes:
    """What `POST /api/v2/alerts` takes."""
    alerts = []
    for notice in notices:
        ends_unix_s = now_unix_s + LASTS_S if notice.ends_unix_s is None else notice.ends_unix_s
        alerts.append(
            {
                "labels": dict(notice.labels),
                "annotations": dict(notice.annotations),
                "startsAt": rfc3339(notice.starts_unix_s),
                "endsAt": rfc3339(max(ends_unix_s, notice.starts_unix_s + 0.001)),  # it refuses one that ends earlier
                "generatorURL": own_url,
            }
        )
    return json.dumps(alerts).encode()


def webhook_body(notices: Sequence[Notice], own_url: str) -> bytes:
    """What a webhook gets: alerts of one name."""
    name = notices[0].name
    firing = any(notice.ends_unix_s is None for notice in notices)
    body: dict[str, Any] = {
        "version": "4",
        "groupKey": f"{{}}:{{alertname={json.dumps(name)}}}",
        "truncatedAlerts": 0,
        "status": "firing" if firing else "resolved",
        "receiver": "inference-gateway",
        "groupLabels": {"alertname": name},
        "commonLabels": _common([notice.labels for notice in notices]),
        "commonAnnotations": _common([notice.annotations for notice in notices]),
        "externalURL": own_url,
        "alerts": [_webhook_alert(notice, own_url) for notice in notices],
        "text": _text(notices),
    }
    return json.dumps(body).encode()


def _webhook_alert(notice: Notice, own_url: str) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(notice.labels).encode()).hexdigest()
    return {
        "status": "firing" if notice.ends_unix_s is None else "resolved",
        "labels": dict(notice.labels),
        "annotations": dict(notice.annotations),
        "startsAt": rfc3339(notice.starts_unix_s),
        "endsAt": NEVER if notice.ends_unix_s is None else rfc3339(notice.ends_unix_s),
        "generatorURL": own_url,
        "fingerprint": digest[:16],
    }


def _common(several: Sequence[Labels]) -> dict[str, str]:
    common = set(several[0]).intersection(*several[1:])
    return dict(sorted(common))


def _text(notices: Sequence[Notice]) -> str:
    """A line for each, with what Slack takes for markup (`<!channel>`, say) made harmless: an engine names models."""
    lines = []
    for notice in notices[:TEXT_LINES]:
        labels = dict(notice.labels)
        state = "FIRING" if notice.ends_unix_s is None else "RESOLVED"
        summary = dict(notice.annotations).get("summary", "")
        lines.append(f"[{state}] {notice.name} ({labels['severity']}, {labels['instance']}): {summary}")
    if len(notices) > TEXT_LINES:
        lines.append(f"and {len(notices) - TEXT_LINES} more")
    return "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
