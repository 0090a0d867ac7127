"""An option of a verb for each of the sampling parameters."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import annotated_types
import typer
from pydantic.fields import FieldInfo

from dreambooth_ray.config.sampling_params import SamplingParams, build_sampling_params

Verb = Callable[..., None]


def sampling_options(**defaults: object) -> Callable[[Verb], Verb]:
    """Decorates a verb: options take the place of its last parameter, `params: SamplingParams`.

    defaults: of this verb, where they are not the parameters' own
    """
    options = [
        _build_option(name, field, defaults.get(name))
        for name, field in SamplingParams.model_fields.items()
    ]

    def decorate(verb: Verb) -> Verb:
        verb_parameters = [
            p for p in inspect.signature(verb).parameters.values() if p.name != "params"
        ]
        signature_parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in verb_parameters
        ] + options

        @functools.wraps(verb)
        def call_with_params(**values: Any) -> None:
            option_values = {name: values.pop(name) for name in SamplingParams.model_fields}
            # What nobody has given is the model's own choice.
            given_values = {
                name: value for name, value in option_values.items() if value is not None
            }
            verb(**values, params=build_sampling_params(given_values))

        call_with_params.__signature__ = inspect.Signature(signature_parameters)  # type: ignore[attr-defined]
        call_with_params.__annotations__ = {p.name: p.annotation for p in signature_parameters}
        return call_with_params

    return decorate


def _build_option(name: str, field: FieldInfo, default: object) -> inspect.Parameter:
    bounds: dict[str, Any] = {}
    for constraint in field.metadata:
        if isinstance(constraint, annotated_types.Ge):
            bounds["min"] = constraint.ge
        elif isinstance(constraint, annotated_types.Le):
            bounds["max"] = constraint.le
    # Stable Diffusion's; other families have defaults of their own.
    shown_default = True if default is not None else str(field.default)
    option = typer.Option(help=field.description, show_default=shown_default, **bounds)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[_strip_annotations(field.annotation) | None, option],
    )


def _strip_annotations(kind: Any) -> Any:
    """tuple[float, float] of a tuple whose members have bounds of their own."""
    if get_origin(kind) is Annotated:
        return _strip_annotations(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return tuple[tuple(_strip_annotations(member) for member in get_args(kind))]  # type: ignore[misc]
    return kind
