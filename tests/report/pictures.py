"""Pictures made by hand, of the model and the comparison of `builder.diverged`."""

from __future__ import annotations

import torch

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Relation
from nest_ssl.compare.operators import Change, OperatorDifference
from nest_ssl.recording.evidence import Operator
from nest_ssl.report.pictures.data import (
    CallPoint,
    Curves,
    Gradients,
    LayerRatios,
    Node,
    Pictures,
    State,
    Strip,
    Utterance,
)
from nest_ssl.report.pictures.gather import view_of


def pictures(made: Comparison, name: str = "encoder.layers.1", text: str = "conv1d", calls: int = 22) -> Pictures:
    """One of each kind; `name` is the module to blame, `text` stands wherever a recording has a text."""
    leaf = Node(name, name.rpartition(".")[2], text, State.BORN, State.BORN, "another function", 2.2e-2)
    other = Node("decoder", "decoder", text, State.CAME_IN, State.CAME_IN, "came in", 1e-3, 1e-2)
    same = Node("preprocessor", "preprocessor", text)
    encoder = Node("encoder", "encoder", text, State.SAME, State.BORN, children=[leaf])
    points = [CallPoint(place, "preprocessor", place, State.SAME, 0.0, 1e-7) for place in range(calls - 2)]
    points += [
        CallPoint(calls - 2, name, 0, State.BORN, 2.2e-2, 1e-7, Relation.BORN.value),
        CallPoint(calls - 1, "decoder", 0, State.CAME_IN, None, None, Relation.CAME_IN.value),
    ]
    layers = (LayerRatios(name, 4, 4, 0.5, 0.9, 1.1, 2e-2), LayerRatios("decoder", 2, 0, 1.0, 1.0, 1.0, 0.0))
    values = torch.linspace(-1, 1, 64).reshape(2, 4, 8)
    seen = [found for found in [made.first] if found is not None]
    conv = Operator(name=text, phase="forward", module=name, call=0, arguments={text: 4}, source=text)
    change = Change("arguments", conv, conv, {text: (4, 2)}, text, text)
    frames = torch.rand(8, 40).numpy()
    return Pictures(
        Node("", "", text, State.SAME, State.BORN, children=[same, encoder, other]),
        Strip(0, tuple(points)),
        Curves((0, 1), ((5.1, 5.2), (5.0, float("nan"))), {"forward": (2e-2, 3e-2), "weights": (0.0, None)}),
        view_of(
            seen[0],
            values,
            values.clone().index_put((torch.tensor(0), torch.tensor(1), torch.tensor(2)), torch.tensor(9.0)),
        )
        if seen
        else None,
        Gradients(0, layers),
        [Utterance(0, 0, frames, frames.mean(0) > 0.5, ((1, 2, 3), (1, 7, 3)))],
        [OperatorDifference("forward", name, 0, 3, (change, Change("missing", conv)))],
    )
