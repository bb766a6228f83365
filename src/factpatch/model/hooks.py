"""Read or change activations, or start a forward pass in the middle of the model; afterwards the model is as before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

from torch import Tensor, nn

from factpatch.model.experts import Routed, is_experts

K = TypeVar("K")
Hook = Callable[..., Any]
_HIDDEN = "hidden_states"  # what transformers calls the input of a block


class _Reached(Exception):  # noqa: N818 (a signal, not an error)
    """Raised inside a forward pass when nothing above is needed."""


def first_tensor(output: Any) -> Tensor:
    """Return a module's main output: some blocks return a tuple whose first member it is."""
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def main_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The main input in the arguments of a module."""
    return args[0] if args else kwargs[_HIDDEN]


def _with_input(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a module with another main input."""
    return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, _HIDDEN: hidden})


def _with_output(found: Tensor, output: Any) -> Any:
    """The output of a module with another main output."""
    return (found, *output[1:]) if isinstance(output, tuple) else found


def _read_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The main input, and of a module of experts also where each token is sent."""
    return Routed.of(module, args, kwargs) if is_experts(module) else main_input(args, kwargs).detach()


@contextmanager
def _hooked(
    before: Iterable[tuple[nn.Module, Hook]] = (), after: Iterable[tuple[nn.Module, Hook]] = ()
) -> Iterator[None]:
    """Call hooks (module, args, kwargs) before modules run, and hooks (module, args, output) after."""
    with ExitStack() as handles:
        for module, hook in before:
            handles.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        for module, hook in after:
            handles.enter_context(module.register_forward_hook(hook))
        yield


@contextmanager
def unhooked(model: nn.Module) -> Iterator[None]:
    """Let no hook of a module act; all are back afterwards, in their order."""
    kept = [(module, module._forward_pre_hooks, module._forward_hooks) for module in model.modules()]
    try:
        for module, _, _ in kept:
            module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for module, before, after in kept:
            module._forward_pre_hooks, module._forward_hooks = before, after


@contextmanager
def captured(
    inputs: Mapping[K, nn.Module] | None = None,
    outputs: Mapping[K, nn.Module] | None = None,
    stop_after: nn.Module | None = None,
    stop_at: nn.Module | None = None,
) -> Iterator[dict[K, Tensor]]:
    """Collect the inputs or the outputs of modules during the forward passes made inside the context.

    With `stop_after`, a forward pass ends as soon as that module has run, with `stop_at` as soon as it has its input,
    and the context swallows the interruption: the statement that ran the model must be the last one inside the context.
    """
    found: dict[K, Tensor] = {}

    def keep_input(name: K) -> Hook:
        return lambda module, args, kwargs: found.update({name: _read_input(module, args, kwargs)})

    def keep_output(name: K) -> Hook:
        return lambda module, args, output: found.update({name: first_tensor(output).detach()})

    def stop(*_: Any) -> None:
        raise _Reached

    before = [(module, keep_input(name)) for name, module in (inputs or {}).items()]
    after = [(module, keep_output(name)) for name, module in (outputs or {}).items()]
    if stop_after is not None:
        after.append((stop_after, stop))
    if stop_at is not None:
        before.append((stop_at, stop))
    with _hooked(before, after), suppress(_Reached):
        yield found


@contextmanager
def shadowed(replacements: Iterable[tuple[nn.Module, str, Callable[..., Any]]]) -> Iterator[None]:
    """Replace methods of single modules: (module, name of the method, what to call instead).

    An attribute of the instance shadows the class's method. accelerate places its own hooks the same way, so that there
    may be one already; it is put back.
    """
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        for module, name, function in replacements:
            before.append((module, name, module.__dict__.get(name)))
            setattr(module, name, function)
        yield
    finally:
        for module, name, present in reversed(before):
            if present is None:
                module.__dict__.pop(name, None)
            else:
                setattr(module, name, present)


@contextmanager
def starting_after(blocks: Sequence[nn.Module], layer: int, hidden: Tensor, tuples: bool) -> Iterator[None]:
    """Let forward passes begin with `hidden` as the output of block `layer`; the blocks up to there do not run.

    Args:
        blocks: All blocks of the model, in order.
        layer: -1 for the input of the first block, which then runs.
        hidden: (rows, tokens, d_value).
        tuples: Whether the blocks of this model return a tuple.
    """

    def give(*args: Any, **kwargs: Any) -> Any:
        return (hidden, None) if tuples else hidden

    entrance = [(blocks[0], lambda module, args, kwargs: _with_input(hidden, args, kwargs))] if layer < 0 else []
    with _hooked(entrance), shadowed((block, "forward", give) for block in blocks[: layer + 1]):
        yield


@contextmanager
def adding(modules: Sequence[nn.Module], places: Tensor, shifts: Tensor) -> Iterator[None]:
    """Add shifts, (n, modules, d_value), to modules' outputs for n tokens of one sequence, in the shifts' dtype."""

    def adder(index: int) -> Hook:
        return lambda module, args, output: _changed(
            output, places, lambda found: found.to(shifts.dtype) + shifts[:, index].to(found.device)
        )

    with _hooked(after=[(module, adder(index)) for index, module in enumerate(modules)]):
        yield


@contextmanager
def replacing(outputs: Iterable[tuple[nn.Module, Tensor]], places: Tensor) -> Iterator[None]:
    """Replace the modules' outputs for n tokens of one sequence, each by its own (n, d_value)."""

    def replacer(given: Tensor) -> Hook:
        return lambda module, args, output: _changed(output, places, lambda found: given.to(found.device))

    with _hooked(after=[(module, replacer(given)) for module, given in outputs]):
        yield


def _changed(output: Any, places: Tensor, change: Callable[[Tensor], Tensor]) -> Any:
    """A module's output with some tokens changed, of one sequence."""
    found = first_tensor(output)
    tokens = found.reshape(-1, found.shape[-1])
    at = places.to(found.device)
    changed = tokens.index_copy(0, at, change(tokens[at]).to(found.dtype)).reshape(found.shape)
    return _with_output(changed, output)


@contextmanager
def only_at(modules: Iterable[tuple[nn.Module, Tensor]]) -> Iterator[None]:
    """Let MLPs run for some tokens of one sequence only, given for each; for the others they return zeros.

    They must read nothing of a token but its hidden state.
    """

    # The first hook of a module leaves the shape for the second.
    def picker(places: Tensor, shapes: list[tuple[int, ...]]) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = main_input(args, kwargs)
            shapes.append(given.shape[:-1])
            tokens = given.reshape(-1, given.shape[-1])[places.to(given.device)]
            return _with_input(tokens.reshape(*[1] * (given.dim() - 2), *tokens.shape), args, kwargs)

        return hook

    def spreader(places: Tensor, shapes: list[tuple[int, ...]]) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            found = first_tensor(output)
            whole = found.new_zeros((*shapes.pop(), found.shape[-1]))
            whole.view(-1, found.shape[-1])[places.to(found.device)] = found.reshape(-1, found.shape[-1])
            return _with_output(whole, output)

        return hook

    before, after = [], []
    for module, places in modules:
        shapes: list[tuple[int, ...]] = []
        before.append((module, picker(places, shapes)))
        after.append((module, spreader(places, shapes)))
    with _hooked(before, after):
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inference mode for the parameters: no dropout and no parameter gradients; both are restored afterwards."""
    was_training = [module for module in model.modules() if module.training]
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in was_training:
            module.training = True
        for parameter in required:
            parameter.requires_grad_(True)


@contextmanager
def masked_attention(model: Any) -> Iterator[None]:
    """Make sure that attention honors a given mask: flash and flex kernels do not take one of our shape."""
    implementation = getattr(model.config, "_attn_implementation", "eager")
    if implementation in ("eager", "sdpa"):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
