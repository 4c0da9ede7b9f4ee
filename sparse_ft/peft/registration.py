"""How PEFT comes to know the method "selective"."""

from peft.utils.peft_types import PeftType, register_peft_method

NAME = "selective"
# A state_dict key of an adapter: <layer>.selective_slot.<adapter>.values
PREFIX = f"{NAME}_"


def _member(name: str) -> PeftType:
    """The member `name` of PEFT's enum of methods, added where it is missing.

    `register_peft_method` is public and looks its name up in that enum, which is closed: a method
    from outside of PEFT has no other way in. `docs/peft-upstream-request.md` asks for one.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


SELECTIVE = _member(NAME.upper())


def register() -> None:
    """Make `SelectiveConfig` and `SelectiveModel` known to PEFT; called again, it does nothing."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from .config import SelectiveConfig
    from .model import SelectiveModel

    if SELECTIVE not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME, config_cls=SelectiveConfig, model_cls=SelectiveModel)
