"""Which settings a method reads; trainings that differ in others alone are the same training.

What is written here beside the registry is held against the methods' code by tests.
"""

from __future__ import annotations

from typing import Any, get_args

from sssflow.training.config import AugmentationConfig, TrainConfig
from sssflow.training.method_config import MethodName

READ_TOO = {"sss": ("unimatch_v2",), "sss_in_loop": ("unimatch_v2",)}
"""Sections that a method reads beside its own."""

STRONG_VIEWS = frozenset({"fixmatch", "unimatch", "unimatch_v2", "sss", "sss_in_loop"})
"""Methods that paste boxes and classes between strong views."""

_WITHOUT_TEACHER = frozenset({"supervised", "cps", "fixmatch", "unimatch", "dan"})


def pastes(config: TrainConfig) -> bool:
    """Whether the method pastes boxes or classes between strong views with these settings."""
    views = config.augmentation
    asked = views.cutmix.probability > 0 or views.class_paste_probability > 0
    return config.method in STRONG_VIEWS and asked


def has_teacher(config: TrainConfig) -> bool:
    """Whether the method keeps a moving average of the student to learn from."""
    if config.method == "sss_in_loop":
        return config.sss_in_loop.teacher == "ema"
    base = config.semisam.base if config.method == "semisam" else config.method
    return base not in _WITHOUT_TEACHER


def own_sections(config: TrainConfig) -> TrainConfig:
    """The settings with the defaults in every section of a method that is not read."""
    read = {config.method, *READ_TOO.get(config.method, ())}
    if config.method == "semisam":
        read.add(config.semisam.base)
    fields = TrainConfig.model_fields
    unread = [name for name in get_args(MethodName) if name in fields and name not in read]
    return config.model_copy(update=_defaults(*unread))


def used_settings(config: TrainConfig) -> TrainConfig:
    """The settings with the defaults in all that the method does not read.

    Where settings that do not fit are refused they stay, so that they are refused still. A method
    that learns from masks made before keeps all keys that its warm-up reads.
    """
    found = own_sections(config)
    if config.method not in STRONG_VIEWS:
        plain = AugmentationConfig()
        views = {"cutmix", "class_paste_probability"}
        kept = {name: getattr(plain, name) for name in views}
        update = {"augmentation": found.augmentation.model_copy(update=kept)}
        found = found.model_copy(update=update)
    if config.reads_masks:
        return found
    return found.model_copy(update=_unread_of_average(found))


def _unread_of_average(config: TrainConfig) -> dict[str, Any]:
    """Of the keys about a moving average those without effect, with their defaults.

    A teacher is the average that is measured: `ema_evaluation` keeps none beside it. Without
    either the student is measured, whatever `evaluate` says.
    """
    if has_teacher(config):
        update = _defaults("ema_evaluation", "ema_evaluation_decay")
        return update | (_defaults("evaluate") if config.evaluate == "ema" else {})
    if config.ema_evaluation:
        return _defaults("evaluate") if config.evaluate == "ema" else {}
    update = _defaults("ema_evaluation_decay")
    return update | (_defaults("evaluate") if config.evaluate == "student" else {})


def _defaults(*names: str) -> dict[str, Any]:
    fields = TrainConfig.model_fields
    return {name: fields[name].get_default(call_default_factory=True) for name in names}
