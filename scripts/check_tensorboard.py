#!/usr/bin/env python3
"""Whether TensorBoard reads of a run's curves what its log says: steps and values of train/loss.

Usage: pip install tensorboard; scripts/check_tensorboard.py OUT...    (outputs of repair --report-to tensorboard)
Interrupt a run and go on with --resume first: what was written twice must be read once. Exits with 1 on a difference.
"""

import json
import pathlib
import sys

from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.util import tensor_util


def curve(module, folder):
    """(step, value) of train/loss, as this accumulator keeps them; the newer one keeps scalars as tensors."""
    events = module.EventAccumulator(str(folder), size_guidance={kind: 0 for kind in module.DEFAULT_SIZE_GUIDANCE})
    events.Reload()
    if module is event_accumulator:
        return [(e.step, e.value) for e in events.Scalars("train/loss")]
    return [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in events.Tensors("train/loss")]


wrong = 0
for out in sys.argv[1:] or sys.exit(__doc__):
    folder = pathlib.Path(out) / "irepair"
    log = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    want = [(line["step"], line["loss"]) for line in log if "lr" in line]
    for module in (event_accumulator, plugin_event_accumulator):
        got = curve(module, folder / "tensorboard")
        same = [s for s, _ in got] == [s for s, _ in want] and all(
            abs(g - w) <= 1e-6 * abs(w) for (_, g), (_, w) in zip(got, want)
        )
        name, found = module.__name__.rsplit(".")[-1], "equal" if same else "DIFFERENT"
        print(f"{out}: {name}: {len(got)} of {len(want)} steps, {found}")
        wrong += not same
sys.exit(bool(wrong))
