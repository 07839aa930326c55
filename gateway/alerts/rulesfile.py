"""Text to rules: ALERTS_FILE.

Owns the keys of the file, one row each, and how a fault in it is named: all faults at once, each with its JSON path. No
state, no lock; reads the one file it is told to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from gateway.alerts.defaults import default_rules
from gateway.alerts.rules import (
    BURN_WINDOWS_S,
    DAY_S,
    INTERVAL_S,
    MEASURES,
    PLACEHOLDER,
    WINDOW_MAX_S,
    Labels,
    Rule,
    RuleSet,
    Silence,
)
from gateway.configuration import ConfigurationError, JsonObject, duplicate_faults, read_json
from gateway.routing.checks import Check, boolean, integer, member, number, one_of, quoted, step

RULES_MAX = 200
SILENCES_MAX = 200
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]{0,63}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)")
OWN_LABELS = ("alertname", "severity", "instance")


def rules_at(path: Optional[Path], slos: bool) -> RuleSet:
    """The rules of a file (None: the usual ones), for a gateway with objectives (`slos`) or without. Raises
    ConfigurationError naming ALERTS_FILE."""
    if path is None:
        return RuleSet(default_rules(slos))
    try:
        return load_rules(path, slos)
    except ConfigurationError as error:
        raise ConfigurationError([f"ALERTS_FILE: {path}: {fault}" for fault in error.faults]) from None


def load_rules(path: Path, slos: bool) -> RuleSet:
    """Read a file of rules. Raises ConfigurationError naming every fault by its JSON path."""
    document = read_json(path)
    faults: list[str] = []
    rules: list[Rule] = []
    silences: list[Silence] = []
    members = _members(document, "", _FILE_KEYS, faults)
    for index, item in enumerate(_list(members, "rules", RULES_MAX, faults)):
        rule = _rule(item, f"rules[{index}]", slos, faults)
        if rule is not None:
            if any(rule.name == before.name for before in rules):
                faults.append(f"rules[{index}].name: {quoted(rule.name)} is the name of another rule, too")
            rules.append(rule)
    for index, item in enumerate(_list(members, "silences", SILENCES_MAX, faults)):
        silence = _silence(item, f"silences[{index}]", faults)
        if silence is not None:
            silences.append(silence)
    if faults:
        raise ConfigurationError(faults)
    own = {rule.name for rule in rules}
    usual = default_rules(slos) if members.get("defaults", True) else ()
    kept = tuple(rule for rule in usual if rule.name not in own)
    return RuleSet((*kept, *rules), tuple(silences), float(members.get("interval_s", INTERVAL_S)))


def _members(value: object, path: str, keys: Mapping[str, Optional[Check]], faults: list[str]) -> dict[str, Any]:
    """The members of an object that are right; the others' faults are noted."""
    if not isinstance(value, JsonObject):
        faults.append(f"{path or 'the file'}: must be an object, not {quoted(value)}")
        return {}
    faults.extend(duplicate_faults(value, path))
    good: dict[str, Any] = {}
    for key, item in value.items():
        here = step(path, key)
        if key not in keys:
            faults.append(f"{here}: is not a known key; known here: {', '.join(keys)}")
            continue
        check = keys[key]
        found = [] if check is None else [here + fault for fault in check(item)]
        faults.extend(found)
        if not found:
            good[key] = item
    return good


def _list(members: Mapping[str, Any], key: str, most: int, faults: list[str]) -> list[Any]:
    items = members.get(key, [])
    if isinstance(items, list) and len(items) <= most:
        return items
    faults.append(f"{key}: must be a list of at most {most}, not {quoted(items)}")
    return []


def _word(value: object) -> Iterator[str]:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        yield f": must be a name of at most 64 of A-Z a-z 0-9 _, not beginning with a digit, not {quoted(value)}"


def _text(value: object) -> Iterator[str]:
    if not isinstance(value, str) or not 1 <= len(value) <= 1000:
        yield f": must be a text of 1 to 1000 characters, not {quoted(value)}"


def _pairs(value: object) -> Iterator[str]:
    """Check an object of names with texts."""
    if not isinstance(value, JsonObject):
        yield f": must be an object of names with texts, not {quoted(value)}"
        return
    yield from duplicate_faults(value, "")
    for name, text in value.items():
        if not _NAME.fullmatch(name):
            yield f"{member(name)}: is no name of A-Z a-z 0-9 _"
        yield from (member(name) + fault for fault in _text(text))


def _labels(value: object) -> Iterator[str]:
    yield from _pairs(value)
    if isinstance(value, JsonObject):
        yield from (f"{member(name)}: is set by itself" for name in value if name in OWN_LABELS)


def _names(value: object) -> Iterator[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        yield f": must be a list of labels, not {quoted(value)}"
    elif len(set(value)) < len(value):
        yield ": names a label twice"


def _time(value: object) -> Iterator[str]:
    if not isinstance(value, str) or _unix_s(value) is None:
        yield f": must be a time such as 2026-11-30T08:00:00Z, not {quoted(value)}"


def _unix_s(text: str) -> Optional[float]:
    if not _TIME.fullmatch(text):
        return None
    whole, fraction, zone = re.fullmatch(r"(.{19})(\.\d+)?(.+)", text).groups()  # type: ignore[union-attr]
    try:
        moment = datetime.fromisoformat(whole + ("+00:00" if zone in "Zz" else zone))
    except ValueError:
        return None
    return moment.timestamp() + float(fraction or 0)


_FILE_KEYS: Mapping[str, Optional[Check]] = {
    "rules": None,
    "silences": None,
    "defaults": boolean,
    "interval_s": number(0.1, 60),
}
_RULE_KEYS: Mapping[str, Optional[Check]] = {
    "name": _word,
    "what": one_of(tuple(MEASURES)),
    "by": _names,
    "match": _pairs,
    "window_s": number(5, 3 * DAY_S),
    "above": number(-1e12, 1e12),
    "below": number(-1e12, 1e12),
    "for_s": number(0, DAY_S),
    "keep_firing_s": number(0, DAY_S),
    "at_least": integer(1, 10**9),
    "severity": _word,
    "labels": _labels,
    "summary": _text,
    "annotations": _pairs,
}
_SILENCE_KEYS: Mapping[str, Optional[Check]] = {"match": _pairs, "from": _time, "until": _time, "why": _text}


def _rule(value: object, path: str, slos: bool, faults: list[str]) -> Optional[Rule]:
    noted_before = len(faults)
    members = _members(value, path, _RULE_KEYS, faults)
    if not isinstance(value, JsonObject):
        return None
    faults.extend(f"{path}.{key}: is missing" for key in ("name", "what") if key not in value)
    if ("above" in value) == ("below" in value):
        faults.append(f"{path}: must have either above or below")
    if "what" in members:
        faults.extend(_fit_faults(members, path, slos))
    if len(faults) > noted_before:
        return None
    measure = MEASURES[members["what"]]
    by = tuple(members.get("by", measure.by))
    who = f" ({', '.join(f'{{{name}}}' for name in by)})" if by else ""
    return Rule(
        name=members["name"],
        what=members["what"],
        by=by,
        match=_as_labels(members.get("match")),
        window_s=float(members.get("window_s", measure.window_s)),
        above=members.get("above"),
        below=members.get("below"),
        for_s=float(members.get("for_s", 0)),
        keep_firing_s=float(members.get("keep_firing_s", 0)),
        at_least=members.get("at_least", 1),
        severity=members.get("severity", "warning"),
        labels=_as_labels(members.get("labels")),
        summary=members.get("summary", "{value}: " + measure.text + who),
        annotations=_as_labels(members.get("annotations")),
    )


def _fit_faults(members: Mapping[str, Any], path: str, slos: bool) -> Iterator[str]:
    """What does not fit the measure of a rule."""
    what = members["what"]
    measure = MEASURES[what]
    known = ", ".join(measure.labels) or "none"
    for key in ("by", "match"):
        for name in members.get(key, ()):
            if name not in measure.labels:
                yield f"{path}.{key}: {what} has no label {quoted(name)}; it has: {known}"
    if "window_s" in members:
        window_s = members["window_s"]
        if what == "slo_burn_rate":
            if window_s not in BURN_WINDOWS_S:
                yield f"{path}.window_s: must be one of {', '.join(map(str, BURN_WINDOWS_S))} for {what}"
        elif not measure.window_s:
            yield f"{path}.window_s: says nothing, as {what} is looked at as it is now"
        elif window_s > WINDOW_MAX_S:
            yield f"{path}.window_s: must be at most {WINDOW_MAX_S}"
    if "at_least" in members and not measure.counts:
        yield f"{path}.at_least: says nothing, as {what} is not worked out of requests"
    if what.startswith("slo_") and not slos:
        yield f"{path}.what: {what} needs SLO_AVAILABILITY or SLO_LATENCY_MS, which are not set"
    words = {"value", *members.get("by", measure.by), *members.get("labels", ())}
    texts = [("summary", members.get("summary", ""))]
    texts += [(f"annotations.{name}", text) for name, text in members.get("annotations", {}).items()]
    for where, text in texts:
        for word in PLACEHOLDER.findall(text):
            if word not in words:
                yield f"{path}.{where}: there is no {{{word}}}; there is: {', '.join(sorted(words))}"


def _silence(value: object, path: str, faults: list[str]) -> Optional[Silence]:
    noted_before = len(faults)
    members = _members(value, path, _SILENCE_KEYS, faults)
    if isinstance(value, JsonObject) and not value.get("match"):
        faults.append(f"{path}.match: must name at least one label")
    times = {key: _unix_s(members[key]) for key in ("from", "until") if key in members}
    if len(times) == 2 and times["from"] >= times["until"]:  # type: ignore[operator]
        faults.append(f"{path}.until: must be later than from")
    if len(faults) > noted_before:
        return None
    return Silence(_as_labels(members["match"]), times.get("from"), times.get("until"), members.get("why", ""))


def _as_labels(value: Optional[Mapping[str, str]]) -> Labels:
    return tuple(sorted((value or {}).items()))
