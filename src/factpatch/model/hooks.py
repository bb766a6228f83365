"""Read activations, or start a forward pass in the middle of the model. Whatever is put on a model here comes off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

K = TypeVar("K")
_HIDDEN = "hidden_states"  # what transformers calls the input of a block


class _Reached(Exception):  # noqa: N818 (a signal, not an error)
    """Raised inside a forward pass when nothing above is needed."""


def first_tensor(output: Any) -> Tensor:
    """A module's main output: some blocks return a tuple whose first member it is."""
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


@contextmanager
def captured(
    inputs: Mapping[K, nn.Module] | None = None,
    outputs: Mapping[K, nn.Module] | None = None,
    stop_after: nn.Module | None = None,
) -> Iterator[dict[K, Tensor]]:
    """Collect the inputs or the outputs of modules during the forward passes made inside the context.

    With `stop_after`, a forward pass ends as soon as that module has run, and the context swallows the interruption:
    the statement that ran the model must be the last one inside the context.
    """
    found: dict[K, Tensor] = {}
    handles = []

    def keep_input(name: K) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[name] = (args[0] if args else kwargs[_HIDDEN]).detach()

        return hook

    def keep_output(name: K) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found[name] = first_tensor(output).detach()

        return hook

    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise _Reached

    try:
        for name, module in (inputs or {}).items():
            handles.append(module.register_forward_pre_hook(keep_input(name), with_kwargs=True))
        for name, module in (outputs or {}).items():
            handles.append(module.register_forward_hook(keep_output(name)))
        if stop_after is not None:
            handles.append(stop_after.register_forward_hook(stop))
        yield found
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()


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
        blocks: all blocks of the model, in order.
        layer: the block whose output is given; -1 for the input of the first block, which then runs.
        hidden: (rows, tokens, d_value).
        tuples: whether the blocks of this model return a tuple.
    """

    def give(*args: Any, **kwargs: Any) -> Any:
        return (hidden, None) if tuples else hidden

    def put_in(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, _HIDDEN: hidden})

    entrance = blocks[0].register_forward_pre_hook(put_in, with_kwargs=True) if layer < 0 else None
    try:
        with shadowed((block, "forward", give) for block in blocks[: layer + 1]):
            yield
    finally:
        if entrance is not None:
            entrance.remove()


@contextmanager
def adding(modules: Sequence[nn.Module], places: Tensor, shifts: Tensor) -> Iterator[None]:
    """Add something to some tokens of modules' outputs, summed in the dtype of what is added.

    Args:
        modules: blocks, attention modules or MLPs that run on one sequence.
        places: (n,): which tokens.
        shifts: (n, modules, d_value).
    """

    def adder(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return _changed(output, places, lambda found: found.to(shifts.dtype) + shifts[:, index].to(found.device))

        return hook

    handles = [module.register_forward_hook(adder(index)) for index, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replacing(outputs: Iterable[tuple[nn.Module, Tensor]], places: Tensor) -> Iterator[None]:
    """Put something in the place of modules' outputs for some tokens.

    Args:
        outputs: attention modules or MLPs that run on one sequence, each with what it is to put out, (n, d_value).
        places: (n,): for which tokens.
    """

    def replacer(given: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return _changed(output, places, lambda found: given.to(found.device))

        return hook

    handles = []
    try:
        for module, given in outputs:
            handles.append(module.register_forward_hook(replacer(given)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def only_at(modules: Iterable[tuple[nn.Module, Tensor]]) -> Iterator[None]:
    """Let modules that work on every token by itself run for some tokens only; for the others they put out zeros.

    Args:
        modules: MLPs that run on one sequence, and read nothing of a token but its hidden state; each with the tokens,
            (n,).
    """

    # The first hook of a module leaves the shape for the second.
    def picker(places: Tensor, shapes: list[tuple[int, ...]]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[0] if args else kwargs[_HIDDEN]
            shapes.append(given.shape[:-1])
            tokens = given.reshape(-1, given.shape[-1])[places.to(given.device)]
            picked = tokens.reshape(*[1] * (given.dim() - 2), *tokens.shape)
            return ((picked, *args[1:]), kwargs) if args else ((), {**kwargs, _HIDDEN: picked})

        return hook

    def spreader(places: Tensor, shapes: list[tuple[int, ...]]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            found = first_tensor(output)
            whole = found.new_zeros((*shapes.pop(), found.shape[-1]))
            whole.view(-1, found.shape[-1])[places.to(found.device)] = found.reshape(-1, found.shape[-1])
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        return hook

    handles = []
    try:
        for module, places in modules:
            shapes: list[tuple[int, ...]] = []
            handles.append(module.register_forward_pre_hook(picker(places, shapes), with_kwargs=True))
            handles.append(module.register_forward_hook(spreader(places, shapes)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changed(output: Any, places: Tensor, change: Callable[[Tensor], Tensor]) -> Any:
    """A module's output with some tokens changed, of one sequence."""
    found = first_tensor(output)
    tokens = found.reshape(-1, found.shape[-1])
    at = places.to(found.device)
    changed = tokens.index_copy(0, at, change(tokens[at]).to(found.dtype)).reshape(found.shape)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


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
