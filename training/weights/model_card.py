"""The model card beside exported weights: what the network is, how it was trained, how to load it.

In the form of a README.md for the Hugging Face Hub, with metadata in front.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facestream import VERSION
from models import Architecture
from training.frozen.card import Card
from training.provenance import name_of

_LIBRARY = "facestream"

_HEADER = """\
---
license: {license}
library_name: {library}
pipeline_tag: image-feature-extraction
tags:
- face-recognition
- {name}
---
"""
_CARD = (
    _HEADER
    + """\
# {name}, {classes}

{name}{changed}, trained with Facestream for {step} steps. It maps aligned RGB faces of
{size} × {size} pixels to {dim} features; the cosine of two of them says how alike two faces are.

| | |
|---|---|
| data | {data} |
| classes | {classes} |
| loss | {loss} |
| license | {license} |
| Facestream | trained with {trained_with}, exported with {exported_with} |

## Scores

{scores}

## Loading

In Facestream's folder, whose `models` it imports.{own} The features of an image and of its mirror
image are added up, as they are for scores and thresholds:

```python
from pathlib import Path

import torch
from safetensors.torch import load_file

from models import create_model, normalize

folder = Path(".")  # where this card lies
model = create_model("{name}", embedding_dim={dim}, image_size={size}{options})
model.load_state_dict(load_file(folder / "model.safetensors"))
model.eval()
# images: yours, a (B, 3, {size}, {size}) uint8 tensor, RGB, aligned as in training
features = sum(model(normalize(view, torch.float32)) for view in (images, images.flip(3)))
embeddings = torch.nn.functional.normalize(features)  # whose products are cosines
```
"""
)
_EXPORTED = (
    _HEADER
    + """\
# {name}, {dim} features

{name}, trained and exported with Facestream. It maps aligned faces to {dim} features; the cosine of
two of them says how alike two faces are. License: {license}.

## Loading

Facestream's tools take {files} as a model. Images: `{input}` (size, color, range, layout).
"""
)
_ONNX = """
```python
import onnxruntime

session = onnxruntime.InferenceSession("{onnx}")
# images: yours, aligned as in training, with a batch axis in front
(embeddings,) = session.run(None, {{session.get_inputs()[0].name: images}})
```
"""


def exported_card(card: Card, files: Sequence[str], *, license: str) -> str:
    """The text for exported files, by name, of which nothing but their card is known."""
    onnx = next((name for name in files if name.endswith(".onnx")), "")
    page = _EXPORTED.format(
        license=license,
        library="onnx" if onnx else _LIBRARY,
        name=card.network,
        dim=card.embedding_dim,
        files=" and ".join(f"`{name}`" for name in files),
        input=card.input,
    )
    return page + (_ONNX.format(onnx=onnx) if onnx else "")


def model_card(
    network: Architecture,
    *,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    license: str,
) -> str:
    """The card's text, from a checkpoint's config.json and about.json.

    Of data and of a network's own file only the names are written, not the folders they lie in.
    """
    num_classes = about["facts"].get("number of classes")
    source = about["facts"].get("imported from")
    if source:
        data = loss = f"unknown: imported from files that do not say it ({', '.join(source)})"
    else:
        train = config["data"]["train"]
        files = [train] if isinstance(train, str) else train
        data = ", ".join(name_of(file) for file in files)
        loss = f"{config['head']['loss']} {json.dumps(config['head']['loss_args'])}"
    changed = {
        name: value
        for name, value in network.options.items()
        if value != network.family.options[name]
    }
    own = about.get("own", {}).get(f"model.name={network.name}", "")
    if own:
        builder, _, file = own.rpartition(" of ")
        own = f" {network.name} is {builder} of {Path(file).name}: run that file first."
    return _CARD.format(
        license=license,
        library=_LIBRARY,
        name=network.name,
        changed=" with " + ", ".join(f"{k}={v!r}" for k, v in changed.items()) if changed else "",
        options="".join(f", {name}={value!r}" for name, value in changed.items()),
        own=own,
        dim=network.embedding_dim,
        size=network.image_size,
        classes="no head" if num_classes is None else f"{num_classes:,} identities",
        step=f"{about['step']:,}",
        data=data,
        loss=loss,
        scores=_table(about["scores"] or {}),
        trained_with=about["versions"].get("facestream", "a version before 0.1.0"),
        exported_with=VERSION,
    )


def _table(scores: Mapping[str, Mapping[str, float]]) -> str:
    if not scores:
        return "Not verified at this checkpoint."
    columns = list(dict.fromkeys(column for score in scores.values() for column in score))
    rows = [["set", *columns], ["---"] * (len(columns) + 1)]
    rows += [
        [name, *(f"{score[column]:.4f}" if column in score else "" for column in columns)]
        for name, score in scores.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
