"""From one declaration of an op: what torch.library knows of it, what serves it, and the function
that is called.

    @op(
        "double(Tensor input) -> Tensor output",
        shapes=_shapes,
        cpu=_cpu,
        triton="double.double_triton",
    )
    def double(input: Tensor) -> Tensor:
        '''`2 * input`. input: [...]. Returns a tensor of its shape.'''
        return 2 * input

The function is the reference: its body is the specification, in plain PyTorch; its signature and
docstring are the public ones. `shapes` checks the arguments, and makes the results without their
numbers. A backend writes the numbers. `shapes` and backends name in their parameters what they
want: arguments and results as the schema calls them, and `layout` for the four arguments of which
one is made (`str kind, Tensor index, int block_h, int block_w`).

An op of many lists is written about one thing that `takes` makes of them: the function and all
that serve it have this one parameter, the public one has those of `takes` (`masked_adamw`).

What is made of these calls them in as few steps as one would by hand, so it is source, as in
`dataclasses`; `source_of("max_pool")` shows it.
"""

import functools
import inspect
import linecache
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

import torch

from . import _native
from ._launcher import launcher
from ._library import HAS_TRITON, define, implement, is_tracked, memory_of, wrote
from ._native import Unserved
from ._rows import as_rows, contiguous
from ._schema import Argument, Schema, parse
from .layout import Layout, as_layout

Function = TypeVar("Function", bound=Callable[..., Any])
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Whole(NamedTuple):
    """A backend that checks its arguments and makes its results itself, and tells autograd of what
    it wrote.
    """

    function: Callable[..., Any]


class Compiled(NamedTuple):
    """The compiled function that is called as the op, and takes its arguments in order, then the
    results and the number of threads.

    rows: its first tensors, which it takes as matrices whose rows are contiguous (`as_rows`); the
    others lie in order.
    """

    rows: tuple[str, ...] = ()


class Op(NamedTuple):
    """What was made of a declaration."""

    schema: Schema
    # "reference", "cpu", "triton", perhaps "cuda": called as torch.library calls its kernels.
    backends: dict[str, Callable[..., Any]]
    public: Callable[..., Any]


OPS: dict[str, Op] = {}
# What the dispatcher takes in the place of a `Layout`, of which the library makes one.
LAYOUT = {"kind": "layout.kind", "index": "layout.index", "block_h": "layout.block_h"}
LAYOUT |= {"block_w": "layout.block_w"}
_SOURCES: dict[str, list[str]] = {}


def reference(name: str) -> Callable[..., Any]:
    """The reference of an op: plain PyTorch, with the checks that every backend makes."""
    return OPS[name].backends["reference"]


def source_of(name: str) -> str:
    """The source of everything that was made for an op."""
    return "\n".join(_SOURCES[name])


@overload
def op(
    schema: str,
    *,
    takes: Callable[Arguments, Any],
    shapes: Any,
    cpu: Any,
    triton: Any,
    cuda: Any = None,
    before: Any = None,
) -> Callable[[Callable[[Any], Result]], Callable[Arguments, Result]]: ...
@overload
def op(
    schema: str, *, shapes: Any, cpu: Any, triton: Any, cuda: Any = None, before: Any = None
) -> Callable[[Function], Function]: ...
def op(
    schema: str,
    *,
    shapes: Callable[..., Any],
    cpu: Callable[..., Any] | Whole | Compiled,
    triton: Callable[..., Any] | Whole | str,
    cuda: Callable[..., Any] | Whole | None = None,
    before: Callable[..., Any] | None = None,
    takes: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Declare the decorated function as an op.

    schema: as `torch.library.define` takes it; results have names.
    shapes: raises the error that names an argument and its value; returns the results, empty.
    cpu, cuda, triton: write the results; cpu is perhaps `Compiled`. `_native.Unserved`, raised
    before anything is written, hands the call on: from CUDA to Triton, from there and the CPU to
    the reference.
    triton: perhaps "file.launcher" of `sparse_ft.kernels`, which takes the arguments in order but
    for the dtype of the result, then the results. before: asked before the dispatcher is.
    takes: makes one thing of the arguments, whose numbers it checks; backends that are given it
    tell autograd what they wrote.

    Raises TypeError for a function whose arguments are not those of the schema.
    """

    def declare(function: Callable[..., Any]) -> Any:
        maker = _Maker(parse(schema), function, takes)
        name, of_dispatcher = maker.schema.name, maker.of_dispatcher
        fake = of_dispatcher(maker.fake(shapes))
        plainly = maker.reference(shapes)
        launch = launcher(triton) if isinstance(triton, str) else triton
        made = {"reference": plainly, "cpu": maker.backend("cpu", shapes, cpu, plainly)}
        made["triton"] = maker.backend("triton", shapes, launch, plainly)
        if cuda is not None:
            otherwise = made["triton"] if HAS_TRITON else plainly
            made["cuda"] = maker.backend("cuda", shapes, cuda, otherwise)
        backends = {backend: of_dispatcher(one) for backend, one in made.items()}
        define(schema, fake=fake)
        implement(name, **backends)
        on_cpu = plainly if _native.C is None else made["cpu"]
        public = maker.public(on_cpu, _on_gpu(made), before)
        OPS[name] = Op(maker.schema, backends, public)
        return public

    return declare


def _on_gpu(made: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """What serves an op on a GPU, as `_library.implement` chooses."""
    if "cuda" in made and _native.CUDA:
        return made["cuda"]
    return made["triton"] if HAS_TRITON else made["reference"]


class _Maker:
    """Writes the functions of one op.

    function: the decorated one. Inside of what is written there is a `layout` where the op takes
    one, and the dispatcher's four arguments are its parts; or there is what `takes` makes of all
    arguments, under the name that the function has for it.
    """

    def __init__(
        self, schema: Schema, function: Callable[..., Any], takes: Callable[..., Any] | None = None
    ):
        self.schema, self.function, self.takes = schema, function, takes
        self.names = [argument.name for argument in schema.arguments]
        self.taken = list(inspect.signature(function).parameters)[0] if takes else ""
        self.has_layout = not takes and LAYOUT.keys() <= set(self.names)
        # How what is written has what a function may ask for.
        arguments = [self.taken] if takes else self.names
        self.known = {name: name for name in [*arguments, *schema.results]}
        if self.has_layout:
            self.known |= {**LAYOUT, "layout": "layout"}
        declared = list(inspect.signature(takes or function).parameters)
        if declared != self.names:
            raise TypeError(
                f"{schema.name}: the schema has the arguments {self.names}, the function {declared}"
            )

    def fake(self, shapes: Callable[..., Any]) -> Callable[..., Any]:
        lines = [f"return {self._call('shapes', shapes)}"]
        return self._make("fake", lines, shapes=shapes)

    def reference(self, shapes: Callable[..., Any]) -> Callable[..., Any]:
        body = self.function
        lines = [self._call("shapes", shapes), f"return {self._call('body', body)}"]
        return self._make("reference", lines, shapes=shapes, body=body)

    def backend(
        self,
        device: str,
        shapes: Callable[..., Any],
        launch: Callable[..., Any] | Whole | Compiled,
        otherwise: Callable[..., Any],
    ) -> Callable[..., Any]:
        """What serves the op on a device."""
        results = ", ".join(self.schema.results)
        makes_results = isinstance(launch, Whole)
        made = self._call("shapes", shapes)
        if isinstance(launch, Compiled):
            function = getattr(_native.C, self.schema.name, None)
            called = self._call_of_compiled(launch.rows)
        else:
            function = launch.function if isinstance(launch, Whole) else launch
            called = self._call("launch", function)
        if results and makes_results:
            called = f"{results} = {called}"
        if results and not makes_results:
            made = f"{results} = {made}"
        lines = [] if makes_results else [made]
        lines += ["try:"]
        lines += ["    layout.of_triton()"] if self.has_layout and device == "triton" else []
        lines += [f"    {called}", "except Unserved:"]
        lines += [f"    return {self._call('otherwise', otherwise)}"]
        lines += self._tell_autograd()
        lines += [f"return {results}"] if results else []
        return self._make(device, lines, shapes=shapes, launch=function, otherwise=otherwise)

    def of_dispatcher(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that was made, as torch.library calls it."""
        if self.takes:
            lines = [f"{self.taken} = takes({self._in_order()})"]
        elif self.has_layout:
            lines = ["layout = as_layout(kind, index, block_h, block_w)"]
        else:
            return function
        lines += [f"return {self._call('function', function)}"]
        suffix = function.__name__.rpartition("_")[2]
        return self._make(f"{suffix}_", lines, function=function, takes=self.takes)

    def public(
        self,
        on_cpu: Callable[..., Any],
        on_gpu: Callable[..., Any],
        before: Callable[..., Any] | None,
    ) -> Callable[..., Any]:
        """The function that is called: round the dispatcher where nobody would miss it, who takes 3
        µs, and 30 for lists of tensors.
        """
        tensors = [argument for argument in self.schema.arguments if argument.is_tensor]
        surely = _tuple(self._spread(each) for each in tensors if not each.is_optional)
        perhaps = _tuple(self._spread(each) for each in tensors if each.is_optional)
        given = f"{surely}, {perhaps}" if perhaps != "()" else surely
        lines = []
        if self.has_layout:
            made = "as_layout(kind, index, block_h, block_w)"
            lines += [f"layout = kind if type(kind) is Layout else {made}"]
        in_order = self._in_order()
        lines += [
            f"memory = memory_of({given})",
            f"if memory and not (is_grad_enabled() and is_tracked({given})):",
            f"    if memory == 'cpu': return {self._direct('on_cpu', on_cpu)}",
            f"    return {self._direct('on_gpu', on_gpu)}",
        ]
        if before is not None:
            known = {name: name for name in self.names} if self.takes else self.known
            lines += [self._call("before", before, known)]
        dispatched = getattr(torch.ops.sparse_ft, self.schema.name)
        lines += [f"return dispatched({in_order})"]
        names = dict(on_cpu=on_cpu, on_gpu=on_gpu, before=before, dispatched=dispatched)
        names |= dict(takes=self.takes)
        public = self._make("", lines, **names)
        signed = self.takes or self.function
        public.__defaults__ = signed.__defaults__  # type: ignore[attr-defined]
        public.__kwdefaults__ = signed.__kwdefaults__  # type: ignore[attr-defined]
        functools.update_wrapper(public, self.function)
        if self.takes:  # the signature is not that of the function
            del public.__wrapped__  # type: ignore[attr-defined]
            returned = self.function.__annotations__["return"]
            public.__annotations__ = {**self.takes.__annotations__, "return": returned}
        return public

    def _direct(self, called: str, backend: Callable[..., Any]) -> str:
        """The text of a call of what serves the op, without the dispatcher."""
        if self.takes:
            return f"{called}(takes({self._in_order()}))"
        return self._call(called, backend)

    def _call(
        self, called: str, function: Callable[..., Any], known: dict[str, str] | None = None
    ) -> str:
        """The text of a call that hands a function what it names of what is `known`; everything, if
        it names nothing of its own.
        """
        known = self.known if known is None else known
        parameters = inspect.signature(function).parameters.values()
        if any(each.kind is each.VAR_POSITIONAL for each in parameters):
            return self._call_of_launcher(called)
        needed = {each.name for each in parameters if each.default is each.empty}
        if needed - known.keys():
            unknown = sorted(needed - known.keys())
            raise TypeError(f"{self.schema.name}: {function.__name__} asks for {unknown}")
        wanted = [each for each in parameters if each.name in known]
        handed = [_prefix(each) + known[each.name] for each in wanted]
        return f"{called}({', '.join(handed)})"

    def _call_of_launcher(self, called: str) -> str:
        arguments = [each for each in self.schema.arguments if each.type != "ScalarType?"]
        positional = [self.known[each.name] for each in arguments if not each.is_keyword]
        keywords = [f"{each.name}={each.name}" for each in arguments if each.is_keyword]
        return f"{called}({', '.join([*positional, *self.schema.results, *keywords])})"

    def _call_of_compiled(self, rows: tuple[str, ...]) -> str:
        given = [f"*as_rows({', '.join(rows)})"] if rows else []
        for argument in self.schema.arguments:
            if argument.name in rows or argument.is_keyword:  # a keyword is of the results
                continue
            name = argument.name
            given.append(f"contiguous({name})" if argument.is_tensor else name)
        return f"launch({', '.join([*given, *self.schema.results, 'get_num_threads()'])})"

    def _in_order(self) -> str:
        """All arguments, as the dispatcher takes them."""
        return ", ".join(
            f"{each.name}={each.name}" if each.is_keyword else self.known.get(each.name, each.name)
            for each in self.schema.arguments
        )

    def _tell_autograd(self) -> list[str]:
        if self.takes:
            return []
        written = ", ".join(self._spread(argument) for argument in self.schema.written)
        return [f"wrote({written})"] if written else []

    def _spread(self, argument: Argument) -> str:
        """The text of one or more tensors among others."""
        if not argument.is_list:
            return self.known.get(argument.name, argument.name)
        return f"*({argument.name} or ())" if argument.is_optional else f"*{argument.name}"

    def _parameters(self, *, with_layout: bool, with_defaults: bool) -> str:
        """The parameters of a function that was made; the dispatcher leaves defaults out."""
        if self.takes and with_layout:
            return self.taken
        texts = []
        for argument in self.schema.arguments:
            if with_layout and self.has_layout and argument.name in LAYOUT:
                texts += ["layout"] if argument.name == "kind" else []
                continue
            if argument.is_keyword and "*" not in texts:
                texts.append("*")
            has_default = with_defaults and argument.default is not None
            texts.append(f"{argument.name}={argument.default}" if has_default else argument.name)
        return ", ".join(texts)

    def _make(self, suffix: str, lines: list[str], **names: Any) -> Callable[..., Any]:
        """A function of the op's arguments: `lines`, which know `names`.

        suffix: "" for the public one, which is given its defaults; "_" at the end of the
        dispatcher's.
        """
        name = "_".join(filter(None, [self.schema.name.removesuffix("_"), suffix]))
        with_layout = bool(suffix) and not suffix.endswith("_")
        parameters = self._parameters(with_layout=with_layout, with_defaults=bool(suffix))
        source = "\n    ".join([f"def {name}({parameters}):", *lines]) + "\n"
        file = f"<sparse_ft.ops: {self.schema.name}, {suffix or 'public'}>"
        known = dict(
            Layout=Layout,
            Unserved=Unserved,
            as_layout=as_layout,
            as_rows=as_rows,
            contiguous=contiguous,
            get_num_threads=torch.get_num_threads,
            is_grad_enabled=torch.is_grad_enabled,
            is_tracked=is_tracked,
            memory_of=memory_of,
            wrote=wrote,
            **names,
        )
        exec(compile(source, file, "exec"), known)
        # So that tracebacks and debuggers show the lines.
        linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
        _SOURCES.setdefault(self.schema.name, []).append(source)
        return known[name]


def _prefix(parameter: inspect.Parameter) -> str:
    return f"{parameter.name}=" if parameter.kind is parameter.KEYWORD_ONLY else ""


def _tuple(texts: Any) -> str:
    """The text of a tuple."""
    listed = list(texts)
    return f"({listed[0]},)" if len(listed) == 1 else f"({', '.join(listed)})"
