"""The quantization part of a checkpoint's configuration."""

from __future__ import annotations

import copy
from typing import Any

from validators.layers.checkpoint_write import config_json
from validators.layers.presets import GLM_TINY


def quantization(**changes: Any) -> dict[str, Any]:
    """config.json of the tiny model with leaves of its quantization changed: ``weights__strategy="block"``."""
    config = copy.deepcopy(config_json(GLM_TINY))
    quant = config["quantization_config"]
    for name, value in changes.items():
        part, _, leaf = name.partition("__")
        if leaf:
            quant["config_groups"]["group_0"][part][leaf] = value
        else:
            quant[part] = value
    return config
