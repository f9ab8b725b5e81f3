"""A vision transformer in stages, as LVFace (ICCV 2025) has them: few negatives first, all at last.

Its first stage samples negatives, its last takes every center. The stages after the first also have
a penalty that steadies centers, `head.expectation_margin=0.4`. That is no setting by epoch: a run
has it from the start or not at all, and this one does without.
"""

from dataclasses import replace

from configs.published import WEBFACE42M, transformer

_config = transformer(
    WEBFACE42M,
    "vit_b",
    output="runs/lvface",
    options={"drop_path": 0.05},
    sample_rate=0.1,
)
config = replace(_config, head=replace(_config.head, sample_rate_from={30: 1.0}))
