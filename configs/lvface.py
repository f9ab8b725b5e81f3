"""A vision transformer in stages, as LVFace (ICCV 2025) has them: few negatives first, all at last.

Its first stage samples negatives, its last takes every center. The stages after the first also have
a penalty that steadies centers, of which no published code says how it is computed: this recipe
does without. `'head.expectation_margin_from={15: 0.4}'` adds it from epoch 15 on.
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
