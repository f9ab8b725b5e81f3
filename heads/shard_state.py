"""Beside a head's rows in its state: of which classes they are. Their shape fits others' too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heads.sampling import Shard

# In state_dict beside the buffers.
SHARD_ENTRIES = ("num_classes", "first_class")


def keep_shard(head: nn.Module) -> None:
    """Have a head's state name its `shard`, and the head refuse the state of another.

    `load_state_dict` then raises RuntimeError before it changes anything of the head. A state
    without the entries is taken as it is.
    """
    head.register_state_dict_post_hook(_name)
    head.register_load_state_dict_pre_hook(_refuse_others)


def _name(head: Any, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in SHARD_ENTRIES:
        state[prefix + name] = torch.tensor(getattr(head.shard, name), device="cpu")


def _refuse_others(head: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    fault = _fault({name: state.pop(prefix + name, None) for name in SHARD_ENTRIES}, head.shard)
    if fault:
        raise RuntimeError(fault)


def _fault(entries: Mapping[str, Tensor | int | None], shard: Shard) -> str | None:
    """What is wrong with a state's rows where its entries are not the shard's; None: not said."""
    for name, saved in entries.items():
        if saved is not None and int(saved) != getattr(shard, name):
            return (
                f"{name} is {int(saved)} in this state and {getattr(shard, name)} in this head: "
                "its centers are of other classes. Load a rank's own state into the same number of "
                "ranks and classes, or share it out through torch.distributed.checkpoint"
            )
    return None
