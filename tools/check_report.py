#!/usr/bin/env python3
"""Checks a report of `templar demo` against docs/report.md: shape, certificates, one root on all nodes."""

import argparse
import json
import sys

NUMBER = (int, float)
OPTIONAL = (int, float, type(None))
WINDOW = {
    "window": int, "certified": bool, "state_root": str, "one_root": bool, "settled_by": int, "agreed_by": int,
    "accepted": list, "opened": list, "no_seat": int, "excluded": int, "faults": list, "misvotes": list,
    "tokens": int, "train_loss": OPTIONAL, "val_loss": OPTIONAL, "val_bits_per_byte": OPTIONAL,
    "payload_bytes": int, "bits_per_value": NUMBER, "compute_s": NUMBER, "comm_s": NUMBER,
    "mfu": OPTIONAL, "engines": dict,
}
NODE = {
    "uid": int, "name": str, "role": str, "behaviour": str, "final_state_root": str, "score": NUMBER,
    "weight": NUMBER, "emission": NUMBER, "restarts": int, "troubles": int, "faults": list, "outcomes": dict,
}
FINAL = {"val_bits_per_byte": OPTIONAL, "floor_bits_per_byte": OPTIONAL, "tokens": int, "wall_s": NUMBER}
TOP = {
    "schema": int, "run_id": str, "seed": int, "config": dict, "windows_planned": int, "windows": list, "nodes": list, "late": list,
    "late_total": int,
    "final": dict,
}


OUTCOMES = {
    "counted", "not-accepted", "no-seat", "excluded", "withheld", "null", "not-listed", "missed", "skipped",
    "voted", "outvoted", "denied", "vote-late", "abstained",
}
FAULT = {"uid": int, "fault": str, "attributed_to": str}
MISVOTE = {"uid": int, "cause": str}


def shape(value, fields, where, errors):
    for name, kind in fields.items():
        if name not in value:
            errors.append(f"{where}: `{name}` is missing")
        elif not isinstance(value[name], kind) or (isinstance(value[name], bool) and kind is not bool):
            errors.append(f"{where}: `{name}` is {value[name]!r}")
    errors.extend(f"{where}: `{name}` is not in the schema" for name in value if name not in fields)


def check(report, windows, wall_s_max):
    errors = []
    shape(report, TOP, "report", errors)
    if errors:
        return errors
    shape(report["final"], FINAL, "final", errors)
    for node in report["nodes"]:
        shape(node, NODE, "node", errors)
        errors.extend(f"node: outcome `{name}` is unknown" for name in node["outcomes"] if name not in OUTCOMES)
    for window in report["windows"]:
        shape(window, WINDOW, "window", errors)
        for fault in window["faults"]:
            shape(fault, FAULT, "fault", errors)
        for misvote in window["misvotes"]:
            shape(misvote, MISVOTE, "misvote", errors)
    if errors:
        return errors
    if len(report["windows"]) != windows:
        errors.append(f"{len(report['windows'])} windows, not {windows}")
    if report["windows_planned"] != windows:
        errors.append(f"{report['windows_planned']} windows were planned, not {windows}")
    numbers = [window["window"] for window in report["windows"]]
    if numbers != list(range(windows)):
        errors.append(f"windows are numbered {numbers}")
    for window in report["windows"]:
        if not window["certified"] or not window["one_root"]:
            errors.append(f"window {window['window']} is not certified with one root: {window}")
    wall_s = report["final"]["wall_s"]
    if wall_s_max is not None and not 0 < wall_s <= wall_s_max:
        errors.append(f"it took {wall_s} s, more than {wall_s_max}, or nothing")
    if errors:
        return errors
    roots = {node["final_state_root"] for node in report["nodes"]}
    if roots != {report["windows"][-1]["state_root"]}:
        errors.append(f"nodes end with roots {roots}")
    first, last = report["windows"][0]["val_bits_per_byte"], report["final"]["val_bits_per_byte"]
    if not (first and last and last < first):
        errors.append(f"held-out loss went from {first} to {last} bits per byte")
    return errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report")
    parser.add_argument("--windows", type=int, required=True)
    parser.add_argument("--wall-s-max", type=float, help="fail if the run took more seconds")
    args = parser.parse_args()
    with open(args.report, encoding="utf-8") as file:
        errors = check(json.load(file), args.windows, args.wall_s_max)
    print("\n".join(errors) or f"{args.report}: valid")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
