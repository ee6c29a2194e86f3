from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_ROLE_UNSPECIFIED: _ClassVar[VersionRole]
    VERSION_ROLE_CURRENT: _ClassVar[VersionRole]
    VERSION_ROLE_CANARY: _ClassVar[VersionRole]
    VERSION_ROLE_SHADOW: _ClassVar[VersionRole]
    VERSION_ROLE_HELD: _ClassVar[VersionRole]

class ChoiceSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHOICE_SOURCE_UNSPECIFIED: _ClassVar[ChoiceSource]
    CHOICE_SOURCE_BUNDLE: _ClassVar[ChoiceSource]
    CHOICE_SOURCE_HOST: _ClassVar[ChoiceSource]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_DRAINING: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_PASS: _ClassVar[Verdict]
    VERDICT_FAIL: _ClassVar[Verdict]
    VERDICT_INCONCLUSIVE: _ClassVar[Verdict]
    VERDICT_REUSED: _ClassVar[Verdict]
    VERDICT_UNVERIFIED: _ClassVar[Verdict]
    VERDICT_VERIFIED: _ClassVar[Verdict]
VERSION_ROLE_UNSPECIFIED: VersionRole
VERSION_ROLE_CURRENT: VersionRole
VERSION_ROLE_CANARY: VersionRole
VERSION_ROLE_SHADOW: VersionRole
VERSION_ROLE_HELD: VersionRole
CHOICE_SOURCE_UNSPECIFIED: ChoiceSource
CHOICE_SOURCE_BUNDLE: ChoiceSource
CHOICE_SOURCE_HOST: ChoiceSource
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_DRAINING: ModelState
MODEL_STATE_FAILED: ModelState
VERDICT_UNSPECIFIED: Verdict
VERDICT_PASS: Verdict
VERDICT_FAIL: Verdict
VERDICT_INCONCLUSIVE: Verdict
VERDICT_REUSED: Verdict
VERDICT_UNVERIFIED: Verdict
VERDICT_VERIFIED: Verdict

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "task", "state", "labels", "variant", "runtime", "certificate", "manifest_sha256", "max_length_tokens", "chosen_variant", "choice_source", "role", "problem")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_VARIANT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    task: str
    state: ModelState
    labels: _containers.RepeatedScalarFieldContainer[str]
    variant: str
    runtime: str
    certificate: Certificate
    manifest_sha256: str
    max_length_tokens: int
    chosen_variant: str
    choice_source: ChoiceSource
    role: VersionRole
    problem: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., task: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., labels: _Optional[_Iterable[str]] = ..., variant: _Optional[str] = ..., runtime: _Optional[str] = ..., certificate: _Optional[_Union[Certificate, _Mapping]] = ..., manifest_sha256: _Optional[str] = ..., max_length_tokens: _Optional[int] = ..., chosen_variant: _Optional[str] = ..., choice_source: _Optional[_Union[ChoiceSource, str]] = ..., role: _Optional[_Union[VersionRole, str]] = ..., problem: _Optional[str] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("verdict", "loss_upper_bound", "budget", "error_rate", "rows")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    LOSS_UPPER_BOUND_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    loss_upper_bound: float
    budget: float
    error_rate: float
    rows: int
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., loss_upper_bound: _Optional[float] = ..., budget: _Optional[float] = ..., error_rate: _Optional[float] = ..., rows: _Optional[int] = ...) -> None: ...
