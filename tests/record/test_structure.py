"""What a model is made of, and the files that its classes came from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from nest_ssl.record.structure import describe_sources, describe_structure


def test_modules_parameters_and_buffers() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3).eval())
    net[0].bias.requires_grad_(False)
    net.register_buffer("table", torch.zeros(4, dtype=torch.float64), persistent=False)
    structure = describe_structure(net)
    assert [(m["name"], m["class"].rpartition(".")[2], m["training"]) for m in structure["modules"]] == [
        ("", "Sequential", True), ("0", "Linear", True), ("1", "BatchNorm1d", False),
    ]  # fmt: skip
    assert structure["parameters"][0] == {
        "name": "0.weight",
        "shape": [3, 2],
        "dtype": "float32",
        "requires_grad": True,
    }
    assert structure["parameters"][1]["requires_grad"] is False
    assert {b["name"]: (b["dtype"], b["persistent"]) for b in structure["buffers"]} == {
        "table": ("float64", False), "1.running_mean": ("float32", True), "1.running_var": ("float32", True),
        "1.num_batches_tracked": ("int64", True),
    }  # fmt: skip


def test_a_source_is_named_below_its_package_and_hashed() -> None:
    class Here(nn.Linear):
        """A class of this file."""

    made_in_a_session = type("Made", (nn.Module,), {"__module__": "__nowhere__"})()
    sources = describe_sources(nn.Sequential(Here(1, 1), made_in_a_session))
    name = f"{Here.__module__}.{Here.__qualname__}"
    assert set(sources) == {"torch.nn.modules.container.Sequential", name}
    assert sources["torch.nn.modules.container.Sequential"]["file"] == "torch/nn/modules/container.py"
    assert sources[name] == {
        "file": "tests/record/test_structure.py",
        "sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
