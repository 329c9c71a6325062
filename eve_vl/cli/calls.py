"""A verb for each call of a run, such as answer and match."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eve_vl.cli.flags import DeviceArgs, JsonArgs, RunArgs
from eve_vl.cli.image_rows import image_format, write_image_row
from eve_vl.cli.output_files import check_writable, write_json
from eve_vl.cli.parsing import parse
from eve_vl.predict.requests import Request, known_requests
from eve_vl.utils.console import print_line
from eve_vl.utils.frozen import Frozen


class ImageArgs(Frozen):
    """Flag of calls whose result is an image."""

    out: Path = Path("image.png")
    """Image to write."""


def call_verbs() -> dict[str, Callable[[Sequence[str]], None]]:
    """Return a verb for each request, by its typed name."""
    requests = sorted(known_requests().values(), key=verb_name)
    return {verb_name(request): _verb(request) for request in requests}


def verb_name(request: type[Request]) -> str:
    """Return the name of a request as it is typed."""
    return request.name.replace("_", "-")


def call_flags(request: type[Request]) -> type[Any]:
    """Return the flags of a call's verb: the request, the run, the files to write."""
    bases: list[type] = [request, DeviceArgs, RunArgs]
    fields: dict[str, Any] = {}
    if request.image_file:
        bases.insert(0, ImageArgs)
        fields = {"__annotations__": {"out": Path}, "out": Path(request.image_file)}
    if request.has_json:
        bases.insert(0, JsonArgs)
    return type("CallArgs", tuple(bases), fields)


def _verb(request: type[Request]) -> Callable[[Sequence[str]], None]:
    """Return the function of a request's verb."""

    def run(argv: Sequence[str]) -> None:
        _run_call(request, argv)

    run.__doc__ = request.about().split("\n")[0]
    return run


def _run_call(request: type[Request], argv: Sequence[str]) -> None:
    """Parse the flags of a call, compute it, and print and write its result."""
    args = parse(call_flags(request), argv, f"eve {verb_name(request)}", request.about())
    values = dict(vars(args))
    image_file = values.pop("out", None)
    json_file = values.pop("json", None)
    check_writable(image_file)
    if image_file is not None:
        image_format(image_file)
    from eve_vl.eve import Eve

    eve = Eve.load(values.pop("run"), values.pop("device"))
    result = getattr(eve, request.name)(**values)
    text = request.lines(result)
    if image_file is not None:
        write_image_row(image_file, request.shown_images(result))
        text = f"{image_file}: {text}"
    print_line(*text.split("\n"))
    if json_file is not None:
        write_json(json_file, request.values(result))
