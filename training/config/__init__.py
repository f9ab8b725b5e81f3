"""The configuration: frozen dataclasses, built by a Python file, overridden by ``key=value``.

Whatever can be known to be wrong without touching data is refused here, with the key, the value and
what is allowed, before anything is allocated.
"""

from training.config.checks import ConfigError
from training.config.data import DataConfig
from training.config.distill import DistillConfig
from training.config.eval import EvalConfig
from training.config.file import load_config
from training.config.head import HeadConfig
from training.config.log import LogConfig
from training.config.model import ModelConfig
from training.config.optim import OptimConfig
from training.config.overrides import PATH_SETTINGS, override
from training.config.renamed import by_names_of_now
from training.config.run import RunConfig
from training.config.step import StepConfig
from training.config.whole import Config, check_batch

__all__ = [
    "PATH_SETTINGS",
    "Config",
    "ConfigError",
    "DataConfig",
    "DistillConfig",
    "EvalConfig",
    "HeadConfig",
    "LogConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "StepConfig",
    "by_names_of_now",
    "check_batch",
    "load_config",
    "override",
]
